//! A daemon whose place is its predecessor's until systemd has been told of everything.

use super::*;
use crate::fdstore::{Notifier, Past};
use crate::server::admission::newcomer;
use fdholder::limits::HEADER_LEN;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::set_socket_passcred;
use std::os::unix::net::UnixDatagram;

/// A daemon that has taken over, the other end of its door, and a systemd that does not read.
struct Scene {
    _folder: tempfile::TempDir,
    server: Server,
    service: UnixDatagram,
    systemd: UnixDatagram,
}

impl Scene {
    fn new() -> Self {
        let (folder, mut server) = server();
        let roll = fcntl_dupfd_cloexec(&**Roll::new(1).unwrap().file(), 0).unwrap();
        server.place = Some(Place::of(roll, 1, None));
        let (door, service) = UnixDatagram::pair().unwrap();
        door.set_nonblocking(true).unwrap();
        // As the predecessor has had it.
        set_socket_passcred(&door, true).unwrap();
        let now = Timestamp::now();
        let fd = ClientFd::new(door.into(), 1);
        let id = Identifier::new("db/.notify").unwrap();
        let entry = Entry { id, limit: Limit::never(), fd };
        server.hold.store.store(entry, 1, now).answer.unwrap();
        let path = folder.path().join("systemd");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        while notifier.send("X=1", None).is_ok() {}
        let server = server.with_fdstore(notifier, &Past::unknown([])).unwrap();
        Self { _folder: folder, server, service, systemd }
    }

    fn turn(&mut self) -> Option<Ended> {
        self.server.turn(&mut Vec::with_capacity(EVENTS_PER_TURN)).unwrap()
    }

    fn systemd_reads(&self) {
        while self.systemd.recv(&mut [0; 512]).is_ok() {}
    }
}

/// If this process ended, the predecessor would go on, and read them.
#[test]
fn doors_are_read_once_the_place_is_ours() {
    let mut scene = Scene::new();
    let null = File::open("/dev/null").unwrap();
    transport::send(&scene.service, b"FDSTORE=1\nFDNAME=x", &[null.as_fd()], Wait::No).unwrap();
    scene.turn();
    assert!(scene.server.is_pending());
    assert_eq!(scene.server.held(), 1, "the door was read");
    // Nothing else happens that would wake it.
    while scene.server.held() == 1 {
        scene.systemd_reads();
        scene.turn();
    }
    assert!(!scene.server.is_pending());
}

/// Otherwise the predecessor would go on, although the end was asked for.
#[test]
fn who_is_asked_to_end_waits_until_the_place_is_ours() {
    let mut scene = Scene::new();
    // The predecessor has handed it over, with a request in its socket.
    let (ours, client) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    say(&client, Request::List);
    scene.server.handed.push(newcomer(Arc::new(ClientFd::new(ours.into(), 1))));
    scene.server.begin_lame_duck();
    assert_eq!(scene.turn(), None);
    loop {
        scene.systemd_reads();
        if let Some(ended) = scene.turn() {
            assert_eq!(ended, Ended::Stopped { held: 0, kept: 1, clients: 1 });
            assert!(!scene.server.is_pending());
            let answer = transport::receive(&client, &mut [0; 64], Wait::No);
            return assert!(answer.unwrap().len > HEADER_LEN, "it was answered");
        }
    }
}
