//! What has expired. Nobody sees it any more from that moment; it is released a few at a time, so
//! that nobody waits while thousands expire at once.

use super::{Change, Owner, Record, Store};
use fdholder::Timestamp;

impl<F> Store<F> {
    /// When the next descriptor expires. In the past: some have that are not released yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.by_limit.first().map(|(limit, _)| *limit)
    }

    /// Releases what has expired, the first first, at most so many. Those that are left nobody
    /// sees, nor are they in anybody's way. To be told whenever the store is asked something at
    /// another time than before: if the clock was set back, all that had expired by then goes, as
    /// it must not come back.
    pub fn expire(&mut self, now: Timestamp, most: usize) -> Vec<Change<F>> {
        let before = self.now.replace(now).filter(|&before| now < before);
        let (until, most) = before.map_or((now, most), |before| (before, usize::MAX));
        (0..most).map_while(|_| self.expire_first(until)).collect()
    }

    /// How many have expired here and were released, ever.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// How many descriptors are held, but for those that have expired.
    pub fn count(&self, now: Timestamp) -> usize {
        let has_expired = |(limit, _): &&(Timestamp, u32)| *limit <= now;
        self.len() - self.by_limit.iter().take_while(has_expired).count()
    }

    /// Releases what has expired while a user has no room for so many more.
    pub(super) fn make_room(
        &mut self,
        count: usize,
        owner: Owner,
        now: Timestamp,
    ) -> Vec<Change<F>> {
        let mut changes = Vec::new();
        while self.room_for(owner) < count {
            let Some(change) = self.expire_first(now) else { break };
            changes.push(change);
        }
        changes
    }

    /// Releases what has expired and stands where something is to be held.
    pub(super) fn clear(&mut self, slot: Option<u32>, now: Timestamp) -> Option<Change<F>> {
        let slot = slot.filter(|&slot| has_expired(&self.slots[slot as usize], now))?;
        self.expire_at(slot)
    }

    /// Whether there is anything that has expired.
    pub(super) fn is_overdue(&self, now: Timestamp) -> bool {
        self.next_expiry().is_some_and(|limit| limit <= now)
    }

    fn expire_first(&mut self, now: Timestamp) -> Option<Change<F>> {
        let (_, slot) = *self.by_limit.first().filter(|(limit, _)| *limit <= now)?;
        self.expire_at(slot)
    }

    fn expire_at(&mut self, slot: u32) -> Option<Change<F>> {
        let record = self.slots[slot as usize].clone();
        self.expired += 1;
        self.remove(&record.id).map(Change::Released)
    }
}

pub(super) fn has_expired<F>(record: &Record<F>, now: Timestamp) -> bool {
    record.limit.expired(now)
}
