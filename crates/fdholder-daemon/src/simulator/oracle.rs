//! Who knows what must be true.
//!
//! The oracle knows what each client has sent, and is told *when* a request is carried
//! out, which gives requests of different clients an order; what must come of it, it works
//! out by itself. From the bytes that are in a client's queue irrevocably it sees how far
//! the past is settled: whoever serves next must hold what was held at some moment that is
//! not earlier.

use super::model::{Held, Model};
use super::session::{Due, Expected, Session};
use crate::simulator::kernel::Fd;
use crate::store::Store;
use fdholder::extension::{Extension, OnConflict};
use fdholder::frame::Decoder;
use fdholder::limits::{MESSAGE_FDS_MAX, REPLY_PAYLOAD_MAX};
use fdholder::{Identifier, Request, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
pub struct Oracle {
    model: Model,
    sessions: BTreeMap<u32, Session>,
    /// Who serves.
    pub serving: Option<u32>,
    /// Who could, when nobody does: one of them must.
    pub heirs: BTreeSet<u32>,
    pub failure: Option<String>,
    pub operations: u64,
    /// Sets of several messages that were taken.
    pub large_sets: u64,
    capacity: usize,
    settled: u64,
}

impl Oracle {
    pub fn new(capacity: usize) -> Self {
        Self {
            model: Model::new(capacity),
            sessions: BTreeMap::new(),
            serving: None,
            heirs: BTreeSet::new(),
            failure: None,
            operations: 0,
            large_sets: 0,
            capacity,
            settled: 0,
        }
    }

    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(what());
        }
    }

    /// Nobody was left who held anything.
    pub fn all_is_lost(&mut self) {
        self.model = Model::new(self.capacity);
        self.settled = 0;
        self.serving = None;
        self.heirs.clear();
    }

    pub fn connected(&mut self, session: u32, uid: u32) {
        let session_is_new = Session {
            uid,
            asked: VecDeque::new(),
            expected: VecDeque::new(),
            decoder: Decoder::new(REPLY_PAYLOAD_MAX),
            sent: 0,
            read: 0,
            ends: VecDeque::new(),
            set: None,
            on_conflict: OnConflict::Replace,
            loan: None,
            snapshot: Vec::new(),
        };
        self.sessions.insert(session, session_is_new);
    }

    /// A connection is closed on both ends.
    pub fn forget(&mut self, is_over: impl Fn(u32) -> bool) {
        self.sessions.retain(|number, _| !is_over(*number));
    }

    pub fn asks(&mut self, session: u32, request: Request<u32>) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.asked.push_back(request);
        }
    }

    /// A process carries out the next request of a client.
    pub fn carries_out(&mut self, session: u32, pid: u32, now: Timestamp) {
        if self.serving != Some(pid) {
            let serving = self.serving;
            self.fail(|| format!("process {pid} serves, although {serving:?} does"));
        }
        let Some(session) = self.sessions.get_mut(&session) else { return };
        self.operations += 1;
        let Some(request) = session.asked.pop_front() else {
            return self.fail(|| "a request is carried out that nobody sent".to_owned());
        };
        let (model, mut deleted, mut is_loan) = (&mut self.model, None, false);
        let due = match request {
            Request::Store(entry) => Due::Status(model.store(&entry, session.uid, now)),
            Request::Delete(id) => {
                let answer = model.delete(&id, now);
                deleted = answer.ok().map(|held| held.fd);
                Due::Status(answer.map(drop))
            }
            Request::Retrieve { id, delete: true } => {
                let answer = model.lend(&id, now).map(|held| held.fd);
                if let Ok(fd) = answer {
                    session.loan = Some((id, fd, None));
                    is_loan = true;
                }
                Due::Retrieved(answer)
            }
            Request::Retrieve { id, .. } => {
                Due::Retrieved(model.seen(&id, now).map(|held| held.fd))
            }
            Request::List => Due::List(model.all_seen(now).into_keys().collect()),
            Request::Getdump => {
                let seen = model.all_seen(now);
                let head = Due::DumpHead(seen.len() as u32);
                let changes = model.changes();
                let is_last = seen.is_empty();
                let part = |due, is_last| Expected {
                    due,
                    changes,
                    deleted: None,
                    is_loan: false,
                    is_last,
                };
                session.expected.push_back(part(head, is_last));
                if !is_last {
                    session.expected.push_back(part(Due::Dump(seen), true));
                }
                return;
            }
            Request::Setdump(count) => {
                if count > 0 {
                    session.set = Some((count as usize, Vec::new()));
                }
                Due::SetHead
            }
            Request::SetdumpData(entries) => {
                let Some((announced, mut set)) = session.set.take() else { return };
                set.extend(entries);
                if set.len() < announced {
                    session.set = Some((announced, set));
                    Due::Status(Err(fdholder::Errno::AGAIN))
                } else {
                    let answer = model.setdump(&set, session.on_conflict, session.uid, now);
                    self.large_sets += u64::from(answer.is_ok() && set.len() > MESSAGE_FDS_MAX);
                    Due::Status(answer)
                }
            }
            Request::Extension(Extension::Hello(_)) => Due::Hello,
            Request::Extension(Extension::OnConflict(on_conflict)) => {
                session.on_conflict = on_conflict;
                Due::Status(Ok(()))
            }
            Request::Extension(Extension::Snapshot { .. }) => Due::Snapshot(model.all_seen(now)),
            Request::Extension(Extension::Release { runs, .. }) => {
                let snapshot = &session.snapshot;
                let what: Vec<_> = runs
                    .iter()
                    .flat_map(|run| &snapshot[run.start as usize..run.end as usize])
                    .cloned()
                    .collect();
                Due::Released(model.release(&what, now))
            }
            Request::Extension(_) => return,
        };
        let changes = model.changes();
        session.expected.push_back(Expected { due, changes, deleted, is_loan, is_last: true });
    }

    /// Whoever serves notices what has expired.
    pub fn expires(&mut self, pid: u32, now: Timestamp) {
        if self.serving == Some(pid) {
            self.model.expire(now);
        }
    }

    /// A daemon has found out whether a client has taken what it was lent.
    pub fn ends_loan(&mut self, session: u32, taken: bool, now: Timestamp) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let Some((id, fd, end)) = known.loan.take() else { return };
        let has_read = end.is_some_and(|end| known.read >= end);
        if has_read != taken {
            self.fail(|| format!("{id} was lent to {session}, read: {has_read}, taken: {taken}"));
        }
        self.model.end_loan(&id, fd, taken, now);
    }

    /// These bytes are in a client's queue. Returns what is to be closed by now.
    pub fn sent(&mut self, session: u32, bytes: &[u8], fds: Vec<u32>) -> Vec<u32> {
        let Some(known) = self.sessions.get_mut(&session) else { return Vec::new() };
        known.decoder.push(bytes, fds, false);
        let mut deleted = Vec::new();
        if let Err(what) = known.take_replies(&mut self.settled, &mut deleted) {
            self.fail(|| format!("client {session}: {what}"));
        }
        self.model.settle(self.settled);
        deleted
    }

    /// A client has read so many bytes. Returns how many replies that completes.
    pub fn read(&mut self, session: u32, len: usize) -> usize {
        let Some(session) = self.sessions.get_mut(&session) else { return 0 };
        session.read += len as u64;
        let read = session.ends.iter().take_while(|end| **end <= session.read).count();
        session.ends.drain(..read);
        read
    }

    /// How long the snapshot is that a client has.
    pub fn snapshot_len(&self, session: u32) -> u32 {
        self.sessions.get(&session).map_or(0, |session| session.snapshot.len() as u32)
    }

    /// A process begins to serve.
    pub fn succeeds(&mut self, pid: u32, store: &Store<Fd>) {
        if let Some(serving) = self.serving {
            self.fail(|| format!("process {pid} begins to serve, while {serving} does"));
        }
        self.serving = Some(pid);
        self.heirs.clear();
        let held = held_by(store);
        // What was carried out, but not told, has not happened.
        let before = self.model.held().clone();
        let (changes, settled) = (self.model.changes(), self.settled);
        if !self.model.go_back_to(&held) {
            let lacks: Vec<_> = before.iter().filter(|(id, h)| held.get(id) != Some(h)).collect();
            let has: Vec<_> = held.iter().filter(|(id, h)| before.get(id) != Some(h)).collect();
            self.fail(|| {
                format!(
                    "process {pid} holds what was not held after change {settled} or later ({changes} \
                     there were); to the latest it lacks {lacks:?} and has {has:?}"
                )
            });
        }
        // From here on that is what has happened.
        self.settled = self.model.changes();
        self.model.settle(self.settled);
    }

    /// Somebody who has everything holds the same.
    pub fn holds_all(&mut self, who: &str, store: &Store<Fd>) {
        let held = held_by(store);
        if held != *self.model.held() {
            let model = self.model.held().clone();
            let lacks: Vec<_> = model.iter().filter(|(id, h)| held.get(id) != Some(h)).collect();
            let has: Vec<_> = held.iter().filter(|(id, h)| model.get(id) != Some(h)).collect();
            self.fail(|| format!("{who} lacks {lacks:?} and has {has:?}"));
        }
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        self.model.held().len()
    }

    /// Whether a reply that was not sent yet has this, or a snapshot.
    pub fn may_be_open(&self, fd: u32) -> bool {
        self.sessions.values().any(|session| {
            session.expected.iter().any(|expected| match &expected.due {
                Due::Retrieved(answer) => *answer == Ok(fd),
                Due::Dump(entries) => entries.values().any(|held| held.fd == fd),
                Due::Snapshot(entries) => entries.values().any(|held| held.fd == fd),
                _ => false,
            }) || session.snapshot.iter().any(|(_, remembered)| *remembered == fd)
        })
    }
}

/// What a store has.
fn held_by(store: &Store<Fd>) -> BTreeMap<Identifier, Held> {
    let held = |record: &std::sync::Arc<crate::store::Record<Fd>>| {
        let fd = record.fd.number().unwrap_or(u32::MAX);
        let held = Held { fd, limit: record.limit.timestamp(), owner: record.origin.owner };
        (record.id.clone(), held)
    };
    store.all().iter().map(held).collect()
}
