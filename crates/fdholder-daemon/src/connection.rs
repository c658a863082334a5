//! One client, without its socket: bytes and descriptors in, replies out.

use crate::access::Rights;
use crate::outbox::Outbox;
use crate::store::{Change, Outcome, Store};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::reply::{self, Answer};
use fdholder::request::Parsed;
use fdholder::{Entry, Errno, Malformed, Request, Timestamp};
use std::sync::Arc;

/// A client's side of the daemon: what has arrived, what it may do, a set it is giving,
/// and the replies it has not read.
#[derive(Debug)]
pub struct Connection<F> {
    rights: Arc<Rights>,
    decoder: Decoder<F>,
    set: Option<Set<F>>,
    outbox: Outbox<F>,
}

/// A set that is being given, until its last message commits it. Dropped, it is gone
/// without a trace.
#[derive(Debug)]
struct Set<F> {
    entries: Vec<Arc<Entry<F>>>,
    announced: usize,
}

/// What a [`Connection::step`] came to.
#[derive(Debug)]
pub enum Step<F> {
    /// A request was carried out; this is what it changed.
    Did(Vec<Change<F>>),
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

    /// Whether more may be read from this client: not while it leaves replies unread.
    pub fn wants_input(&self) -> bool {
        !self.outbox.is_full()
    }

    /// Whether the client is in the middle of something: a request, a set, a reply.
    pub fn is_busy(&self) -> bool {
        self.set.is_some() || !self.outbox.is_empty() || self.decoder.is_mid_frame()
    }

    /// Carries out one request, if there is a whole one.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the client breaks the protocol; the connection must be closed.
    /// A set it had not finished is dropped with it, and nothing of it was stored.
    pub fn step(&mut self, store: &mut Store<F>, now: Timestamp) -> Result<Step<F>, Malformed> {
        if !self.wants_input() {
            return Ok(Step::Wait);
        }
        let Some(frame) = self.decoder.next()? else {
            return Ok(Step::Wait);
        };
        let changes = match Request::parse(frame)? {
            Parsed::Request(request) => self.carry_out(request, store, now)?,
            Parsed::FdsLost => {
                self.set = None;
                self.outbox.push(reply::status(Err(Errno::NFILE)));
                Vec::new()
            }
        };
        Ok(Step::Did(changes))
    }

    fn carry_out(
        &mut self,
        request: Request<F>,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Result<Vec<Change<F>>, Malformed> {
        if self.set.is_some() && !matches!(request, Request::SetdumpData(_)) {
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
            self.set = Some(Set { entries: Vec::new(), announced });
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
        set.entries.extend(entries.into_iter().map(Arc::new));
        if set.entries.len() > set.announced {
            return Err(Malformed::SET_TOO_LONG);
        }
        if set.entries.len() < set.announced {
            self.set = Some(set);
            self.outbox.push(reply::status(Err(Errno::AGAIN)));
            return Ok(Vec::new());
        }
        let Outcome { answer, changes } = store.setdump(set.entries, now);
        self.outbox.push(reply::status(answer));
        Ok(changes)
    }
}

fn refusal<T>(errno: Errno) -> Message<T> {
    let answer: Answer<()> = Err(errno);
    reply::status(answer)
}
