//! What has expired. Nobody sees it any more from that moment; it is released a few at a time, so
//! that nobody waits while thousands expire at once.

use super::{Change, Owner, Record, Store};
use crate::limits::EXPIRED_AT_ONCE;
use crate::shares::Usage;
use fdholder::Timestamp;
use std::collections::BTreeSet;

/// How much room is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Places.
    pub places: usize,
    /// How many more are its owner's.
    pub owned: usize,
}

impl Need {
    pub fn of(count: usize) -> Self {
        Self { places: count, owned: count }
    }
}

impl<F> Store<F> {
    /// When the next descriptor expires. In the past: some have that are not released yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.by_limit.first().map(|(limit, _)| *limit)
    }

    /// Releases what has expired, the first first, at most so many, and tells of what was released
    /// since it was in the way. Those that are left nobody sees, nor are they in anybody's way. To
    /// be told, until there is nothing to tell, whenever the store is asked something at another time
    /// than before: if the clock was set back, all that had expired by then goes, as it must not come
    /// back.
    pub fn expire(&mut self, now: Timestamp, most: usize) -> Vec<Change<F>> {
        let before = self.now.filter(|&before| now < before);
        if before.is_none() {
            self.now = Some(now);
        }
        let (until, most) = before.map_or((now, most), |before| (before, EXPIRED_AT_ONCE));
        for _ in 0..most.min(EXPIRED_AT_ONCE) {
            let Some(slot) = self.first_overdue(until) else { break };
            self.let_expire(slot);
        }
        if before.is_some() && !self.is_overdue(until) {
            self.now = Some(now);
        }
        self.in_the_way.drain(EXPIRED_AT_ONCE).collect()
    }

    /// Whether something was released as it was in the way, of which [`expire`](Self::expire) is to
    /// tell before what came in its place is told of.
    pub fn has_cleared_the_way(&self) -> bool {
        !self.in_the_way.is_empty()
    }

    /// How many have expired here and were released, ever.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// How many descriptors are held, but for those that have expired.
    pub fn count(&self, now: Timestamp) -> usize {
        self.len() - self.overdue_len(now)
    }

    /// Bytes of the identifiers of those.
    pub fn id_bytes(&self, now: Timestamp) -> usize {
        let id_len = |slot| self.slots[slot as usize].id.as_bytes().len();
        self.id_bytes - self.overdue(now).map(id_len).sum::<usize>()
    }

    /// Releases what has expired while there are not as many places, if that helps.
    pub fn make_places(&mut self, count: usize, now: Timestamp) {
        while self.capacity - self.len() < count {
            let Some(slot) = self.first_overdue(now) else { break };
            self.let_expire(slot);
        }
    }

    /// Releases what has expired until there is room for a user, its own first, if there is then.
    pub(super) fn make_room(&mut self, need: Need, owner: Owner, now: Timestamp) {
        if self.has_room(need, owner) || !self.is_overdue(now) {
            return;
        }
        let is_own = |store: &Self, slot: u32| store.slots[slot as usize].origin.owner == owner.uid;
        let own = self.overdue(now).filter(|&slot| is_own(self, slot)).count();
        let others = self.overdue_len(now) - own;
        if !self.would_have_room(need, owner, own, others) {
            return;
        }
        for own in [true, false] {
            loop {
                let overdue = self.overdue(now).filter(|&slot| is_own(self, slot) == own);
                let some: Vec<_> = overdue.take(EXPIRED_AT_ONCE).collect();
                if some.is_empty() {
                    break;
                }
                for slot in some {
                    if self.has_room(need, owner) {
                        return;
                    }
                    self.let_expire(slot);
                }
            }
        }
    }

    pub(super) fn has_room(&self, need: Need, owner: Owner) -> bool {
        self.would_have_room(need, owner, 0, 0)
    }

    /// Whether there would be room with so many of its own, and of others', released.
    fn would_have_room(&self, need: Need, owner: Owner, own: usize, others: usize) -> bool {
        let reserved = if owner.is_trusted { 0 } else { self.reserved() };
        let free = self.capacity - self.len() + own + others;
        let held = self.held_by(owner.uid);
        let users = self.by_owner.len() + usize::from(held == 0);
        // What replaces something takes no place, even where places are kept for root.
        let Some(left) = free.saturating_sub(reserved).checked_sub(need.places) else {
            return false;
        };
        owner.may_hold.allows(need.owned, Usage { used: held - own, left, users, unit: 1 })
    }

    /// Releases what has expired and stands where something is to be held.
    pub(super) fn clear(&mut self, slot: Option<u32>, now: Timestamp) {
        if let Some(slot) = slot.filter(|&slot| has_expired(&self.slots[slot as usize], now)) {
            self.let_expire(slot);
        }
    }

    /// Releases those of a user's own that were given with a limit that had passed: what has
    /// expired by and by stands before them in the queue, and is released first.
    pub(super) fn release_stillborn(
        &mut self,
        slots: impl Iterator<Item = u32>,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        if !self.is_overdue(now) {
            return Vec::new();
        }
        let is_stillborn = |slot: &u32| has_expired(&self.slots[*slot as usize], now);
        // Several of a set may have had one place.
        let slots: BTreeSet<_> = slots.filter(is_stillborn).collect();
        slots.into_iter().filter_map(|slot| self.expire_at(slot)).collect()
    }

    /// Whether there is anything that has expired.
    pub(super) fn is_overdue(&self, now: Timestamp) -> bool {
        self.next_expiry().is_some_and(|limit| limit <= now)
    }

    /// How many have expired and are not released yet.
    pub fn overdue_len(&self, now: Timestamp) -> usize {
        self.overdue(now).count()
    }

    fn overdue(&self, now: Timestamp) -> impl Iterator<Item = u32> + '_ {
        self.by_limit.iter().take_while(move |(limit, _)| *limit <= now).map(|(_, slot)| *slot)
    }

    fn first_overdue(&self, now: Timestamp) -> Option<u32> {
        self.overdue(now).next()
    }

    fn let_expire(&mut self, slot: u32) {
        if let Some(change) = self.expire_at(slot) {
            self.in_the_way.push_back(change);
        }
    }

    fn expire_at(&mut self, slot: u32) -> Option<Change<F>> {
        let record = self.slots[slot as usize].clone();
        self.remove(&record.id).map(Change::Released)
    }
}

pub(super) fn has_expired<F>(record: &Record<F>, now: Timestamp) -> bool {
    record.limit.expired(now)
}
