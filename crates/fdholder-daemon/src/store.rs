//! What is held: identifiers, limits, descriptors.
//!
//! Pure: `now` is an argument, nothing is read or closed here but by dropping, and each
//! call returns what it changed, for whoever mirrors or records it.

use fdholder::reply::Answer;
use fdholder::{Entry, Errno, Identifier, Timestamp};
use hashbrown::hash_table::{Entry as TableEntry, HashTable};
use slab::Slab;
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What a call did to the store.
#[derive(Debug)]
pub enum Change<F> {
    /// This is now held.
    Held(Arc<Entry<F>>),
    /// This is no longer held: deleted, replaced or expired. The descriptor closes when
    /// the last reply that carries it has gone.
    Released(Arc<Entry<F>>),
}

/// The answer to a call, and what it changed.
#[derive(Debug)]
pub struct Outcome<T, F> {
    /// For the client.
    pub answer: Answer<T>,
    /// In the order they happened. A refusal changes nothing, but what had expired
    /// before it was released all the same.
    pub changes: Vec<Change<F>>,
}

/// The descriptors held.
///
/// An entry is counted: replies own what they send, so that a descriptor stays open
/// until the last of them has left, whatever happens to the store meanwhile.
///
/// Invariants ([`check`](Self::check)): `by_id` has exactly one slot for each identifier
/// held, `by_limit` exactly those that expire; never more than `capacity` are held.
#[derive(Debug)]
pub struct Store<F> {
    slots: Slab<Arc<Entry<F>>>,
    /// Slots by identifier. Clients choose identifiers, so the hash is keyed.
    by_id: HashTable<u32>,
    hasher: RandomState,
    /// Slots by limit. The slot makes equal limits distinct, at no cost.
    by_limit: BTreeSet<(Timestamp, u32)>,
    capacity: usize,
}

impl<F> Store<F> {
    /// An empty store that holds at most `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Slab::new(),
            by_id: HashTable::new(),
            hasher: RandomState::new(),
            by_limit: BTreeSet::new(),
            capacity: capacity.min(crate::limits::FDS_MAX),
        }
    }

    /// How many descriptors are held, those that have expired unnoticed included.
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

    /// When the next descriptor expires.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.by_limit.first().map(|(limit, _)| *limit)
    }

    /// Releases what has expired.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Change<F>> {
        let mut changes = Vec::new();
        while let Some(&(limit, slot)) = self.by_limit.first() {
            if limit > now {
                break;
            }
            let id = self.slots[slot as usize].id.clone();
            changes.extend(self.remove(&id).map(Change::Released));
        }
        changes
    }

    /// Holds an entry. ENFILE when the store is full, EBUSY when the identifier is taken.
    pub fn store(&mut self, entry: Entry<F>, now: Timestamp) -> Outcome<(), F> {
        let mut changes = self.expire(now);
        let answer = if self.len() >= self.capacity {
            Err(Errno::NFILE)
        } else if self.slot_of(&entry.id).is_some() {
            Err(Errno::BUSY)
        } else {
            let entry = Arc::new(entry);
            self.put(Arc::clone(&entry));
            changes.push(Change::Held(entry));
            Ok(())
        };
        changes.append(&mut self.expire(now)); // A limit may have passed already.
        Outcome { answer, changes }
    }

    /// Releases what is held under an identifier. ENOENT when nothing is.
    pub fn delete(&mut self, id: &Identifier, now: Timestamp) -> Outcome<(), F> {
        let Outcome { answer, changes } = self.retrieve(id, true, now);
        Outcome { answer: answer.map(drop), changes }
    }

    /// What is held under an identifier, and with `delete` the store lets go of it.
    /// ENOENT when nothing is.
    pub fn retrieve(
        &mut self,
        id: &Identifier,
        delete: bool,
        now: Timestamp,
    ) -> Outcome<Arc<Entry<F>>, F> {
        let mut changes = self.expire(now);
        let answer = match self.slot_of(id) {
            None => Err(Errno::NOENT),
            Some(slot) => {
                let entry = Arc::clone(&self.slots[slot as usize]);
                if delete {
                    changes.extend(self.remove(id).map(Change::Released));
                }
                Ok(entry)
            }
        };
        Outcome { answer, changes }
    }

    /// Everything that is held, as it is at this instant.
    pub fn dump(&mut self, now: Timestamp) -> (Vec<Arc<Entry<F>>>, Vec<Change<F>>) {
        let changes = self.expire(now);
        (self.slots.iter().map(|(_, entry)| Arc::clone(entry)).collect(), changes)
    }

    /// Whether a set of `count` could ever be held; what is known before it is.
    pub fn could_hold(&self, count: usize) -> bool {
        count <= self.capacity
    }

    /// Adds a set: all of it, or nothing with ENFILE. It replaces what is held under its
    /// identifiers (only new ones count against the capacity), and of several entries of
    /// its own under one identifier the last stays.
    pub fn setdump(&mut self, set: Vec<Arc<Entry<F>>>, now: Timestamp) -> Outcome<(), F> {
        let mut changes = self.expire(now);
        if !self.has_room_for(&set) {
            return Outcome { answer: Err(Errno::NFILE), changes };
        }
        let Self { by_id, slots, hasher, .. } = self;
        by_id.reserve(set.len(), |&slot| hasher.hash_one(&slots[slot as usize].id));
        slots.reserve(set.len());
        changes.reserve(set.len());
        for entry in set {
            changes.extend(self.put(Arc::clone(&entry)).map(Change::Released));
            changes.push(Change::Held(entry));
        }
        changes.append(&mut self.expire(now));
        Outcome { answer: Ok(()), changes }
    }

    /// Whether what is new in a set fits. Seldom does it have to be counted.
    fn has_room_for(&self, set: &[Arc<Entry<F>>]) -> bool {
        let room = self.capacity - self.len();
        let is_new = |id: &&Identifier| self.slot_of(id).is_none();
        set.len() <= room
            || set.iter().map(|entry| &entry.id).filter(is_new).collect::<HashSet<_>>().len()
                <= room
    }

    fn hash(&self, id: &Identifier) -> u64 {
        self.hasher.hash_one(id)
    }

    fn slot_of(&self, id: &Identifier) -> Option<u32> {
        self.by_id.find(self.hash(id), |&slot| self.slots[slot as usize].id == *id).copied()
    }

    /// Holds an entry in the place of what its identifier had, if anything, which is
    /// returned.
    fn put(&mut self, entry: Arc<Entry<F>>) -> Option<Arc<Entry<F>>> {
        let Self { slots, by_id, hasher, by_limit, .. } = self;
        let limit = entry.limit.moment();
        let found = by_id.entry(
            hasher.hash_one(&entry.id),
            |&slot| slots[slot as usize].id == entry.id,
            |&slot| hasher.hash_one(&slots[slot as usize].id),
        );
        let (slot, replaced) = match found {
            TableEntry::Occupied(found) => {
                let slot = *found.get();
                (slot, Some(std::mem::replace(&mut slots[slot as usize], entry)))
            }
            TableEntry::Vacant(free) => {
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
        replaced
    }

    fn remove(&mut self, id: &Identifier) -> Option<Arc<Entry<F>>> {
        let hash = self.hash(id);
        let found = self.by_id.find_entry(hash, |&slot| self.slots[slot as usize].id == *id);
        let (slot, _) = found.ok()?.remove();
        let entry = self.slots.remove(slot as usize);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::Limit;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Seconds on a clock of the test's own; 0 is never.
    fn limit(secs: u8) -> Limit {
        match secs {
            0 => Limit::never_from(at(0)),
            secs => Limit::at(at(secs)),
        }
    }

    fn at(secs: u8) -> Timestamp {
        Timestamp::new((1 << 62) + 1000 + u64::from(secs), 0).unwrap()
    }

    fn id(number: u8) -> Identifier {
        Identifier::new([b'a' + number % 8]).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Store(u8, u8),
        Delete(u8),
        Retrieve(u8, bool),
        Dump,
        Setdump(Vec<(u8, u8)>),
        Wait(u8),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (any::<u8>(), 0u8..60).prop_map(|(id, limit)| Op::Store(id, limit)),
            any::<u8>().prop_map(Op::Delete),
            any::<(u8, bool)>().prop_map(|(id, delete)| Op::Retrieve(id, delete)),
            Just(Op::Dump),
            proptest::collection::vec((any::<u8>(), 0u8..60), 0..8).prop_map(Op::Setdump),
            (0u8..4).prop_map(Op::Wait),
        ]
    }

    const CAPACITY: usize = 5;

    /// The same rules over a plain map.
    #[derive(Default)]
    struct Model {
        held: BTreeMap<Identifier, (Limit, u32)>,
    }

    impl Model {
        fn expire(&mut self, now: Timestamp) {
            self.held.retain(|_, (limit, _)| !limit.expired(now));
        }

        fn apply(&mut self, op: &Op, fd: u32, now: Timestamp) -> Answer<Vec<u32>> {
            self.expire(now);
            let answer = match op {
                Op::Store(..) if self.held.len() >= CAPACITY => Err(Errno::NFILE),
                Op::Store(number, _) if self.held.contains_key(&id(*number)) => Err(Errno::BUSY),
                Op::Store(number, secs) => {
                    self.held.insert(id(*number), (limit(*secs), fd));
                    Ok(vec![])
                }
                Op::Delete(number) => {
                    self.held.remove(&id(*number)).map(|_| vec![]).ok_or(Errno::NOENT)
                }
                Op::Retrieve(number, delete) => match self.held.get(&id(*number)).copied() {
                    None => Err(Errno::NOENT),
                    Some((_, fd)) => {
                        if *delete {
                            self.held.remove(&id(*number));
                        }
                        Ok(vec![fd])
                    }
                },
                Op::Dump => Ok(self.held.values().map(|(_, fd)| *fd).collect()),
                Op::Setdump(set) => {
                    let mut after = self.held.clone();
                    for (index, (number, secs)) in set.iter().enumerate() {
                        after.insert(id(*number), (limit(*secs), fd + index as u32));
                    }
                    if after.len() > CAPACITY {
                        Err(Errno::NFILE)
                    } else {
                        self.held = after;
                        Ok(vec![])
                    }
                }
                Op::Wait(_) => Ok(vec![]),
            };
            self.expire(now);
            answer
        }
    }

    fn apply(
        store: &mut Store<u32>,
        op: &Op,
        fd: u32,
        now: Timestamp,
    ) -> (Answer<Vec<u32>>, Vec<Change<u32>>) {
        let entry = |number, secs, fd| Entry { id: id(number), limit: limit(secs), fd };
        match op {
            Op::Store(number, secs) => {
                let done = store.store(entry(*number, *secs, fd), now);
                (done.answer.map(|()| vec![]), done.changes)
            }
            Op::Delete(number) => {
                let done = store.delete(&id(*number), now);
                (done.answer.map(|()| vec![]), done.changes)
            }
            Op::Retrieve(number, delete) => {
                let done = store.retrieve(&id(*number), *delete, now);
                (done.answer.map(|entry| vec![entry.fd]), done.changes)
            }
            Op::Dump => {
                let (mut entries, changes) = store.dump(now);
                entries.sort_by(|a, b| a.id.cmp(&b.id));
                (Ok(entries.iter().map(|entry| entry.fd).collect()), changes)
            }
            Op::Setdump(set) => {
                let set = set.iter().enumerate().map(|(index, (number, secs))| {
                    Arc::new(entry(*number, *secs, fd + index as u32))
                });
                let done = store.setdump(set.collect(), now);
                (done.answer.map(|()| vec![]), done.changes)
            }
            Op::Wait(_) => unreachable!("it is no call"),
        }
    }

    proptest! {
        /// The store answers as the map does, and its changes rebuild what it holds.
        #[test]
        fn it_behaves_like_a_plain_map(ops in proptest::collection::vec(any_op(), 0..120)) {
            let (mut store, mut model) = (Store::new(CAPACITY), Model::default());
            let mut mirror = BTreeMap::new();
            let mut secs = 1;
            for (index, op) in ops.iter().enumerate() {
                if let Op::Wait(span) = op {
                    // Nobody tells the store: whatever is asked next must notice.
                    secs = u8::min(secs + span, 100);
                    continue;
                }
                let (now, fd) = (at(secs), index as u32 * 100);
                let (answer, changes) = apply(&mut store, op, fd, now);
                prop_assert_eq!(answer, model.apply(op, fd, now), "{:?}", op);
                for change in changes {
                    match change {
                        Change::Held(entry) => {
                            prop_assert!(mirror.insert(entry.id.clone(), entry.fd).is_none());
                        }
                        Change::Released(entry) => {
                            prop_assert_eq!(mirror.remove(&entry.id), Some(entry.fd));
                        }
                    }
                }
                store.check();
                let held = |(id, (_, fd)): (&Identifier, &(Limit, u32))| (id.clone(), *fd);
                prop_assert_eq!(&mirror, &model.held.iter().map(held).collect());
                let next = model.held.values().filter_map(|(limit, _)| limit.moment()).min();
                prop_assert_eq!(store.next_expiry(), next);
            }
        }
    }

    #[test]
    fn a_set_that_only_replaces_needs_no_room() {
        let mut store = Store::new(2);
        for number in 0..2 {
            store.store(Entry { id: id(number), limit: limit(0), fd: number }, at(1));
        }
        let set = (0..2)
            .map(|number| Arc::new(Entry { id: id(number), limit: limit(0), fd: number + 10 }));
        assert_eq!(store.setdump(set.collect(), at(1)).answer, Ok(()));
        assert_eq!(store.retrieve(&id(0), false, at(1)).answer.unwrap().fd, 10);
    }

    #[test]
    fn a_reply_keeps_what_it_sends() {
        let mut store = Store::new(2);
        store.store(Entry { id: id(0), limit: limit(0), fd: 1 }, at(1));
        let first = store.retrieve(&id(0), true, at(1)).answer.unwrap();
        store.store(Entry { id: id(0), limit: limit(0), fd: 2 }, at(1));
        assert_eq!(first.fd, 1);
        assert_eq!(store.retrieve(&id(0), false, at(1)).answer.unwrap().fd, 2);
    }

    /// 200,000 stores under one limit: n log n takes well under a second, n squared hours.
    #[test]
    fn equal_limits_cost_nothing_extra() {
        let mut store = Store::new(200_000);
        for number in 0..200_000u32 {
            let id = Identifier::new(number.to_string()).unwrap();
            store.store(Entry { id, limit: limit(9), fd: number }, at(1));
        }
        assert_eq!(store.len(), 200_000);
        assert_eq!(store.expire(at(9)).len(), 200_000);
    }
}
