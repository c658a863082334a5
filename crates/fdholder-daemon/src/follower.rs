//! A process that follows a primary: it has what the primary has, and may serve next.

use crate::backlog::Backlog;
use crate::children::reap_inherited_children;
use crate::clock;
use crate::closing::{self, Bell, ClientFd, Closes};
use crate::inheritance::Inheritance;
use crate::keeper::{can_keep, keep};
use crate::limits::FORMER_LISTENERS_MAX;
use crate::reading::{is_readable, is_transient, read, retried, RETRY_PAUSE};
use crate::replication::roll::{is_served, succeed, succeed_in_pending, Place, Succession};
use crate::replication::{Replica, ReplicaError, Told};
use fdholder::extension::{self, Extension, CLOSES_VERSION, FOLLOW_VERSION, VERSION};
use fdholder::frame::Decoder;
use fdholder::link::{Dropped, Fed, Head, Heard, Mirrored, Pending, DROPPED_MAX, LINK_PAYLOAD_MAX};
use fdholder::transport::{self, Wait};
use fdholder::{reply, strerror, Errno, Malformed, Request};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{set_parent_process_death_signal, Signal};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
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

/// How often it is read then before anything else is looked at: each message of descriptors is
/// read by itself.
const READS_AT_ONCE: usize = 64;

/// How many of what is not closed are told together: in one message, and in small pieces of memory.
const TOLD_AT_ONCE: usize = 1024;

const _: () = assert!(TOLD_AT_ONCE <= DROPPED_MAX);

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
    /// Where clients came in before.
    former: Vec<OwnedFd>,
    roll: OwnedFd,
    /// What the primary had not begun to serve in when we came.
    pending: Option<Pending<OwnedFd>>,
    replica: Replica<ClientFd>,
    /// How many times in a row nothing had to be confirmed.
    calm: u32,
    /// The primary wants to know what is closed, and when.
    tells_closes: bool,
    /// What it has been told is not.
    closing: Backlog<(Dropped, Closes)>,
    /// Rings when something is closed.
    bell: Arc<Bell>,
}

/// What there is to read.
#[derive(Debug, Clone, Copy)]
struct Came {
    from_primary: bool,
    stop: bool,
}

impl Follower {
    /// Follows the primary at the other end of a connection, with room for so many
    /// descriptors.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub fn begin(socket: OwnedFd, capacity: usize) -> Result<Self, FollowError> {
        // Who goes on where another was lost must not fail for that; until it serves, it closes by
        // itself then.
        let _ = closing::begin();
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
        let deadline = clock::now() + PATIENCE;
        loop {
            match transport::send(&socket, &bytes, &[], Wait::No) {
                Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(errno) if is_transient(errno) && clock::now() < deadline => {
                    clock::pause(RETRY_PAUSE);
                }
                Err(errno) => return Err(FollowError::System(errno)),
            }
        }
        receive(&mut decoder, deadline)?;
        let cut_short = || Malformed::INCOMPLETE;
        let version = extension::parse_hello(&decoder.next()?.ok_or_else(cut_short)?)?;
        // All connections are taken: it has not read what it was asked.
        if version == Err(Errno::DQUOT) {
            return Err(FollowError::Refused(Errno::DQUOT));
        }
        let Some(version) = version.ok().filter(|version| *version >= FOLLOW_VERSION) else {
            return Err(FollowError::TooOld);
        };
        receive(&mut decoder, deadline)?;
        let frame = decoder.next()?.ok_or_else(cut_short)?;
        if let Ok(Err(errno)) = reply::parse_status(&frame) {
            return Err(FollowError::Refused(errno));
        }
        let Fed::Head { head, listener, roll, pending } = Fed::parse(frame)? else {
            return Err(Malformed::INCOMPLETE.into());
        };
        let (listener, roll) = (listener.into_inner(), roll.into_inner());
        let pending =
            pending.and_then(|it| Some(Pending { roll: it.roll.into_inner()?, number: it.number }));
        let (Some(listener), Some(roll)) = (listener, roll) else {
            return Err(Malformed::INCOMPLETE.into());
        };
        Ok(Self {
            socket,
            decoder,
            buffer,
            head,
            listener,
            former: Vec::new(),
            roll,
            pending,
            replica: Replica::new(capacity),
            calm: 0,
            tells_closes: version >= CLOSES_VERSION,
            closing: Backlog::default(),
            bell: retried(Bell::new)?,
        })
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
        let mut asked_at = None;
        while !self.replica.is_ours() {
            if stop.is_some_and(|stop| is_readable(stop)) {
                return Err(FollowError::Stopped);
            }
            if self.replica.is_synced() && asked_at.is_none() {
                self.say([Heard::TakeOver])?;
                asked_at = Some(clock::now());
            }
            // It may have clients that take a while to finish; whatever else it tells meanwhile.
            let deadline = asked_at.unwrap_or_else(clock::now) + PATIENCE;
            while !self.wait(None, Some(deadline))?.from_primary {}
            if !self.hear()? {
                break;
            }
        }
        if stop.is_some_and(|stop| is_readable(stop)) {
            return Err(FollowError::Stopped);
        }
        if self.replica.is_ours() {
            self.say([Heard::Commit])?;
        }
        let (inheritance, _) = self.succeed(false)?;
        // If this process has just become another program, it has children of that one.
        reap_inherited_children();
        Ok(inheritance)
    }

    /// Follows until the primary has gone: then it is on us. `None`: we are not needed any
    /// more. When `stop` becomes readable, the primary is asked to end.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub fn stand_by(mut self, stop: impl AsFd) -> Result<Option<Inheritance>, FollowError> {
        // One that its parent has stopped (SIGSTOP) goes on when that is killed.
        let _ = set_parent_process_death_signal(Some(Signal::CONT));
        let mut has_passed_on = false;
        loop {
            let came = self.wait((!has_passed_on).then_some(stop.as_fd()), None)?;
            if came.stop {
                has_passed_on = true;
                self.say([Heard::Stop])?;
            }
            if came.from_primary && !self.hear()? {
                break;
            }
            if self.replica.is_ours() {
                if !can_keep(self.replica.store().len()) {
                    return Err(ReplicaError::NoMemory.into());
                }
                // It is for somebody else, unless that one does not come.
                self.say([Heard::Commit])?;
                let (inheritance, socket) = self.succeed(true)?;
                let stop = stop.as_fd();
                return keep(&socket, inheritance, stop).map_err(FollowError::System);
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
        let mut succession =
            succeed(&self.roll, self.head.number, keeps).map_err(FollowError::System)?;
        if let (Succession::Ours, Some(pending)) = (succession, &self.pending) {
            succession = succeed_in_pending(pending).map_err(FollowError::System)?;
        }
        match succession {
            Succession::Ours => {
                let (store, clients, dropped) = self.replica.into_parts();
                let Self { listener, former, socket, roll, head, pending, .. } = self;
                let place = Some(Place::of(roll, head.number, pending));
                let inheritance = Inheritance { listener, former, store, clients, dropped, place };
                Ok((inheritance, socket))
            }
            Succession::Anothers | Succession::GivenUp => Err(FollowError::GivenUp),
        }
    }

    /// Waits until there is something to read; what is closed meanwhile is told.
    fn wait(
        &mut self,
        stop: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> Result<Came, FollowError> {
        let is_calm = self.calm >= CALM && deadline.is_none();
        let until = if is_calm { Some(clock::now()) } else { deadline };
        let mut sources = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(&*self.bell, PollFlags::IN),
            // Not watched if it is nothing.
            PollFd::from_borrowed_fd(stop.unwrap_or(self.socket.as_fd()), PollFlags::IN),
        ];
        let watched = if stop.is_some() { &mut sources[..] } else { &mut sources[..2] };
        match clock::poll(watched, until) {
            Ok(0) if is_calm => {
                // Everything was read.
                self.calm = CALM - 1;
                clock::pause(REST);
            }
            Ok(0) if deadline.is_some_and(|deadline| clock::now() >= deadline) => {
                return Err(FollowError::TimedOut);
            }
            Ok(_) => {}
            Err(errno) if is_transient(errno) => clock::pause(RETRY_PAUSE),
            Err(errno) => return Err(FollowError::System(errno)),
        }
        let [from_primary, has_rung, stop] = sources.map(|source| !source.revents().is_empty());
        if has_rung {
            self.bell.hear();
            self.tell_closed()?;
        }
        Ok(Came { from_primary, stop })
    }

    /// Takes in what has come; false when the primary has hung up.
    fn hear(&mut self) -> Result<bool, FollowError> {
        for _ in 0..READS_AT_ONCE {
            match read(&self.socket, &mut self.decoder, &mut self.buffer, Some(clock::now())) {
                Ok(true) => self.take_in()?,
                Ok(false) => return Ok(false),
                // That was all, or there was no memory at this moment.
                Err(Errno::TIMEDOUT) => break,
                Err(errno) => return Err(errno.into()),
            }
            // There is more only if it does not wait for us, be it to hear that something is closed.
            if self.calm < CALM || !self.closing.is_empty() || self.replica.is_ours() {
                break;
            }
        }
        Ok(true)
    }

    /// Takes in what was read.
    fn take_in(&mut self) -> Result<(), FollowError> {
        if self.pending.as_ref().is_some_and(is_served) {
            self.pending = None;
        }
        let (mut up_to, mut closing) = (None, Backlog::default());
        while let Some(frame) = self.decoder.next()? {
            drop(closing::begun());
            let fed = match Fed::parse(frame)? {
                Fed::Listener(listener) => {
                    let listener = listener.into_inner().ok_or(Malformed::INCOMPLETE)?;
                    self.comes_in_by(listener);
                    continue;
                }
                fed => fed,
            };
            let Told { answer, dropped } = self.replica.hear(of_their_owners(fed))?;
            for record in dropped {
                let what = record.origin.into();
                drop(record);
                closing.push_back((what, closing::begun()));
                if closing.len() >= TOLD_AT_ONCE {
                    let told = self.begin_to_tell(&mut closing);
                    self.say(told)?;
                }
            }
            match answer {
                // The last of them says it for all.
                Some(answer @ Heard::UpTo(_)) => up_to = Some(answer),
                Some(answer) => self.say([answer])?,
                None => {}
            }
        }
        self.calm = if up_to.is_some() { 0 } else { self.calm.saturating_add(1) };
        let told = self.begin_to_tell(&mut closing);
        self.say(told.into_iter().chain(up_to))
    }

    /// As the primary, which has taken in who waited at the oldest.
    fn comes_in_by(&mut self, listener: OwnedFd) {
        if self.former.len() >= FORMER_LISTENERS_MAX {
            self.former.remove(0);
        }
        self.former.push(std::mem::replace(&mut self.listener, listener));
    }

    /// What of this has not been closed by now: the primary is told when it is, as it waits for
    /// that, and we do not.
    fn begin_to_tell(&mut self, closing: &mut Backlog<(Dropped, Closes)>) -> Option<Heard> {
        if closing.is_empty() || !self.tells_closes {
            *closing = Backlog::default();
            return None;
        }
        self.bell.want();
        closing::take_ended(closing, usize::MAX);
        let mut told = Vec::new();
        for (what, closes) in closing.drain(usize::MAX) {
            told.push(what);
            self.closing.push_back((what, closes));
        }
        (!told.is_empty()).then_some(Heard::Closing(told))
    }

    fn tell_closed(&mut self) -> Result<(), FollowError> {
        if !self.closing.is_empty() {
            // The rest may be closed behind that.
            self.bell.want();
        }
        loop {
            let closed = closing::take_ended(&mut self.closing, TOLD_AT_ONCE);
            if closed.is_empty() {
                return Ok(());
            }
            self.say([Heard::Closed(closed)])?;
        }
    }

    /// Says some things, at once. If the primary has gone, that is heard next, and what it has told
    /// still counts.
    ///
    /// # Errors
    ///
    /// When it could not be said within [`PATIENCE`]: the primary waits for it, so this process must
    /// not go on as if it had been.
    fn say(&self, what: impl IntoIterator<Item = Heard>) -> Result<(), FollowError> {
        let messages = what.into_iter().map(Heard::into_message::<BorrowedFd<'_>>);
        let bytes = messages.flat_map(|message| message.into_parts().0).collect::<Vec<_>>();
        let until = clock::now() + PATIENCE;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match transport::send(&self.socket, rest, &[], Wait::No) {
                Ok(len) => {
                    rest = &rest[len..];
                    continue;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(Errno::AGAIN) => {}
                Err(errno) if is_transient(errno) => clock::pause(RETRY_PAUSE),
                Err(errno) => return Err(FollowError::System(errno)),
            }
            if clock::now() >= until {
                return Err(FollowError::TimedOut);
            }
            match clock::poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(until)) {
                Ok(_) => {}
                Err(errno) if is_transient(errno) => {}
                Err(errno) => return Err(FollowError::System(errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
