//! Notify sockets that are not as `exec --notify` has made them, as others share them.

use crate::notify::{service, start};
use crate::serve;
use crate::support::{assert_exit, deadline, eventually, id, stderr, suite};
use rustix::net::sockopt::{set_socket_passcred, socket_passcred};
use rustix::net::{connect, shutdown, Shutdown, SocketAddrUnix};
use std::fs;
use std::os::unix::net::UnixDatagram;

/// It is somebody else's, and stays; that nothing would arrive is said.
#[test]
fn another_living_socket_in_the_place_of_a_door_is_no_door() {
    let (folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]).socket;
    fs::remove_file(&door).unwrap();
    let other = UnixDatagram::bind(&door).unwrap();
    let exec = |options: &[&str]| {
        let mut command = suite::fdholder(["exec", "--notify", "db"]);
        command.args(options).arg(&daemon.path).args(["--", "true"]).output().unwrap()
    };
    let output = exec(&[]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("--notify-socket says where else"), "{output:?}");
    let elsewhere = folder.path().join("elsewhere");
    let wanted = ["--notify-socket", elsewhere.to_str().unwrap()];
    start(&daemon.path, &wanted).send_all("READY=1", &[]);
    assert_eq!(service(&daemon.path)["ready"], true);
    let sender = UnixDatagram::unbound().unwrap();
    sender.send_to(b"x", &door).unwrap();
    assert_eq!(other.recv(&mut [0]).unwrap(), 1);
}

#[test]
fn a_door_that_was_shut_or_connected_is_made_anew() {
    let (folder, daemon) = serve(&[]);
    let peer = folder.path().join("peer");
    let _peer = UnixDatagram::bind(&peer).unwrap();
    for what in ["read", "both", "connected"] {
        let socket = start(&daemon.path, &[]).socket;
        let shared = daemon.client().retrieve(&id("db/.notify"), deadline()).unwrap();
        match what {
            "read" => shutdown(&shared, Shutdown::Read).unwrap(),
            "both" => shutdown(&shared, Shutdown::Both).unwrap(),
            _ => connect(&shared, &SocketAddrUnix::new(&peer).unwrap()).unwrap(),
        }
        let door = start(&daemon.path, &[]);
        assert_eq!(door.socket, socket, "{what}");
        door.send_all("READY=1", &[]);
        assert_eq!(service(&daemon.path)["ready"], true, "{what}");
    }
}

/// At the next start of the service, when the holder notices, and when `bind` looks.
#[test]
fn a_door_tells_again_who_sends() {
    let (_folder, daemon) = serve(&[]);
    let socket = start(&daemon.path, &[]).socket;
    let shared = daemon.client().retrieve(&id("db/.notify"), deadline()).unwrap();
    let is_ready = || service(&daemon.path)["ready"] == true;
    set_socket_passcred(&shared, false).unwrap();
    start(&daemon.path, &[]).send_all("READY=1", &[]);
    assert!(is_ready());
    let door = start(&daemon.path, &[]);
    set_socket_passcred(&shared, false).unwrap();
    door.send("STATUS=unknown", &[]);
    eventually("it asks again", || socket_passcred(&shared).unwrap());
    door.send_all("READY=1", &[]);
    assert!(is_ready());
    // What a program may have set for itself bind leaves alone.
    drop(shared);
    let door = start(&daemon.path, &[]);
    let address = format!("unix-dgram:{}", socket.display());
    let mut bind = suite::fdholder(["bind"]);
    let output = bind.arg(&daemon.path).args(["db/.notify", &address]).output().unwrap();
    assert_exit(&output, 0);
    assert!(!stderr(&output).contains("passcred"), "{output:?}");
    door.send_all("READY=1", &[]);
    assert!(is_ready());
}
