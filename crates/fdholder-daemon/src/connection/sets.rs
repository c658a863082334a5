//! A set that a client gives, message by message.

use super::Connection;
use crate::limits::MEMORY_PER_CHANGE;
use crate::memory::reserve::has_room;
use crate::shares::{Ledger, Resource, Short};
use crate::store::{Change, Outcome, Staged, Store};
use fdholder::reply;
use fdholder::{Entry, Errno, Malformed, Tenure, Timestamp};

/// A set that is being given, until its last message commits it. Dropped, it is gone
/// without a trace.
#[derive(Debug)]
pub(super) struct Set<F> {
    pub entries: Vec<Staged<F>>,
    pub announced: usize,
}

impl<F> Connection<F> {
    /// A set of so many is announced.
    pub(super) fn begin_set(
        &mut self,
        count: u32,
        store: &mut Store<F>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        let announced = count as usize;
        if !store.could_hold(announced) {
            return self.fall_short(Short::Full { capacity: store.capacity(), reserved: 0 });
        }
        // Not more than the store can hold, and memory is taken as it is filled.
        let mut entries = Vec::new();
        if !has_room(announced * MEMORY_PER_CHANGE) || entries.try_reserve_exact(announced).is_err()
        {
            return self.refuse(Errno::NOMEM);
        }
        store.make_places(announced, now);
        let unused = store.capacity() - store.len();
        if ledger.room_beside(&self.claimant(), Resource::Arriving, unused) < announced {
            return self.fall_short(Short::Arriving);
        }
        if announced > 0 {
            self.set = Some(Set { entries, announced });
        }
        self.outbox.push(reply::setdump_head(count));
        Vec::new()
    }

    /// More of it comes; with the last it is held.
    pub(super) fn add_to_set(
        &mut self,
        entries: Vec<Entry<F>>,
        store: &mut Store<F>,
        now: Timestamp,
    ) -> Result<Vec<Change<F>>, Malformed> {
        let mut set = self.set.take().ok_or(Malformed::UNANNOUNCED_SET)?;
        let (owner, tenure) = (self.standing.uid, Tenure::from(now));
        set.entries.extend(entries.into_iter().map(|entry| store.stage(entry, owner, tenure)));
        if set.entries.len() > set.announced {
            return Err(Malformed::SET_TOO_LONG);
        }
        if set.entries.len() < set.announced {
            self.set = Some(set);
            self.outbox.push(reply::status(Err(Errno::AGAIN)));
            return Ok(Vec::new());
        }
        let who = self.claimant();
        let Outcome { answer, changes } = store.setdump(set.entries, self.on_conflict, &who, now);
        self.note_enfile(&answer, store, &who);
        self.outbox.push(reply::status(answer.as_ref().map(|_| ()).map_err(|errno| *errno)));
        self.taken = answer.ok();
        Ok(changes)
    }
}
