//! What was opened, compared with what is asked for.

use super::compare::{compare, Remedy};
use super::options::EndpointOptions;
use super::table::ROWS;
use super::*;
use rustix::fs::fstat;
use rustix::net::{getsockname, shutdown, Shutdown};
use std::fs::{remove_file, rename};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

pub(super) const BIND: Policy<'_> = Policy { replace: false, unasked: Unasked::Reset(&[]) };

pub(super) fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub(super) fn options(text: &str) -> EndpointOptions {
    EndpointOptions::of_toml(&text.parse().unwrap(), |key, _| key.to_owned()).unwrap()
}

pub(super) fn open(text: &str) -> OwnedFd {
    endpoint(text).open(&EndpointOptions::default()).unwrap()
}

/// The names of what differs.
pub(super) fn differences(text: &str, said: &str, fd: &OwnedFd) -> Vec<&'static str> {
    let all = compare(&endpoint(text), &options(said), fd);
    all.into_iter().map(|difference| difference.name).collect()
}

pub(super) fn settle_by(
    text: &str,
    said: &str,
    fd: &OwnedFd,
    policy: Policy<'_>,
) -> Result<Settled, NotSettled> {
    settle(&endpoint(text), &options(said), fd, policy, None)
}

/// With the port that it got.
pub(super) fn with_port(text: &str, fd: &OwnedFd) -> String {
    let port = SocketAddr::try_from(getsockname(fd).unwrap()).unwrap().port();
    format!("{}{port}", text.strip_suffix('0').unwrap())
}

/// An endpoint of each kind.
fn of_each_kind(folder: &Path) -> Vec<String> {
    let at = |scheme: &str, name: &str| format!("{scheme}:{}/{name}", folder.display());
    let abstract_name = |scheme: &str| {
        format!("{scheme}:@fdholder-test-{scheme}-{}", folder.file_name().unwrap().display())
    };
    let mut texts = vec![
        "tcp:127.0.0.1:0".to_owned(),
        "tcp:[::1]:0".to_owned(),
        "udp:127.0.0.1:0".to_owned(),
        at("unix", "stream"),
        at("unix-dgram", "dgram"),
        at("unix-seqpacket", "seqpacket"),
        abstract_name("unix"),
        abstract_name("unix-dgram"),
        abstract_name("unix-seqpacket"),
        at("fifo", "fifo"),
        "memfd:state".to_owned(),
        "memfd:other".to_owned(),
    ];
    // A kernel may be without them.
    let rare = ["mptcp:127.0.0.1:0".to_owned(), format!("vsock::{}", std::process::id())];
    let is_known = |text: &String| endpoint(text).open(&EndpointOptions::default()).is_ok();
    texts.extend(rare.into_iter().filter(is_known));
    texts
}

#[test]
fn opened_endpoint_differs_from_every_other_and_not_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let texts = of_each_kind(folder.path());
    let opened: Vec<_> = texts.iter().map(|text| open(text)).collect();
    for (i, fd) in opened.iter().enumerate() {
        for (j, text) in texts.iter().enumerate() {
            let found = differences(text, "", fd);
            assert_eq!(found.is_empty(), i == j, "{} {text}: {found:?}", texts[i]);
        }
    }
}

#[test]
fn address_is_compared_whole() {
    let fd = open("tcp:127.0.0.1:0");
    let text = with_port("tcp:127.0.0.1:0", &fd);
    let port = text.rsplit_once(':').unwrap().1;
    assert!(differences(&text, "", &fd).is_empty());
    assert_eq!(differences("tcp:127.0.0.1:1", "", &fd), ["another address"]);
    assert_eq!(differences(&format!("tcp:0.0.0.0:{port}"), "", &fd), ["another address"]);
    assert_eq!(differences(&format!("mptcp:127.0.0.1:{port}"), "", &fd), ["protocol"]);
    // A connection is no listener at its address.
    let client: OwnedFd = TcpStream::connect(text.strip_prefix("tcp:").unwrap()).unwrap().into();
    assert_eq!(differences("tcp:127.0.0.1:0", "", &client), ["another kind"]);

    let local = |scope: u32| format!("[fe80::1%{scope}]:0").parse().unwrap();
    let address = |address| Endpoint::Ip { protocol: IpProtocol::Udp, address };
    let on_lo = open_local();
    let Some(on_lo) = on_lo else { return };
    assert!(!address(local(7)).is_address_of(&on_lo));
}

/// A socket with an address of one interface, if this machine has such an address.
fn open_local() -> Option<OwnedFd> {
    let options = options("freebind = true");
    "udp:[fe80::1%lo]:0".parse::<Endpoint>().ok()?.open(&options).ok()
}

/// Of each option: an endpoint, a value, and whether it can be changed on the socket.
const OPTIONS: [(&str, &str, &str, bool); 26] = [
    ("backlog", "tcp:127.0.0.1:0", "7", true),
    ("backlog", "unix:PLACE", "7", true),
    ("mode", "unix:PLACE", "'0640'", true),
    ("owner", "fifo:PLACE", "'7:8'", true),
    ("nonblock", "fifo:PLACE", "true", true),
    ("reuseport", "tcp:127.0.0.1:0", "true", true),
    ("ipv6only", "tcp:[::]:0", "true", false),
    ("fastopen", "tcp:127.0.0.1:0", "5", true),
    ("freebind", "udp:[::1]:0", "true", true),
    ("device", "tcp:0.0.0.0:0", "'lo'", false),
    ("transparent", "tcp:127.0.0.1:0", "true", true),
    ("mark", "udp:127.0.0.1:0", "0xffffffff", true),
    ("tos", "tcp:127.0.0.1:0", "'low-delay'", true),
    ("ttl", "tcp:[::1]:0", "9", true),
    ("priority", "udp:127.0.0.1:0", "3", true),
    ("keepalive", "tcp:127.0.0.1:0", "true", true),
    ("keepalive-time", "tcp:127.0.0.1:0", "77", true),
    ("keepalive-interval", "tcp:127.0.0.1:0", "7", true),
    ("keepalive-probes", "tcp:127.0.0.1:0", "5", true),
    ("nodelay", "tcp:127.0.0.1:0", "true", true),
    ("defer-accept", "tcp:127.0.0.1:0", "5", true),
    ("receive-buffer", "udp:127.0.0.1:0", "'64K'", true),
    ("send-buffer", "unix-dgram:PLACE", "65536", true),
    ("broadcast", "udp:127.0.0.1:0", "true", true),
    ("pktinfo", "udp:[::1]:0", "true", true),
    ("passcred", "unix:PLACE", "true", true),
];

/// There and back: what is said is set, or refused by its name; and so when it is not said again.
#[test]
fn every_option_that_changed_is_set_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let as_mptcp = OPTIONS.into_iter().filter(|(_, text, ..)| text.starts_with("tcp:"));
    let as_mptcp = as_mptcp.map(|(name, text, value, is_changeable)| {
        (name, format!("mp{text}"), value, is_changeable)
    });
    let place = |number| folder.path().join(format!("{number}"));
    let all = OPTIONS.into_iter().enumerate().map(|(number, (name, text, value, changeable))| {
        (name, text.replace("PLACE", place(number).to_str().unwrap()), value, changeable)
    });
    for (name, text, value, is_changeable) in all.chain(as_mptcp) {
        let said = format!("{name} = {value}");
        let new = match endpoint(&text).open(&options(&said)) {
            Ok(new) => new,
            // Not for everybody, and not in every kernel or protocol.
            Err(error)
                if ["not permitted", "not supported", "not available"]
                    .iter()
                    .any(|why| error.to_string().contains(why)) =>
            {
                eprintln!("left out: {said} on {text}: {error}");
                continue;
            }
            Err(error) => panic!("{said}: {error}"),
        };
        // As it was opened, so it is.
        assert_eq!(differences(&text, &said, &new), <[&str; 0]>::default(), "{said}");
        let expected: &[_] = match name {
            "mode" | "owner" => &[],
            // The kernel sets the one with the other.
            "tos" => &["tos", "priority"],
            _ => &[name],
        };
        assert_eq!(differences(&text, "", &new), expected, "{said}, then nothing");
        drop(new);
        if let Some(file) = endpoint(&text).file() {
            remove_file(file).unwrap();
        }

        let held = open(&text);
        assert_eq!(differences(&text, &said, &held), [name], "{said}");
        let settled = settle_by(&text, &said, &held, BIND);
        if is_changeable {
            let Ok(Settled::Held(notes)) = settled else { panic!("{said}: {settled:?}") };
            assert!(notes[0].starts_with(&format!("{name} changed from ")), "{notes:?}");
            assert_eq!(differences(&text, &said, &held), <[&str; 0]>::default(), "{said}");
        } else {
            let Err(NotSettled::Differs(what)) = settled else { panic!("{said}: {settled:?}") };
            assert!(what.contains(&format!(" with {name} ")), "{what}");
        }
        // A second time there is nothing to do.
        if let Ok(Settled::Held(notes)) = settle_by(&text, &said, &held, BIND) {
            assert_eq!(notes, <[String; 0]>::default(), "{said}");
        }
        // Other users do not see that no program has it.
        if is_changeable && rustix::process::geteuid().is_root() {
            let settled = settle_by(&text, "", &held, BIND);
            assert!(matches!(settled, Ok(Settled::Held(_))), "{said}: {settled:?}");
            assert_eq!(differences(&text, "", &held), <[&str; 0]>::default(), "{said}");
        }
    }
    for row in &ROWS {
        assert!(OPTIONS.iter().any(|(name, ..)| *name == row.name), "{row:?} is not tried");
    }
}

/// Others may have set it for themselves.
#[test]
fn option_that_was_not_said_is_left_where_it_is_not_to_be_reset() {
    let held = endpoint("tcp:127.0.0.1:0").open(&options("nonblock = true")).unwrap();
    let policy = Policy { replace: false, unasked: Unasked::Stays };
    let settled = settle_by("tcp:127.0.0.1:0", "", &held, policy);
    assert!(matches!(settled, Ok(Settled::Held(notes)) if notes.is_empty()));
    let says = Policy { unasked: Unasked::IsSaid, ..policy };
    let Ok(Settled::Held(notes)) = settle_by("tcp:127.0.0.1:0", "", &held, says) else { panic!() };
    assert_eq!(notes, ["nonblock stays on, which the file does not say"]);
    let unseen = Policy { unasked: Unasked::Reset(&[u32::MAX]), ..policy };
    let Ok(Settled::Held(notes)) = settle_by("tcp:127.0.0.1:0", "", &held, unseen) else {
        panic!()
    };
    let why = "unable to see whether a program has it open";
    assert_eq!(notes, [format!("nonblock stays on, which nobody asked for: {why}")]);
    assert_eq!(differences("tcp:127.0.0.1:0", "", &held), ["nonblock"]);
    let settled = settle_by("tcp:127.0.0.1:0", "nonblock = false", &held, policy);
    assert!(matches!(settled, Ok(Settled::Held(notes)) if notes.len() == 1));
    assert!(differences("tcp:127.0.0.1:0", "", &held).is_empty());
}

#[test]
fn limit_of_the_kernel_is_said() {
    let text = "tcp:127.0.0.1:0";
    let held = open(text);
    let Ok(Settled::Held(notes)) = settle_by(text, "backlog = 4000000000", &held, BIND) else {
        panic!("it is held");
    };
    assert!(notes.last().unwrap().contains("net.core.somaxconn allows no more"), "{notes:?}");
    let new = endpoint(text).open(&options("backlog = 4000000000")).unwrap();
    assert_eq!(limits(&endpoint(text), &options("backlog = 4000000000"), &new).len(), 1);
    assert_eq!(limits(&endpoint(text), &options("backlog = 4"), &new).len(), 0);
}

/// What is found, and how it is mended: a socket is its own number.
#[test]
fn socket_that_is_shut_down_is_mended_or_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    for text in of_each_kind(folder.path()) {
        let held = open(&text);
        // What is not connected is shut down though that is an error.
        if shutdown(&held, Shutdown::Both).err() == Some(fdholder::Errno::NOTSOCK) {
            continue;
        }
        let text = if endpoint(&text).is_in_the_way_of(&held) || text.starts_with("vsock") {
            text
        } else {
            with_port(&text, &held)
        };
        let found = compare(&endpoint(&text), &EndpointOptions::default(), &held);
        if text.starts_with("vsock") && found.is_empty() {
            continue; // It listens on.
        }
        match (settle_by(&text, "", &held, BIND), &found[0].remedy) {
            (Ok(Settled::Held(notes)), Remedy::Listen(_)) => {
                assert!(notes[0].contains("listens again"), "{text}: {notes:?}");
                assert!(differences(&text, "", &held).is_empty(), "{text}");
            }
            (Ok(Settled::Replaced(new, why)), Remedy::Lost) => {
                assert_eq!(why.as_deref(), Some("it was shut down"), "{text}");
                assert!(differences(&text, "", &new).is_empty(), "{text}");
            }
            (Ok(Settled::MustGo(why)), Remedy::Lost) => {
                assert_eq!(why, "it was shut down", "{text}");
                drop(held);
                assert!(differences(&text, "", &open(&text)).is_empty(), "{text}");
            }
            (settled, remedy) => panic!("{text}: {settled:?} {remedy:?}"),
        }
    }
}

/// As a service may have stored it.
#[test]
fn socket_that_never_listened_does_so_now() {
    let folder = tempfile::tempdir().unwrap();
    for text in of_each_kind(folder.path()) {
        let listener = endpoint(&text);
        let Ok(socket) = open::create(&listener) else { continue };
        if !listener.is_listener() {
            continue;
        }
        match &listener {
            Endpoint::Unix { address: UnixAddress::Path(path), .. } => {
                rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap())
                    .unwrap();
            }
            _ => listener.bind(&socket).unwrap(),
        }
        assert_eq!(differences(&text, "", &socket), ["not listening"], "{text}");
        let settled = settle_by(&text, "backlog = 7", &socket, BIND);
        assert!(matches!(settled, Ok(Settled::Held(_))), "{text}: {settled:?}");
        // The kernel does not tell the backlog of vsock.
        let unknown: &[_] = if text.starts_with("vsock") { &["backlog"] } else { &[] };
        assert_eq!(differences(&text, "backlog = 7", &socket), unknown, "{text}");
        let settled = settle_by(&text, "backlog = 7", &socket, BIND);
        assert!(matches!(settled, Ok(Settled::Held(notes)) if notes.is_empty()), "{text}");
    }
}

#[test]
fn port_of_a_listener_that_was_shut_down_stays() {
    // The kernel takes back the port that it gave.
    let held = open("tcp:127.0.0.1:0");
    let text = with_port("tcp:127.0.0.1:0", &held);
    shutdown(&held, Shutdown::Both).unwrap();
    assert!(matches!(settle_by("tcp:127.0.0.1:0", "", &held, BIND), Ok(Settled::Held(_))));
    assert_eq!(with_port("tcp:127.0.0.1:0", &held), text);
    TcpStream::connect(text.strip_prefix("tcp:").unwrap()).unwrap();
}

#[test]
fn datagram_socket_with_a_peer_takes_from_everybody_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let held: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let text = with_port("udp:127.0.0.1:0", &held);
    rustix::net::connect(&held, &"127.0.0.1:9".parse::<SocketAddr>().unwrap()).unwrap();
    assert_eq!(differences(&text, "", &held), ["connected to one peer"]);
    assert!(matches!(settle_by(&text, "", &held, BIND), Ok(Settled::Held(_))));
    assert!(differences(&text, "", &held).is_empty());

    let peer = UnixDatagram::bind(path("peer")).unwrap();
    let text = format!("unix-dgram:{}", path("held").display());
    let held = UnixDatagram::from(open(&text));
    held.connect(path("peer")).unwrap();
    let held = OwnedFd::from(held);
    assert_eq!(differences(&text, "", &held), ["connected to one peer"]);
    assert!(matches!(settle_by(&text, "", &held, BIND), Ok(Settled::Held(_))));
    peer.send_to(b"x", path("held")).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", path("held")).unwrap();
}

/// By the number of the file, not by its name alone.
#[test]
fn file_that_leads_elsewhere_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let aside = folder.path().join("aside");
    for scheme in ["unix", "unix-dgram", "unix-seqpacket", "fifo"] {
        let text = format!("{scheme}:{}", path.display());
        let held = open(&text);
        rename(&path, &aside).unwrap();
        let name = differences(&text, "", &held);
        if scheme == "fifo" {
            // It is at another path now, where it can be opened.
            assert_eq!(name, ["another address"], "{scheme}");
        } else {
            assert_eq!(name, ["its file was removed"], "{scheme}");
        }
        // Back again, it is the same.
        rename(&aside, &path).unwrap();
        assert_eq!(differences(&text, "", &held), <[&str; 0]>::default(), "{scheme}");
        remove_file(&path).unwrap();
        assert_eq!(differences(&text, "", &held), ["its file was removed"], "{scheme}");
        let other = open(&text);
        let found = differences(&text, "", &held);
        assert!(
            ["its file leads to another socket", "another one is in the place of its file"]
                .contains(&found[0]),
            "{scheme}: {found:?}"
        );
        drop(other);
        assert_eq!(differences(&text, "", &held), found, "{scheme}: also when it is dead");
        let Ok(Settled::Replaced(new, _)) = settle_by(&text, "", &held, BIND) else {
            panic!("{scheme}: it is opened anew");
        };
        assert!(differences(&text, "", &new).is_empty(), "{scheme}");
        remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(settle_by(&text, "", &new, BIND), Err(NotSettled::Open(_))), "{scheme}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        remove_file(&path).unwrap();
    }
}

/// A client of a listener on which nobody calls accept(2) is there already.
#[test]
fn queue_of_clients_does_not_hide_where_a_path_leads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let text = format!("unix:{}", path.display());
    let held = open(&text);
    let _client = UnixStream::connect(&path).unwrap();
    assert!(differences(&text, "", &held).is_empty());
    remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    assert_eq!(differences(&text, "", &held), ["its file leads to another socket"]);
    let settled = settle_by(&text, "", &held, Policy { replace: true, ..BIND });
    let Err(NotSettled::Open(OpenError::InUse(problem))) = settled else { panic!("{settled:?}") };
    assert!(problem.contains("listens there"), "{problem}");
    UnixStream::connect(&path).unwrap();
}

/// With both for a moment, so that no client is refused; and none of them shares its address
/// afterwards.
#[test]
fn socket_that_has_the_address_gives_way_to_the_one_in_its_place() {
    let policy = Policy { replace: true, ..BIND };
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/socket", folder.path().display());
    for (text, before, after) in [
        ("tcp:127.0.0.1:0", "device = 'lo'", ""),
        ("tcp:127.0.0.1:0", "", "device = 'lo'"),
        ("tcp:[::]:0", "", "ipv6only = true"),
        ("udp:127.0.0.1:0", "device = 'lo'", ""),
    ] {
        let held = endpoint(text).open(&options(before)).unwrap();
        let text = with_port(text, &held);
        let Ok(Settled::Replaced(new, why)) = settle_by(&text, after, &held, policy) else {
            panic!("{text} {before} {after}");
        };
        assert_eq!(why, None, "it was asked for");
        assert_ne!(fstat(&new).unwrap().st_ino, fstat(&held).unwrap().st_ino);
        assert!(differences(&text, after, &new).is_empty());
        // As it was: nothing else shares it.
        assert!(!differences(&text, before, &held).contains(&"reuseport"));
        assert!(matches!(endpoint(&text).open(&options(after)), Err(OpenError::InUse(_))));
    }
    // Another kind on the same file.
    let held = open(&unix);
    let other = unix.replace("unix:", "unix-dgram:");
    let Ok(Settled::Replaced(new, _)) = settle_by(&other, "", &held, policy) else {
        panic!("it is replaced");
    };
    assert!(differences(&other, "", &new).is_empty());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
