//! One client, without its socket: bytes and descriptors in, replies out.

mod extensions;
mod sets;
#[cfg(test)]
mod tests;

use self::sets::Set;
use crate::access::{Rights, User};
use crate::audit;
use crate::delivery::{Delivery, Held};
use crate::limits::{MEMORY_PER_FD, MEMORY_PIECE_LEN, WORK_PER_REQUEST};
use crate::memory::reserve::has_room;
use crate::outbox::Outbox;
use crate::shares::{Amounts, Claimant, Ledger, Quotas, Resource, Short};
use crate::store::{Change, Outcome, Record, Store};
use crate::tally::Operation;
use fdholder::extension::{self, Extension, OnConflict, Taken};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::{MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use fdholder::link::{self, HandedClient};
use fdholder::reply::{self, Answer};
use fdholder::request::Parsed;
use fdholder::{Entry, Errno, Identifier, Malformed, Request, Status, Timestamp};
use std::ops::Range;
use std::sync::Arc;

/// Who a client is to the daemon.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its user, who owns what it gives.
    pub uid: u32,
    /// It runs as the daemon's own user, and so may follow.
    pub is_own: bool,
    /// What it may do besides. `None`: it is not let in, but that a daemon of the same user
    /// may follow does not depend on rules.
    pub rights: Option<Arc<Rights>>,
}

impl Standing {
    /// What it may have of what there is for all.
    pub fn claimant(&self) -> Claimant {
        let quotas = self.rights.as_ref().map_or_else(Quotas::default, |rights| rights.quotas);
        Claimant { uid: self.uid, is_trusted: self.is_own || self.uid == 0, quotas }
    }
}

/// A client's side of the daemon: what has arrived, what it may do, a set it is giving,
/// and the replies it has not read.
#[derive(Debug)]
pub struct Connection<F> {
    standing: Standing,
    decoder: Decoder<F>,
    set: Option<Set<F>>,
    outbox: Outbox<F>,
    /// It has said hello.
    is_fdholder: bool,
    on_conflict: OnConflict,
    /// What came of its last set.
    taken: Option<Taken>,
    /// What was held when it asked for that. Only of a client that may take all of it
    /// anyway, as descriptors in here stay open.
    snapshot: Held<F>,
    delivery: Sending<F>,
    /// What it is to have alone, until it is known whether it has taken the reply.
    loan: Option<Arc<Record<F>>>,
    /// It has asked to follow, and could hold so many.
    follow: Option<u32>,
    /// It has asked for an upgrade, and waits to hear what came of it.
    upgrade: Upgrading,
    /// It has asked what only the server knows.
    question: Option<Question>,
    /// It waits until something is held.
    awaits: Option<Appearance>,
    /// It has waited for something.
    has_waited: bool,
    /// It has had something deleted: the answer waits until that is closed.
    awaits_close: bool,
    /// Of what there was too little for it last.
    short: Option<Short>,
}

/// Where a client is with an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrading {
    No,
    /// It has asked.
    Asked,
    /// It waits.
    Waits,
}

/// What a client waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Appearance {
    /// Under which identifier something is to be held …
    pub id: Identifier,
    /// … or under one that begins so.
    pub is_prefix: bool,
}

impl Appearance {
    /// As it was asked for.
    fn request(&self) -> Vec<u8> {
        let Self { id, is_prefix } = self.clone();
        let asked = Request::<u8>::Extension(Extension::Await { id, is_prefix });
        asked.into_message().into_parts().0
    }
}

/// What only the server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// How the holder is.
    Status,
    /// Whether a user may store under an identifier.
    MayStore(User, Identifier),
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Answered {
    /// How the holder is.
    Status(Box<Status>),
    /// Whether it may.
    MayStore(bool),
}

/// A delivery of a client's. While there is one nothing else is done for it.
#[derive(Debug)]
enum Sending<F> {
    Nothing,
    /// It is to be sent.
    Ready(Delivery<F>),
    /// Whoever has taken it will tell how it went.
    UnderWay,
}

/// What was asked, for whoever counts or writes it down.
#[derive(Debug)]
pub struct Deed {
    /// As it is counted.
    pub operation: Operation,
    /// As it is written down.
    pub audited: audit::Operation,
    /// With which identifier, if with one.
    pub id: Option<Identifier>,
    /// Why not, if it was refused.
    pub refused: Option<Errno>,
}

/// What a [`Connection::step`] came to.
#[derive(Debug)]
pub enum Step<F> {
    /// A request was carried out.
    Did {
        /// What it changed.
        changes: Vec<Change<F>>,
        /// How many ordinary requests it was worth.
        cost: usize,
        /// Which it was, and whether it was refused.
        deed: Deed,
    },
    /// There is no whole request, or the client must read its replies first.
    Wait,
}

impl<F> Connection<F> {
    /// A new client.
    pub fn new(standing: Standing) -> Self {
        Self {
            standing,
            decoder: Decoder::new(REQUEST_PAYLOAD_MAX),
            set: None,
            outbox: Outbox::default(),
            is_fdholder: false,
            on_conflict: OnConflict::default(),
            taken: None,
            snapshot: Held::default(),
            delivery: Sending::Nothing,
            loan: None,
            follow: None,
            upgrade: Upgrading::No,
            question: None,
            awaits: None,
            has_waited: false,
            awaits_close: false,
            short: None,
        }
    }

    /// A client that another daemon has served.
    pub fn resume<S>(standing: Standing, handed: HandedClient<S>) -> (Self, S) {
        let HandedClient { socket, is_fdholder, awaits_upgrade, on_conflict, taken, unread } =
            handed;
        // Nothing is copied: nobody could be refused that.
        let decoder = Decoder::resume(REQUEST_PAYLOAD_MAX, unread);
        let mut connection =
            Self { decoder, is_fdholder, on_conflict, taken, ..Self::new(standing) };
        if awaits_upgrade {
            connection.upgrade_ended(Ok(env!("CARGO_PKG_VERSION")));
        }
        (connection, socket)
    }

    /// Whether the next daemon can go on with this client: not when it is in the middle of something.
    pub fn can_be_handed_over(&self) -> bool {
        let begun = self.outbox.is_empty() && self.set.is_none() && self.snapshot.is_empty();
        if !begun
            || self.is_delivering()
            || self.is_borrowing()
            || self.follow.is_some()
            || self.question.is_some()
            || self.awaits_close
        {
            return false;
        }
        let kept = self.taken.as_ref().map_or(0, |taken| taken.kept.len());
        // What it waits for is asked for again.
        let again = self.awaits.as_ref().map_or(0, |awaited| awaited.id.as_bytes().len() + 16);
        let unread = self.decoder.unread_without_fds();
        unread.is_some_and(|unread| link::fits(kept, again + unread.len()))
    }

    /// For that daemon; `None` if it cannot.
    pub fn hand_over<S>(&self, socket: S) -> Option<HandedClient<S>> {
        if !self.can_be_handed_over() {
            return None;
        }
        // It asks again, and what it has asked behind that waits.
        let mut unread = self.awaits.as_ref().map_or_else(Vec::new, Appearance::request);
        unread.extend_from_slice(self.decoder.unread_without_fds()?);
        Some(HandedClient {
            socket,
            is_fdholder: self.is_fdholder,
            awaits_upgrade: self.awaits_upgrade(),
            on_conflict: self.on_conflict,
            taken: self.taken.clone(),
            unread,
        })
    }

    /// It asks for an upgrade; [`upgrade_ended`](Self::upgrade_ended) tells it what came of
    /// that, or that of another daemon.
    pub fn take_upgrade(&mut self) -> bool {
        let asked = self.upgrade == Upgrading::Asked;
        if asked {
            self.upgrade = Upgrading::Waits;
        }
        asked
    }

    /// Whether it waits to hear what came of an upgrade.
    pub fn awaits_upgrade(&self) -> bool {
        self.upgrade != Upgrading::No
    }

    /// What it waits for to be held: [`has_appeared`](Self::has_appeared) is to be asked when
    /// that may be so.
    pub fn awaits(&self) -> Option<&Appearance> {
        self.awaits.as_ref()
    }

    /// Answers it if what it waits for is held now. Returns whether it is.
    pub fn has_appeared(&mut self, store: &Store<F>, now: Timestamp) -> bool {
        let is_seen = |it: &Appearance| store.sees(&it.id, it.is_prefix, now);
        let has_appeared = self.awaits.as_ref().is_some_and(is_seen);
        if has_appeared {
            self.awaits = None;
            self.outbox.push(reply::status(Ok(())));
        }
        has_appeared
    }

    /// What it has asked that is for the server to [answer](Self::answer).
    pub fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The answer to that.
    pub fn answer(&mut self, answer: &Answer<Answered>) {
        self.question = None;
        if matches!(answer, Err(Errno::NOMEM)) {
            // It changes nothing.
            drop(self.fall_short(Short::Memory));
            return;
        }
        self.outbox.push(match answer {
            Ok(Answered::Status(status)) => extension::told_status(status),
            Ok(Answered::MayStore(may)) => extension::told_may_store(*may),
            Err(errno) => refusal(*errno),
        });
    }

    /// The version that answers now, or why there was no upgrade.
    pub fn upgrade_ended(&mut self, outcome: Result<&str, &str>) {
        self.upgrade = Upgrading::No;
        self.outbox.push(extension::upgraded(outcome));
    }

    /// It wants to follow, and could hold so many; [`refuse_follower`](Self::refuse_follower)
    /// says that it must not. Answered once the answers to what it asked before have left:
    /// what a follower is told stands behind them.
    pub fn take_follower(&mut self) -> Option<u32> {
        self.outbox.is_empty().then(|| self.follow.take()).flatten()
    }

    /// It cannot follow.
    pub fn refuse_follower(&mut self, errno: Errno) {
        self.outbox.push(refusal(errno));
    }

    /// Whether it is one of the daemon's own user that no rule lets in.
    pub fn is_let_in(&self) -> bool {
        self.standing.rights.is_some()
    }

    /// Takes in what one read brought; see [`Decoder::push`].
    pub fn receive(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = F>, fds_lost: bool) {
        self.decoder.push(bytes, fds, fds_lost);
    }

    /// The replies to send.
    pub fn outbox(&mut self) -> &mut Outbox<F> {
        &mut self.outbox
    }

    /// Whether more may be read from this client: not while it leaves replies unread, nor
    /// while it waits for its turn with a request that has arrived.
    pub fn wants_input(&self) -> bool {
        !(self.outbox.is_full() || self.has_request())
    }

    /// Whether a request waits for its turn.
    pub fn has_request(&self) -> bool {
        self.decoder.has_frame()
    }

    /// Whether the client is in the middle of something: a request, a set, a reply.
    pub fn is_busy(&self) -> bool {
        self.set.is_some()
            || self.is_delivering()
            || self.is_borrowing()
            || self.awaits_close
            || !self.outbox.is_empty()
            || self.decoder.is_mid_frame()
    }

    /// Whether it has asked something that does not depend on the client any more.
    pub fn waits_for_us(&self) -> bool {
        self.is_delivering()
            || self.has_request()
            || self.follow.is_some()
            || self.question.is_some()
            || self.awaits.is_some()
            || self.awaits_close
            || self.awaits_upgrade()
    }

    /// Whether descriptors of a request have come that is not whole: it has the places of a
    /// whole message's.
    pub fn has_fds_of_a_part(&self) -> bool {
        self.decoder.fds_len() > 0 && !self.has_request()
    }

    /// How many bytes of a request have come.
    pub fn come_len(&self) -> usize {
        self.decoder.unread_len()
    }

    /// How many it lacks, as far as is known.
    pub fn missing_len(&self) -> usize {
        self.decoder.missing_len()
    }

    /// What it has of what there is for all; its socket has more.
    pub fn charges(&self) -> Amounts {
        let announced = self.set.as_ref().map_or(0, |set| set.announced);
        let set = self.set.as_ref().map_or(0, |set| set.entries.len() * MEMORY_PER_FD);
        let snapshot = self.snapshot.len() * size_of::<usize>();
        let bytes = self.decoder.unread_len() + self.outbox.bytes() + set + snapshot;
        let come = self.decoder.fds_len();
        let come = if self.has_fds_of_a_part() { come.max(MESSAGE_FDS_MAX) } else { come };
        Amounts::of(Resource::Arriving, come + announced)
            .with(Resource::Bytes, bytes)
            .with(Resource::Loans, usize::from(self.loan.is_some()))
            .with(Resource::Connections, usize::from(!self.has_waited))
            .with(Resource::Waiting, usize::from(self.has_waited))
    }

    /// What it may have.
    pub fn claimant(&self) -> Claimant {
        self.standing.claimant()
    }

    /// Of what there was too little when it was refused something last.
    pub fn short(&self) -> Option<Short> {
        self.short
    }

    /// Whether the answer to a delete waits until what it has dropped is
    /// [closed](Self::has_closed).
    pub fn awaits_close(&self) -> bool {
        self.awaits_close
    }

    /// That is closed now; or it takes so long that the answer says so (EINPROGRESS).
    pub fn has_closed(&mut self, is_closed: bool) {
        if std::mem::take(&mut self.awaits_close) {
            let answer = if is_closed { Ok(()) } else { Err(Errno::INPROGRESS) };
            self.outbox.push(reply::status(answer));
        }
    }

    /// Whether its time runs: it is in the middle of something, or keeps open what it has
    /// taken a snapshot of. A delivery has a time of its own.
    pub fn is_timed(&self) -> bool {
        !self.is_delivering() && (self.is_busy() || !self.snapshot.is_empty())
    }

    /// Whether it is giving a set.
    pub fn is_mid_set(&self) -> bool {
        self.set.is_some()
    }

    /// Whether it is not known yet whether it has what it was lent: ask whether it has read
    /// everything once all is sent, and [`settle`](Self::settle). Until then nothing else
    /// is done for it.
    pub fn is_borrowing(&self) -> bool {
        self.loan.is_some()
    }

    /// It has taken the reply, or never will: what it was lent is gone, or back.
    pub fn settle(&mut self, taken: bool, store: &mut Store<F>) -> Vec<Change<F>> {
        let Some(loan) = self.loan.take() else { return Vec::new() };
        if taken {
            return store.release(std::iter::once(&loan));
        }
        store.give_back(&loan);
        Vec::new()
    }

    /// Whether its receiver takes whatever messages arrive together, as every fdholder's.
    pub fn is_fdholder(&self) -> bool {
        self.is_fdholder
    }

    /// Whether a delivery has begun and not ended.
    pub fn is_delivering(&self) -> bool {
        !matches!(self.delivery, Sending::Nothing)
    }

    /// A delivery that is to be sent; [`delivery_ended`](Self::delivery_ended) is to be
    /// told how it went.
    pub fn take_delivery(&mut self) -> Option<Delivery<F>> {
        match std::mem::replace(&mut self.delivery, Sending::UnderWay) {
            Sending::Ready(delivery) => return Some(delivery),
            other => self.delivery = other,
        }
        None
    }

    /// A delivery has been sent, so many bytes, or failed.
    pub fn delivery_ended(&mut self, answer: Answer<u64>) {
        self.delivery = Sending::Nothing;
        self.outbox.push(answer.map_or_else(refusal, extension::delivered));
    }

    /// Carries out one request, if there is a whole one.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the client breaks the protocol; the connection must be closed.
    /// A set it had not finished is dropped with it, and nothing of it was stored.
    pub fn step(
        &mut self,
        store: &mut Store<F>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Result<Step<F>, Malformed> {
        // What it has asked since it was lent something waits until that is settled.
        let waits = self.is_delivering()
            || self.is_borrowing()
            || self.follow.is_some()
            || self.awaits_upgrade()
            || self.question.is_some()
            || self.awaits.is_some()
            || self.awaits_close;
        if waits || self.outbox.is_full() {
            return Ok(Step::Wait);
        }
        let Some(frame) = self.decoder.next()? else {
            return Ok(Step::Wait);
        };
        let refused_before = self.outbox.refusals();
        let (changes, cost, (operation, audited, id)) = match Request::parse(frame)? {
            Parsed::Request(request) => {
                let cost = 1 + work(&request, store) / WORK_PER_REQUEST;
                let asked = (Operation::from(&request), (&request).into(), id_of(&request));
                (self.carry_out(request, store, ledger, now)?, cost, asked)
            }
            // Only these come with descriptors that are held; one or the other.
            Parsed::FdsLost => {
                let is_set = self.set.take().is_some();
                self.outbox.push(reply::status(Err(Errno::NFILE)));
                let (operation, audited) = if is_set {
                    (Operation::SetdumpData, audit::Operation::Setdump)
                } else {
                    (Operation::Store, audit::Operation::Store)
                };
                (Vec::new(), 1, (operation, audited, None))
            }
        };
        let is_refused = self.outbox.refusals() > refused_before;
        let refused = self.outbox.last_refusal().filter(|_| is_refused);
        Ok(Step::Did { changes, cost, deed: Deed { operation, audited, id, refused } })
    }

    fn carry_out(
        &mut self,
        request: Request<F>,
        store: &mut Store<F>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Result<Vec<Change<F>>, Malformed> {
        let may_come_amid_set =
            matches!(request, Request::SetdumpData(_) | Request::Extension(Extension::Unknown));
        if self.set.is_some() && !may_come_amid_set {
            return Err(Malformed::MID_SET);
        }
        let Some(rights) = self.standing.rights.clone() else {
            return match request {
                Request::Extension(
                    extension @ (Extension::Hello(_) | Extension::Follow { .. }),
                ) => Ok(self.extend(extension, &Rights::default(), store, ledger, now)),
                _ => Err(Malformed::NOT_LET_IN),
            };
        };
        Ok(match request {
            Request::Store(entry) if !rights.may_store(&entry.id) => self.refuse(Errno::PERM),
            Request::Store(entry) => {
                let who = self.claimant();
                let Outcome { answer, changes } = store.store(entry, &who, now);
                self.note_enfile(&answer, store, &who);
                self.outbox.push(reply::status(answer));
                changes
            }
            Request::Delete(id) if !rights.may_store(&id) => self.refuse(Errno::PERM),
            Request::Delete(id) => {
                let Outcome { answer, changes } = store.delete(&id, now);
                match answer {
                    Ok(()) => self.awaits_close = true,
                    Err(errno) => self.outbox.push(refusal(errno)),
                }
                changes
            }
            Request::Retrieve { id, delete }
                if !rights.may_retrieve(&id) || (delete && !rights.may_store(&id)) =>
            {
                self.refuse(Errno::PERM)
            }
            Request::Retrieve { delete: true, .. }
                if ledger.room(&self.claimant(), Resource::Loans) == 0 =>
            {
                self.fall_short(Short::Loans)
            }
            Request::Retrieve { id, delete } => {
                let answer = if delete { store.lend(&id, now) } else { store.retrieve(&id, now) };
                if delete {
                    self.loan = answer.as_ref().ok().cloned();
                }
                self.outbox.push(answer.map_or_else(refusal, reply::retrieved));
                Vec::new()
            }
            Request::List if !rights.list => self.refuse(Errno::PERM),
            Request::List => {
                let bytes = store.id_bytes(now) + store.count(now);
                if let Some(short) = self.short_of_bytes(bytes, store.len(), ledger) {
                    return Ok(self.fall_short(short));
                }
                let entries = store.dump(now);
                self.outbox.push(reply::list(entries.iter().map(|entry| &entry.id)));
                Vec::new()
            }
            Request::Getdump if !rights.getdump => self.refuse(Errno::PERM),
            Request::Getdump => {
                let bytes = store.count(now) * size_of::<usize>();
                if let Some(short) = self.short_of_bytes(bytes, store.len(), ledger) {
                    return Ok(self.fall_short(short));
                }
                let entries = store.dump(now);
                self.outbox.push(reply::getdump_head(entries.len() as u32)); // At most FDS_MAX.
                self.outbox.push_dump(entries);
                Vec::new()
            }
            Request::Setdump(_) if !rights.setdump => self.refuse(Errno::PERM),
            Request::Setdump(count) => self.begin_set(count, store, ledger, now),
            Request::SetdumpData(entries) => self.add_to_set(entries, store, now)?,
            Request::Extension(extension) => self.extend(extension, &rights, store, ledger, now),
        })
    }

    fn refuse(&mut self, errno: Errno) -> Vec<Change<F>> {
        self.outbox.push(refusal(errno));
        Vec::new()
    }

    /// Refuses as there is too little of something.
    fn fall_short(&mut self, short: Short) -> Vec<Change<F>> {
        self.short = Some(short);
        self.refuse(short.errno())
    }

    /// Of what there is too little for an answer of so many bytes, made of so many entries. One reply
    /// is never too long: the first that waits counts from when it does.
    fn short_of_bytes(&self, bytes: usize, entries: usize, ledger: &Ledger) -> Option<Short> {
        if !has_room(made_of(bytes, entries)) {
            return Some(Short::Memory);
        }
        let may_have = ledger.room(&self.claimant(), Resource::Bytes);
        (may_have < bytes).then(|| Short::Bytes(self.claimant().may_have(Resource::Bytes)))
    }

    /// Remembers why there was no room, if that was it.
    fn note_enfile<T>(&mut self, answer: &Answer<T>, store: &Store<F>, who: &Claimant) {
        if matches!(answer, Err(Errno::NFILE)) {
            let reserved = if who.is_trusted { 0 } else { store.reserved() };
            let is_full = store.len() + reserved >= store.capacity();
            let full = Short::Full { capacity: store.capacity(), reserved };
            self.short = Some(if is_full { full } else { Short::Fds(who.may_hold()) });
        }
    }
}

/// Bytes that are allocated while an answer of so many is made: it doubles as it grows, and the
/// entries that it is made of are gathered before. Short ones take next to nothing.
fn made_of(bytes: usize, entries: usize) -> usize {
    let gathered = entries * size_of::<usize>();
    if bytes < MEMORY_PIECE_LEN / 2 && gathered <= MEMORY_PIECE_LEN {
        0
    } else {
        bytes.saturating_mul(4) + gathered
    }
}

fn id_of<F>(request: &Request<F>) -> Option<Identifier> {
    match request {
        Request::Store(Entry { id, .. }) | Request::Delete(id) | Request::Retrieve { id, .. } => {
            Some(id.clone())
        }
        _ => None,
    }
}

/// How many entries of the store a request has to do with.
fn work<F>(request: &Request<F>, store: &Store<F>) -> usize {
    match request {
        Request::List
        | Request::Getdump
        | Request::Extension(
            Extension::Snapshot { .. }
            | Extension::Inspect
            | Extension::Await { is_prefix: true, .. },
        ) => store.len(),
        Request::SetdumpData(entries) => entries.len(),
        Request::Extension(Extension::Release { runs, .. }) => runs.iter().map(Range::len).sum(),
        _ => 0,
    }
}

fn refusal<T>(errno: Errno) -> Message<T> {
    let answer: Answer<()> = Err(errno);
    reply::status(answer)
}
