//! A process that follows a primary: it has what the primary has, and may serve next.

use crate::closing::{self, ClientFd};
use crate::inheritance::Inheritance;
use crate::keeper::keep;
use crate::limits::{MIRROR_CLOSE_PARDON, MIRROR_CLOSE_PATIENCE};
use crate::offspring::let_go_of_children;
use crate::reading::{is_readable, read};
use crate::replication::roll::{succeed, Place, Succession};
use crate::replication::{Replica, ReplicaError};
use fdholder::extension::{self, Extension, FOLLOW_VERSION, VERSION};
use fdholder::frame::Decoder;
use fdholder::link::{Fed, Head, Heard, Mirrored, LINK_PAYLOAD_MAX};
use fdholder::transport::{self, Wait};
use fdholder::{reply, strerror, Errno, Malformed, Request};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Why a primary cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowError {
    /// It hangs up on what only a fdholder understands.
    NoFdholder,
    /// It is a fdholder that is too old for this.
    TooOld,
    /// It says no: EPERM it runs as another user · ENFILE it holds more than there is room
    /// for here · EBUSY others follow already · ESHUTDOWN it is about to end.
    Refused(Errno),
    /// It has given us up, or another process has taken its place.
    GivenUp,
    /// It says nothing.
    TimedOut,
    /// This process was asked to end.
    Stopped,
    /// It has gone before it had told everything.
    Gone,
    /// It speaks another language, or holds too much.
    Replica(ReplicaError),
    /// A system call failed.
    System(Errno),
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFdholder => f.write_str("it is not a fdholder"),
            Self::TooOld => f.write_str("it is a fdholder too old to be taken over from"),
            Self::Refused(Errno::PERM) => f.write_str("it runs as another user"),
            Self::Refused(Errno::NFILE) => f.write_str(
                "it holds more than this one would have room for: see option -n and ulimit -Hn",
            ),
            Self::Refused(Errno::BUSY) => f.write_str("others are taking over from it"),
            Self::Refused(Errno::SHUTDOWN) => f.write_str("it is about to end"),
            Self::Refused(errno) => write!(f, "it refuses: {}", strerror(*errno)),
            Self::GivenUp => f.write_str("it goes on by itself"),
            Self::Stopped => f.write_str("this one was asked to end"),
            Self::TimedOut => f.write_str("it does not answer"),
            Self::Gone => f.write_str("it has ended before it had handed over everything"),
            Self::Replica(error) => error.fmt(f),
            Self::System(errno) => f.write_str(&strerror(*errno)),
        }
    }
}

impl std::error::Error for FollowError {}

impl From<ReplicaError> for FollowError {
    fn from(error: ReplicaError) -> Self {
        Self::Replica(error)
    }
}

impl From<Malformed> for FollowError {
    fn from(malformed: Malformed) -> Self {
        Self::Replica(malformed.into())
    }
}

impl From<Errno> for FollowError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::TIMEDOUT => Self::TimedOut,
            errno => Self::System(errno),
        }
    }
}

/// How long a primary may say nothing when it is asked something.
const PATIENCE: Duration = Duration::from_secs(10);

/// When so many times in a row nothing had to be confirmed, the primary does not wait for us.
const CALM: u32 = 8;

/// How long to rest then before more is read: to be woken for each message takes more time
/// than what is in it, also the primary's. Something to confirm that comes meanwhile waits.
const REST: Duration = Duration::from_micros(200);

/// Bytes read at once.
const READ_LEN: usize = 64 * 1024;

/// Whoever has given something is kept waiting if it takes long to close it.
fn of_their_owners(fed: Fed<ClientFd>) -> Fed<ClientFd> {
    let Fed::Changes { up_to, goes_on, mut changes } = fed else { return fed };
    for change in &mut changes {
        if let Mirrored::Held { entry, origin } = change {
            entry.fd.set_owner(origin.owner);
        }
    }
    Fed::Changes { up_to, goes_on, changes }
}

/// A process that follows.
#[derive(Debug)]
pub struct Follower {
    socket: OwnedFd,
    decoder: Decoder<ClientFd>,
    buffer: Vec<u8>,
    head: Head,
    listener: OwnedFd,
    roll: OwnedFd,
    replica: Replica<ClientFd>,
    /// How many times in a row nothing had to be confirmed.
    calm: u32,
    /// Users whose descriptors have taken long to close, and until when that is remembered.
    not_waited_for: HashMap<u32, Instant>,
}

impl Follower {
    /// Follows the primary at the other end of a connection, with room for so many
    /// descriptors.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub fn begin(socket: OwnedFd, capacity: usize) -> Result<Self, FollowError> {
        closing::begin();
        let capacity_told = u32::try_from(capacity).unwrap_or(u32::MAX);
        let ask = |extension| Request::<BorrowedFd<'_>>::Extension(extension).into_message();
        let mut bytes = ask(Extension::Hello(VERSION)).into_parts().0;
        bytes.extend(ask(Extension::Follow { capacity: capacity_told }).bytes());
        let mut decoder = Decoder::new(LINK_PAYLOAD_MAX);
        let mut buffer = vec![0; READ_LEN];
        let mut receive = |decoder: &mut Decoder<ClientFd>, deadline| {
            while !decoder.has_frame() {
                if !read(&socket, decoder, &mut buffer, Some(deadline))? {
                    return Err(FollowError::NoFdholder);
                }
            }
            Ok(())
        };
        let deadline = Instant::now() + PATIENCE;
        match transport::send(&socket, &bytes, &[], Wait::No) {
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => return Err(FollowError::System(errno)),
        }
        receive(&mut decoder, deadline)?;
        let cut_short = || Malformed::INCOMPLETE;
        let version = extension::parse_hello(&decoder.next()?.ok_or_else(cut_short)?)?;
        if version.ok().is_none_or(|version| version < FOLLOW_VERSION) {
            return Err(FollowError::TooOld);
        }
        receive(&mut decoder, deadline)?;
        let frame = decoder.next()?.ok_or_else(cut_short)?;
        if let Ok(Err(errno)) = reply::parse_status(&frame) {
            return Err(FollowError::Refused(errno));
        }
        let Fed::Head { head, listener, roll } = Fed::parse(frame)? else {
            return Err(Malformed::INCOMPLETE.into());
        };
        let (listener, roll) = (listener.into_inner(), roll.into_inner());
        let (Some(listener), Some(roll)) = (listener, roll) else {
            return Err(Malformed::INCOMPLETE.into());
        };
        let replica = Replica::new(capacity);
        let not_waited_for = HashMap::new();
        Ok(Self { socket, decoder, buffer, head, listener, roll, replica, calm: 0, not_waited_for })
    }

    /// Whom it follows.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Takes the place of the primary. Returns when it has ended, or at any rate serves no
    /// longer. When `stop` becomes readable before that, it is left alone.
    ///
    /// # Errors
    ///
    /// [`FollowError`]; the primary serves then, or another who has taken its place.
    pub fn take_over(mut self, stop: Option<BorrowedFd<'_>>) -> Result<Inheritance, FollowError> {
        let mut has_asked = false;
        while !self.replica.is_ours() {
            if stop.is_some_and(|stop| is_readable(stop)) {
                return Err(FollowError::Stopped);
            }
            if self.replica.is_synced() && !has_asked {
                // If it cannot hear that, it has gone, which is heard next: then its place is ours.
                let _ = self.say(Heard::TakeOver);
                has_asked = true;
            }
            // It may have clients that take a while to finish.
            if !self.hear(Some(Instant::now() + PATIENCE))? {
                break;
            }
        }
        if stop.is_some_and(|stop| is_readable(stop)) {
            return Err(FollowError::Stopped);
        }
        if self.replica.is_ours() {
            // If it does not hear that any more it has gone.
            let _ = self.say(Heard::Commit);
        }
        let (inheritance, _) = self.succeed(false)?;
        // If this process has just become another program, it has children of that one.
        let_go_of_children();
        Ok(inheritance)
    }

    /// Follows until the primary has gone: then it is on us. `None`: we are not needed any
    /// more. When `stop` becomes readable, the primary is asked to end.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub fn stand_by(mut self, stop: impl AsFd) -> Result<Option<Inheritance>, FollowError> {
        let mut has_passed_on = false;
        loop {
            let mut sources = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            let watched = if has_passed_on { &mut sources[..1] } else { &mut sources[..] };
            let at_once = Timespec::default();
            match poll(watched, (self.calm >= CALM).then_some(&at_once)) {
                Ok(0) => {
                    // Everything was read.
                    self.calm = CALM - 1;
                    std::thread::sleep(REST);
                    continue;
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(FollowError::System(errno)),
            }
            if !sources[1].revents().is_empty() && !has_passed_on {
                has_passed_on = true;
                // If it cannot hear that, it has gone, which is heard next.
                let _ = self.say(Heard::Stop);
            }
            if !sources[0].revents().is_empty() && !self.hear(None)? {
                break;
            }
            if self.replica.is_ours() {
                // It is for somebody else, unless that one does not come.
                let _ = self.say(Heard::Commit);
                let (inheritance, socket) = self.succeed(true)?;
                return keep(&socket, inheritance).map_err(FollowError::System);
            }
        }
        match self.succeed(false) {
            Ok(_) if has_passed_on => Ok(None),
            Ok((inheritance, _)) => Ok(Some(inheritance)),
            Err(FollowError::GivenUp) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn succeed(self, keeps: bool) -> Result<(Inheritance, OwnedFd), FollowError> {
        if !self.replica.is_synced() {
            return Err(FollowError::Gone);
        }
        match succeed(&self.roll, self.head.number, keeps).map_err(FollowError::System)? {
            Succession::Ours => {
                let (store, clients, dropped) = self.replica.into_parts();
                let Self { listener, socket, roll, .. } = self;
                let place = Some(Place::of(roll));
                let inheritance = Inheritance { listener, store, clients, dropped, place };
                Ok((inheritance, socket))
            }
            Succession::Anothers | Succession::GivenUp => Err(FollowError::GivenUp),
        }
    }

    /// Takes in what has come, after waiting for it; false when the primary has hung up.
    fn hear(&mut self, deadline: Option<Instant>) -> Result<bool, FollowError> {
        if !read(&self.socket, &mut self.decoder, &mut self.buffer, deadline)? {
            return Ok(false);
        }
        let mut up_to = None;
        while let Some(frame) = self.decoder.next()? {
            match self.replica.hear(of_their_owners(Fed::parse(frame)?))? {
                // The last of them says it for all.
                Some(answer @ Heard::UpTo(_)) => up_to = Some(answer),
                // If it has gone, what it said before still counts.
                Some(answer) => drop(self.say(answer)),
                None => {}
            }
        }
        self.wait_for_closes();
        self.calm = self.calm.saturating_add(1);
        if let Some(answer) = up_to {
            self.calm = 0;
            let _ = self.say(answer);
        }
        Ok(true)
    }

    /// What is not held any more is closed before the primary says so. But whoever has given
    /// something that takes long to close is not waited for once more for a while: others
    /// would be kept waiting by that.
    fn wait_for_closes(&mut self) {
        let mut closes = closing::begun();
        if closes.is_empty() {
            return;
        }
        let now = Instant::now();
        self.not_waited_for.retain(|_, until| *until > now);
        closes.retain(|user| !self.not_waited_for.contains_key(&user));
        if !closes.wait(MIRROR_CLOSE_PATIENCE) {
            let users = closes.unfinished().into_iter();
            self.not_waited_for.extend(users.map(|user| (user, now + MIRROR_CLOSE_PARDON)));
        }
    }

    fn say(&self, what: Heard) -> Result<(), FollowError> {
        let message = what.into_message::<BorrowedFd<'_>>();
        loop {
            match transport::send(&self.socket, message.bytes(), &[], Wait::No) {
                Ok(_) => return Ok(()),
                // It is short: there is room for all of it or none.
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(FollowError::System(errno)),
            }
            match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(FollowError::System(errno)),
            }
        }
    }
}
