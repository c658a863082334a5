//! Nothing leaks: as many descriptors are open after thousands of operations, good and
//! bad, as before.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use fdholder::transport::{self, Wait};
use fdholder::{Client, Deadline, Entry, Limit, Transfer};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::daemon::serve;
use support::{deadline, eventually, id, open_fds};

/// Descriptors are counted for the whole process, so one test runs at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn nothing_leaks_in_daemon_or_client() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_first_folder, first) = serve(&["-n", "300"]);
    let (_second_folder, second) = serve(&["-n", "300"]);
    let null = File::open("/dev/null").unwrap();
    let counts = || [open_fds(std::process::id()), first.open_fds(), second.open_fds()];
    let before = counts();
    let (mut good, mut bad) = (0, 0);
    for round in 0..300u32 {
        let mut client = first.client();
        let name = id(&format!("{}", round % 7));
        // Some of these are refused, by turns.
        let stored = client.store(&name, Limit::never(), &null, deadline());
        let _ = client.store(&id("brief"), Limit::after(Duration::ZERO), &null, deadline());
        let _ = client.retrieve(&name, deadline());
        let _ = client.retrieve(&id("nothing"), deadline());
        // Good and bad, both are tried.
        good += usize::from(stored.is_ok());
        bad += usize::from(stored.is_err());
        client.getdump(deadline()).unwrap();
        if round % 3 == 0 {
            let _ = client.retrieve_maybe_delete(&name, true, deadline());
        }
        if round % 5 == 0 {
            let set: Vec<_> = (0..(round % 400))
                .map(|number| Entry {
                    id: id(&format!("set {number}")),
                    limit: Limit::never(),
                    fd: null.as_fd(),
                })
                .collect();
            // Too large a set is refused.
            let set_down = second.client().setdump(&set, deadline());
            good += usize::from(set_down.is_ok());
            bad += usize::from(set_down.is_err());
        }
        if round % 10 == 0 {
            // What does not fit is refused at the end.
            let _ = Transfer::new(&first.path, &second.path).run();
            let _ = Transfer::new(&second.path, &first.path).run();
        }
        // A dump nobody reads to its end, a request nobody finishes, noise with a
        // descriptor.
        let mut leaver = second.client();
        let _ = leaver.begin_getdump(deadline());
        let half = UnixStream::connect(&first.path).unwrap();
        transport::send(&half, b"\0\0\0\x20\0\x01S", &[null.as_fd()], Wait::Yes).unwrap();
        let noise = UnixStream::connect(&first.path).unwrap();
        transport::send(&noise, &[round as u8; 40], &[null.as_fd()], Wait::Yes).unwrap();
    }
    assert!(good > 50 && bad > 50, "{good} good, {bad} bad");
    for daemon in [&first, &second] {
        let mut client = daemon.client();
        for id in client.list(deadline()).unwrap() {
            client.delete(&id, deadline()).unwrap();
        }
    }
    eventually("as many are open as before", || counts() == before);
}

/// An operation that fails half-way leaves nothing open in the client.
#[test]
fn a_client_that_gives_up_closes_what_it_has() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_folder, daemon) = serve(&["-n", "600"]);
    let null = File::open("/dev/null").unwrap();
    let mut client = daemon.client();
    for number in 0..600 {
        client.store(&id(&number.to_string()), Limit::never(), &null, deadline()).unwrap();
    }
    drop(client);
    let before = open_fds(std::process::id());
    for _ in 0..100 {
        let mut client = Client::connect(&daemon.path, deadline()).unwrap();
        let mut incoming = client.begin_getdump(deadline()).unwrap();
        let part = incoming.next_entries(deadline()).unwrap().unwrap();
        assert_eq!(part.len(), 253);
        let _ = incoming.next_entries(Deadline::after(Duration::ZERO));
    }
    assert_eq!(open_fds(std::process::id()), before);
}
