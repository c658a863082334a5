//! A follower of which each step is the test's.

use fdholder::extension::{Extension, VERSION};
use fdholder::frame::{Decoder, Frame, Message};
use fdholder::link::{Fed, Head, Heard, LINK_PAYLOAD_MAX};
use fdholder::transport::{self, Wait};
use fdholder::Request;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection that asks to follow, behind other requests or right away.
pub struct RawFollower {
    raw: UnixStream,
    decoder: Decoder<OwnedFd>,
}

/// What a follower is told first.
pub struct Place {
    head: Head,
    roll: File,
}

impl Place {
    /// Whether it must not serve any more.
    pub fn is_struck_off(&self) -> bool {
        let mut byte = [0];
        self.roll.read_at(&mut byte, self.head.number.into()).unwrap() == 1 && byte != [0]
    }
}

impl RawFollower {
    /// Asks something, and to follow.
    pub fn behind(path: &Path, first: &Message<BorrowedFd<'_>>) -> Self {
        let raw = UnixStream::connect(path).unwrap();
        let ask = |extension| Request::<BorrowedFd<'_>>::Extension(extension).into_message();
        let (hello, follow) = (Extension::Hello(VERSION), Extension::Follow { capacity: 100_000 });
        let bytes = [first.bytes(), ask(hello).bytes(), ask(follow).bytes()].concat();
        transport::send(&raw, &bytes, first.fds(), Wait::Yes).unwrap();
        Self { raw, decoder: Decoder::new(LINK_PAYLOAD_MAX) }
    }

    /// Asks to follow, and is told where it stands.
    pub fn new(path: &Path) -> (Self, Place) {
        let ask = Request::<BorrowedFd<'_>>::Extension(Extension::Hello(VERSION));
        let mut follower = Self::behind(path, &ask.into_message());
        follower.next(|_| {});
        follower.next(|_| {});
        let place = follower.next(|frame| match Fed::parse(frame) {
            Ok(Fed::Head { head, roll, .. }) => Place { head, roll: roll.into() },
            other => panic!("{other:?}"),
        });
        (follower, place)
    }

    /// What comes next.
    pub fn next<T>(&mut self, read: impl FnOnce(Frame<'_, OwnedFd>) -> T) -> T {
        while !self.decoder.has_frame() {
            let mut buffer = [0; 1024];
            let received = transport::receive(&self.raw, &mut buffer, Wait::Yes).unwrap();
            assert_ne!(received.len, 0);
            self.decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
        }
        read(self.decoder.next().unwrap().unwrap())
    }

    /// Hears what comes until this.
    pub fn hear_until(&mut self, is_it: impl Fn(&Fed<OwnedFd>) -> bool) {
        while !self.next(|frame| is_it(&Fed::parse(frame).unwrap())) {}
    }

    /// Says something.
    pub fn say(&self, what: Heard) {
        let message = what.into_message::<BorrowedFd<'_>>();
        transport::send(&self.raw, message.bytes(), &[], Wait::Yes).unwrap();
    }
}
