//! Processes that are stopped for a while and go on, as in a container that is paused.

use crate::support::family::signal;
use crate::support::{deadline, id, Family};
use crate::{content, fill};
use fdholder::{Client, Limit};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longer than anybody is waited for here: the patience with followers, and `-t` below.
const PAUSE: Duration = Duration::from_millis(3500);

/// An answer depends on the standby when both are stopped; the primary goes on first.
#[test]
fn pause_of_both_costs_no_standby_and_no_client() {
    let family = Family::with(&["--standby", "-t", "2500", "-n", "500"]);
    let (primary, standby) = family.pair();
    fill(&mut family.client(), family.folder.path(), 100);
    // A client in the middle of a request has not used up its time.
    let mut halfway = UnixStream::connect(&family.path).unwrap();
    let list = fdholder::Request::<std::os::fd::OwnedFd>::List.into_message();
    halfway.write_all(&list.bytes()[..3]).unwrap();
    signal(standby, Signal::STOP);
    let path = family.path.clone();
    let deletes = std::thread::spawn(move || {
        let mut client = Client::connect(&path, deadline()).unwrap();
        client.delete(&id("7"), deadline())
    });
    // The primary has been asked, and waits for its standby.
    crate::support::eventually("it waits", || {
        family.client().list(deadline()).unwrap().len() == 99
    });
    signal(primary, Signal::STOP);
    std::thread::sleep(PAUSE);
    signal(primary, Signal::CONT);
    signal(standby, Signal::CONT);
    // Whether it is closed in both by now depends on who ran when.
    drop(deletes.join().unwrap());
    let sent = halfway.write_all(&list.bytes()[3..]);
    assert!(sent.is_ok(), "{sent:?} {}", family.log());
    assert_ne!(halfway.read(&mut [0; 64]).unwrap(), 0, "{}", family.log());
    let null = File::open("/dev/null").unwrap();
    family.client().store(&id("after"), Limit::never(), &null, deadline()).unwrap();
    assert!(!family.log().contains("given up"), "{}", family.log());
    assert_eq!(family.pair(), (primary, standby));
    let before = content(&mut family.client());
    signal(primary, Signal::KILL);
    assert_eq!(content(&mut family.client()), before);
}
