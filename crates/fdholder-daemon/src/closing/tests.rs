use super::*;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A socket whose close takes as long as the linger time, and who keeps it waiting.
pub(crate) fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Far less room than there is to send: what is full now may not be so when all of it has
    // arrived.
    set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 4096]).is_ok() {}
    set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    (ours.into(), theirs)
}

/// Whether the other end of a pair was closed, as soon as it is.
fn is_closed(mut other: &UnixStream) -> bool {
    std::io::Read::read(&mut other, &mut [0]).unwrap() == 0
}

fn wait_for(closes: &Closes) {
    while !closes.have_ended() {
        std::thread::yield_now();
    }
}

/// Everybody of these tests has users of their own.
#[test]
fn who_lingers_keeps_nobody_else_waiting() {
    begin().unwrap();
    let mut kept = Vec::new();
    for user in 0..4 {
        for _ in 0..3 * CLOSERS_PER_USER {
            let (ours, theirs) = lingering();
            drop(ClientFd::new(ours, 1_000_000 + user));
            kept.push(theirs);
        }
    }
    for user in 0..4 {
        assert_eq!(leaving(1_000_000 + user).own, 3 * CLOSERS_PER_USER);
    }
    assert!(!begun().have_ended());
    for number in 0..100 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ClientFd::new(ours.into(), 2_000_000 + number % 7));
        assert!(is_closed(&theirs));
        wait_for(&begun());
    }
    // Those who kept them waiting go; then they are closed, every one.
    let all = begun();
    drop(kept);
    wait_for(&all);
    while (0..4).any(|user| leaving(1_000_000 + user).own > 0) {
        std::thread::yield_now();
    }
}

fn push(state: &mut State, user: u32) {
    state.push(File::open("/dev/null").unwrap().into(), user);
}

#[test]
fn what_waits_is_due_while_nobody_has_nothing_to_do() {
    let mut state = State::new();
    assert_eq!(state.due(), None);
    for user in [1, 1, 1, 2] {
        push(&mut state, user);
    }
    assert_eq!(state.due(), Some(0));
    state.idle = 1;
    assert_eq!(state.due(), None, "there is one who has nothing to do");
    state.idle = 0;
    let taken: Vec<_> = (0..3).map_while(|_| state.take()).collect();
    assert!(taken.iter().map(|(user, ..)| *user).eq([1, 1, 2]));
    assert_eq!(state.due(), None, "user 1 has as many as it may");
    push(&mut state, 3);
    assert_eq!(state.due(), Some(4));
}

/// However slowly a user's are closed, and however often it comes: others' come first until they
/// have taken as long.
#[test]
fn who_has_kept_them_busy_is_behind_the_others() {
    let mut state = State::new();
    let close = |state: &mut State, took| {
        let (user, number, fd) = state.take().unwrap();
        drop(fd);
        state.has_closed(user, number, Duration::from_micros(took));
        user
    };
    push(&mut state, 1);
    push(&mut state, 1);
    assert_eq!(close(&mut state, 1900), 1);
    for _ in 0..5 {
        push(&mut state, 2);
    }
    // Who comes has as much as the others that are there: user 1, that is.
    assert_eq!(close(&mut state, 1900), 1);
    assert_eq!(close(&mut state, 1), 2);
    // User 1 has gone, and comes again.
    push(&mut state, 1);
    assert!((0..4).all(|_| close(&mut state, 1) == 2));
    assert_eq!(close(&mut state, 1900), 1);
    // When nobody waits nothing is remembered.
    push(&mut state, 2);
    assert!(state.spent.is_empty());
    push(&mut state, 1);
    assert_eq!((close(&mut state, 1), close(&mut state, 1)), (1, 2));
}

#[test]
fn the_bell_rings_for_who_wants_it() {
    begin().unwrap();
    let bell = Bell::new().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = ClientFd::new(ours.into(), 3_000_000);
    bell.want();
    drop(fd);
    let closes = begun();
    assert!(is_closed(&theirs));
    while !closes.have_ended() {
        let mut ready = [rustix::event::PollFd::new(&bell, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ready, None).unwrap();
        // Others close, too.
        bell.hear();
        bell.want();
    }
}

/// What lingers does not keep from being told what is closed.
#[test]
fn what_has_ended_is_taken_out() {
    begin().unwrap();
    let (long, theirs) = lingering();
    let (short, _other) = UnixStream::pair().unwrap();
    let drop_one = |fd: OwnedFd| {
        drop(ClientFd::new(fd, 5_000_000));
        begun()
    };
    let (of_long, of_short) = (drop_one(long), drop_one(short.into()));
    let mut closing = Backlog::default();
    closing.push_back(("long", of_long.clone()));
    closing.push_back(("short", of_short.clone()));
    assert!(take_ended(&mut closing, 0).is_empty());
    wait_for(&of_short);
    assert_eq!(take_ended(&mut closing, 9), ["short"]);
    assert!(take_ended(&mut closing, 9).is_empty());
    drop(theirs);
    wait_for(&of_long);
    assert_eq!(take_ended(&mut closing, 9), ["long"]);
    assert!(closing.is_empty());
}

#[test]
fn what_is_gathered_is_closed_when_it_is_asked_for() {
    begin().unwrap();
    let pairs = || {
        let pairs = (0..10).map(|_| UnixStream::pair().unwrap());
        pairs.map(|(ours, other)| (ClientFd::new(ours.into(), 6_000_000), other))
    };
    let is_open = |other: &UnixStream| {
        let mut ready = [rustix::event::PollFd::new(other, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        rustix::event::poll(&mut ready, Some(&now)) == Ok(0)
    };
    let gathering = Gathering::begin();
    for asks in [false, true] {
        let (fds, others): (Vec<_>, Vec<_>) = pairs().unzip();
        drop(fds);
        assert!(others.iter().all(is_open));
        if asks {
            assert!(leaving(6_000_000).own <= 10);
        }
        let closes = begun();
        assert!(!closes.is_empty());
        wait_for(&closes);
        assert!(others.iter().all(is_closed) && begun().is_empty());
    }
    let (fds, others): (Vec<_>, Vec<_>) = pairs().unzip();
    drop(fds);
    drop(gathering);
    assert!(others.iter().all(is_closed));
    // And as before.
    let (fds, others): (Vec<_>, Vec<_>) = pairs().unzip();
    drop(fds);
    assert!(others.iter().all(is_closed));
    wait_for(&begun());
}

#[test]
fn what_is_taken_back_is_not_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = ClientFd::new(ours.into(), 4_000_000).into_inner().unwrap();
    drop(fd);
    assert!(begun().have_ended());
    assert!(is_closed(&theirs));
}
