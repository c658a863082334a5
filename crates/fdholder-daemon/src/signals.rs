//! Signals as readable descriptors, for the event loop; and those that must not end a daemon.
#![allow(unsafe_code)]

use crate::reading::is_readable;
use nix::sys::signal::{signal, SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{eventfd, EventfdFlags};
use rustix::io::{fcntl_dupfd_cloexec, read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Signals that end or stop a process by default, and that a limit, a write or a timer can raise
/// without anybody having meant to end it. What this process starts or becomes is a daemon, too,
/// so that it is right that execve(2) keeps them ignored.
const IGNORED: [Signal; 11] = [
    // A write to a socket or pipe whose reader has gone: the write fails with EPIPE.
    Signal::SIGPIPE,
    // A write beyond RLIMIT_FSIZE, also to a file in memory: the write fails with EFBIG.
    Signal::SIGXFSZ,
    // The soft RLIMIT_CPU, once a second. The kernel kills at the hard one, whatever is ignored.
    Signal::SIGXCPU,
    // Timers that a parent has started survive execve(2).
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    // A held descriptor with O_ASYNC, whose owner has made this process its F_SETOWN.
    Signal::SIGIO,
    // A log on a terminal that stops programs in the background when they write (stty tostop).
    Signal::SIGTTOU,
    // Nothing raises them but kill(2), by somebody who expects that they mean something here: so with
    // real-time signals.
    Signal::SIGUSR1,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
];
// Not ignored: SIGQUIT, SIGABRT and SIGTSTP, by which people end or stop a program that hangs;
// SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP and SIGSYS, after which this program cannot go on.

/// Has the signals that a limit or a write may raise end nothing, from now on and in all threads.
/// To be called before anything is written.
pub fn ignore_what_would_end() {
    for which in IGNORED {
        // SAFETY: ignoring a signal runs no code of ours when it comes. It can only fail for a
        // signal that does not exist, or that cannot be ignored.
        let _ = unsafe { signal(which, SigHandler::SigIgn) };
    }
    for number in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: as above.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// The signals a daemon heeds: SIGTERM ends it, and so does SIGINT (Ctrl-C, also as the
/// first process of a container, where nothing else would); SIGHUP has it read its rules
/// again; SIGUSR2 has it become the program that is now on disk. `server.rs` acts on them.
///
/// They are blocked and read with signalfd(2), not caught: what has come and was not read
/// yet is still there for the program that this process becomes, see signal(7).
#[derive(Debug)]
pub struct Signals {
    term: Source,
    hup: Source,
    usr2: Source,
    child: Source,
}

/// Readable once a signal has come.
#[derive(Debug)]
struct Source(OwnedFd);

impl Source {
    fn of(signals: &[Signal]) -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals: SigSet = signals.iter().copied().collect();
        Ok(Self(SignalFd::with_flags(&signals, flags)?.into()))
    }

    /// Of what only [`Stop`] sends.
    fn silent() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    fn take(&self) -> bool {
        // Room for one struct signalfd_siginfo.
        matches!(read(&self.0, &mut [0; 128]), Ok(1..))
    }
}

impl Signals {
    /// Takes SIGTERM, SIGINT, SIGHUP, SIGUSR2 and SIGCHLD from now on: they are blocked in
    /// this thread, in those that it starts, and in programs that it becomes or starts. To be
    /// called while there are no others.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left for them.
    pub fn take() -> io::Result<Self> {
        use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR2};
        let all: SigSet = [SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGCHLD].into_iter().collect();
        all.thread_block()?;
        Ok(Self {
            term: Source::of(&[SIGTERM, SIGINT])?,
            hup: Source::of(&[SIGHUP])?,
            usr2: Source::of(&[SIGUSR2])?,
            child: Source::of(&[SIGCHLD])?,
        })
    }

    /// Takes nothing: for a server inside another program, which stops it with [`Stop`].
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub fn none() -> io::Result<Self> {
        Ok(Self {
            term: Source::silent()?,
            hup: Source::silent()?,
            usr2: Source::silent()?,
            child: Source::silent()?,
        })
    }

    /// What stops a server that takes no signals, as SIGTERM would.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub fn stop(&self) -> io::Result<Stop> {
        fcntl_dupfd_cloexec(&self.term.0, 0).map(Stop).map_err(io::Error::from)
    }

    /// What becomes readable when SIGTERM or SIGINT has come, and stays so until a server
    /// heeds it.
    pub fn term(&self) -> BorrowedFd<'_> {
        self.term.0.as_fd()
    }

    /// Whether SIGTERM or SIGINT has come that no server has heeded.
    pub fn is_to_end(&self) -> bool {
        is_readable(self.term())
    }

    pub(crate) fn hup(&self) -> BorrowedFd<'_> {
        self.hup.0.as_fd()
    }

    pub(crate) fn usr2(&self) -> BorrowedFd<'_> {
        self.usr2.0.as_fd()
    }

    pub(crate) fn child(&self) -> BorrowedFd<'_> {
        self.child.0.as_fd()
    }

    /// Whether SIGCHLD has come since this was last asked.
    pub(crate) fn take_child(&self) -> bool {
        self.child.take()
    }

    /// Whether SIGUSR2 has come since this was last asked.
    pub(crate) fn take_usr2(&self) -> bool {
        self.usr2.take()
    }

    /// Whether SIGHUP has come since this was last asked.
    pub(crate) fn take_hup(&self) -> bool {
        self.hup.take()
    }

    /// Whether SIGTERM has come since this was last asked.
    pub(crate) fn take_term(&self) -> bool {
        self.term.take()
    }
}

/// Stops a server.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// Begins the lame duck: no new clients, the others may finish.
    pub fn stop(&self) {
        // Full means that it was told before.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}
