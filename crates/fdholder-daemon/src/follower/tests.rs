//! A follower whose primary is the test.

use super::*;
use crate::closing::tests::lingering;
use fdholder::frame::Message;
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::link::{self, Changes};
use fdholder::{Identifier, Limit, Origin, Tenure};
use std::os::unix::net::UnixStream;

/// A user for each thing, as each has its part of those who close.
const LONG: u32 = 6_000_000;

/// Where a follower's primary is.
struct Primary {
    socket: OwnedFd,
    decoder: Decoder<ClientFd>,
}

/// Both ends of a link with a primary of some version.
fn link_with(version: u32) -> (Primary, Follower) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let primary = Primary { socket: ours.into(), decoder: Decoder::new(REQUEST_PAYLOAD_MAX) };
    let (mut hello, _) = extension::hello::<OwnedFd>().into_parts();
    let at = hello.len() - 4;
    hello[at..].copy_from_slice(&version.to_be_bytes());
    transport::send(&primary.socket, &hello, &[], Wait::Yes).unwrap();
    let head = Head { number: 1, pid: 2, count: 0, capacity: 1000 };
    let null = std::fs::File::open("/dev/null").unwrap();
    primary.say(&link::head(head, null.as_fd(), null.as_fd(), None));
    let follower = Follower::begin(theirs.into(), 1000).unwrap();
    let mut primary = primary;
    for _ in ["hello", "follow"] {
        primary.next(|_| {});
    }
    (primary, follower)
}

impl Primary {
    fn say(&self, message: &Message<BorrowedFd<'_>>) {
        transport::send(&self.socket, message.bytes(), message.fds(), Wait::Yes).unwrap();
    }

    fn has_heard(&mut self) -> bool {
        let mut buffer = vec![0; READ_LEN];
        let now = Some(Instant::now());
        self.decoder.has_frame()
            || read(&self.socket, &mut self.decoder, &mut buffer, now) != Err(Errno::TIMEDOUT)
    }

    fn next<T>(&mut self, what: impl FnOnce(&fdholder::frame::Frame<'_, ClientFd>) -> T) -> T {
        let mut buffer = vec![0; READ_LEN];
        while !self.decoder.has_frame() {
            assert!(read(&self.socket, &mut self.decoder, &mut buffer, None).unwrap());
        }
        what(&self.decoder.next().unwrap().unwrap())
    }

    fn hears(&mut self) -> Heard {
        self.next(|frame| Heard::parse(frame).unwrap())
    }
}

fn id(number: u64) -> Identifier {
    Identifier::new(number.to_string()).unwrap()
}

fn dropped(serial: u64) -> Dropped {
    Dropped { owner: LONG + serial as u32, serial }
}

/// Has a follower hold some, each under its number, and then drop them.
fn hold_and_release(primary: &Primary, follower: &mut Follower, fds: Vec<(u64, OwnedFd)>) {
    let mut held = Changes::default();
    for (serial, fd) in &fds {
        let owner = dropped(*serial).owner;
        let origin = Origin { owner, tenure: Tenure::from_bits(0), serial: *serial };
        held.held(&id(*serial), Limit::never(), origin, fd.as_fd());
    }
    let mut released = Changes::default();
    for (serial, _) in &fds {
        released.released(&id(*serial));
    }
    primary.say(&held.into_message(1, false));
    // The follower has the only ones.
    drop(fds);
    primary.say(&released.into_message(2, false));
    while follower.replica.store().is_empty() {
        assert!(follower.hear().unwrap());
    }
    while !follower.replica.store().is_empty() {
        assert!(follower.hear().unwrap());
    }
}

/// What takes long to close keeps a follower from nothing: it says what it has carried out at
/// once, what of that is not closed, and when it is, each as soon as it is.
#[test]
fn what_is_not_closed_is_told_when_it_is() {
    let (mut primary, mut follower) = link_with(VERSION);
    let (long, theirs) = lingering();
    let (longer, theirs_too) = lingering();
    hold_and_release(&primary, &mut follower, vec![(1, long), (2, longer)]);
    assert_eq!(primary.hears(), Heard::Closing(vec![dropped(1), dropped(2)]));
    assert_eq!(primary.hears(), Heard::UpTo(2));
    // Another one is closed meanwhile, and may be before it is told.
    let (short, _other) = UnixStream::pair().unwrap();
    hold_and_release(&primary, &mut follower, vec![(3, short.into())]);
    let mut told = primary.hears();
    if told != Heard::UpTo(2) {
        assert_eq!(told, Heard::Closing(vec![dropped(3)]));
        assert_eq!(primary.hears(), Heard::UpTo(2));
        while !primary.has_heard() {
            follower.wait(None, Some(Instant::now() + PATIENCE)).unwrap();
        }
        told = primary.hears();
        assert_eq!(told, Heard::Closed(vec![dropped(3)]));
    }
    for (serial, theirs) in [(2, theirs_too), (1, theirs)] {
        assert!(!primary.has_heard());
        drop(theirs);
        while !primary.has_heard() {
            follower.wait(None, Some(Instant::now() + PATIENCE)).unwrap();
        }
        assert_eq!(primary.hears(), Heard::Closed(vec![dropped(serial)]));
    }
    assert!(follower.closing.is_empty());
}

/// Whoever waits to hear of it does not wait for what comes behind; and when nobody does, that is
/// read at once.
#[test]
fn what_is_closed_is_told_before_more_is_read() {
    let (mut primary, mut follower) = link_with(VERSION);
    let (long, theirs) = lingering();
    hold_and_release(&primary, &mut follower, vec![(1, long)]);
    assert_eq!(primary.hears(), Heard::Closing(vec![dropped(1)]));
    assert_eq!(primary.hears(), Heard::UpTo(2));
    let null = std::fs::File::open("/dev/null").unwrap();
    for serial in 2..6 {
        let mut held = Changes::default();
        let origin = Origin { owner: LONG, tenure: Tenure::from_bits(0), serial };
        held.held(&id(serial), Limit::never(), origin, null.as_fd());
        primary.say(&held.into_message(serial + 1, false));
    }
    follower.calm = CALM;
    follower.hear().unwrap();
    assert_eq!(follower.replica.store().len(), 1);
    drop(theirs);
    while !primary.has_heard() {
        follower.wait(None, Some(Instant::now() + PATIENCE)).unwrap();
    }
    assert_eq!(primary.hears(), Heard::Closed(vec![dropped(1)]));
    follower.hear().unwrap();
    assert_eq!(follower.replica.store().len(), 4);
}

/// A primary that does not know of this hears that it is carried out, and nothing else.
#[test]
fn an_older_primary_is_not_told() {
    let (mut primary, mut follower) = link_with(CLOSES_VERSION - 1);
    let (long, theirs) = lingering();
    hold_and_release(&primary, &mut follower, vec![(9, long)]);
    assert_eq!(primary.hears(), Heard::UpTo(2));
    drop(theirs);
    primary.say(&link::synced());
    while !follower.wait(None, Some(Instant::now() + PATIENCE)).unwrap().from_primary {}
    follower.hear().unwrap();
    assert_eq!(primary.hears(), Heard::Synced);
}
