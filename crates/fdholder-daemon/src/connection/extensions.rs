//! Requests beyond s6's protocol.

use super::{refusal, Appearance, Connection, Question, Sending, Upgrading};
use crate::access::{Rights, User};
use crate::delivery::Delivery;
use crate::limits::MEMORY_PER_RELEASE;
use crate::memory::reserve::has_room;
use crate::shares::{Ledger, Resource, Short};
use crate::store::{Change, Store};
use fdholder::extension::{self, Extension, OnConflict};
use fdholder::limits::{RELEASE_FDS_MAX, RUNS_MAX};
use fdholder::{reply, Errno, Timestamp};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that are told of an entry at most, besides its identifier, or kept.
const TOLD_PER_ENTRY: usize = 48;

impl<F> Connection<F> {
    /// Carries one out.
    pub(super) fn extend(
        &mut self,
        extension: Extension<F>,
        rights: &Rights,
        store: &mut Store<F>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        match extension {
            Extension::Hello(_version) => {
                self.is_fdholder = true;
                self.outbox.push(extension::hello());
                Vec::new()
            }
            Extension::Snapshot { .. } | Extension::Inspect | Extension::Status
                if !(rights.list || rights.getdump) =>
            {
                self.refuse(Errno::PERM)
            }
            Extension::Snapshot { .. } | Extension::Inspect => {
                let bytes = store.id_bytes(now) + store.count(now) * TOLD_PER_ENTRY;
                if let Some(short) = self.short_of_bytes(bytes, store.len(), ledger) {
                    return self.fall_short(short);
                }
                if let Extension::Snapshot { entries } = extension {
                    self.take_snapshot(entries, rights, store, now);
                } else {
                    self.inspect(store, now);
                }
                Vec::new()
            }
            Extension::Deliver { .. } if !rights.getdump => self.refuse(Errno::PERM),
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
                    let count = runs.iter().map(Range::len).sum::<usize>();
                    if !has_room(count * MEMORY_PER_RELEASE) {
                        return self.fall_short(Short::Memory);
                    }
                    self.release(&runs, only_ask, rights, store, now)
                }
                _ => self.refuse(Errno::INVAL),
            },
            // Whether an identifier is held is not for everybody to know.
            Extension::OnConflict(on_conflict)
                if !rights.setdump
                    || on_conflict != OnConflict::Replace && !(rights.list || rights.getdump) =>
            {
                self.refuse(Errno::PERM)
            }
            Extension::OnConflict(on_conflict) => {
                self.on_conflict = on_conflict;
                self.outbox.push(reply::status(Ok(())));
                Vec::new()
            }
            Extension::Taken => {
                let kept = self.taken.as_ref().map_or(0, |taken| taken.kept.len());
                if let Some(short) = self.short_of_bytes(kept * size_of::<u32>(), 0, ledger) {
                    return self.fall_short(short);
                }
                let taken = self.taken.as_ref();
                self.outbox.push(taken.map_or_else(|| refusal(Errno::NODATA), extension::taken));
                Vec::new()
            }
            Extension::Follow { .. } | Extension::Upgrade if !self.standing.is_own => {
                self.refuse(Errno::PERM)
            }
            Extension::Follow { capacity } => {
                self.follow = Some(capacity);
                Vec::new()
            }
            Extension::Upgrade => {
                self.upgrade = Upgrading::Asked;
                Vec::new()
            }
            Extension::Status => {
                self.question = Some(Question::Status);
                Vec::new()
            }
            // What others may do is not for everybody to know.
            Extension::MayStore { .. } if !self.claimant().is_trusted => self.refuse(Errno::PERM),
            Extension::MayStore { uid, gid, id } => {
                self.question = Some(Question::MayStore(User { uid, gid }, id));
                Vec::new()
            }
            Extension::Await { id, is_prefix } => {
                self.wait_for(Appearance { id, is_prefix }, rights, store, ledger, now)
            }
            Extension::Why => {
                let why = self.short.map_or_else(String::new, |short| short.to_string());
                self.outbox.push(extension::told_why(&why));
                Vec::new()
            }
            Extension::Unknown => self.refuse(Errno::OPNOTSUPP),
        }
    }

    /// Answers once something is held. It takes what retrieving that one, or listing all, does.
    fn wait_for(
        &mut self,
        awaited: Appearance,
        rights: &Rights,
        store: &Store<F>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        let Appearance { id, is_prefix } = &awaited;
        if !(if *is_prefix { rights.list } else { rights.may_retrieve(id) }) {
            return self.refuse(Errno::PERM);
        }
        if store.sees(id, *is_prefix, now) {
            self.outbox.push(reply::status(Ok(())));
        } else if ledger.room(&self.claimant(), Resource::Waiting) == 0 {
            return self.fall_short(Short::Waiting);
        } else {
            self.awaits = Some(awaited);
            self.has_waited = true;
        }
        Vec::new()
    }

    fn inspect(&mut self, store: &Store<F>, now: Timestamp) {
        let entries = store.dump(now);
        let told = entries.iter().map(|entry| (&entry.id, entry.limit, entry.origin));
        self.outbox.push(extension::inspected(told));
    }

    fn take_snapshot(&mut self, entries: bool, rights: &Rights, store: &Store<F>, now: Timestamp) {
        if !(entries || rights.getdump) {
            let (count, capacity) = (store.count(now) as u32, store.capacity() as u32); // FDS_MAX.
            self.outbox.push(extension::snapshot(count, capacity, std::iter::empty()));
            return;
        }
        let snapshot = store.dump(now);
        let (count, capacity) = (snapshot.len() as u32, store.capacity() as u32); // FDS_MAX.
        let listed = if entries { &snapshot[..] } else { &[] };
        let listed = listed.iter().map(|entry| (&entry.id, entry.limit));
        self.outbox.push(extension::snapshot(count, capacity, listed));
        if rights.getdump {
            self.snapshot = Arc::new(snapshot);
        }
    }

    /// Checks positions against the snapshot. They ascend, so that none comes twice and a
    /// request is not more work than the snapshot is long. More than [`RUNS_MAX`] nobody asks for,
    /// and they might not fit into a piece of memory.
    fn positions(&self, runs: Vec<Range<u32>>) -> Option<Vec<Range<usize>>> {
        if runs.len() > RUNS_MAX {
            return None;
        }
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
        rights: &Rights,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        let snapshot = Arc::clone(&self.snapshot);
        let entries = || runs.iter().flat_map(|run| &snapshot[run.clone()]);
        if !entries().all(|entry| rights.may_store(&entry.id)) {
            return self.refuse(Errno::PERM);
        }
        let count = entries().filter(|entry| store.still_holds(entry, now)).count() as u32; // FDS_MAX.
        let changes = if only_ask { Vec::new() } else { store.release(entries()) };
        self.outbox.push(extension::released(count));
        changes
    }
}
