//! A connected client with its socket: moves bytes and descriptors between the kernel
//! and a [`Connection`].

mod awaited;
mod turn;

use crate::audit::{Operation, Who};
use crate::bugs::{active, Bug};
use crate::clock;
use crate::closing::{self, ClientFd};
use crate::connection::{Answered, Appearance, Connection, Question, Standing};
use crate::courier::{Courier, Crew, Dispatched};
use crate::credentials::Credentials;
use crate::hold::Hold;
use crate::replication::{Mirrors, Releases, Ticket};
use crate::shares::{Amounts, Claimant, Ledger, Resource};
use crate::store::Store;
use crate::unread::all_is_read;
use awaited::Awaited;
use fdholder::link::HandedClient;
use fdholder::reply::Answer;
use fdholder::{Errno, Malformed, Timestamp};
use rustix::event::epoll::EventFlags;
use rustix::net::sockopt::socket_error;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
pub use turn::is_for_now;

/// One client of the daemon.
#[derive(Debug)]
// Each is about something of its own.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Peer {
    /// For messages; its rights were decided when it connected.
    pub who: Credentials,
    /// Shared with the message that hands it over.
    socket: Arc<ClientFd>,
    connection: Connection<ClientFd>,
    /// It has shut down its side: what it asked is answered, then it is let go.
    half_closed: bool,
    /// When to serve it again although nothing happens: at once when its turn was over
    /// before its work was, a little later when descriptors in flight have no room
    /// (ETOOMANYREFS), as nothing tells when they do.
    again: Option<Instant>,
    /// It was sent descriptors.
    gave_fds: bool,
    /// How many it was sent since it was seen to have read everything.
    unread_fds: usize,
    /// What it has of what there is for all, as the ledger knows it.
    charged: Amounts,
    /// What its replies wait for.
    gate: Option<Ticket>,
    /// What its last request has dropped, and its replies wait for as well.
    awaited: Option<Awaited>,
    /// There was no room for descriptors that it has sent: they stay in the socket for now.
    waits_for_room: bool,
    /// There is memory for the whole request of which a part has come, or it goes on all the same.
    has_room: bool,
    /// Its place among those of its user for which there was none.
    in_line: Option<u64>,
    /// It has broken the protocol; the replies before are still due.
    broken: Option<Malformed>,
    /// What it waits for.
    pub interest: EventFlags,
    /// What epoll watches for it; `None` while it does not.
    pub watched: Option<EventFlags>,
    /// Sends its delivery.
    courier: Option<Courier>,
    /// Nobody waits for the courier yet.
    courier_is_new: bool,
    /// It may not be sent more before others of its user read.
    waits_for_readers: bool,
    /// It has finished something.
    has_progressed: bool,
    /// When it last did.
    pub active_at: Instant,
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
    pub fn new(socket: Arc<ClientFd>, who: Credentials, standing: Standing, now: Instant) -> Self {
        Self::over(socket, who, Connection::new(standing), now)
    }

    /// A client that another daemon has served. What it was sent before it may not have read.
    pub fn resume(
        handed: HandedClient<Arc<ClientFd>>,
        who: Credentials,
        standing: Standing,
    ) -> Self {
        let (connection, socket) = Connection::resume(standing, handed);
        Self { gave_fds: true, ..Self::over(socket, who, connection, clock::now()) }
    }

    fn over(
        socket: Arc<ClientFd>,
        who: Credentials,
        connection: Connection<ClientFd>,
        now: Instant,
    ) -> Self {
        Self {
            who,
            socket,
            connection,
            half_closed: false,
            again: None,
            gave_fds: false,
            unread_fds: 0,
            charged: Amounts::default(),
            gate: None,
            awaited: None,
            waits_for_room: false,
            has_room: false,
            in_line: None,
            broken: None,
            interest: EventFlags::IN,
            watched: None,
            courier: None,
            courier_is_new: false,
            waits_for_readers: false,
            has_progressed: false,
            active_at: now,
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

    /// Whether nothing happens before its client does something.
    pub fn waits_for_client(&self) -> bool {
        let is_held_up = self.waits_for_room || self.gate.is_some() || self.awaited.is_some();
        !(is_held_up || self.turn.is_some() || self.connection.waits_for_us())
    }

    /// Whether it takes a connection of its user's.
    pub fn is_a_connection(&self) -> bool {
        self.charged.get(Resource::Connections) > 0
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
    pub fn is_gated(&self, mirrors: &Mirrors<ClientFd>) -> bool {
        self.gate.is_some_and(|gate| !mirrors.has_passed(gate))
    }

    /// When it gets its replies although what it has dropped is not closed.
    pub fn closes_until(&self) -> Option<Instant> {
        self.awaited.as_ref().map(|awaited| awaited.until)
    }

    /// Whether its replies wait until what it has dropped is closed.
    fn awaits_closes(&mut self, mirrors: &Mirrors<ClientFd>) -> bool {
        let Some(awaited) = &self.awaited else { return false };
        let is_closed = awaited.is_closed(mirrors);
        if !is_closed && clock::now() < awaited.until {
            return true;
        }
        self.awaited = None;
        self.connection.has_closed(is_closed);
        false
    }

    /// Whether what it has dropped is closed, or it has dropped nothing.
    pub fn closes_have_ended(&self, mirrors: &Mirrors<ClientFd>) -> bool {
        self.awaited.as_ref().is_none_or(|awaited| awaited.is_closed(mirrors))
    }

    /// Whether it is not sent more as its user has too much unread.
    pub fn waits_for_readers(&self) -> bool {
        self.waits_for_readers
    }

    /// Whether something was finished since this was asked last: a request, or a message.
    pub fn take_progress(&mut self, now: Instant) -> bool {
        let has_progressed = std::mem::take(&mut self.has_progressed);
        if has_progressed {
            self.active_at = now;
        }
        has_progressed
    }

    /// Whether all that it will ever send was read.
    pub fn is_read_to_its_end(&self) -> bool {
        self.half_closed
    }

    /// Who it is to the ledger.
    pub fn claimant(&self) -> Claimant {
        self.connection.claimant()
    }

    /// What its requests and replies take, whatever the ledger was told.
    pub fn charges(&self) -> Amounts {
        self.connection.charges()
    }

    /// Tells the ledger what it has.
    pub fn recharge(&mut self, ledger: &mut Ledger) {
        let now = self.connection.charges();
        let missing = if self.has_room { self.connection.missing_len() } else { 0 };
        let now = now
            .with(Resource::Bytes, now.get(Resource::Bytes) + missing)
            .with(Resource::Unread, self.unread_fds)
            .with(Resource::Behind, usize::from(self.unread_fds > 0));
        ledger.recharge(self.who.user.uid, &mut self.charged, now);
    }

    /// It goes, and has nothing any more.
    pub fn discharge(&mut self, ledger: &mut Ledger) {
        ledger.line.leave(self.who.user.uid, &mut self.in_line);
        ledger.recharge(self.who.user.uid, &mut self.charged, Amounts::default());
    }

    /// Finds out whether it has read what it was sent, if that matters to anybody.
    pub fn look_at_unread(&mut self) {
        if self.unread_fds > 0 && all_is_read(&self.socket).unwrap_or(false) {
            self.unread_fds = 0;
        }
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
    pub fn hand_over(&self) -> Option<HandedClient<Arc<ClientFd>>> {
        self.is_idle().then(|| self.connection.hand_over(Arc::clone(&self.socket))).flatten()
    }

    /// Whether it is.
    pub fn can_be_handed_over(&self) -> bool {
        self.is_idle() && self.connection.can_be_handed_over()
    }

    fn is_idle(&self) -> bool {
        !self.half_closed && self.gate.is_none() && self.awaited.is_none()
    }

    /// It asks for an upgrade.
    pub fn take_upgrade(&mut self) -> bool {
        self.connection.take_upgrade()
    }

    /// What it waits for to be held.
    pub fn awaits(&self) -> Option<&Appearance> {
        self.connection.awaits()
    }

    /// Answers it if that is held now.
    pub fn has_appeared(&mut self, store: &Store<ClientFd>, now: Timestamp) -> bool {
        self.connection.has_appeared(store, now)
    }

    /// What it asks that only the server knows.
    pub fn question(&self) -> Option<&Question> {
        self.connection.question()
    }

    /// Tells it.
    pub fn answer(&mut self, answer: &Answer<Answered>) {
        self.connection.answer(answer);
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
        let is_due =
            self.gate.is_some() || self.awaited.is_some() || !self.connection.outbox().is_empty();
        (!is_due).then(|| self.connection.take_follower()).flatten()
    }

    /// It cannot follow.
    pub fn refuse_follower(&mut self, errno: Errno) {
        self.connection.refuse_follower(errno);
    }

    /// Its connection, which is not a client's any more.
    pub fn into_socket(self) -> Option<OwnedFd> {
        Arc::into_inner(self.socket).and_then(ClientFd::into_inner)
    }

    /// Closes its connection, which it has closed too: everything in it was read, so nothing
    /// can be waited for.
    pub fn close(self) {
        drop(self.into_socket());
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
        let now = Timestamp::now();
        hold.expire(now, 0);
        let changes = self.connection.settle(taken, &mut hold.store);
        hold.mirrors.record(&changes, &hold.store);
        let (who, operation) = (Who::from(self.who), Operation::Take);
        hold.auditor.changed(who, operation, &changes, &hold.store, now, clock::now());
    }

    /// Sends off the delivery that was asked for, if any.
    fn dispatch(&mut self, crew: &Crew) {
        let Some(delivery) = self.connection.take_delivery() else { return };
        // What was dropped before is not what this drops.
        drop(closing::begun());
        match crew.dispatch(delivery) {
            Ok(Dispatched::Courier(courier)) => {
                self.courier = Some(courier);
                self.courier_is_new = true;
            }
            Ok(Dispatched::Delivered(bytes)) => self.connection.delivery_ended(Ok(bytes)),
            Err(errno) => self.connection.delivery_ended(Err(errno)),
        }
        // Where it was to go that is seen to be closed before another way is tried: what was
        // announced there has its places until then.
        if self.awaited.is_none() {
            self.awaited = Awaited::new(closing::begun(), Releases::default());
        }
    }

    /// What tells of the end of a delivery that has just begun.
    pub fn new_courier(&mut self) -> Option<BorrowedFd<'_>> {
        let is_new = std::mem::take(&mut self.courier_is_new);
        self.courier.as_ref().filter(|_| is_new).map(Courier::socket)
    }

    /// Whether nobody is told yet of the end of its delivery.
    pub fn has_new_courier(&self) -> bool {
        self.courier_is_new
    }

    /// The kernel had no room to tell of it.
    pub fn watch_courier_again(&mut self) {
        self.courier_is_new = self.courier.is_some();
    }

    /// Asks the courier how it went.
    pub fn hear_courier(&mut self) {
        if let Some(answer) = self.courier.as_mut().and_then(Courier::ended) {
            self.courier = None;
            self.connection.delivery_ended(answer);
        }
    }
}
