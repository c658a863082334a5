//! A connected client with its socket: moves bytes and descriptors between the kernel
//! and a [`Connection`].

use crate::bugs::{active, Bug};
use crate::connection::{Connection, Standing, Step};
use crate::courier::{Courier, Crew, Dispatched};
use crate::credentials::Credentials;
use crate::limits::{MESSAGES_PER_TURN, READS_PER_TURN, REQUESTS_PER_TURN, SEND_PAUSE};
use crate::replication::{Mirrors, Ticket};
use crate::store::Store;
use crate::tally::Tally;
use crate::unread::all_is_read;
use fdholder::link::HandedClient;
use fdholder::transport::{self, Wait};
use fdholder::{Errno, Malformed, Status, Timestamp};
use rustix::event::epoll::EventFlags;
use rustix::net::sockopt::socket_error;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// What clients are served from.
#[derive(Debug)]
pub(crate) struct Hold {
    pub store: Store<OwnedFd>,
    pub mirrors: Mirrors<OwnedFd>,
    pub crew: Crew,
    pub tally: Tally,
    /// What is read goes here first.
    pub buffer: Vec<u8>,
}

/// One client of the daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    /// For messages; its rights were decided when it connected.
    pub who: Credentials,
    /// Shared with the message that hands it over.
    socket: Arc<OwnedFd>,
    connection: Connection<OwnedFd>,
    /// It has shut down its side: what it asked is answered, then it is let go.
    half_closed: bool,
    /// When to serve it again although nothing happens: at once when its turn was over
    /// before its work was, a little later when descriptors in flight have no room
    /// (ETOOMANYREFS), as nothing tells when they do.
    again: Option<Instant>,
    /// It was sent descriptors.
    gave_fds: bool,
    /// What its replies wait for.
    gate: Option<Ticket>,
    /// It has broken the protocol; the replies before are still due.
    broken: Option<Malformed>,
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

/// Whether a client has taken what it was lent, asked once all is sent.
pub(crate) fn has_taken(
    all_is_read: bool,
    error: impl FnOnce() -> Result<(), Errno>,
) -> Result<bool, Errno> {
    if all_is_read && !active(Bug::VanishedHasLoan) {
        // A socket that was closed has nothing unread, either; but then there is an error
        // if there was, and it is there before the rest is forgotten.
        error()?;
    }
    Ok(all_is_read)
}

/// Whether a client has gone with something unread; its socket tells that only once.
pub(crate) fn was_told_of_unread(why: &Gone) -> bool {
    matches!(why, Gone::Failed(Errno::CONNRESET))
}

impl Peer {
    pub fn new(socket: OwnedFd, who: Credentials, standing: Standing) -> Self {
        Self::over(socket, who, Connection::new(standing))
    }

    /// A client that another daemon has served. What it was sent before it may not have read.
    pub fn resume(handed: HandedClient<OwnedFd>, who: Credentials, standing: Standing) -> Self {
        let connection = Connection::resume(standing, &handed);
        Self { gave_fds: true, ..Self::over(handed.socket, who, connection) }
    }

    fn over(socket: OwnedFd, who: Credentials, connection: Connection<OwnedFd>) -> Self {
        Self {
            who,
            socket: Arc::new(socket),
            connection,
            half_closed: false,
            again: None,
            gave_fds: false,
            gate: None,
            broken: None,
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

    /// Whether its replies wait until what they tell of is mirrored.
    pub fn is_gated(&self, mirrors: &Mirrors<OwnedFd>) -> bool {
        self.gate.is_some_and(|gate| !mirrors.has_passed(gate))
    }

    /// Whether it is not known yet whether it has what it was lent.
    pub fn is_borrowing(&self) -> bool {
        self.connection.is_borrowing()
    }

    /// Whether the rules let it in.
    pub fn is_let_in(&self) -> bool {
        self.connection.is_let_in()
    }

    /// For the daemon that is to serve it next, if it is in the middle of nothing.
    pub fn hand_over(&self) -> Option<HandedClient<Arc<OwnedFd>>> {
        let idle = !self.half_closed && self.gate.is_none();
        idle.then(|| self.connection.hand_over(Arc::clone(&self.socket))).flatten()
    }

    /// It asks for an upgrade.
    pub fn take_upgrade(&mut self) -> bool {
        self.connection.take_upgrade()
    }

    /// Whether it asks how the holder is.
    pub fn asks_status(&self) -> bool {
        self.connection.asks_status()
    }

    /// Tells it.
    pub fn tell_status(&mut self, status: &Status) {
        self.connection.tell_status(status);
    }

    /// Whether it waits to hear what came of one.
    pub fn awaits_upgrade(&self) -> bool {
        self.connection.awaits_upgrade()
    }

    /// The version that answers now, or why there was no upgrade.
    pub fn upgrade_ended(&mut self, outcome: Result<&str, &str>) {
        self.connection.upgrade_ended(outcome);
    }

    /// It has asked to follow, and could hold so many. Not before it was sent what is due
    /// to it as a client: the link speaks past these replies.
    pub fn take_follower(&mut self) -> Option<u32> {
        let is_due = self.gate.is_some() || !self.connection.outbox().is_empty();
        (!is_due).then(|| self.connection.take_follower()).flatten()
    }

    /// It cannot follow.
    pub fn refuse_follower(&mut self, errno: Errno) {
        self.connection.refuse_follower(errno);
    }

    /// Its connection, which is not a client's any more.
    pub fn into_socket(self) -> Option<OwnedFd> {
        Arc::into_inner(self.socket)
    }

    /// Finds out whether it has taken what it was lent.
    pub fn settle(&mut self, hold: &mut Hold) -> Result<(), Gone> {
        if !self.is_borrowing() || !self.connection.outbox().is_empty() {
            return Ok(());
        }
        let all_is_read = all_is_read(&self.socket).map_err(Gone::Failed)?;
        let error = || socket_error(&self.socket).and_then(|error| error);
        if has_taken(all_is_read, error).map_err(Gone::Failed)? {
            self.end_loan(true, hold);
        }
        Ok(())
    }

    /// It goes. What it has not taken is held on.
    pub fn settle_finally(&mut self, why: &Gone, hold: &mut Hold) {
        if was_told_of_unread(why) || self.settle(hold).is_err() || self.is_borrowing() {
            self.end_loan(false, hold);
        }
    }

    fn end_loan(&mut self, taken: bool, hold: &mut Hold) {
        let changes = self.connection.settle(taken, &mut hold.store, Timestamp::now());
        hold.mirrors.record(&changes, &hold.store);
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
    /// there is nothing to do, the client has to read first, its replies have to wait for
    /// followers, or its turn is over. The clock is read for each request. Returns whether
    /// anything was done.
    pub fn serve(&mut self, hold: &mut Hold) -> Result<bool, Gone> {
        self.again = None;
        if self.is_gated(&hold.mirrors) {
            // It will be served when they have passed; nothing else matters until then. That it
            // has hung up is told once, not all the time.
            self.interest = EventFlags::ET;
            return Ok(false);
        }
        // One that has waited for followers is watched, and not by edges, unless it waits
        // for the client to read as well: what has come meanwhile is told.
        let has_waited = self.gate.take().is_some();
        let mut reads =
            if has_waited && !self.interest.contains(EventFlags::ET) { 0 } else { READS_PER_TURN };
        let (mut requests, mut messages) = (REQUESTS_PER_TURN, MESSAGES_PER_TURN);
        let mut progress = has_waited;
        let mut has_read_any = false;
        let mut paced;
        loop {
            let before = (requests, messages);
            loop {
                let has_read = reads > 0 && self.receive(&mut hold.buffer)?;
                has_read_any |= has_read;
                self.carry_out(hold, &mut requests);
                // A set has many messages, whose answers may leave together.
                reads -= usize::from(has_read);
                if !has_read || self.broken.is_some() || !self.connection.is_mid_set() {
                    break;
                }
            }
            reads = 0;
            self.dispatch(&hold.crew);
            self.gate = Some(hold.mirrors.ticket());
            if self.is_gated(&hold.mirrors) {
                return Ok(true);
            }
            self.gate = None;
            // Also when the next request is malformed: the replies before it are due.
            paced = self.flush(&mut messages)? == Flushed::Paced;
            if let Some(malformed) = self.broken {
                return Err(Gone::Malformed(malformed));
            }
            if before == (requests, messages) || self.again.is_some() {
                break;
            }
            progress = true;
            if requests == 0 || messages == 0 {
                self.again = Some(Instant::now());
                break;
            }
        }
        if self.is_borrowing() {
            self.settle(hold)?;
            if !self.is_borrowing() && self.connection.has_request() {
                self.again = Some(Instant::now());
            }
        }
        // Whoever waits for it to read is told by edges.
        let on_edge = paced || self.is_borrowing();
        if on_edge && has_read_any {
            // They tell only once of what can be read.
            self.again = Some(Instant::now());
        }
        // A client that no longer listens wants no delivery.
        let done = self.again.is_none() && self.connection.outbox().is_empty();
        if self.half_closed && (done && !self.is_borrowing() || self.is_delivering()) {
            return Err(Gone::Closed);
        }
        self.update_interest(on_edge);
        Ok(progress || has_read_any)
    }

    /// What a request changed is dropped here, once it is taken down: descriptors that no
    /// reply carries, nor any message to a follower, close.
    fn carry_out(&mut self, hold: &mut Hold, budget: &mut usize) {
        while *budget > 0 && self.broken.is_none() {
            match self.connection.step(&mut hold.store, Timestamp::now()) {
                Ok(Step::Did { changes, cost, operation, is_refused }) => {
                    hold.tally.count(operation, is_refused);
                    hold.mirrors.record(&changes, &hold.store);
                    *budget = budget.saturating_sub(cost);
                }
                Ok(Step::Wait) => break,
                Err(malformed) => self.broken = Some(malformed),
            }
        }
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

    fn update_interest(&mut self, on_edge: bool) {
        self.interest = EventFlags::empty();
        if !self.half_closed && self.connection.wants_input() {
            self.interest |= EventFlags::IN;
        }
        if !self.connection.outbox().is_empty() && self.again.is_none() {
            self.interest |= EventFlags::OUT;
        }
        if on_edge {
            // There is room already; each time the client takes something is an edge.
            self.interest |= EventFlags::OUT | EventFlags::ET;
        }
    }
}
