//! A daemon starts where another one serves.

use crate::follower::RawFollower;
use crate::support::{
    assert_exit, deadline, eventually, id, marked_file, path_of, stderr, suite, Family, Rules,
    Suite,
};
use crate::{content, fill};
use fdholder::link::{Fed, Heard};
use fdholder::{Client, Entry, Limit, OnConflict, Request, Timestamp};
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Everything goes over: descriptors, limits, the socket itself, and the clients. The old
/// one ends with success.
#[test]
fn everything_goes_over() {
    let mut family = Family::with(&["-n", "2000"]);
    let first = family.primary();
    let mut idle = family.client();
    fill(&mut idle, family.folder.path(), 600);
    let soon = Limit::at(Timestamp::now().saturating_add(Duration::from_secs(1000)));
    let (file, _) = marked_file(family.folder.path(), "limited");
    idle.store(&id("limited"), soon, &file, deadline()).unwrap();
    let before = content(&mut idle);
    let inode = fs::metadata(&family.path).unwrap().ino();

    let second = family.serve(&["-n", "2000"]);
    assert_eq!(family.wait(first), Some(0));
    assert_eq!(family.alive(), [second]);
    assert_eq!(fs::metadata(&family.path).unwrap().ino(), inode);
    assert_eq!(content(&mut family.client()), before);
    assert_eq!(content(&mut idle), before, "its connection is the same");
    assert!(family.log().contains("has taken over 601 from pid"), "{}", family.log());
    // And it is a daemon like any other, from which the next one takes over.
    idle.delete(&id("limited"), deadline()).unwrap();
    family.serve(&["-n", "2000"]);
    assert_eq!(family.wait(second), Some(0));
    assert_eq!(idle.list(deadline()).unwrap().len(), 600);
}

/// A request that has half arrived, and what a client has said about itself, go over too.
#[test]
fn a_client_in_the_middle_of_a_request_goes_over() {
    let mut family = Family::with(&[]);
    let (file, path) = marked_file(family.folder.path(), "x");
    let mut negotiated = Client::connect_negotiated(&family.path, deadline()).unwrap();
    negotiated.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    let mut half = UnixStream::connect(&family.path).unwrap();
    let list = b"\0\0\0\x01\0\0L";
    half.write_all(&list[..4]).unwrap();
    family.client().list(deadline()).unwrap();
    family.serve(&[]);
    half.write_all(&list[4..]).unwrap();
    let mut answer = [0; 13];
    half.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\0\0\0\x07\0\0\0\0\0\0\x01x\0");
    assert_eq!(path_of(negotiated.retrieve(&id("x"), deadline()).unwrap()), path);
    assert_eq!(negotiated.snapshot(true, deadline()).unwrap().count, 1);
}

/// A request that comes while nobody serves is answered by the next one.
#[test]
fn requests_wait_meanwhile() {
    let mut family = Family::with(&[]);
    let first = family.primary();
    let mut connected = UnixStream::connect(&family.path).unwrap();
    crate::support::family::signal(first, Signal::STOP);
    // One that is connected asks, another one comes; neither is heard.
    connected.write_all(b"\0\0\0\x01\0\0L").unwrap();
    let mut late = UnixStream::connect(&family.path).unwrap();
    late.write_all(b"\0\0\0\x01\0\0L").unwrap();
    let mut command = suite::fdholder(["serve", "-1"]);
    command.arg(&family.path);
    crate::support::family::signal(first, Signal::CONT);
    family.spawn(command);
    for stream in [&mut connected, &mut late] {
        let mut answer = [0; 11];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"\0\0\0\x05\0\0\0\0\0\0\0");
    }
}

/// One that cannot hold everything does not take over; the old one goes on.
#[test]
fn one_that_is_too_small_leaves_it_be() {
    let family = Family::with(&["-n", "10"]);
    fill(&mut family.client(), family.folder.path(), 10);
    let path = family.path.to_str().unwrap();
    let small = suite::fdholder(["serve", "-n", "9", path]).output().unwrap();
    assert_exit(&small, 111);
    assert_eq!(stderr(&small).lines().count(), 1);
    assert!(stderr(&small).contains("more than this one would have room for"), "{small:?}");
    assert_eq!(family.client().list(deadline()).unwrap().len(), 10);
    assert_eq!(family.alive(), [family.primary()]);
}

/// One that dies while clients are given time to finish: new ones are let in again at once.
#[test]
fn when_one_has_died_on_the_way_clients_come_in() {
    let family = Family::with(&[]);
    // In the middle of a set, and silent.
    let busy = UnixStream::connect(&family.path).unwrap();
    let begins = Request::<OwnedFd>::Setdump(2).into_message();
    (&busy).write_all(begins.bytes()).unwrap();
    assert_ne!((&busy).read(&mut [0; 64]).unwrap(), 0);
    let mut next = suite::fdholder(["serve", "-v0"]).arg(&family.path).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    next.kill().unwrap();
    next.wait().unwrap();
    assert_eq!(family.client().list(deadline()), Ok(vec![]));
}

/// One that cannot say that it is ready serves all the same: nobody else has what is held.
#[test]
fn readiness_that_nobody_reads_is_no_reason_to_end() {
    let family = Family::with(&[]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 30);
    let before = content(&mut client);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = suite::fdholder(["serve", "-1"]);
    let mut next = command.arg(&family.path).stdout(full).spawn().unwrap();
    let is_next = || family.client().list(deadline()).is_ok() && family.alive() == [next.id()];
    eventually("it has taken over", is_next);
    assert_eq!(content(&mut client), before);
    next.kill().unwrap();
    next.wait().unwrap();
}

/// One that dies on the way leaves the old one as it was, whatever the moment.
#[test]
fn one_that_dies_on_the_way_leaves_it_be() {
    let family = Family::with(&["-n", "3000"]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 2500);
    let before = content(&mut client);
    let first = family.primary();
    // It is killed by the kernel at its nth call of recvmsg, or of sendmsg; of fcntl, with
    // which it takes the lock; or when it has that, and has not said so.
    let mut taken_over = false;
    for (call, count) in [("recvmsg", 14), ("sendmsg", 3), ("fcntl", 3), ("pwrite64", 1)] {
        for nth in 1..=count {
            let kill = format!("inject={call}:signal=KILL:when={nth}");
            let mut strace = std::process::Command::new("strace");
            let trace = format!("trace={call}");
            strace.args(["-qq", "-o", "/dev/null", "-e", &trace, "-e", &kill]);
            strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-n", "3000", "-v0"]);
            let mut strace = strace.arg(&family.path).spawn().unwrap();
            // It is killed, or serves.
            eventually("it has ended", || {
                taken_over |= family.log().contains("has taken over");
                taken_over || strace.try_wait().unwrap().is_some()
            });
            assert!(!taken_over, "killed at {call} {nth} it has taken over");
            assert_eq!(content(&mut client), before, "{call} {nth}");
        }
    }
    assert_eq!(family.alive(), [first]);
}

/// A daemon of s6's is left alone, and so is what it holds.
#[test]
fn an_s6_daemon_is_left_alone() {
    for suite in [Suite::S6V211, Suite::S6V213].into_iter().filter(|suite| suite.is_installed()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let rules = Rules::all(folder.path().join("rules"));
        let daemon = crate::support::Daemon::with_rules(suite, &path, &rules, &[]);
        daemon.client().store(&id("x"), Limit::never(), std::io::stdin(), deadline()).unwrap();
        let ours = suite::fdholder(["serve", path.to_str().unwrap()]).output().unwrap();
        assert_exit(&ours, 111);
        let said = stderr(&ours);
        // The listening socket was made by the test.
        let owner = format!("(pid {}, uid", std::process::id());
        assert!(said.contains(&owner) && said.contains("not a fdholder"), "{said}");
        assert!(said.contains("transferdump") && said.lines().count() == 1, "{said}");
        assert_eq!(daemon.client().list(deadline()), Ok(vec![id("x")]));
    }
}

/// With `-D` nothing is taken over.
#[test]
fn on_request_a_path_in_use_is_left_alone() {
    let family = Family::with(&[]);
    let path = family.path.to_str().unwrap();
    let second = suite::fdholder(["serve", "-D", path]).output().unwrap();
    assert_exit(&second, 111);
    assert_eq!(family.client().list(deadline()), Ok(vec![]));
    assert_eq!(family.alive(), [family.primary()]);
}

/// The new one's rules hold, and its mode; and a daemon whose rules do not let its own user
/// in is taken over all the same.
#[test]
fn the_new_rules_hold() {
    let mut family = Family::new();
    let nobody = Rules::none(family.folder.path().join("nobody"));
    family.serve(&["-i", nobody.dir.to_str().unwrap()]);
    let mode = |family: &Family| fs::metadata(&family.path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&family), 0o777);
    assert!(family.client().list(deadline()).is_err());
    family.serve(&[]);
    assert_eq!(mode(&family), 0o600);
    let mut client = family.client();
    client.list(deadline()).unwrap();
    let lister = Rules::none(family.folder.path().join("lister"))
        .allow("uid/self")
        .may("uid/self", &["LIST"]);
    family.serve(&["-i", lister.dir.to_str().unwrap()]);
    client.list(deadline()).unwrap();
    let denied = client.store(&id("x"), Limit::never(), std::io::stdin(), deadline());
    assert_eq!(denied.unwrap_err().errno(), fdholder::Errno::PERM);
}

/// A client in the middle of a set gets the time to finish it; one that does not is cut off,
/// and its set is not taken.
#[test]
fn clients_may_finish_but_not_for_ever() {
    for finishes in [true, false] {
        let mut family = Family::with(&[]);
        let first = family.primary();
        let (file, _) = marked_file(family.folder.path(), "x");
        let entry = |name| [Entry { id: id(name), limit: Limit::never(), fd: file.as_fd() }];
        let mut client = family.client();
        let mut set = client.begin_setdump(2, deadline()).unwrap();
        set.send_entries(&entry("a"), deadline()).unwrap();
        let rest = std::thread::scope(|scope| {
            let taking_over = scope.spawn(|| family.serve(&[]));
            let rest = if finishes {
                // By then it may have been asked, or not: either way this one may finish.
                set.send_entries(&entry("b"), deadline())
            } else {
                taking_over.join().unwrap();
                return set.send_entries(&entry("b"), deadline());
            };
            taking_over.join().unwrap();
            rest
        });
        assert_eq!(rest.is_ok(), finishes);
        let held = if finishes { vec![id("a"), id("b")] } else { vec![] };
        let mut list = family.client().list(deadline()).unwrap();
        list.sort();
        assert_eq!(list, held);
        assert_eq!(family.wait(first), Some(0));
    }
}

/// Two that start at once: one after the other, and nothing is lost.
#[test]
fn several_at_once_take_turns() {
    let family = Family::with(&[]);
    fill(&mut family.client(), family.folder.path(), 100);
    let before = content(&mut family.client());
    let start = || {
        let mut command = suite::fdholder(["serve", "-v0"]);
        command.arg(&family.path).spawn().unwrap()
    };
    let mut others: Vec<_> = (0..4).map(|_| start()).collect();
    eventually("one is left", || {
        for child in &mut others {
            let _ = child.try_wait();
        }
        family.alive().len() == 1
    });
    assert_eq!(content(&mut family.client()), before);
    drop(family);
    for mut child in others {
        let _ = child.wait();
    }
}

/// What a client has said about its sets holds with the next daemon as well.
#[test]
fn what_was_agreed_with_a_client_holds() {
    let mut family = Family::with(&[]);
    let mut raw = UnixStream::connect(&family.path).unwrap();
    let mut ask = |bytes: &[u8], answer: &[u8]| {
        raw.write_all(bytes).unwrap();
        let mut said = vec![0; answer.len()];
        raw.read_exact(&mut said).unwrap();
        assert_eq!(said, answer, "{OnConflict:?}", OnConflict = OnConflict::Fail);
    };
    ask(b"\0\0\0\x03\0\0+\x04\x02", b"\0\0\0\x01\0\0\0");
    let (file, _) = marked_file(family.folder.path(), "x");
    family.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    family.serve(&[]);
    ask(b"\0\0\0\x05\0\0!\0\0\0\x01", b"\0\0\0\x05\0\0\0\0\0\0\x01");
    let entry = [Entry { id: id("x"), limit: Limit::never(), fd: file.as_fd() }];
    let message = fdholder::request::setdump_data(
        entry.iter().map(|entry| (&entry.id, entry.limit, entry.fd)),
    );
    let fds: Vec<_> = message.fds().to_vec();
    fdholder::transport::send(&raw, message.bytes(), &fds, fdholder::transport::Wait::Yes).unwrap();
    let mut said = [0; 7];
    raw.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"\0\0\0\x01\0\0\x11", "EEXIST");
}

/// One that was given everything and does not say that it serves never will: the old one goes
/// on, and answers what has waited.
#[test]
fn one_that_never_commits_is_given_up() {
    let family = Family::with(&["--standby"]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 3);
    let before = content(&mut client);
    let standby = family.standby();
    let (mut follower, place) = RawFollower::new(&family.path);
    follower.hear_until(|fed| matches!(fed, Fed::Synced));
    follower.say(Heard::Synced);
    follower.say(Heard::TakeOver);
    follower.hear_until(|fed| matches!(fed, Fed::Yours));
    assert_eq!(content(&mut client), before);
    assert!(place.is_struck_off());
    assert_eq!(content(&mut family.client()), before);
    assert_eq!((family.alive().len(), family.standby()), (2, standby));
}

/// One that is asked to end while it waits for its turn leaves the other alone.
#[test]
fn one_that_is_asked_to_end_leaves_it_be() {
    let family = Family::with(&[]);
    let (file, _) = marked_file(family.folder.path(), "x");
    let entry = |name| [Entry { id: id(name), limit: Limit::never(), fd: file.as_fd() }];
    let mut client = family.client();
    // It is waited for, as it is in the middle of something.
    let mut set = client.begin_setdump(2, deadline()).unwrap();
    set.send_entries(&entry("a"), deadline()).unwrap();
    let mut command = suite::fdholder(["serve", "-v0"]);
    let mut other = command.arg(&family.path).spawn().unwrap();
    // Nobody new is let in as soon as it has asked.
    eventually("it has asked", || {
        let soon = fdholder::Deadline::after(Duration::from_millis(20));
        family.client().list(soon).is_err()
    });
    crate::support::family::signal(other.id(), Signal::TERM);
    set.send_entries(&entry("b"), deadline()).unwrap();
    assert_eq!(other.wait().unwrap().code(), Some(111));
    assert_eq!(family.client().list(deadline()).unwrap().len(), 2);
    assert_eq!(family.alive(), [family.primary()]);
}

/// When the system has nothing left for the new one, which has everything by then, it does
/// not go.
#[test]
fn one_that_has_everything_insists() {
    for (call, error, said) in [
        ("epoll_create1", "ENFILE", "trying again"),
        ("timerfd_create", "ENFILE", "trying again"),
        ("epoll_ctl", "ENFILE", "trying again"),
        ("recvmsg", "ENOMEM", "has taken over"),
        ("setsockopt", "EACCES", "unable to prepare the listening socket"),
    ] {
        let mut family = Family::with(&[]);
        let first = family.primary();
        let mut client = family.client();
        fill(&mut client, family.folder.path(), 30);
        let before = content(&mut client);
        let mut strace = std::process::Command::new("strace");
        let inject = format!("inject={call}:error={error}:when=1..3");
        let trace = format!("trace={call}");
        strace.args(["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
        strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1"]).arg(&family.path);
        family.spawn(strace);
        assert_eq!(family.wait(first), Some(0));
        assert!(family.log().contains(said), "{call}: {}", family.log());
        assert_eq!(content(&mut client), before, "{call}");
    }
}
