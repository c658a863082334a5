//! Sets: held whole, or not at all.

use super::expiry::Need;
use super::{Change, Outcome, Owner, Record, Store};
use fdholder::extension::{OnConflict, Taken};
use fdholder::{Entry, Errno, Origin, Tenure, Timestamp};
use std::collections::HashSet;
use std::sync::Arc;

/// An entry of a set that is put aside until the set is whole. What its place in the store
/// needs is looked up while it is at hand, so that taking a set takes no longer than it must.
#[derive(Debug)]
pub struct Staged<F> {
    pub(super) hash: u64,
    pub(super) entry: Arc<Record<F>>,
}

impl<F> Store<F> {
    /// Whether a set of `count` could ever be held; what is known before it is.
    pub fn could_hold(&self, count: usize) -> bool {
        count <= self.capacity
    }

    /// Prepares an entry of a set for [`setdump`](Self::setdump).
    pub fn stage(&mut self, entry: Entry<F>, owner: u32, tenure: Tenure) -> Staged<F> {
        let origin = Origin { owner, tenure, serial: self.next_serial };
        self.next_serial += 1;
        Staged { hash: self.hash(&entry.id), entry: Arc::new(Record { entry, origin }) }
    }

    /// Adds a user's set: all of it, or nothing with ENFILE when it has no room, with ENOMEM
    /// when there is no memory, or with EEXIST when it has identifiers that are held and is to
    /// fail on those. Only new identifiers
    /// count against the capacity, and of several entries of the set under one of those
    /// the last stays; an earlier one counts as replaced.
    pub fn setdump(
        &mut self,
        mut set: Vec<Staged<F>>,
        on_conflict: OnConflict,
        owner: impl Into<Owner>,
        now: Timestamp,
    ) -> Outcome<Taken, F> {
        let owner = owner.into();
        if !self.has_memory(set.len()) {
            return Outcome { answer: Err(Errno::NOMEM), changes: Vec::new() };
        }
        if self.is_overdue(now) {
            for staged in &set {
                self.clear(self.find(staged.hash, &staged.entry.id), now);
            }
        }
        let mut kept = Vec::new();
        let is_held = |staged: &Staged<F>| self.find(staged.hash, &staged.entry.id).is_some();
        match on_conflict {
            OnConflict::Keep => {
                let mut positions = 0..;
                set.retain(|staged| {
                    let position = positions.next();
                    let held = is_held(staged);
                    kept.extend(position.filter(|_| held));
                    !held
                });
            }
            OnConflict::Fail if set.iter().any(is_held) => {
                return Outcome { answer: Err(Errno::EXIST), changes: Vec::new() };
            }
            OnConflict::Replace | OnConflict::Fail => {}
        }
        let need = Need::of(set.len());
        if !self.has_room(need, owner) {
            let need = self.need(&set, owner);
            self.make_room(need, owner, now);
            if !self.has_room(need, owner) {
                return Outcome { answer: Err(Errno::NFILE), changes: Vec::new() };
            }
        }
        let (put, held_before) = (set.len(), self.len());
        let Self { by_id, slots, hasher, .. } = self;
        by_id.reserve(set.len(), |&slot| hasher.hash_one(&slots[slot as usize].id));
        slots.reserve(set.len());
        let (mut places, mut replaced) = (Vec::with_capacity(set.len()), Vec::new());
        for staged in set {
            let (slot, gave_way) = self.put(staged);
            places.push(slot);
            replaced.extend(gave_way);
        }
        let added = self.len() - held_before;
        let mut stillborn = self.release_stillborn(places.iter().copied(), now);
        let mut changes = vec![Change::HeldAll { slots: places, replaced }];
        changes.append(&mut stillborn);
        // Each is at most FDS_MAX.
        let taken = Taken { added: added as u32, replaced: (put - added) as u32, kept };
        Outcome { answer: Ok(taken), changes }
    }

    /// How much room a set needs, as each identifier counts once, and only if it is new to the
    /// store, or to its owner.
    fn need(&self, set: &[Staged<F>], owner: Owner) -> Need {
        let (mut new, mut gained) = (HashSet::new(), HashSet::new());
        for staged in set {
            let id = &staged.entry.id;
            match self.find(staged.hash, id).map(|slot| self.slots[slot as usize].origin.owner) {
                Some(other) if other == owner.uid => {}
                Some(_) => drop(gained.insert(id)),
                None => {
                    new.insert(id);
                    gained.insert(id);
                }
            }
        }
        Need { places: new.len(), owned: gained.len() }
    }
}
