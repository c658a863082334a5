//! A connected client with its socket: moves bytes and descriptors between the kernel
//! and a [`Connection`].

use crate::access::Rights;
use crate::connection::{Connection, Step};
use crate::credentials::Credentials;
use crate::limits::{DELIVERY_PATIENCE, MESSAGES_PER_TURN, READS_PER_TURN, REQUESTS_PER_TURN};
use crate::outlet;
use crate::store::Store;
use crate::unread::all_is_read;
use fdholder::transport::{self, Wait};
use fdholder::{Entry, Errno, Malformed, Timestamp};
use rustix::event::epoll::EventFlags;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One client of the daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    /// For messages; its rights were decided when it connected.
    pub who: Credentials,
    socket: OwnedFd,
    connection: Connection<OwnedFd>,
    /// It has shut down its side: what it asked is answered, then it is let go.
    half_closed: bool,
    /// When to serve it again although nothing happens: at once when its turn was over
    /// before its work was, a little later when descriptors in flight have no room
    /// (ETOOMANYREFS), as nothing tells when they do.
    again: Option<Instant>,
    /// It has not taken the last message of a dump, and cannot take two together.
    paced: bool,
    /// What epoll watches for it.
    pub interest: EventFlags,
    /// Watches the destination of its delivery, when there is no room there.
    outlet: Option<outlet::Watch>,
    /// Its entry in the daemon's deadlines.
    pub deadline: Option<Instant>,
    /// Its entry among those to serve again.
    pub turn: Option<Instant>,
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
    pub fn new(socket: OwnedFd, who: Credentials, rights: Arc<Rights>) -> Self {
        Self {
            who,
            socket,
            connection: Connection::new(rights),
            half_closed: false,
            again: None,
            paced: false,
            interest: EventFlags::IN,
            outlet: None,
            deadline: None,
            turn: None,
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn is_busy(&self) -> bool {
        self.connection.is_busy()
    }

    pub fn again(&self) -> Option<Instant> {
        self.again
    }

    pub fn is_delivering(&self) -> bool {
        self.connection.delivery().is_some()
    }

    /// How long it may go on without a sign of life, when clients have so long.
    pub fn patience(&self, client_timeout: Option<Duration>) -> Option<Duration> {
        if self.is_delivering() {
            Some(client_timeout.map_or(DELIVERY_PATIENCE, |span| span.min(DELIVERY_PATIENCE)))
        } else {
            client_timeout.filter(|_| self.is_busy())
        }
    }

    /// Gives up a delivery that has waited too long. Returns whether there was one.
    pub fn give_up_delivery(&mut self) -> bool {
        let delivering = self.is_delivering();
        self.connection.delivery_ended(Err(Errno::TIMEDOUT));
        delivering
    }

    /// Watches the destination of a delivery while there is no room.
    pub fn watch_outlet(&mut self, epoll: &Arc<OwnedFd>, token: u64) -> Result<(), Errno> {
        self.outlet = match (self.connection.delivery(), self.outlet.take()) {
            (Some(delivery), None) if self.again.is_none() => {
                Some(outlet::Watch::new(epoll, delivery.to(), token)?)
            }
            (Some(_), watch) if self.again.is_none() => watch,
            _ => None,
        };
        Ok(())
    }

    /// Reads once, if the client may send more. Returns whether anything came.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool, Gone> {
        if self.half_closed || !self.connection.wants_input() {
            return Ok(false);
        }
        match transport::receive(&self.socket, buffer, Wait::No) {
            Ok(received) if received.len == 0 => self.half_closed = true,
            Ok(received) => {
                let bytes = &buffer[..received.len];
                self.connection.receive(bytes, received.fds, received.fds_lost);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(Gone::Failed(errno)),
        }
        Ok(true)
    }

    /// Reads what has come, carries out what was asked and sends what can be sent, until
    /// there is nothing to do, the client has to read first, or its turn is over. The
    /// clock is read for each request. Returns whether anything was done.
    pub fn serve(&mut self, store: &mut Store<OwnedFd>, buffer: &mut [u8]) -> Result<bool, Gone> {
        self.again = None;
        self.paced = false;
        let mut reads = READS_PER_TURN;
        let (mut requests, mut messages) = (REQUESTS_PER_TURN, MESSAGES_PER_TURN);
        let mut progress = false;
        loop {
            let before = (requests, messages);
            let mut carried_out;
            loop {
                let has_read = reads > 0 && self.receive(buffer)?;
                progress |= has_read;
                carried_out = self.carry_out(store, &mut requests);
                // A set has many messages, whose answers may leave together.
                reads -= usize::from(has_read);
                if !has_read || carried_out.is_err() || !self.connection.is_mid_set() {
                    break;
                }
            }
            reads = 0;
            self.deliver(&mut messages);
            // Also when the next request is malformed: the replies before it are due.
            self.flush(&mut messages)?;
            carried_out.map_err(Gone::Malformed)?;
            if before == (requests, messages) || self.again.is_some() {
                break;
            }
            progress = true;
            if requests == 0 || messages == 0 {
                self.again = Some(Instant::now());
                break;
            }
        }
        // A client that no longer listens wants no delivery.
        let done = self.again.is_none() && self.connection.outbox().is_empty();
        if self.half_closed && (done || self.is_delivering()) {
            return Err(Gone::Closed);
        }
        self.update_interest();
        Ok(progress)
    }

    /// What a request changed is dropped here: descriptors that no reply carries close.
    fn carry_out(
        &mut self,
        store: &mut Store<OwnedFd>,
        budget: &mut usize,
    ) -> Result<(), Malformed> {
        while *budget > 0 {
            match self.connection.step(store, Timestamp::now())? {
                Step::Did(_changes) => *budget -= 1,
                Step::Wait => break,
            }
            if let Some(delivery) = self.connection.delivery() {
                if let Err(errno) = outlet::check(delivery.to()) {
                    self.connection.delivery_ended(Err(errno));
                }
            }
        }
        Ok(())
    }

    /// Sends to another holder until its socket is full. Whatever becomes of it, this
    /// client is told, and no other is concerned.
    fn deliver(&mut self, budget: &mut usize) {
        while *budget > 0 {
            let Some((to, bytes, entries)) = self.connection.delivery_front() else {
                self.connection.delivery_ended(Ok(()));
                break;
            };
            match send(to.as_fd(), bytes, entries) {
                Ok(sent) => {
                    self.connection.delivery_advance(sent);
                    *budget -= 1;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::TOOMANYREFS) => {
                    self.again = Some(Instant::now() + SEND_PAUSE);
                    break;
                }
                Err(errno) => self.connection.delivery_ended(Err(errno)),
            }
        }
    }

    /// Sends until the socket is full.
    fn flush(&mut self, budget: &mut usize) -> Result<(), Gone> {
        while *budget > 0 {
            // s6's receiver fails when the descriptors of a message arrive before those
            // of the last one were taken.
            if self.connection.outbox().is_amid_dump()
                && !self.connection.is_fdholder()
                && !all_is_read(&self.socket).map_err(Gone::Failed)?
            {
                self.paced = true;
                break;
            }
            let Some((bytes, entries)) = self.connection.outbox().front() else { break };
            match send(self.socket.as_fd(), bytes, entries) {
                Ok(sent) => {
                    self.connection.outbox().advance(sent);
                    *budget -= 1;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::TOOMANYREFS) => {
                    self.again = Some(Instant::now() + SEND_PAUSE);
                    break;
                }
                Err(errno) => return Err(Gone::Failed(errno)),
            }
        }
        Ok(())
    }

    fn update_interest(&mut self) {
        self.interest = EventFlags::empty();
        if !self.half_closed && self.connection.wants_input() {
            self.interest |= EventFlags::IN;
        }
        if !self.connection.outbox().is_empty() && self.again.is_none() {
            self.interest |= EventFlags::OUT;
        }
        if self.paced {
            // There is room already; each time the client takes something is an edge.
            self.interest |= EventFlags::ET;
        }
    }
}

fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    entries: &[Arc<Entry<OwnedFd>>],
) -> Result<usize, Errno> {
    let fds: Vec<_> = entries.iter().map(|entry| entry.fd.as_fd()).collect();
    transport::send(socket, bytes, &fds, Wait::No)
}
