//! What is held: identifiers, limits, descriptors.
//!
//! Pure: `now` is an argument, nothing is read or closed here but by dropping, and each
//! call returns what it changed, for whoever mirrors or records it.

mod expiry;
mod sets;

use self::expiry::{has_expired, Need};
pub use self::sets::Staged;
use crate::backlog::Backlog;
use crate::limits::{held_reserve, MEMORY_PER_CHANGE, MEMORY_PER_FD};
use crate::memory::reserve;
use crate::notify::names::{is_reserved, service_of};
use crate::shares::{Allowance, Claimant};
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::reply::Answer;
use fdholder::{Entry, Errno, Identifier, Origin, Tenure, Timestamp};
use hashbrown::hash_table::{Entry as TableEntry, HashTable};
use slab::Slab;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

/// A descriptor that is held.
#[derive(Debug)]
pub struct Record<F> {
    /// Its identifier and limit, and the descriptor.
    pub entry: Entry<F>,
    /// Who gave it, since when it has been held, and its number.
    pub origin: Origin,
}

impl<F> std::ops::Deref for Record<F> {
    type Target = Entry<F>;

    fn deref(&self) -> &Entry<F> {
        &self.entry
    }
}

/// Who gives something, and how much of what it has given may be held.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    uid: u32,
    may_hold: Allowance,
    is_trusted: bool,
}

/// One who may have everything.
impl From<u32> for Owner {
    fn from(uid: u32) -> Self {
        Self { uid, may_hold: Allowance::All, is_trusted: true }
    }
}

impl From<&Claimant> for Owner {
    fn from(claimant: &Claimant) -> Self {
        let Claimant { uid, is_trusted, .. } = *claimant;
        Self { uid, may_hold: claimant.may_hold(), is_trusted }
    }
}

/// What a call did to the store.
#[derive(Debug)]
pub enum Change<F> {
    /// This is now held.
    Held(Arc<Record<F>>),
    /// A set is now held, each entry in the place of what its identifier had.
    HeldAll {
        /// Where, for [`Store::at`]; several of the set under one identifier have one place.
        /// Nothing stands where a limit had passed already: that is released, next.
        slots: Vec<u32>,
        /// What gave way, be it of the same set.
        replaced: Vec<Arc<Record<F>>>,
    },
    /// This is no longer held: deleted, replaced or expired. The descriptor closes when
    /// the last reply that carries it has gone.
    Released(Arc<Record<F>>),
}

/// The answer to a call, and what it changed.
#[derive(Debug)]
pub struct Outcome<T, F> {
    /// For the client.
    pub answer: Answer<T>,
    /// In the order they happened. A refusal changes nothing. What had expired and was in the way
    /// was released before: [`Store::expire`] tells.
    pub changes: Vec<Change<F>>,
}

/// The descriptors held.
///
/// An entry is counted: replies own what they send, so that a descriptor stays open
/// until the last of them has left, whatever happens to the store meanwhile.
///
/// Invariants ([`check`](Self::check)): `by_id` has exactly one slot for each identifier
/// held, `by_limit` exactly those that expire, `lent` only what is held, `by_owner` how many are
/// held of each user; never more than `capacity` are held.
#[derive(Debug)]
pub struct Store<F> {
    slots: Slab<Arc<Record<F>>>,
    /// Slots by identifier.
    by_id: HashTable<u32>,
    /// Clients choose identifiers, so the hash is keyed, at random.
    hasher: ahash::RandomState,
    /// Slots by limit. The slot makes equal limits distinct, at no cost.
    by_limit: BTreeSet<(Timestamp, u32)>,
    /// Slots of what nobody sees, as it was lent. Seldom there is one.
    lent: BTreeSet<u32>,
    /// How many are held of each user, if any.
    by_owner: HashMap<u32, u32, ahash::RandomState>,
    /// Bytes of all identifiers.
    id_bytes: usize,
    /// The number of what is held next.
    next_serial: u64,
    capacity: usize,
    /// How many of them are for root and the daemon's own user.
    reserved: usize,
    /// How many have expired.
    expired: u64,
    /// The time that it was told last.
    now: Option<Timestamp>,
    /// What had expired, and was released as it was in the way, of which nobody was told yet.
    in_the_way: Backlog<Change<F>>,
    /// Places of what needs care, and has come or gone.
    touched: BTreeSet<u32>,
    /// Places in which something has come or gone, of which it is not known whether it listens.
    fresh: BTreeSet<u32>,
    /// Somebody waits for identifiers: which are seen that were not is written down.
    is_awaited: bool,
    appeared: Vec<Identifier>,
    /// Everything goes when its peer does.
    is_with_peers: bool,
}

impl<F> Store<F> {
    /// An empty store that holds at most `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let hasher = keyed_hasher();
        Self {
            slots: Slab::new(),
            by_id: HashTable::new(),
            by_owner: HashMap::with_hasher(hasher.clone()),
            id_bytes: 0,
            hasher,
            by_limit: BTreeSet::new(),
            lent: BTreeSet::new(),
            next_serial: 1,
            expired: 0,
            now: None,
            in_the_way: Backlog::default(),
            touched: BTreeSet::new(),
            fresh: BTreeSet::new(),
            is_awaited: false,
            appeared: Vec::new(),
            is_with_peers: false,
            capacity: capacity.min(crate::limits::FDS_MAX),
            reserved: 0,
        }
    }

    /// How many descriptors are held, those that have expired and are not released yet included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many descriptors can be held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many of those only root and the daemon's own user may have.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Keeps some of them for those.
    pub fn reserve(&mut self) {
        self.reserved = held_reserve(self.capacity);
    }

    /// How many are held that a user has given.
    pub fn held_by(&self, uid: u32) -> usize {
        self.by_owner.get(&uid).copied().unwrap_or_default() as usize
    }

    /// Holds what a user gives. ENFILE when the store is full, or the user may not have more
    /// held; EBUSY when the identifier is taken; ENOMEM when there is no memory.
    pub fn store(
        &mut self,
        entry: Entry<F>,
        owner: impl Into<Owner>,
        now: Timestamp,
    ) -> Outcome<(), F> {
        self.store_for(entry, owner, Tenure::from(now), now)
    }

    /// The same for as long as is said beside its limit.
    pub fn store_for(
        &mut self,
        entry: Entry<F>,
        owner: impl Into<Owner>,
        tenure: Tenure,
        now: Timestamp,
    ) -> Outcome<(), F> {
        let owner = owner.into();
        let need = Need::of(1);
        if self.is_overdue(now) {
            self.clear(self.slot_of(&entry.id), now);
            self.make_room(need, owner, now);
        }
        let mut changes = Vec::new();
        let answer = if !self.has_room(need, owner) {
            Err(Errno::NFILE)
        } else if !self.has_memory(1) {
            Err(Errno::NOMEM)
        } else if self.slot_of(&entry.id).is_some() {
            Err(Errno::BUSY)
        } else {
            let staged = self.stage(entry, owner.uid, tenure);
            changes.push(Change::Held(Arc::clone(&staged.entry)));
            let (slot, _) = self.put(staged);
            changes.append(&mut self.release_stillborn(std::iter::once(slot), now));
            Ok(())
        };
        Outcome { answer, changes }
    }

    /// Whether there is memory for so many more. One takes next to nothing, unless the tables grow.
    pub(crate) fn has_memory(&self, count: usize) -> bool {
        let after = self.slots.len() + count;
        let grows = after > self.slots.capacity() || after > self.by_id.capacity();
        match (grows, count) {
            (false, 0..=MESSAGE_FDS_MAX) => true,
            (false, _) => reserve::has_room(count * MEMORY_PER_CHANGE),
            (true, _) => reserve::has_room(after * 2 * MEMORY_PER_FD + count * MEMORY_PER_CHANGE),
        }
    }

    /// Releases what is held under an identifier. ENOENT when nothing is.
    pub fn delete(&mut self, id: &Identifier, now: Timestamp) -> Outcome<(), F> {
        if self.seen(id, now).is_none() {
            return Outcome { answer: Err(Errno::NOENT), changes: Vec::new() };
        }
        let changes = self.remove(id).map(Change::Released).into_iter().collect();
        Outcome { answer: Ok(()), changes }
    }

    /// What is held under an identifier.
    ///
    /// # Errors
    ///
    /// ENOENT when nothing is.
    pub fn retrieve(&self, id: &Identifier, now: Timestamp) -> Answer<Arc<Record<F>>> {
        let slot = self.seen(id, now).ok_or(Errno::NOENT)?;
        Ok(Arc::clone(&self.slots[slot as usize]))
    }

    /// The same for a client that is to have it alone: nobody sees it any more, until it is
    /// known whether the client has it. Then it is [released](Self::release), or
    /// [given back](Self::give_back). Meanwhile its identifier is taken, its limit holds,
    /// and a set may replace it.
    ///
    /// # Errors
    ///
    /// ENOENT when nothing is held under its identifier.
    pub fn lend(&mut self, id: &Identifier, now: Timestamp) -> Answer<Arc<Record<F>>> {
        let slot = self.seen(id, now).ok_or(Errno::NOENT)?;
        self.lent.insert(slot);
        Ok(Arc::clone(&self.slots[slot as usize]))
    }

    /// A client has not taken what it was lent. If that is still held, it is seen again.
    pub fn give_back(&mut self, entry: &Arc<Record<F>>) {
        if self.holds(entry) {
            if let Some(slot) = self.slot_of(&entry.id) {
                self.lent.remove(&slot);
                self.note_appeared(&entry.id);
            }
        }
    }

    /// Whether somebody waits for what appears.
    pub fn set_awaited(&mut self, is_awaited: bool) {
        self.is_awaited = is_awaited;
        self.appeared.clear();
    }

    /// Identifiers under which something has come since this was asked last, while somebody
    /// waits. It may have gone again.
    pub fn take_appeared(&mut self) -> Vec<Identifier> {
        std::mem::take(&mut self.appeared)
    }

    fn note_appeared(&mut self, id: &Identifier) {
        if self.is_awaited {
            self.appeared.push(id.clone());
        }
    }

    /// Whether something is seen under an identifier; with `is_prefix` under one that begins so,
    /// but for what is held for the sake of a service.
    pub fn sees(&self, id: &Identifier, is_prefix: bool, now: Timestamp) -> bool {
        if !is_prefix {
            return self.seen(id, now).is_some();
        }
        let begins_so =
            |other: &Identifier| other.as_bytes().starts_with(id.as_bytes()) && !is_reserved(other);
        self.iter().any(|record| begins_so(&record.id) && self.seen(&record.id, now).is_some())
    }

    /// Everything that is seen, as it is at this instant.
    pub fn dump(&self, now: Timestamp) -> Vec<Arc<Record<F>>> {
        let is_lent = |slot: usize| !self.lent.is_empty() && self.lent.contains(&(slot as u32));
        let is_overdue = self.is_overdue(now);
        let has_expired = |record: &Record<F>| is_overdue && has_expired(record, now);
        let all = self.slots.iter();
        let seen = all.filter(|(slot, record)| !(is_lent(*slot) || has_expired(record)));
        let mut dump = Vec::with_capacity(self.len());
        dump.extend(seen.map(|(_, record)| Arc::clone(record)));
        dump
    }

    /// What is held under an identifier, be it lent or expired.
    pub fn find_held(&self, id: &Identifier) -> Option<&Arc<Record<F>>> {
        self.slot_of(id).map(|slot| &self.slots[slot as usize])
    }

    /// The same, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Record<F>>> {
        self.slots.iter().map(|(_, record)| record)
    }

    /// Places that have changed since this was asked last and have, or had, something that
    /// the daemon itself must look after: a [door](crate::notify), or what goes with its peer.
    pub fn take_touched(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.touched)
    }

    /// So many places at most in which something has come or gone since this was asked.
    pub fn take_fresh(&mut self, most: usize) -> Vec<u32> {
        let taken: Vec<_> = self.fresh.iter().take(most).copied().collect();
        for slot in &taken {
            self.fresh.remove(slot);
        }
        taken
    }

    /// Whether there are any.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Whether the daemon itself must look after something that it holds: a
    /// [door](crate::notify), or what goes with its peer.
    pub(crate) fn needs_care(&self, record: &Record<F>) -> bool {
        self.is_with_peers
            || record.origin.tenure.is_with_peer()
            || service_of(&record.id).is_some()
    }

    /// Has everything go when its peer does, or only what was given for so long.
    pub fn hold_with_peers(&mut self, all: bool) {
        if self.is_with_peers != all {
            self.is_with_peers = all;
            self.touched.extend(self.slots.iter().map(|(slot, _)| slot as u32));
            // FDS_MAX.
        }
    }

    /// Everything that is held, what is lent and what has expired included.
    pub fn all(&self) -> Vec<Arc<Record<F>>> {
        self.iter().map(Arc::clone).collect()
    }

    /// The same, if there is memory for so many pointers.
    pub fn try_all(&self) -> Option<Vec<Arc<Record<F>>>> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.len()).ok()?;
        all.extend(self.iter().map(Arc::clone));
        Some(all)
    }

    /// Holds what a primary holds, in the place of what its identifier had; whether it has
    /// expired is for the primary to say.
    ///
    /// # Errors
    ///
    /// ENFILE when the store is full.
    pub fn mirror(&mut self, record: Record<F>) -> Answer<Option<Arc<Record<F>>>> {
        if self.len() >= self.capacity && self.slot_of(&record.id).is_none() {
            return Err(Errno::NFILE);
        }
        self.next_serial = self.next_serial.max(record.origin.serial.saturating_add(1));
        let staged = Staged { hash: self.hash(&record.id), entry: Arc::new(record) };
        Ok(self.put(staged).1)
    }

    /// The number of what was held last, or may have been.
    pub fn last_serial(&self) -> u64 {
        self.next_serial - 1
    }

    /// Leaves out so many numbers: those that a primary may have given before it was lost.
    pub fn skip_serials(&mut self, count: u64) {
        self.next_serial = self.next_serial.saturating_add(count);
    }

    /// Holds no longer what a primary does not.
    pub fn forget(&mut self, id: &Identifier) -> Option<Arc<Record<F>>> {
        self.remove(id)
    }

    /// Whether this very entry is what is held under its identifier.
    pub fn holds(&self, entry: &Arc<Record<F>>) -> bool {
        let held = self.slot_of(&entry.id).map(|slot| &self.slots[slot as usize]);
        held.is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    /// Whether this very entry is held and has not expired.
    pub fn still_holds(&self, entry: &Arc<Record<F>>, now: Timestamp) -> bool {
        !has_expired(entry, now) && self.holds(entry)
    }

    /// Releases entries, where they are still what is held under their identifiers.
    pub fn release<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Arc<Record<F>>>,
    ) -> Vec<Change<F>>
    where
        F: 'a,
    {
        let mut changes = Vec::new();
        for entry in entries {
            if self.holds(entry) {
                changes.extend(self.remove(&entry.id).map(Change::Released));
            }
        }
        changes
    }

    fn hash(&self, id: &Identifier) -> u64 {
        self.hasher.hash_one(id)
    }

    fn slot_of(&self, id: &Identifier) -> Option<u32> {
        self.find(self.hash(id), id)
    }

    fn find(&self, hash: u64, id: &Identifier) -> Option<u32> {
        self.by_id.find(hash, |&slot| self.slots[slot as usize].id == *id).copied()
    }

    /// Where something stands that is not lent and has not expired.
    fn seen(&self, id: &Identifier, now: Timestamp) -> Option<u32> {
        let slot = self.slot_of(id)?;
        let is_hidden = self.lent.contains(&slot) || has_expired(&self.slots[slot as usize], now);
        (!is_hidden).then_some(slot)
    }

    /// What stands in a place that a change has named.
    pub fn at(&self, slot: u32) -> Option<&Arc<Record<F>>> {
        self.slots.get(slot as usize)
    }

    /// Holds an entry in the place of what its identifier had, if anything, which is
    /// returned with the place.
    fn put(&mut self, Staged { hash, entry }: Staged<F>) -> (u32, Option<Arc<Record<F>>>) {
        let is_cared_for = self.needs_care(&entry);
        self.note_appeared(&entry.id);
        let Self { slots, by_id, hasher, by_limit, lent, .. } = self;
        let (limit, owner) = (entry.limit.moment(), entry.origin.owner);
        let found = by_id.entry(
            hash,
            |&slot| slots[slot as usize].id == entry.id,
            |&slot| hasher.hash_one(&slots[slot as usize].id),
        );
        let (slot, replaced) = match found {
            TableEntry::Occupied(found) => {
                let slot = *found.get();
                lent.remove(&slot);
                (slot, Some(std::mem::replace(&mut slots[slot as usize], entry)))
            }
            TableEntry::Vacant(free) => {
                self.id_bytes += entry.id.as_bytes().len();
                let slot = slots.insert(entry) as u32; // At most FDS_MAX.
                free.insert(slot);
                (slot, None)
            }
        };
        if let Some(moment) = replaced.as_ref().and_then(|replaced| replaced.limit.moment()) {
            by_limit.remove(&(moment, slot));
        }
        if let Some(moment) = limit {
            by_limit.insert((moment, slot));
        }
        self.fresh.insert(slot);
        if is_cared_for || replaced.as_ref().is_some_and(|replaced| self.needs_care(replaced)) {
            self.touched.insert(slot);
        }
        let replaced_owner = replaced.as_ref().map(|replaced| replaced.origin.owner);
        if replaced_owner != Some(owner) {
            *self.by_owner.entry(owner).or_default() += 1;
            if let Some(other) = replaced_owner {
                self.has_one_less(other);
            }
        }
        (slot, replaced)
    }

    fn has_one_less(&mut self, owner: u32) {
        if let Some(count) = self.by_owner.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.by_owner.remove(&owner);
            }
        }
    }

    fn remove(&mut self, id: &Identifier) -> Option<Arc<Record<F>>> {
        let hash = self.hash(id);
        let found = self.by_id.find_entry(hash, |&slot| self.slots[slot as usize].id == *id);
        let (slot, _) = found.ok()?.remove();
        let entry = self.slots.remove(slot as usize);
        self.expired += u64::from(self.now.is_some_and(|now| has_expired(&entry, now)));
        self.has_one_less(entry.origin.owner);
        self.id_bytes -= id.as_bytes().len();
        self.fresh.insert(slot);
        if self.needs_care(&entry) {
            self.touched.insert(slot);
        }
        self.lent.remove(&slot);
        if let Some(moment) = entry.limit.moment() {
            self.by_limit.remove(&(moment, slot));
        }
        Some(entry)
    }

    /// Checks the invariants. For tests and simulators.
    ///
    /// # Panics
    ///
    /// When one is broken.
    pub fn check(&self) {
        assert!(self.len() <= self.capacity);
        assert_eq!(self.by_id.len(), self.slots.len());
        for (slot, entry) in &self.slots {
            assert_eq!(self.slot_of(&entry.id), Some(slot as u32));
            if let Some(moment) = entry.limit.moment() {
                assert!(self.by_limit.contains(&(moment, slot as u32)));
            }
        }
        let expiring = self.slots.iter().filter(|(_, entry)| entry.limit.moment().is_some());
        assert_eq!(self.by_limit.len(), expiring.count());
        assert!(self.lent.iter().all(|&slot| self.slots.contains(slot as usize)));
        let mut by_owner = HashMap::new();
        self.iter().for_each(|it| *by_owner.entry(it.origin.owner).or_default() += 1);
        let counted: HashMap<u32, u32> = self.by_owner.iter().map(|(a, b)| (*a, *b)).collect();
        assert_eq!(counted, by_owner);
        let id_bytes: usize = self.iter().map(|it| it.id.as_bytes().len()).sum();
        assert_eq!(self.id_bytes, id_bytes);
    }
}

/// A hasher with keys from the kernel, by way of the standard library's.
fn keyed_hasher() -> ahash::RandomState {
    let random = std::hash::RandomState::new();
    let [a, b, c, d] = [0, 1, 2, 3].map(|number: u8| random.hash_one(number));
    ahash::RandomState::with_seeds(a, b, c, d)
}

#[cfg(test)]
mod tests;
