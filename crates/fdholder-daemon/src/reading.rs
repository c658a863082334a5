//! Reading from a connection between two daemons.

use crate::clock;
use crate::closing::ClientFd;
use crate::limits::MEMORY_PIECE_LEN;
use fdholder::frame::Decoder;
use fdholder::transport::{self, Wait};
use fdholder::Errno;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long to wait before something that failed for a moment is tried again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Whether a system call failed for want of something that there may be in a moment. It is tried
/// again then: no follower is given up for that, and the loop does not end.
pub fn is_transient(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOMEM
            | Errno::NOBUFS
            | Errno::NFILE
            | Errno::MFILE
            | Errno::TOOMANYREFS
            | Errno::INTR
    )
}

/// What a question about a descriptor was answered; `None` when it does not apply.
///
/// # Errors
///
/// What fails for a moment, and says nothing of the descriptor.
pub(crate) fn if_it_applies<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(errno) if is_transient(errno) || errno == Errno::AGAIN => Err(errno),
        Err(_) => Ok(None),
    }
}

/// How often a call is tried again at start that must not be taken for "there is nothing": a tenth of
/// a second in all.
const RETRIES: usize = 50;

/// Tries again what fails for a moment.
///
/// # Errors
///
/// What does not pass, or not soon.
pub fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..RETRIES {
        match call() {
            Err(errno) if is_transient(errno) => clock::pause(RETRY_PAUSE),
            result => return result,
        }
    }
    call()
}

/// Reads once, and waits for something to come until a deadline, if there is one. False at
/// the end.
///
/// # Errors
///
/// ETIMEDOUT, or those of recvmsg(2) and poll(2).
pub(crate) fn read(
    socket: &OwnedFd,
    decoder: &mut Decoder<ClientFd>,
    buffer: &mut [u8],
    deadline: Option<Instant>,
) -> Result<bool, Errno> {
    // What has come and what comes is put together in one piece, unless a message is longer.
    let left = MEMORY_PIECE_LEN.saturating_sub(decoder.unread_len());
    let len = if left > 0 { left.min(buffer.len()) } else { buffer.len() };
    let buffer = &mut buffer[..len];
    loop {
        match transport::receive(socket, buffer, Wait::No) {
            Ok(received) if received.len == 0 => return Ok(false),
            Ok(received) => {
                let fds = of_daemon(received.fds);
                decoder.push(&buffer[..received.len], fds, received.fds_lost);
                return Ok(true);
            }
            // It was closed with something of ours unread.
            Err(Errno::CONNRESET) => return Ok(false),
            Err(Errno::AGAIN) => {}
            // Nothing was taken.
            Err(errno) if is_transient(errno) => clock::pause(RETRY_PAUSE),
            Err(errno) => return Err(errno),
        }
        let span = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
        if span.is_some_and(|span| span.is_zero()) {
            return Err(Errno::TIMEDOUT);
        }
        match clock::poll(&mut [PollFd::new(socket, PollFlags::IN)], deadline) {
            Ok(_) => {}
            Err(errno) if is_transient(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What another daemon has sent is not known to be anybody else's, until it is said.
pub(crate) fn of_daemon(fds: Vec<OwnedFd>) -> impl Iterator<Item = ClientFd> {
    // Asked once for all of them: it is a system call.
    let us = rustix::process::geteuid().as_raw();
    fds.into_iter().map(move |fd| ClientFd::new(fd, us))
}

/// Whether whoever is at the other end has hung up.
pub(crate) fn has_hung_up(socket: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&socket, PollFlags::empty())], Some(&Timespec::default())) == Ok(1)
}

/// Whether there is something to read.
pub(crate) fn is_readable(source: BorrowedFd<'_>) -> bool {
    let mut source = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
    matches!(poll(&mut source, Some(&Timespec::default())), Ok(1))
}
