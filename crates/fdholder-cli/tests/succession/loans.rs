//! Retrieve with delete: whoever dies before it has read the reply takes nothing with it.

use crate::support::daemon::serve;
use crate::support::{deadline, eventually, id, marked_file, path_of, Daemon};
use fdholder::{Client, Deadline, Errno, Limit, Request};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn ask(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    let request = Request::<OwnedFd>::Retrieve { id: id("x"), delete: true };
    stream.write_all(request.into_message().bytes()).unwrap();
    stream
}

/// Until the daemon has answered.
fn wait_for_answer(stream: &UnixStream) {
    let mut byte = [0];
    let read = rustix::net::recv(stream, &mut byte, rustix::net::RecvFlags::PEEK);
    assert_eq!(read.unwrap().0, 1);
}

#[test]
fn what_nobody_has_read_comes_back() {
    let (folder, daemon) = serve(&[]);
    let (file, path) = marked_file(folder.path(), "x");
    let mut client = daemon.client();
    client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    for _ in 0..100 {
        let stream = ask(&daemon);
        wait_for_answer(&stream);
        assert_eq!(client.retrieve(&id("x"), deadline()).unwrap_err().errno(), Errno::NOENT);
        assert_eq!(client.list(deadline()), Ok(vec![]));
        let busy = client.store(&id("x"), Limit::never(), &file, deadline());
        assert_eq!(busy.unwrap_err().errno(), Errno::BUSY, "it may come back");
        drop(stream);
        // The daemon hears of the end no later than of what is asked after it.
        assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), path);
    }
}

/// A client that does not even wait for the answer.
#[test]
fn whoever_leaves_at_once_takes_nothing() {
    let (folder, daemon) = serve(&[]);
    let (file, path) = marked_file(folder.path(), "x");
    let mut client = daemon.client();
    client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    for _ in 0..100 {
        drop(ask(&daemon));
        let mut retrieved = None;
        eventually("it is back", || {
            retrieved = client.retrieve(&id("x"), deadline()).ok();
            retrieved.is_some()
        });
        assert_eq!(path_of(retrieved.unwrap()), path);
    }
}

/// Whoever has read the reply has it alone, and everybody else finds it so at once.
#[test]
fn what_was_read_is_gone() {
    let (folder, daemon) = serve(&[]);
    let mut other = daemon.client();
    for round in 0..200 {
        let (file, path) = marked_file(folder.path(), &format!("{round}"));
        other.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        let mut client = daemon.client();
        let taken = client.retrieve_maybe_delete(&id("x"), true, deadline()).unwrap();
        assert_eq!(path_of(taken), path);
        if round % 2 == 0 {
            drop(client);
        }
        // The identifier is free, and stays so.
        other.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        other.delete(&id("x"), deadline()).unwrap();
        assert_eq!(other.list(deadline()), Ok(vec![]));
    }
}

/// A client that only shuts down its side, and reads then, has it.
#[test]
fn half_closed_is_not_gone() {
    let (folder, daemon) = serve(&[]);
    let (file, _) = marked_file(folder.path(), "x");
    daemon.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    let mut stream = ask(&daemon);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    wait_for_answer(&stream);
    assert_eq!(daemon.client().list(deadline()), Ok(vec![]));
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"\0\0\0\x01\0\x01\0");
    assert_eq!(daemon.client().list(deadline()), Ok(vec![]));
}

/// A client that never reads its reply has its time, if there is a limit on that.
#[test]
fn a_loan_has_its_time() {
    let (folder, daemon) = serve(&["-t", "100"]);
    let (file, path) = marked_file(folder.path(), "x");
    daemon.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    let stream = ask(&daemon);
    wait_for_answer(&stream);
    let mut retrieved = None;
    eventually("it is back", || {
        retrieved = daemon.client().retrieve(&id("x"), deadline()).ok();
        retrieved.is_some()
    });
    assert_eq!(path_of(retrieved.unwrap()), path);
}

/// One lends to one: of many that ask at once, exactly one gets it.
#[test]
fn one_of_many_gets_it() {
    let (folder, daemon) = serve(&[]);
    let (file, _) = marked_file(folder.path(), "x");
    for _ in 0..50 {
        daemon.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        let take = || {
            let mut client = Client::connect(&daemon.path, deadline()).unwrap();
            client.retrieve_maybe_delete(&id("x"), true, deadline()).is_ok()
        };
        let taken = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum::<usize>()
        });
        assert_eq!(taken, 1);
    }
    let never = Deadline::after(Duration::ZERO);
    assert!(daemon.client().retrieve(&id("x"), never).is_err());
}
