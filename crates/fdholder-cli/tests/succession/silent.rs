//! A systemd that does not read what it is told.

use crate::support::{deadline, eventually, id, marked_file, open_fds, suite, Family};
use fdholder::Limit;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;

/// Answers do not wait for it for ever, nothing is kept open for it, and when it reads again
/// it gets what is held by then.
#[test]
fn a_systemd_that_does_not_read_harms_nobody() {
    let mut family = Family::new();
    let address = family.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&address).unwrap();
    let mut command = suite::fdholder(["serve", "-1", "--fdstore"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &address);
    let pid = family.spawn(command);
    let mut client = family.client();
    let (file, _) = marked_file(family.folder.path(), "x");
    let before = open_fds(pid);
    // Many more than any queue has room for, and than answers may be behind.
    for _ in 0..3000 {
        client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        client.delete(&id("x"), deadline()).unwrap();
    }
    assert!(open_fds(pid) <= before + 8, "{} and {before}", open_fds(pid));
    assert!(family.log().contains("systemd takes no descriptors"), "{}", family.log());
    client.store(&id("left"), Limit::never(), &file, deadline()).unwrap();
    // Now it reads.
    systemd.set_nonblocking(true).unwrap();
    let mut kept = BTreeSet::new();
    eventually("it has one descriptor, the socket, the roll and a list", || {
        let mut message = [0; 512];
        while let Ok(len) = systemd.recv(&mut message) {
            let text = std::str::from_utf8(&message[..len]).unwrap();
            let Some((what, name)) = text.split_once("FDNAME=") else { continue };
            if what.contains("FDSTOREREMOVE") {
                kept.remove(name);
            } else {
                kept.insert(name.to_owned());
            }
        }
        let kinds: String = kept.iter().map(|name| &name[..1]).collect();
        kinds == "hilr"
    });
    drop(client);
    crate::support::family::signal(pid, Signal::TERM);
    assert_eq!(family.wait(pid), Some(0), "systemd keeps it");
}

/// Whoever is to be served does not wait until systemd hears that somebody serves.
#[test]
fn a_systemd_that_does_not_hear_of_readiness_harms_nobody() {
    let mut family = Family::new();
    let address = family.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&address).unwrap();
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"STATUS=full", &address).is_ok() {}
    let mut command = suite::fdholder(["serve", "-1"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &address);
    family.spawn(command);
    assert_eq!(family.client().list(deadline()), Ok(vec![]));
    // It does hear of it in the end.
    let mut message = [0; 512];
    loop {
        let len = systemd.recv(&mut message).unwrap();
        if message[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            break;
        }
    }
}
