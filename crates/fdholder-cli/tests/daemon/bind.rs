//! `bind` opens what services listen on, once.

use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, stderr, suite, Daemon, Rules, Suite,
};
use fdholder::Limit;
use rustix::fs::{fcntl_getfl, fstat, OFlags};
use rustix::net::getsockname;
use rustix::net::sockopt::{ipv6_v6only, socket_acceptconn, socket_reuseport};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn bind(path: &Path, arguments: &[&str]) -> Output {
    suite::fdholder(["bind", path.to_str().unwrap()]).args(arguments).output().unwrap()
}

fn bind_well(path: &Path, arguments: &[&str]) {
    let output = bind(path, arguments);
    assert_exit(&output, 0);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

fn held(daemon: &Daemon, name: &str) -> OwnedFd {
    daemon.client().retrieve(&id(name), deadline()).unwrap()
}

fn inode(fd: &OwnedFd) -> u64 {
    fstat(fd).unwrap().st_ino
}

fn address(fd: &OwnedFd) -> SocketAddr {
    getsockname(fd).unwrap().try_into().unwrap()
}

#[test]
fn what_is_held_with_that_address_stays() {
    let (folder, daemon) = serve(&[]);
    let unix = format!("unix:{}/web.sock", folder.path().display());
    let fifo = format!("fifo:{}/queue", folder.path().display());
    for (name, endpoint) in [
        ("tcp", "tcp:127.0.0.1:0"),
        ("udp", "udp:127.0.0.1:0"),
        ("unix", &unix),
        ("fifo", &fifo),
        ("memfd", "memfd:state"),
    ] {
        bind_well(&daemon.path, &[name, endpoint]);
        let first = inode(&held(&daemon, name));
        bind_well(&daemon.path, &[name, endpoint]);
        assert_eq!(inode(&held(&daemon, name)), first, "{name}");
    }
    let port = address(&held(&daemon, "tcp")).port();
    bind_well(&daemon.path, &["tcp", &format!("tcp:127.0.0.1:{port}")]);
    UnixStream::connect(folder.path().join("web.sock")).unwrap();
}

#[test]
fn another_address_is_an_error_unless_it_is_to_be_replaced() {
    let (_folder, daemon) = serve(&[]);
    bind_well(&daemon.path, &["web", "tcp:127.0.0.1:0"]);
    let first = held(&daemon, "web");
    let output = bind(&daemon.path, &["web", "udp:127.0.0.1:0"]);
    assert_exit(&output, 1);
    assert_eq!(
        stderr(&output),
        format!(
            "fdholder bind: fatal: unable to bind web to udp:127.0.0.1:0: held under it is TCP \
             listener {}: --replace replaces it, delete removes it\n",
            address(&first)
        )
    );
    let before = inode(&first);
    assert_eq!(inode(&held(&daemon, "web")), before);
    drop(first);
    bind_well(&daemon.path, &["--replace", "web", "udp:127.0.0.1:0"]);
    assert_ne!(inode(&held(&daemon, "web")), before);
    assert_eq!(socket_acceptconn(held(&daemon, "web")), Ok(false));
}

/// What cannot be opened does not cost what is held.
#[test]
fn a_replacement_that_cannot_be_opened_leaves_what_is_held() {
    let (_folder, daemon) = serve(&[]);
    bind_well(&daemon.path, &["web", "tcp:127.0.0.1:0"]);
    let first = inode(&held(&daemon, "web"));
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp:{}", other.local_addr().unwrap());
    let output = bind(&daemon.path, &["--replace", "web", &taken]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("Address already in use"), "{output:?}");
    assert!(stderr(&output).contains("web stays"), "{output:?}");
    assert_eq!(inode(&held(&daemon, "web")), first);
}

/// The right to give sets is not needed to replace.
#[test]
fn who_may_only_store_can_replace() {
    let folder = tempfile::tempdir().unwrap();
    let rules =
        Rules::none(folder.path().join("rules")).allow("uid/self").regexes("uid/self", ".", ".");
    let path = folder.path().join("holder");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    bind_well(&path, &["web", "tcp:127.0.0.1:0"]);
    let first = inode(&held(&daemon, "web"));
    bind_well(&path, &["--replace", "web", "memfd:web"]);
    assert_ne!(inode(&held(&daemon, "web")), first);
}

/// Who may not give sets deletes and stores, and between the two others may take the room.
#[test]
fn a_replacement_that_finds_no_room_says_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let rules =
        Rules::none(folder.path().join("rules")).allow("uid/self").regexes("uid/self", ".", ".");
    let path = folder.path().join("holder");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &["-n", "1"]);
    bind_well(&path, &["web", "tcp:127.0.0.1:0"]);
    // The ninth request deletes, or the tenth, and the next one stores; those before look, ask what is
    // known, and try a set.
    let inject = "inject=sendmsg:delay_enter=1s:when=9+";
    let bind = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "trace=sendmsg", "-e", inject])
        .arg(env!("CARGO_BIN_EXE_fdholder"))
        .args(["bind", "--replace", path.to_str().unwrap(), "web", "memfd:web"])
        .stderr(Stdio::piped())
        .spawn();
    let Ok(bind) = bind else {
        return is_missing("strace");
    };
    let mut client = daemon.client();
    let null = fs::File::open("/dev/null").unwrap();
    let never = Limit::never();
    eventually("there is room", || client.store(&id("x"), never, &null, deadline()).is_ok());
    let output = bind.wait_with_output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("Too many open files in system; it is gone"), "{output:?}");
}

#[test]
fn several_addresses_are_numbered() {
    let (_folder, daemon) = serve(&[]);
    bind_well(&daemon.path, &["web", "tcp:127.0.0.1:0", "tcp:[::1]:0"]);
    assert!(address(&held(&daemon, "web/1")).is_ipv4());
    assert!(address(&held(&daemon, "web/2")).is_ipv6());
    assert_eq!(daemon.client().list(deadline()).unwrap().len(), 2);
}

#[test]
fn options_are_set() {
    let (folder, daemon) = serve(&[]);
    bind_well(
        &daemon.path,
        &["tcp", "tcp:[::]:0", "--ipv6only", "--reuseport", "--nonblock", "--fastopen", "5"],
    );
    let tcp = held(&daemon, "tcp");
    assert_eq!((ipv6_v6only(&tcp), socket_reuseport(&tcp)), (Ok(true), Ok(true)));
    assert!(fcntl_getfl(&tcp).unwrap().contains(OFlags::NONBLOCK));
    // Another one on the same port, as it says that it may.
    bind_well(
        &daemon.path,
        &["again", &format!("tcp:{}", address(&tcp)), "--ipv6only", "--reuseport"],
    );
    assert!(!fcntl_getfl(held(&daemon, "again")).unwrap().contains(OFlags::NONBLOCK));
    bind_well(&daemon.path, &["one", "tcp:127.0.0.1:0", "--device", "lo"]);
    let device = socket2::SockRef::from(&held(&daemon, "one")).device().unwrap();
    assert_eq!(device.as_deref(), Some(&b"lo"[..]));
    bind_well(&daemon.path, &["free", "tcp:192.0.2.1:0", "--freebind"]);
    let output = bind(&daemon.path, &["bound", "tcp:192.0.2.1:0"]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("see freebind"), "{output:?}");

    let at = |name: &str| folder.path().join(name);
    for (scheme, mode) in [("unix", 0o600), ("unix-dgram", 0o666), ("fifo", 0o620)] {
        let endpoint = format!("{scheme}:{}", at(scheme).display());
        let text = format!("0{mode:o}");
        let mut arguments = vec![scheme, &endpoint];
        if mode != 0o666 {
            arguments.extend(["--mode", &text]);
        }
        bind_well(&daemon.path, &arguments);
        assert_eq!(fs::metadata(at(scheme)).unwrap().permissions().mode() & 0o777, mode);
    }
    let uid = rustix::process::getuid().as_raw();
    let unix = format!("unix-seqpacket:{}", at("owned").display());
    bind_well(&daemon.path, &["owned", &unix, "--owner", &format!("{uid}:{uid}")]);
    assert_eq!(fs::metadata(at("owned")).unwrap().uid(), uid);
}

/// Services may be started at the same moment.
#[test]
fn several_at_once_agree() {
    let (_folder, daemon) = serve(&[]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp:{}", free.local_addr().unwrap());
    drop(free);
    let started: Vec<_> = (0..8)
        .map(|_| {
            let path = daemon.path.to_str().unwrap();
            suite::fdholder(["bind", path, "web", &endpoint]).spawn().unwrap()
        })
        .collect();
    for mut one in started {
        assert_eq!(one.wait().unwrap().code(), Some(0));
    }
    assert_eq!(format!("tcp:{}", address(&held(&daemon, "web"))), endpoint);
}

/// One that comes when another has opened it, but not stored it yet, waits.
#[test]
fn who_comes_second_finds_what_the_first_has_opened() {
    let (folder, daemon) = serve(&[]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let endpoint = format!("tcp:{address}");
    let log = folder.path().join("strace");
    // What asks whether it is held, and what stores it.
    let inject = "inject=sendmsg:delay_enter=500ms:when=2";
    let slow = Command::new("strace")
        .args(["-qq", "-f", "-e", "trace=sendmsg", "-e", inject, "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_fdholder"))
        .args(["bind", daemon.path.to_str().unwrap(), "web", &endpoint])
        .spawn();
    let Ok(mut slow) = slow else {
        return is_missing("strace");
    };
    eventually("the first has opened it", || TcpStream::connect(address).is_ok());
    assert_eq!(daemon.client().list(deadline()).unwrap(), []);
    bind_well(&daemon.path, &["web", &endpoint]);
    assert!(slow.wait().unwrap().success());
    assert_eq!(format!("tcp:{}", self::address(&held(&daemon, "web"))), endpoint);
}

#[test]
fn what_is_in_the_way_is_said_and_stays() {
    let (folder, daemon) = serve(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = bind(&daemon.path, &["web", &format!("tcp:127.0.0.1:{port}")]);
    assert_exit(&output, 111);
    assert_eq!(
        stderr(&output),
        format!(
            "fdholder bind: fatal: unable to open tcp:127.0.0.1:{port} for web: unable to bind: \
             Address already in use (ss -lpn shows who has it)\n"
        )
    );

    let at = |name: &str| folder.path().join(name);
    let bind_at = |scheme: &str, name: &str| {
        bind(&daemon.path, &[name, &format!("{scheme}:{}", at(name).display())])
    };
    // Nobody listens any more.
    drop(UnixListener::bind(at("dead")).unwrap());
    assert_exit(&bind_at("unix", "dead"), 0);
    UnixStream::connect(at("dead")).unwrap();
    drop(UnixDatagram::bind(at("dead-dgram")).unwrap());
    assert_exit(&bind_at("unix-dgram", "dead-dgram"), 0);
    // Somebody does.
    let _alive = UnixListener::bind(at("alive")).unwrap();
    assert_exit(&bind_at("unix", "alive"), 111);
    UnixStream::connect(at("alive")).unwrap();
    fs::write(at("file"), "precious").unwrap();
    for scheme in ["unix", "fifo"] {
        let output = bind_at(scheme, "file");
        assert_exit(&output, 111);
        assert!(stderr(&output).contains("remove it, or choose another path"), "{output:?}");
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    assert!(fs::metadata(at("alive")).unwrap().file_type().is_socket());
    let mut names = daemon.client().list(deadline()).unwrap();
    names.sort();
    assert_eq!(names, [id("dead"), id("dead-dgram")]);
}

#[test]
fn s6s_daemon_will_do() {
    if !Suite::S6V213.is_installed() {
        return is_missing("s6");
    }
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::all(folder.path().join("rules"));
    let daemon = Daemon::with_rules(Suite::S6V213, &folder.path().join("holder"), &rules, &[]);
    bind_well(&daemon.path, &["web", "tcp:127.0.0.1:0"]);
    let first = inode(&held(&daemon, "web"));
    bind_well(&daemon.path, &["web", "tcp:127.0.0.1:0"]);
    assert_eq!(inode(&held(&daemon, "web")), first);
    bind_well(&daemon.path, &["--replace", "web", "memfd:web"]);
    assert_ne!(inode(&held(&daemon, "web")), first);
}

#[test]
fn options_that_do_not_suit_are_wrong_usage() {
    for (arguments, says) in [
        (&["web", "tcp:127.0.0.1:80", "--mode", "0600"][..], "mode is for unix and fifo"),
        (&["web", "tcp:80"], "say tcp:0.0.0.0:80"),
        (&["web", "memfd:x", "--nonblock"], "nonblock is for sockets and pipes"),
        (&["web", "unix:/x", "--mode", "rw"], "not a mode such as 0660"),
        (&["web"], "missing <ADDRESS>"),
    ] {
        let output = bind(Path::new("/nowhere"), arguments);
        assert_exit(&output, 100);
        assert!(stderr(&output).contains(says), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
}

#[test]
fn what_is_held_for_a_time_is_held_for_ever() {
    let (_folder, daemon) = serve(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp:{}", listener.local_addr().unwrap());
    let limit = Limit::after(Duration::from_secs(3600));
    daemon.client().store(&id("web"), limit, &listener, deadline()).unwrap();
    let limit = || {
        let mut client = fdholder::Client::connect_negotiated(&daemon.path, deadline()).unwrap();
        client.inspect(deadline()).unwrap()[0].limit.moment()
    };
    assert!(limit().is_some());
    let said = crate::rebind::says(&daemon, &["web", &endpoint]);
    assert!(said.contains("info: web: does not expire any more"), "{said}");
    assert_eq!(limit(), None);
    assert_eq!(crate::rebind::says(&daemon, &["web", &endpoint]), "");
}
