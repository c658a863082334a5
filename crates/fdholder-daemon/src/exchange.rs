//! Handing everything over to a follower, step by step.
//!
//! Nothing else is done meanwhile: clients wait, and what they send stays in their sockets.

use crate::clock;
use crate::closing::ClientFd;
use crate::limits::KEEP_PATIENCE;
use crate::reading::{has_hung_up, is_readable, is_transient, read};
use crate::replication::roll::{Handed, Roll};
use crate::replication::Mirrors;
use fdholder::frame::Decoder;
use fdholder::link::{HandedClient, Heard};
use fdholder::transport::{self, Wait};
use fdholder::{strerror, Errno, Malformed};
use rustix::event::{PollFd, PollFlags};
use std::borrow::Cow;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// How often to look whether a follower has the lock.
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// The same once it has been slow.
const LONG_LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long to wait at most before something is tried again: descriptors may have had no
/// room in flight, and nothing tells when they do.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Why a follower does not serve.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It has ended, or hung up.
    Gone,
    /// It takes too long.
    TimedOut,
    Malformed(Malformed),
    Failed(Errno),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it has gone"),
            Self::TimedOut => f.write_str("it takes too long"),
            Self::Malformed(malformed) => write!(f, "protocol error: {malformed}"),
            Self::Failed(errno) => f.write_str(&strerror(*errno)),
        }
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::TIMEDOUT => Self::TimedOut,
            errno => Self::Failed(errno),
        }
    }
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// An exchange with one follower.
pub(crate) struct Exchange<'a> {
    socket: &'a OwnedFd,
    decoder: &'a mut Decoder<ClientFd>,
    mirrors: &'a mut Mirrors<ClientFd>,
    /// Its key among them.
    mirror: usize,
    buffer: &'a mut [u8],
    /// How long the follower may take nothing and say nothing.
    patience: Duration,
    /// When it last did.
    progress: Instant,
}

impl<'a> Exchange<'a> {
    /// With the follower that is the mirror of this key.
    pub fn new(
        (socket, decoder): (&'a OwnedFd, &'a mut Decoder<ClientFd>),
        (mirrors, mirror): (&'a mut Mirrors<ClientFd>, usize),
        buffer: &'a mut [u8],
        patience: Duration,
    ) -> Self {
        Self { socket, decoder, mirrors, mirror, buffer, patience, progress: clock::now() }
    }

    fn is_late(&self) -> bool {
        clock::since(self.progress) >= self.patience
    }

    /// Hands over clients, and with them everything, to follower `number` of a roll, or nothing:
    /// when this returns, that one has come as far as `until`, or never will.
    pub fn hand_over<'c>(
        &mut self,
        clients: impl IntoIterator<Item = Cow<'c, HandedClient<Arc<ClientFd>>>>,
        roll: &Roll,
        number: u32,
        until: Handed,
        stop: BorrowedFd<'_>,
    ) -> Result<(), Broken> {
        self.tell_all()?;
        for client in clients {
            self.mirrors.get_mut(self.mirror).ok_or(Broken::Gone)?.hand_over(&client);
            self.tell_all()?;
        }
        self.mirrors.get_mut(self.mirror).ok_or(Broken::Gone)?.is_yours();
        self.tell_all()?;
        self.wait_for(&Heard::Commit)?;
        self.let_serve(roll, number, until, stop)
    }

    /// Sends everything, and waits until what has to be carried out is.
    pub fn tell_all(&mut self) -> Result<(), Broken> {
        loop {
            let mirror = self.mirrors.get_mut(self.mirror).ok_or(Broken::Gone)?;
            let Some((bytes, carriers)) = mirror.front() else {
                if !self.mirrors.is_behind(self.mirror) {
                    return Ok(());
                }
                self.wait(PollFlags::IN)?;
                self.hear()?;
                continue;
            };
            let fds: Vec<_> = carriers.iter().map(|carrier| carrier.fd().as_fd()).collect();
            match transport::send(self.socket, bytes, &fds, Wait::No) {
                Ok(len) => {
                    mirror.advance(len);
                    self.progress = clock::now();
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(errno) if is_transient(errno) => self.wait(PollFlags::empty())?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Broken::Gone),
                Err(errno) => return Err(Broken::Failed(errno)),
            }
        }
    }

    /// Waits until the follower says something.
    pub fn wait_for(&mut self, what: &Heard) -> Result<(), Broken> {
        while self.hear()?.is_none_or(|heard| heard != *what) {
            self.wait(PollFlags::IN)?;
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags) -> Result<(), Broken> {
        if self.is_late() {
            return Err(Broken::TimedOut);
        }
        let until = clock::now() + RETRY_PAUSE;
        match clock::poll(&mut [PollFd::new(self.socket, what)], Some(until)) {
            Ok(_) => Ok(()),
            Err(errno) if is_transient(errno) => Ok(()),
            Err(errno) => Err(Broken::Failed(errno)),
        }
    }

    /// What the follower says next, if it has said anything; what it has carried out is
    /// taken down.
    fn hear(&mut self) -> Result<Option<Heard>, Broken> {
        if !self.decoder.has_frame() {
            match read(self.socket, self.decoder, self.buffer, Some(clock::now())) {
                Ok(true) | Err(Errno::TIMEDOUT) => {}
                Ok(false) => return Err(Broken::Gone),
                Err(errno) => return Err(errno.into()),
            }
        }
        let Some(frame) = self.decoder.next()? else { return Ok(None) };
        let heard = Heard::parse(&frame)?;
        self.progress = clock::now();
        if let Some(mirror) = self.mirrors.get_mut(self.mirror) {
            mirror.hear(&heard);
        }
        Ok(Some(heard))
    }

    /// Lets the follower have our place, which it says it takes, and waits until it has. The
    /// kernel decides: it has the lock, or we take it back. Whatever it looks like, nothing else does;
    /// but once `stop` can be read this process ends instead of waiting.
    fn let_serve(
        &self,
        roll: &Roll,
        number: u32,
        until: Handed,
        stop: BorrowedFd<'_>,
    ) -> Result<(), Broken> {
        roll.let_go().map_err(Broken::Failed)?;
        let (mut followed_at, mut has_warned) = (None, false);
        loop {
            if roll.is_handed_over(until) {
                return Ok(());
            }
            if roll.is_handed_over(Handed::Follows) {
                followed_at.get_or_insert_with(clock::now);
            }
            let has_gone = has_hung_up(self.socket);
            if (has_gone || self.is_late()) && roll.take_back(number) {
                return Err(if has_gone { Broken::Gone } else { Broken::TimedOut });
            }
            // It has the lock, and may be stopped, or unable to say that it serves. While it has that,
            // this process is silent, and still the second copy.
            let is_slow = followed_at.is_some_and(|at| clock::since(at) >= KEEP_PATIENCE);
            if is_slow && !std::mem::replace(&mut has_warned, true) {
                warn!("the process that takes over is slow to serve; waiting for it");
            }
            // To end is safe at any time, unlike to go on.
            if followed_at.is_some() && is_readable(stop) {
                return Ok(());
            }
            clock::sleep(if is_slow { LONG_LOOK_PAUSE } else { LOOK_PAUSE });
        }
    }
}
