//! Processes that are stopped for a while and go on, as in a container that is paused.

use crate::support::family::signal;
use crate::support::{deadline, eventually, id, suite, Daemon, Family};
use crate::{content, fill};
use fdholder::{Client, Limit};
use fdholder_daemon::listen::connect_to;
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longer than anybody is waited for here: the patience with followers, and `-t` below.
const PAUSE: Duration = Duration::from_millis(3500);

/// Nothing tells whose a full queue is, and it may be read again: the next daemon waits for that.
#[test]
fn paused_daemon_with_a_full_queue_is_taken_over_when_it_goes_on() {
    let mut family = Family::with(&["-b", "1"]);
    let first = family.primary();
    fill(&mut family.client(), family.folder.path(), 3);
    let before = content(&mut family.client());
    signal(first, Signal::STOP);
    let connect = || connect_to(&family.path, Some(Duration::from_millis(1))).ok();
    let waiting: Vec<_> = std::iter::from_fn(connect).collect();
    let mut command = suite::fdholder(["serve", "-1", "-v0"]);
    command.arg(&family.path);
    let (new, mut ready) = Daemon::begin(command, &family.path);
    let table = format!("/proc/{}/wchan", new.pid());
    eventually("it waits for room in the queue", || {
        std::fs::read_to_string(&table).unwrap().contains("unix_wait_for_peer")
    });
    signal(first, Signal::CONT);
    assert_eq!(ready.read(&mut [0]).unwrap(), 1, "{}", family.log());
    assert_eq!(family.wait(first), Some(0));
    assert_eq!(content(&mut family.client()), before);
    drop((waiting, new));
}

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
    eventually("it waits", || family.client().list(deadline()).unwrap().len() == 99);
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
