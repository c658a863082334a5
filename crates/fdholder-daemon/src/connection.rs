//! One client, without its socket: bytes and descriptors in, replies out.

use crate::access::Rights;
use crate::delivery::{Delivery, Held};
use crate::limits::WORK_PER_REQUEST;
use crate::outbox::Outbox;
use crate::store::{Change, Outcome, Staged, Store};
use fdholder::extension::{self, Extension, OnConflict, Taken};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::{RELEASE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use fdholder::reply::{self, Answer};
use fdholder::request::Parsed;
use fdholder::{Entry, Errno, Malformed, Request, Timestamp};
use std::ops::Range;
use std::sync::Arc;

/// A client's side of the daemon: what has arrived, what it may do, a set it is giving,
/// and the replies it has not read.
#[derive(Debug)]
pub struct Connection<F> {
    rights: Arc<Rights>,
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
}

/// A set that is being given, until its last message commits it. Dropped, it is gone
/// without a trace.
#[derive(Debug)]
struct Set<F> {
    entries: Vec<Staged<F>>,
    announced: usize,
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

/// What a [`Connection::step`] came to.
#[derive(Debug)]
pub enum Step<F> {
    /// A request was carried out.
    Did {
        /// What it changed.
        changes: Vec<Change<F>>,
        /// How many ordinary requests it was worth.
        cost: usize,
    },
    /// There is no whole request, or the client must read its replies first.
    Wait,
}

impl<F> Connection<F> {
    /// A new client with the rights it was found to have.
    pub fn new(rights: Arc<Rights>) -> Self {
        Self {
            rights,
            decoder: Decoder::new(REQUEST_PAYLOAD_MAX),
            set: None,
            outbox: Outbox::default(),
            is_fdholder: false,
            on_conflict: OnConflict::default(),
            taken: None,
            snapshot: Held::default(),
            delivery: Sending::Nothing,
        }
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
        !(self.outbox.is_full() || self.decoder.has_frame())
    }

    /// Whether the client is in the middle of something: a request, a set, a reply.
    pub fn is_busy(&self) -> bool {
        self.set.is_some()
            || self.is_delivering()
            || !self.outbox.is_empty()
            || self.decoder.is_mid_frame()
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
    pub fn step(&mut self, store: &mut Store<F>, now: Timestamp) -> Result<Step<F>, Malformed> {
        if self.outbox.is_full() || self.is_delivering() {
            return Ok(Step::Wait);
        }
        let Some(frame) = self.decoder.next()? else {
            return Ok(Step::Wait);
        };
        let (changes, cost) = match Request::parse(frame)? {
            Parsed::Request(request) => {
                let cost = 1 + work(&request, store) / WORK_PER_REQUEST;
                (self.carry_out(request, store, now)?, cost)
            }
            Parsed::FdsLost => {
                self.set = None;
                self.outbox.push(reply::status(Err(Errno::NFILE)));
                (Vec::new(), 1)
            }
        };
        Ok(Step::Did { changes, cost })
    }

    fn carry_out(
        &mut self,
        request: Request<F>,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Result<Vec<Change<F>>, Malformed> {
        let may_come_amid_set =
            matches!(request, Request::SetdumpData(_) | Request::Extension(Extension::Unknown));
        if self.set.is_some() && !may_come_amid_set {
            return Err(Malformed::MID_SET);
        }
        let rights = Arc::clone(&self.rights);
        Ok(match request {
            Request::Store(entry) if !rights.may_store(&entry.id) => self.refuse(Errno::PERM),
            Request::Store(entry) => {
                let Outcome { answer, changes } = store.store(entry, now);
                self.outbox.push(reply::status(answer));
                changes
            }
            Request::Delete(id) if !rights.may_store(&id) => self.refuse(Errno::PERM),
            Request::Delete(id) => {
                let Outcome { answer, changes } = store.delete(&id, now);
                self.outbox.push(reply::status(answer));
                changes
            }
            Request::Retrieve { id, delete }
                if !rights.may_retrieve(&id) || (delete && !rights.may_store(&id)) =>
            {
                self.refuse(Errno::PERM)
            }
            Request::Retrieve { id, delete } => {
                let Outcome { answer, changes } = store.retrieve(&id, delete, now);
                self.outbox.push(answer.map_or_else(refusal, reply::retrieved));
                changes
            }
            Request::List if !rights.list => self.refuse(Errno::PERM),
            Request::List => {
                let (entries, changes) = store.dump(now);
                self.outbox.push(reply::list(entries.iter().map(|entry| &entry.id)));
                changes
            }
            Request::Getdump if !rights.getdump => self.refuse(Errno::PERM),
            Request::Getdump => {
                let (entries, changes) = store.dump(now);
                self.outbox.push(reply::getdump_head(entries.len() as u32)); // At most FDS_MAX.
                self.outbox.push_dump(entries);
                changes
            }
            Request::Setdump(_) if !rights.setdump => self.refuse(Errno::PERM),
            Request::Setdump(count) => self.begin_set(count, store),
            Request::SetdumpData(entries) => self.add_to_set(entries, store, now)?,
            Request::Extension(extension) => self.extend(extension, store, now),
        })
    }

    fn refuse(&mut self, errno: Errno) -> Vec<Change<F>> {
        self.outbox.push(refusal(errno));
        Vec::new()
    }

    fn begin_set(&mut self, count: u32, store: &Store<F>) -> Vec<Change<F>> {
        let announced = count as usize;
        if !store.could_hold(announced) {
            return self.refuse(Errno::NFILE);
        }
        if announced > 0 {
            // Not more than the store can hold, and memory is taken as it is filled.
            self.set = Some(Set { entries: Vec::with_capacity(announced), announced });
        }
        self.outbox.push(reply::setdump_head(count));
        Vec::new()
    }

    fn add_to_set(
        &mut self,
        entries: Vec<Entry<F>>,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Result<Vec<Change<F>>, Malformed> {
        let mut set = self.set.take().ok_or(Malformed::UNANNOUNCED_SET)?;
        set.entries.extend(entries.into_iter().map(|entry| store.stage(entry)));
        if set.entries.len() > set.announced {
            return Err(Malformed::SET_TOO_LONG);
        }
        if set.entries.len() < set.announced {
            self.set = Some(set);
            self.outbox.push(reply::status(Err(Errno::AGAIN)));
            return Ok(Vec::new());
        }
        let Outcome { answer, changes } = store.setdump(set.entries, self.on_conflict, now);
        self.outbox.push(reply::status(answer.as_ref().map(|_| ()).map_err(|errno| *errno)));
        self.taken = answer.ok();
        Ok(changes)
    }

    /// Requests beyond s6's protocol.
    fn extend(
        &mut self,
        extension: Extension<F>,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        match extension {
            Extension::Hello(_version) => {
                self.is_fdholder = true;
                self.outbox.push(extension::hello());
                Vec::new()
            }
            Extension::Snapshot { .. } if !(self.rights.list || self.rights.getdump) => {
                self.refuse(Errno::PERM)
            }
            Extension::Snapshot { entries } => self.take_snapshot(entries, store, now),
            Extension::Deliver { .. } if !self.rights.getdump => self.refuse(Errno::PERM),
            Extension::Deliver { runs, to } => match self.positions(runs) {
                Some(runs) => {
                    let snapshot = Arc::clone(&self.snapshot);
                    self.delivery = Sending::Ready(Delivery::new(to, snapshot, runs));
                    Vec::new()
                }
                None => self.refuse(Errno::INVAL),
            },
            Extension::Release { runs, only_ask } => match self.positions(runs) {
                Some(runs) if runs.iter().map(Range::len).sum::<usize>() <= RELEASE_FDS_MAX => {
                    self.release(&runs, only_ask, store, now)
                }
                _ => self.refuse(Errno::INVAL),
            },
            Extension::OnConflict(_) if !self.rights.setdump => self.refuse(Errno::PERM),
            Extension::OnConflict(on_conflict) => {
                self.on_conflict = on_conflict;
                self.outbox.push(reply::status(Ok(())));
                Vec::new()
            }
            Extension::Taken => {
                let taken = self.taken.as_ref();
                self.outbox.push(taken.map_or_else(|| refusal(Errno::NODATA), extension::taken));
                Vec::new()
            }
            Extension::Unknown => self.refuse(Errno::OPNOTSUPP),
        }
    }

    fn take_snapshot(
        &mut self,
        entries: bool,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        if !(entries || self.rights.getdump) {
            let changes = store.expire(now);
            let (count, capacity) = (store.len() as u32, store.capacity() as u32); // FDS_MAX.
            self.outbox.push(extension::snapshot(count, capacity, std::iter::empty()));
            return changes;
        }
        let (snapshot, changes) = store.dump(now);
        let (count, capacity) = (snapshot.len() as u32, store.capacity() as u32); // FDS_MAX.
        let listed = if entries { &snapshot[..] } else { &[] };
        let listed = listed.iter().map(|entry| (&entry.id, entry.limit));
        self.outbox.push(extension::snapshot(count, capacity, listed));
        if self.rights.getdump {
            self.snapshot = Arc::new(snapshot);
        }
        changes
    }

    /// Checks positions against the snapshot. They ascend, so that none comes twice and a
    /// request is not more work than the snapshot is long.
    fn positions(&self, runs: Vec<Range<u32>>) -> Option<Vec<Range<usize>>> {
        let mut end = 0;
        let runs = runs.into_iter().map(|run| run.start as usize..run.end as usize);
        let in_order = |run: Range<usize>| {
            let fits = end <= run.start && run.end <= self.snapshot.len();
            end = run.end;
            fits.then_some(run)
        };
        runs.map(in_order).collect()
    }

    fn release(
        &mut self,
        runs: &[Range<usize>],
        only_ask: bool,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        let Self { snapshot, rights, .. } = self;
        let entries = || runs.iter().flat_map(|run| &snapshot[run.clone()]);
        if !entries().all(|entry| rights.may_store(&entry.id)) {
            return self.refuse(Errno::PERM);
        }
        let mut changes = store.expire(now);
        let count = entries().filter(|entry| store.holds(entry)).count() as u32; // FDS_MAX.
        if !only_ask {
            changes.append(&mut store.release(entries(), now));
        }
        self.outbox.push(extension::released(count));
        changes
    }
}

/// How many entries of the store a request has to do with.
fn work<F>(request: &Request<F>, store: &Store<F>) -> usize {
    match request {
        Request::List | Request::Getdump | Request::Extension(Extension::Snapshot { .. }) => {
            store.len()
        }
        Request::SetdumpData(entries) => entries.len(),
        Request::Extension(Extension::Release { runs, .. }) => runs.iter().map(Range::len).sum(),
        _ => 0,
    }
}

fn refusal<T>(errno: Errno) -> Message<T> {
    let answer: Answer<()> = Err(errno);
    reply::status(answer)
}

#[cfg(test)]
mod tests;
