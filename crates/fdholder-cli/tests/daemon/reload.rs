//! `--config` on what is held already: at SIGHUP, at an upgrade, at a takeover.

use crate::config::{Place, SERVING};
use crate::support::{assert_exit, deadline, eventually, id, suite, Daemon};
use rustix::fs::{fcntl_getfl, fstat, OFlags};
use rustix::net::{getsockname, listen, shutdown, Shutdown};
use rustix::process::Signal;
use std::fs::{self, remove_file};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

fn held(daemon: &Daemon, name: &str) -> OwnedFd {
    daemon.client().retrieve(&id(name), deadline()).unwrap()
}

fn inode(daemon: &Daemon, name: &str) -> u64 {
    fstat(held(daemon, name)).unwrap().st_ino
}

/// What is logged while the file is read again; `None` for all there was before.
fn reload(place: &Place, daemon: &Daemon) -> String {
    let before = place.log().len();
    daemon.signal(Signal::HUP);
    let done = "has read its configuration again";
    eventually("it is read", || place.log()[before..].contains(done));
    place.log()[before..].to_owned()
}

fn socket(name: &str, address: &str, more: &str) -> String {
    format!("[sockets.{name}]\naddress = '{address}'\n{more}\n")
}

/// The daemon is confined: it can still do all that.
#[test]
fn unreachable_socket_is_mended_at_sighup() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sockets = [
        socket("tcp", &format!("tcp:{free}"), ""),
        socket("udp", "udp:127.0.0.1:0", ""),
        socket("unix", "unix:PLACE/unix", ""),
        socket("dgram", "unix-dgram:PLACE/dgram", ""),
        socket("seqpacket", "unix-seqpacket:PLACE/seqpacket", ""),
        socket("fifo", "fifo:PLACE/fifo", ""),
    ];
    let place = Place::with(&[SERVING, &sockets.concat()].concat());
    let daemon = place.serve(&[]);
    let said = reload(&place, &daemon);
    assert!(said.contains("holds 0 more"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    listen(held(&daemon, "unix"), 5).unwrap();
    listen(held(&daemon, "tcp"), 5).unwrap();
    let said = reload(&place, &daemon);
    for name in ["tcp", "unix"] {
        assert!(said.contains(&format!("info: {name}: backlog changed from 5 to ")), "{said}");
    }
    for name in ["tcp", "udp", "unix", "dgram", "seqpacket"] {
        let _ = shutdown(held(&daemon, name), Shutdown::Both);
        let said = reload(&place, &daemon);
        let mended = if name == "tcp" { "listens again" } else { "opened anew: it was shut down" };
        assert!(said.contains(&format!("info: {name}: {mended}")), "{said}");
        assert_eq!(reload(&place, &daemon).lines().count(), 1);
    }
    for name in ["unix", "dgram", "seqpacket", "fifo"] {
        let before = inode(&daemon, name);
        remove_file(place.at(name)).unwrap();
        let said = reload(&place, &daemon);
        assert!(
            said.contains(&format!("info: {name}: opened anew: its file was removed")),
            "{said}"
        );
        assert_ne!(inode(&daemon, name), before);
        assert_eq!(reload(&place, &daemon).lines().count(), 1);
    }
    remove_file(place.at("unix")).unwrap();
    drop(UnixListener::bind(place.at("unix")).unwrap());
    let said = reload(&place, &daemon);
    assert!(said.contains("info: unix: opened anew: its file leads to another socket"), "{said}");
    TcpStream::connect(free).unwrap();
    UnixStream::connect(place.at("unix")).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", place.at("dgram")).unwrap();
    // What lives there is another's.
    remove_file(place.at("unix")).unwrap();
    let _other = UnixListener::bind(place.at("unix")).unwrap();
    let (before, file) = (inode(&daemon, "unix"), fs::metadata(place.at("unix")).unwrap().ino());
    let said = reload(&place, &daemon);
    assert!(said.contains("a daemon listens there") && said.contains("unix stays"), "{said}");
    assert_eq!(inode(&daemon, "unix"), before);
    assert_eq!(fs::metadata(place.at("unix")).unwrap().ino(), file);
}

#[test]
fn changed_option_is_set_or_said_at_sighup_upgrade_and_takeover() {
    let web = |more: &str| [SERVING, &socket("web", "tcp:127.0.0.1:0", more)].concat();
    let place = Place::with(&web("backlog = 100"));
    let mut daemon = place.serve(&[]);
    let before = inode(&daemon, "web");
    place.write(&web("backlog = 1000\nnonblock = true\nkeepalive = true"));
    let said = reload(&place, &daemon);
    for change in ["backlog changed from 100 to 1000", "nonblock changed", "keepalive changed"] {
        assert!(said.contains(change), "{said}");
    }
    let is_nonblocking =
        |daemon: &Daemon| fcntl_getfl(held(daemon, "web")).unwrap().contains(OFlags::NONBLOCK);
    assert!(is_nonblocking(&daemon));
    // What is taken out of the file gets the system's value; what a server set for itself stays.
    rustix::net::sockopt::set_tcp_nodelay(held(&daemon, "web"), true).unwrap();
    place.write(&web(""));
    let said = reload(&place, &daemon);
    assert!(said.contains("nonblock changed from on to off"), "{said}");
    assert!(!said.contains("nodelay"), "{said}");
    assert!(!is_nonblocking(&daemon));
    // What cannot be changed is named.
    place.write(&web("device = 'lo'"));
    let said = reload(&place, &daemon);
    let why = " with device none, not lo: fdholder bind --replace replaces it";
    assert!(said.contains("warning: unable to open tcp:127.0.0.1:0 for web:"), "{said}");
    assert!(said.contains(why), "{said}");

    place.write(&web("backlog = 5"));
    let len = place.log().len();
    assert_exit(&suite::fdholder(["upgrade"]).arg(&daemon.path).output().unwrap(), 0);
    let said = place.log()[len..].to_owned();
    assert!(said.contains(" to 5\n"), "{said}");
    place.write(&web("backlog = 6\nnonblock = true"));
    daemon = place.serve(&[]);
    assert!(place.log().contains("backlog changed from 5 to 6"), "{}", place.log());
    assert!(is_nonblocking(&daemon));
    assert_eq!(inode(&daemon, "web"), before);
}

/// At a start nothing tells what the file said before.
#[test]
fn option_taken_out_of_the_file_before_an_upgrade_is_said() {
    let web = |more: &str| [SERVING, &socket("web", "tcp:127.0.0.1:0", more)].concat();
    let place = Place::with(&web("nonblock = true"));
    let daemon = place.serve(&[]);
    place.write(&web(""));
    let said = "info: web: nonblock stays on, which the file does not say\n";
    let len = place.log().len();
    assert_exit(&suite::fdholder(["upgrade"]).arg(&daemon.path).output().unwrap(), 0);
    assert!(place.log()[len..].contains(said), "{}", place.log());
    assert_eq!(reload(&place, &daemon).lines().count(), 1);
    let _daemon = place.serve(&[]);
    assert!(place.log().contains(said), "{}", place.log());
}

/// The standby has the one that took the place of another, and the audit log tells of it.
#[test]
fn replacement_at_sighup_outlives_the_daemon() {
    let config =
        [SERVING, "standby = true\naudit = true\n", &socket("web", "unix:PLACE/web", "")].concat();
    let place = Place::with(&config);
    let daemon = place.serve(&[]);
    let status = || {
        let output = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    eventually("a standby has everything", || status()["standby"] == "ready");
    remove_file(place.at("web")).unwrap();
    let said = reload(&place, &daemon);
    assert!(said.contains("op=configure id=\"web\""), "{said}");
    let before = inode(&daemon, "web");
    daemon.signal(Signal::KILL);
    assert_eq!(inode(&daemon, "web"), before);
    UnixStream::connect(place.at("web")).unwrap();
    let pid = i32::try_from(status()["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    eventually("it ends", || UnixStream::connect(&daemon.path).is_err());
}

#[test]
fn mode_of_a_file_is_set_at_sighup() {
    let web = |mode| [SERVING, &socket("web", "unix:PLACE/web", mode)].concat();
    let place = Place::with(&web("mode = '0600'"));
    let daemon = place.serve(&[]);
    place.write(&web("mode = '0666'"));
    let said = reload(&place, &daemon);
    assert!(said.contains("info: web: mode changed from 0600 to 0666"), "{said}");
    assert_eq!(fs::metadata(place.at("web")).unwrap().permissions().mode() & 0o777, 0o666);
    // It stays when it is not said any more.
    place.write(&web(""));
    assert_eq!(reload(&place, &daemon).lines().count(), 1);
    assert_eq!(fs::metadata(place.at("web")).unwrap().permissions().mode() & 0o777, 0o666);
}

#[test]
fn identifier_that_is_renamed_or_taken_out_of_the_file_is_said() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let with = |name| [SERVING, &socket(name, &format!("tcp:{free}"), "")].concat();
    let place = Place::with(&with("web"));
    let daemon = place.serve(&[]);
    place.write(&with("www"));
    let said = reload(&place, &daemon);
    assert!(said.contains("info: web: no longer in the file, and stays"), "{said}");
    assert!(said.contains("this holder has it, held under web"), "{said}");
    let daemon = place.serve(&[]);
    assert!(place.log().contains("this holder has it, held under web"), "{}", place.log());
    assert_eq!(daemon.client().list(deadline()).unwrap(), [id("web")]);
}

/// The kernel keeps the name until the last copy is closed.
#[test]
fn abstract_name_that_is_taken_until_it_is_closed_is_said() {
    let name = format!("unix:@fdholder-test-{}-reload", std::process::id());
    let place = Place::with(&[SERVING, &socket("web", &name, "")].concat());
    let daemon = place.serve(&[]);
    shutdown(held(&daemon, "web"), Shutdown::Both).unwrap();
    let said = reload(&place, &daemon);
    let why = "for web anew: it was shut down, and what is held has the name until it is closed";
    assert!(said.contains(why), "{said}");
    daemon.client().delete(&id("web"), deadline()).unwrap();
    eventually("it is opened anew", || {
        reload(&place, &daemon);
        !daemon.client().list(deadline()).unwrap().is_empty()
    });
    assert_eq!(reload(&place, &daemon).lines().count(), 1);
}

/// One that is opened in advance, in case nobody holds it, takes no client from the one that
/// is held.
#[test]
fn client_of_a_shared_address_is_not_lost_in_a_takeover() {
    let config = [SERVING, &socket("web", "tcp:127.0.0.1:0", "reuseport = true")].concat();
    let place = Place::with(&config);
    let mut daemon = place.serve(&[]);
    let listener = TcpListener::from(held(&daemon, "web"));
    let address: SocketAddr = getsockname(&listener).unwrap().try_into().unwrap();
    let config = config.replace(":0'", &format!(":{}'", address.port()));
    place.write(&config);
    let (is_over, served) = (AtomicBool::new(false), listener.try_clone().unwrap());
    let mut ends = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            served
                .incoming()
                .take_while(|client| {
                    let mut byte = [0];
                    client.as_ref().unwrap().read(&mut byte).unwrap() == 0
                })
                .count()
        });
        let clients = scope.spawn(|| {
            let mut ends = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let mut client = TcpStream::connect(address).unwrap();
                let _ = client.shutdown(std::net::Shutdown::Write);
                ends.push(client.read(&mut [0]));
            }
            ends
        });
        for _ in 0..5 {
            daemon = place.serve(&[]);
        }
        is_over.store(true, Ordering::Relaxed);
        ends = clients.join().unwrap();
        // The last one, which ends the server.
        let mut last = TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut last, b"x").unwrap();
    });
    // The end, and not a reset.
    let lost: Vec<_> = ends.iter().filter(|end| !matches!(end, Ok(0))).collect();
    assert!(!ends.is_empty() && lost.is_empty(), "{lost:?}");
    drop(daemon);
}
