//! A connected client with its socket: moves bytes and descriptors between the kernel
//! and a [`Connection`].

use crate::access::Rights;
use crate::connection::{Connection, Step};
use crate::store::Store;
use fdholder::transport::{self, Wait};
use fdholder::{Errno, Malformed, Timestamp};
use rustix::event::epoll::EventFlags;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One client of the daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: OwnedFd,
    connection: Connection<OwnedFd>,
    /// It has shut down its side: what it asked is answered, then it is let go.
    half_closed: bool,
    /// Until when nothing can be sent: descriptors in flight have no room
    /// (ETOOMANYREFS), and nothing tells when they do.
    send_paused: Option<Instant>,
    /// What epoll watches for it.
    pub interest: EventFlags,
    /// Its entry in the daemon's deadlines.
    pub deadline: Option<Instant>,
    /// Its entry in the daemon's retries.
    pub retry: Option<Instant>,
}

/// Why a client is let go.
#[derive(Debug)]
pub(crate) enum Gone {
    /// It has closed the connection.
    Closed,
    /// It breaks the protocol.
    Malformed(Malformed),
    /// The socket failed.
    Failed(Errno),
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the client"),
            Self::Malformed(malformed) => write!(f, "protocol error: {malformed}"),
            Self::Failed(errno) => f.write_str(&fdholder::strerror(*errno)),
        }
    }
}

/// How long to wait before descriptors are sent again that had no room in flight.
const SEND_PAUSE: Duration = Duration::from_millis(2);

impl Peer {
    pub fn new(socket: OwnedFd, rights: Arc<Rights>) -> Self {
        Self {
            socket,
            connection: Connection::new(rights),
            half_closed: false,
            send_paused: None,
            interest: EventFlags::IN,
            deadline: None,
            retry: None,
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn is_busy(&self) -> bool {
        self.connection.is_busy()
    }

    pub fn send_paused(&self) -> Option<Instant> {
        self.send_paused
    }

    /// Reads once, if the client may send more. Returns whether anything came.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<bool, Gone> {
        if self.half_closed || !self.connection.wants_input() {
            return Ok(false);
        }
        match transport::receive(&self.socket, buffer, Wait::No) {
            Ok(received) if received.len == 0 => self.half_closed = true,
            Ok(received) => {
                let bytes = &buffer[..received.len];
                self.connection
                    .receive(bytes, received.fds, received.fds_lost);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(Gone::Failed(errno)),
        }
        Ok(true)
    }

    /// Carries out what was asked and sends what can be sent, in turns, until there is
    /// nothing to do or the client has to read first. The clock is read for each request.
    /// Returns whether anything was sent.
    pub fn serve(&mut self, store: &mut Store<OwnedFd>) -> Result<bool, Gone> {
        let mut progress = false;
        loop {
            let mut idle = true;
            // What a request changed is dropped here: descriptors nobody carries close.
            while let Step::Did(_changes) = self
                .connection
                .step(store, Timestamp::now())
                .map_err(Gone::Malformed)?
            {
                idle = false;
            }
            if idle && self.connection.outbox().is_empty() {
                break;
            }
            let sent = self.flush()?;
            progress |= sent;
            if !sent {
                break;
            }
        }
        if self.half_closed && self.connection.outbox().is_empty() {
            return Err(Gone::Closed);
        }
        self.update_interest();
        Ok(progress)
    }

    /// Sends until the socket is full. Returns whether anything went.
    fn flush(&mut self) -> Result<bool, Gone> {
        if self.send_paused.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        self.send_paused = None;
        let mut progress = false;
        while let Some((bytes, entries)) = self.connection.outbox().front() {
            let fds: Vec<_> = entries.iter().map(|entry| entry.fd.as_fd()).collect();
            match transport::send(&self.socket, bytes, &fds, Wait::No) {
                Ok(sent) => {
                    self.connection.outbox().advance(sent);
                    progress = true;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::TOOMANYREFS) => {
                    self.send_paused = Some(Instant::now() + SEND_PAUSE);
                    break;
                }
                Err(errno) => return Err(Gone::Failed(errno)),
            }
        }
        Ok(progress)
    }

    fn update_interest(&mut self) {
        self.interest = EventFlags::empty();
        if !self.half_closed && self.connection.wants_input() {
            self.interest |= EventFlags::IN;
        }
        if !self.connection.outbox().is_empty() && self.send_paused.is_none() {
            self.interest |= EventFlags::OUT;
        }
    }
}
