//! Signals as readable sockets, for the event loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The signals a daemon heeds: SIGTERM ends it, and so does SIGINT (Ctrl-C, also as the
/// first process of a container, where nothing else would); SIGHUP has it read its rules
/// again; SIGUSR2 has it become the program that is now on disk. `server.rs` acts on them.
#[derive(Debug)]
pub struct Signals {
    term: Pipe,
    hup: Pipe,
    usr2: Pipe,
    child: Pipe,
}

/// One signal: readable once it has come.
#[derive(Debug)]
struct Pipe {
    read: UnixStream,
    /// Where the handler writes. Kept for signals that a program sends itself.
    write: UnixStream,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        Ok(Self { read, write })
    }

    fn register(&self, signal: i32) -> io::Result<()> {
        signal_hook::low_level::pipe::register(signal, self.write.try_clone()?)?;
        Ok(())
    }

    fn take(&self) -> bool {
        let mut bytes = [0; 64];
        matches!((&self.read).read(&mut bytes), Ok(1..))
    }
}

impl Signals {
    /// Catches SIGTERM, SIGINT, SIGHUP, SIGUSR2 and SIGCHLD from now on.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left for them.
    pub fn catch() -> io::Result<Self> {
        let signals = Self::none()?;
        signals.term.register(signal_hook::consts::SIGTERM)?;
        signals.term.register(signal_hook::consts::SIGINT)?;
        signals.hup.register(signal_hook::consts::SIGHUP)?;
        signals.usr2.register(signal_hook::consts::SIGUSR2)?;
        signals.child.register(signal_hook::consts::SIGCHLD)?;
        Ok(signals)
    }

    /// Catches nothing: for a server inside another program, which stops it with
    /// [`Stop`].
    ///
    /// # Errors
    ///
    /// As [`catch`](Self::catch).
    pub fn none() -> io::Result<Self> {
        Ok(Self { term: Pipe::new()?, hup: Pipe::new()?, usr2: Pipe::new()?, child: Pipe::new()? })
    }

    /// What stops the server, as SIGTERM would.
    ///
    /// # Errors
    ///
    /// As [`catch`](Self::catch).
    pub fn stop(&self) -> io::Result<Stop> {
        self.term.write.try_clone().map(Stop)
    }

    /// What becomes readable when SIGTERM or SIGINT has come, and stays so until a server
    /// heeds it.
    pub fn term_source(&self) -> BorrowedFd<'_> {
        self.term()
    }

    pub(crate) fn term(&self) -> BorrowedFd<'_> {
        self.term.read.as_fd()
    }

    pub(crate) fn hup(&self) -> BorrowedFd<'_> {
        self.hup.read.as_fd()
    }

    pub(crate) fn usr2(&self) -> BorrowedFd<'_> {
        self.usr2.read.as_fd()
    }

    pub(crate) fn child(&self) -> BorrowedFd<'_> {
        self.child.read.as_fd()
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
pub struct Stop(UnixStream);

impl Stop {
    /// Begins the lame duck: no new clients, the others may finish.
    pub fn stop(&self) {
        // Full means that it was told before, closed that it has ended.
        let _ = io::Write::write(&mut &self.0, b"x");
    }
}
