//! Who serves, decided by the kernel: the roll of followers.
//!
//! It is a file in memory that a primary and those who follow it share. The primary has it
//! locked (fcntl(2), which belongs to a process and ends with it), so that whoever gets the
//! lock knows that the primary has gone. The bytes say who must not serve although it has:
//!
//! | byte | not 0 |
//! | --- | --- |
//! | 0 | somebody has followed this primary already, or keeps everything: see below |
//! | 1 to 8 | how many have served before, one after the other: the [generation](generation) |
//! | n | follower n was given up, and may not have everything |
//!
//! Nothing else decides: not that a link has ended, a process seems to be gone, or a time-out has
//! passed. A primary that lets another serve is silent from then on. It goes on only when it has the
//! lock again and byte 0 does not say that the other one serves: then that one has ended before it
//! could tell anybody anything.
//!
//! The first page of them can always be written to, as it is mapped: neither a limit on the size
//! of files that was set later nor a lack of memory keeps a primary from giving a follower up.
//!
//! A primary gives a follower up here before it stops waiting for it, and before it hangs
//! up. So the end of a link by itself means that the primary has gone, or is going.
//!
//! Who keeps everything for the next program changes nothing, and has the lock meanwhile. So
//! the others stay what they were: if it goes, whoever gets the lock next serves. Before it
//! lets anybody serve, itself or that program, it has followed like any other.

use super::bytes::{self, Bytes};
use crate::bugs::{active, Bug};
use crate::clock;
use crate::reading::{is_transient, retried};
use fdholder::link::Pending;
use rustix::fs::{fcntl_lock, memfd_create, FlockOperation, MemfdFlags};
use rustix::io::{pread, pwrite, Errno};
use rustix::process::{getrlimit, Resource};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Where it is told that somebody has followed.
const SUCCEEDED: u64 = 0;

/// What stands there: a follower is about to serve; one serves that has got everything in another
/// way, and nobody else ever will; a follower has everything, and serves nobody; it serves.
const FOLLOWED: u8 = 1;
const RECOVERED: u8 = 2;
const KEPT: u8 = 3;
const SERVES: u8 = 4;

/// Where the generation stands, and the last byte of it.
const GENERATION: u64 = 1;
const GENERATION_END: u32 = 8;

/// The primary itself has taken a place and does not serve yet. For who follows it this is as 0.
const UNSETTLED: u8 = 5;

/// How long to wait before a lock is tried again that a process has which is ending.
const RETRY_PAUSE: Duration = Duration::from_micros(200);

/// The roll as its primary has it. Dropped, the lock is free.
#[derive(Debug)]
pub(crate) struct Roll {
    /// Never closed while this process is the primary; see [`file`](Self::file).
    file: Arc<OwnedFd>,
    bytes: Bytes,
    generation: u64,
    last: u32,
}

impl Roll {
    /// A new one, locked. The generation is that of the daemon before, and one more; that of a
    /// daemon that only keeps everything is the same.
    ///
    /// # Errors
    ///
    /// Those of `memfd_create(2)`, mmap(2) and fcntl(2); EFBIG if no file may be so long, see
    /// [`can_be`](Self::can_be).
    pub fn new(generation: u64) -> Result<Self, Errno> {
        let file =
            memfd_create("fdholder roll", MemfdFlags::CLOEXEC).map_err(|errno| match errno {
                // ENFILE tells a follower that it has too little room itself.
                Errno::NFILE => Errno::MFILE,
                errno => errno,
            })?;
        // Now there is the memory, too. Read beyond the end, nobody was given up.
        pwrite(&file, &[0], bytes::LEN as u64 - 1)?;
        pwrite(&file, &generation.to_be_bytes(), GENERATION)?;
        let bytes = Bytes::of(&file)?;
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { file: Arc::new(file), bytes, generation, last: GENERATION_END })
    }

    /// Whether the limit on the size of files allows for one.
    pub fn can_be() -> bool {
        getrlimit(Resource::Fsize).current.is_none_or(|limit| limit >= bytes::LEN as u64)
    }

    /// For a follower. This process must never close it under another number: that would
    /// free the lock, see fcntl(2).
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of a new follower.
    pub fn enter(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// Lets a follower who is to serve have the lock; whether it does is told by
    /// [`has_been_followed`](Self::has_been_followed).
    ///
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub fn let_go(&self) -> Result<(), Errno> {
        fcntl_lock(&*self.file, FlockOperation::NonBlockingUnlock)
    }

    /// Takes the lock back from follower `number`, which must not serve any more. False while that
    /// one has it, or once it serves.
    pub fn take_back(&self, number: u32) -> bool {
        let is_locked = fcntl_lock(&*self.file, FlockOperation::NonBlockingLockExclusive).is_ok();
        // In doubt another serves: two would be worse than none.
        let state = if is_locked { byte(self.file.as_fd(), SUCCEEDED) } else { Ok(0) };
        if !may_go_on(is_locked, !matches!(state, Ok(0 | UNSETTLED | FOLLOWED | KEPT))) {
            return false;
        }
        // Who gives it up for good says so if that fails.
        let _ = self.give_up(number);
        // Otherwise nobody would serve after us.
        state == Ok(0) || self.bytes.set(SUCCEEDED, 0)
    }

    /// Whether a follower keeps everything, and has not begun to serve.
    pub fn is_kept(&self) -> bool {
        byte(self.file.as_fd(), SUCCEEDED) == Ok(KEPT)
    }

    /// Whether a follower has come as far as that.
    pub fn is_handed_over(&self, how: Handed) -> bool {
        let Ok(state) = byte(self.file.as_fd(), SUCCEEDED) else { return false };
        match how {
            Handed::Follows => !matches!(state, 0 | UNSETTLED),
            Handed::Serves => matches!(state, SERVES | RECOVERED),
        }
    }

    /// Says that the primary does not serve yet, or that it does, to who gets this from systemd.
    pub fn settle(&self, is_settled: bool) {
        // At worst it is asked for longer whether somebody serves.
        self.bytes.set(SUCCEEDED, if is_settled { 0 } else { UNSETTLED });
    }

    /// This follower must not serve.
    ///
    /// # Errors
    ///
    /// Those of pwrite(2), when thousands have followed before.
    pub fn give_up(&self, number: u32) -> Result<(), Errno> {
        if self.bytes.set(number.into(), 1) {
            return Ok(());
        }
        pwrite(&*self.file, &[1], number.into()).map(drop)
    }
}

/// When everything was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handed {
    /// The other process has the lock: what comes next is on it.
    Follows,
    /// It serves. If it ends before that, its predecessor goes on.
    Serves,
}

/// What became of a primary's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Succession {
    /// It is ours.
    Ours,
    /// Another has it.
    Anothers,
    /// The primary has given us up.
    GivenUp,
}

/// Takes the place of a primary that has gone, or is going; waits until it has. To serve, or
/// only to keep everything: then the lock must be kept, too.
///
/// # Errors
///
/// Those of fcntl(2), pread(2) and pwrite(2).
pub(crate) fn succeed(roll: impl AsFd, number: u32, keeps: bool) -> Result<Succession, Errno> {
    insist(|| try_succeed(&roll, number, keeps))
}

/// Whoever has everything does not go because there was no memory for a moment.
fn insist<T>(mut what: impl FnMut() -> Result<Option<T>, Errno>) -> Result<T, Errno> {
    loop {
        match what() {
            Ok(Some(done)) => return Ok(done),
            Ok(None) | Err(Errno::NOLCK | Errno::AGAIN) => {}
            Err(errno) if is_transient(errno) => {}
            Err(errno) => return Err(errno),
        }
        clock::pause(RETRY_PAUSE);
    }
}

/// The same without waiting: `None` while the primary is there, or who keeps everything.
fn try_succeed(roll: impl AsFd, number: u32, keeps: bool) -> Result<Option<Succession>, Errno> {
    let roll = roll.as_fd();
    let is_locked = try_lock(roll)?;
    // Looked at with the lock, if it is ours: then nothing changes it any more.
    let is_given_up = is_set(roll, number.into())?;
    let has_been_followed = !matches!(byte(roll, SUCCEEDED)?, 0 | UNSETTLED | KEPT);
    let succession = verdict(is_locked, is_given_up, has_been_followed);
    if succession == Some(Succession::Ours) {
        say(roll, if keeps { KEPT } else { FOLLOWED })?;
    }
    Ok(succession)
}

/// The same for one that has got in another way what the primary had: whoever has followed
/// that one and has gone before it came to serve has changed nothing. `None` while it is
/// there.
///
/// # Errors
///
/// As [`succeed`].
pub(crate) fn try_recover(roll: impl AsFd) -> Result<Option<Succession>, Errno> {
    let roll = roll.as_fd();
    if !try_lock(roll)? {
        return Ok(None);
    }
    if byte(roll, SUCCEEDED)? == SERVES {
        return Ok(Some(Succession::Anothers));
    }
    say(roll, RECOVERED)?;
    Ok(Some(Succession::Ours))
}

/// Whether nobody has the lock, and nobody has served in that place. Only looks.
pub fn is_abandoned(roll: impl AsFd) -> bool {
    let roll = roll.as_fd();
    let is_free = matches!(try_lock(roll), Ok(true));
    // In doubt somebody is there.
    let has_served = byte(roll, SUCCEEDED) == Ok(SERVES);
    if is_free {
        let _ = fcntl_lock(roll, FlockOperation::NonBlockingUnlock);
    }
    is_free && !has_served
}

/// Whether somebody has taken the place of the primary and has not served, or the primary itself had
/// not: then its predecessor, or another, may do so.
pub fn is_undecided(roll: impl AsFd) -> bool {
    !matches!(byte(roll.as_fd(), SUCCEEDED), Ok(0 | SERVES))
}

/// Whether somebody has taken the place of the primary whose roll this is for good: another one may
/// say who serves.
pub(crate) fn has_successor(roll: impl AsFd) -> bool {
    matches!(retried(|| byte(roll.as_fd(), SUCCEEDED)), Ok(SERVES | RECOVERED))
}

/// Says what stands for everybody to see. Where files may not be written to (`RLIMIT_FSIZE`), by
/// mapping it.
fn say(roll: BorrowedFd<'_>, what: u8) -> Result<(), Errno> {
    match pwrite(roll, &[what], SUCCEEDED) {
        Err(Errno::FBIG) if Bytes::of(roll)?.set(SUCCEEDED, what) => Ok(()),
        written => written.map(drop),
    }
}

/// Takes the place of a primary that has gone, as [`succeed`] does, if it had not begun to serve in
/// the place that it had taken itself. Its own predecessor may have that again by now: only one of
/// both gets the lock there, and must keep it until it serves.
///
/// # Errors
///
/// As [`succeed`].
pub(crate) fn succeed_in_pending(pending: &Pending<OwnedFd>) -> Result<Succession, Errno> {
    insist(|| {
        let roll = pending.roll.as_fd();
        let is_locked = try_lock(roll)?;
        // Looked at with the lock, if it is ours.
        let is_given_up = is_set(roll, pending.number.into())?;
        Ok(pending_verdict(is_locked, is_given_up, byte(roll, SUCCEEDED)?))
    })
}

/// Whether the primary has begun to serve in it: then its predecessor never has it again.
pub(crate) fn is_served(pending: &Pending<OwnedFd>) -> bool {
    let roll = pending.roll.as_fd();
    byte(roll, SUCCEEDED) == Ok(SERVES) && is_set(roll, pending.number.into()) == Ok(false)
}

/// `None` while it is not decided.
fn pending_verdict(is_locked: bool, is_given_up: bool, state: u8) -> Option<Succession> {
    match state {
        _ if is_given_up => Some(Succession::GivenUp),
        SERVES => Some(Succession::Ours),
        // One that has everything from systemd serves, or has served.
        RECOVERED => Some(Succession::Anothers),
        _ if !is_locked => None,
        // The predecessor had it again, and has gone.
        0 => Some(Succession::Anothers),
        _ => Some(Succession::Ours),
    }
}

/// The place of a primary that has gone. While it is kept, whoever looks sees that somebody
/// has it.
#[derive(Debug)]
pub struct Place {
    /// Where we have the lock, until it is closed.
    roll: OwnedFd,
    /// Our own place there.
    number: u32,
    /// What our predecessor had not begun to serve in, where we have the lock, too.
    before: Option<Pending<OwnedFd>>,
}

impl Place {
    pub(crate) fn of(roll: OwnedFd, number: u32, before: Option<Pending<OwnedFd>>) -> Self {
        Self { roll, number, before }
    }

    /// The generation of the daemon that had it.
    pub(crate) fn generation(&self) -> u64 {
        // Without it systemd might keep a roll more.
        retried(|| generation(&self.roll)).unwrap_or(0)
    }

    /// For who follows us before we [serve](Self::serve): the place that may go back to somebody.
    pub(crate) fn pending(&self) -> Pending<BorrowedFd<'_>> {
        match &self.before {
            Some(before) => Pending { roll: before.roll.as_fd(), number: before.number },
            None => Pending { roll: self.roll.as_fd(), number: self.number },
        }
    }

    /// Whoever has only kept everything so far is about to serve, or has another do so.
    ///
    /// # Errors
    ///
    /// Those of pwrite(2).
    pub(crate) fn follow(&self) -> Result<(), Errno> {
        insist(|| say(self.roll.as_fd(), FOLLOWED).map(Some))
    }

    /// From now on what the primary had is not what is held.
    pub(crate) fn serve(&mut self) {
        let before = self.before.as_ref().map(|before| &before.roll);
        for roll in before.into_iter().chain([&self.roll]) {
            // Without it the predecessor waits for a while before it ends.
            if let Err(errno) = insist(|| say(roll.as_fd(), SERVES).map(Some)) {
                warn!("unable to write that this process serves: {errno}");
            }
        }
        // Nobody asks for its lock any more.
        self.before = None;
    }
}

/// The generation of a roll.
///
/// # Errors
///
/// Those of pread(2).
pub(crate) fn generation(roll: impl AsFd) -> Result<u64, Errno> {
    let mut bytes = [0; size_of::<u64>()];
    pread(roll, &mut bytes, GENERATION)?;
    Ok(u64::from_be_bytes(bytes))
}

fn try_lock(roll: BorrowedFd<'_>) -> Result<bool, Errno> {
    match fcntl_lock(roll, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// What a follower makes of the roll; `None` while the primary is still there.
pub(crate) fn verdict(
    is_locked: bool,
    is_given_up: bool,
    has_been_followed: bool,
) -> Option<Succession> {
    if is_given_up && !active(Bug::GivenUpServes) {
        Some(Succession::GivenUp)
    } else if has_been_followed && !active(Bug::SecondServes) {
        Some(Succession::Anothers)
    } else {
        is_locked.then_some(Succession::Ours)
    }
}

/// Whether a primary that wanted to be followed goes on itself.
pub(crate) fn may_go_on(is_locked: bool, another_serves: bool) -> bool {
    is_locked && !another_serves && !active(Bug::NeverGoesOn)
}

fn is_set(roll: BorrowedFd<'_>, at: u64) -> Result<bool, Errno> {
    byte(roll, at).map(|byte| byte != 0)
}

/// What is not there is 0.
fn byte(roll: BorrowedFd<'_>, at: u64) -> Result<u8, Errno> {
    let mut byte = [0];
    pread(roll, &mut byte, at)?;
    Ok(byte[0])
}

#[cfg(test)]
mod tests;
