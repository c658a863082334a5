//! A connected client with its socket: moves bytes and descriptors between the kernel
//! and a [`Connection`].

use crate::access::Rights;
use crate::connection::{Connection, Step};
use crate::courier::{Courier, Crew, Dispatched};
use crate::credentials::Credentials;
use crate::limits::{MESSAGES_PER_TURN, READS_PER_TURN, REQUESTS_PER_TURN, SEND_PAUSE};
use crate::store::Store;
use crate::unread::all_is_read;
use fdholder::transport::{self, Wait};
use fdholder::{Errno, Malformed, Timestamp};
use rustix::event::epoll::EventFlags;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

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
    /// It was sent descriptors.
    gave_fds: bool,
    /// What epoll watches for it.
    pub interest: EventFlags,
    /// Sends its delivery.
    courier: Option<Courier>,
    /// Nobody waits for the courier yet.
    courier_is_new: bool,
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

/// How sending to a client has ended.
#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    /// Nothing is left, or there is no room.
    AsMuchAsFits,
    /// It has not taken the last descriptors, and cannot take two messages of them together.
    Paced,
}

impl Peer {
    pub fn new(socket: OwnedFd, who: Credentials, rights: Arc<Rights>) -> Self {
        Self {
            who,
            socket,
            connection: Connection::new(rights),
            half_closed: false,
            again: None,
            gave_fds: false,
            interest: EventFlags::IN,
            courier: None,
            courier_is_new: false,
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

    pub fn is_timed(&self) -> bool {
        self.connection.is_timed()
    }

    pub fn again(&self) -> Option<Instant> {
        self.again
    }

    pub fn is_delivering(&self) -> bool {
        self.connection.is_delivering()
    }

    /// Sends off the delivery that was asked for, if any.
    fn dispatch(&mut self, crew: &Crew) {
        let Some(delivery) = self.connection.take_delivery() else { return };
        match crew.dispatch(delivery) {
            Ok(Dispatched::Courier(courier)) => {
                self.courier = Some(courier);
                self.courier_is_new = true;
            }
            Ok(Dispatched::Delivered(bytes)) => self.connection.delivery_ended(Ok(bytes)),
            Err(errno) => self.connection.delivery_ended(Err(errno)),
        }
    }

    /// What tells of the end of a delivery that has just begun.
    pub fn new_courier(&mut self) -> Option<BorrowedFd<'_>> {
        let is_new = std::mem::take(&mut self.courier_is_new);
        self.courier.as_ref().filter(|_| is_new).map(Courier::socket)
    }

    /// Asks the courier how it went.
    pub fn hear_courier(&mut self) {
        if let Some(answer) = self.courier.as_mut().and_then(Courier::ended) {
            self.courier = None;
            self.connection.delivery_ended(answer);
        }
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
    pub fn serve(
        &mut self,
        store: &mut Store<OwnedFd>,
        crew: &Crew,
        buffer: &mut [u8],
    ) -> Result<bool, Gone> {
        self.again = None;
        let mut reads = READS_PER_TURN;
        let (mut requests, mut messages) = (REQUESTS_PER_TURN, MESSAGES_PER_TURN);
        let mut progress = false;
        let mut has_read_any = false;
        let mut paced;
        loop {
            let before = (requests, messages);
            let mut carried_out;
            loop {
                let has_read = reads > 0 && self.receive(buffer)?;
                has_read_any |= has_read;
                carried_out = self.carry_out(store, &mut requests);
                // A set has many messages, whose answers may leave together.
                reads -= usize::from(has_read);
                if !has_read || carried_out.is_err() || !self.connection.is_mid_set() {
                    break;
                }
            }
            reads = 0;
            self.dispatch(crew);
            // Also when the next request is malformed: the replies before it are due.
            paced = self.flush(&mut messages)? == Flushed::Paced;
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
        if paced && has_read_any {
            // The edges it is watched for tell only once of what can be read.
            self.again = Some(Instant::now());
        }
        // A client that no longer listens wants no delivery.
        let done = self.again.is_none() && self.connection.outbox().is_empty();
        if self.half_closed && (done || self.is_delivering()) {
            return Err(Gone::Closed);
        }
        self.update_interest(paced);
        Ok(progress || has_read_any)
    }

    /// What a request changed is dropped here: descriptors that no reply carries close.
    fn carry_out(
        &mut self,
        store: &mut Store<OwnedFd>,
        budget: &mut usize,
    ) -> Result<(), Malformed> {
        while *budget > 0 {
            match self.connection.step(store, Timestamp::now())? {
                Step::Did { changes: _, cost } => *budget = budget.saturating_sub(cost),
                Step::Wait => break,
            }
        }
        Ok(())
    }

    /// Sends until the socket is full.
    fn flush(&mut self, budget: &mut usize) -> Result<Flushed, Gone> {
        while *budget > 0 {
            let is_fdholder = self.connection.is_fdholder();
            let Some((bytes, entries)) = self.connection.outbox().front() else { break };
            // s6's receiver fails when the descriptors of a message arrive before those
            // of the last one were taken.
            if !entries.is_empty()
                && self.gave_fds
                && !is_fdholder
                && !all_is_read(&self.socket).map_err(Gone::Failed)?
            {
                return Ok(Flushed::Paced);
            }
            let fds: Vec<_> = entries.iter().map(|entry| entry.fd.as_fd()).collect();
            match transport::send(&self.socket, bytes, &fds, Wait::No) {
                Ok(sent) => {
                    self.gave_fds |= !fds.is_empty();
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
        Ok(Flushed::AsMuchAsFits)
    }

    fn update_interest(&mut self, paced: bool) {
        self.interest = EventFlags::empty();
        if !self.half_closed && self.connection.wants_input() {
            self.interest |= EventFlags::IN;
        }
        if !self.connection.outbox().is_empty() && self.again.is_none() {
            self.interest |= EventFlags::OUT;
        }
        if paced {
            // There is room already; each time the client takes something is an edge.
            self.interest |= EventFlags::ET;
        }
    }
}
