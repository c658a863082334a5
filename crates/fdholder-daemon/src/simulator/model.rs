//! What a holder is to hold, over a plain map, with a log by which it can go back.

use fdholder::extension::OnConflict;
use fdholder::{Entry, Errno, Identifier, Limit, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Something that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub fd: u32,
    pub limit: Timestamp,
    pub owner: u32,
}

/// One change: what stood under some identifiers before. It happens whole or not at all.
type Change = Vec<(Identifier, Option<Held>)>;

#[derive(Debug)]
pub struct Model {
    held: BTreeMap<Identifier, Held>,
    by_limit: BTreeMap<Timestamp, BTreeSet<Identifier>>,
    /// What nobody sees.
    lent: BTreeSet<Identifier>,
    /// What has expired, by descriptor.
    expired: BTreeMap<u32, Held>,
    capacity: usize,
    log: VecDeque<Change>,
    /// How many changes there were, ever.
    changes: u64,
}

impl Model {
    pub fn new(capacity: usize) -> Self {
        let (held, by_limit, lent) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self {
            held,
            by_limit,
            lent,
            expired: BTreeMap::new(),
            capacity,
            log: VecDeque::new(),
            changes: 0,
        }
    }

    /// How many changes there were.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn held(&self) -> &BTreeMap<Identifier, Held> {
        &self.held
    }

    fn set(&mut self, id: &Identifier, held: Option<Held>) -> Option<Held> {
        self.lent.remove(id);
        if let Some(held) = held {
            if Limit::at(held.limit).moment().is_some() {
                self.by_limit.entry(held.limit).or_default().insert(id.clone());
            }
        }
        let before = match held {
            Some(held) => self.held.insert(id.clone(), held),
            None => self.held.remove(id),
        };
        if let Some(before) = before.filter(|before| held.is_none_or(|h| h.limit != before.limit)) {
            if let Some(ids) = self.by_limit.get_mut(&before.limit) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_limit.remove(&before.limit);
                }
            }
        }
        before
    }

    fn change(&mut self, what: Vec<(Identifier, Option<Held>)>) {
        let mut before = Vec::with_capacity(what.len());
        for (id, held) in what {
            let stood = self.set(&id, held);
            before.push((id, stood));
        }
        self.log.push_back(before);
        self.changes += 1;
    }

    /// Nobody will have to go back behind so many changes.
    pub fn settle(&mut self, changes: u64) {
        while self.changes - (self.log.len() as u64) < changes && !self.log.is_empty() {
            self.log.pop_front();
        }
    }

    /// Goes back to where this was held, not behind what is settled; false when it never was.
    /// What has expired may have been released or not: if the clock was set back before that was
    /// told to who holds this, it is back.
    pub fn go_back_to(&mut self, held: &BTreeMap<Identifier, Held>) -> bool {
        self.lent.clear();
        let expired = std::mem::take(&mut self.expired);
        let live = |it: Option<&Held>| it.copied().filter(|it| expired.get(&it.fd) != Some(it));
        let is_as_held =
            |id: &Identifier, stands: Option<&Held>| live(held.get(id)) == live(stands);
        let all = |held_here: &BTreeMap<Identifier, Held>| -> BTreeSet<_> {
            held.keys().chain(held_here.keys()).cloned().collect()
        };
        let mut differs = all(&self.held);
        differs.retain(|id| !is_as_held(id, self.held.get(id)));
        while !differs.is_empty() {
            let Some(change) = self.log.pop_back() else { return false };
            self.changes -= 1;
            for (id, before) in change.into_iter().rev() {
                self.set(&id, before);
                if is_as_held(&id, before.as_ref()) {
                    differs.remove(&id);
                } else {
                    differs.insert(id);
                }
            }
        }
        for id in all(&self.held) {
            self.set(&id, held.get(&id).copied());
        }
        true
    }

    pub fn expire(&mut self, now: Timestamp) {
        while let Some((limit, ids)) = self.by_limit.first_key_value() {
            if *limit > now {
                break;
            }
            let Some(id) = ids.first().cloned() else { break };
            self.expired.extend(self.held.get(&id).map(|held| (held.fd, *held)));
            self.change(vec![(id, None)]);
        }
    }

    pub fn store(&mut self, entry: &Entry<u32>, owner: u32, now: Timestamp) -> Result<(), Errno> {
        self.expire(now);
        if self.held.len() >= self.capacity {
            return Err(Errno::NFILE);
        }
        if self.held.contains_key(&entry.id) {
            return Err(Errno::BUSY);
        }
        self.change(vec![(entry.id.clone(), Some(held(entry, owner)))]);
        self.expire(now);
        Ok(())
    }

    /// What is seen under an identifier.
    pub fn seen(&mut self, id: &Identifier, now: Timestamp) -> Result<Held, Errno> {
        self.expire(now);
        let seen = self.held.get(id).filter(|_| !self.lent.contains(id));
        seen.copied().ok_or(Errno::NOENT)
    }

    pub fn all_seen(&mut self, now: Timestamp) -> BTreeMap<Identifier, Held> {
        self.expire(now);
        let seen = self.held.iter().filter(|(id, _)| !self.lent.contains(*id));
        seen.map(|(id, held)| (id.clone(), *held)).collect()
    }

    pub fn delete(&mut self, id: &Identifier, now: Timestamp) -> Result<Held, Errno> {
        let seen = self.seen(id, now)?;
        self.change(vec![(id.clone(), None)]);
        Ok(seen)
    }

    pub fn lend(&mut self, id: &Identifier, now: Timestamp) -> Result<Held, Errno> {
        let seen = self.seen(id, now)?;
        self.lent.insert(id.clone());
        Ok(seen)
    }

    /// What was lent is gone, or back; unless something else has taken its place.
    pub fn end_loan(&mut self, id: &Identifier, fd: u32, taken: bool, now: Timestamp) {
        if taken {
            self.release(&[(id.clone(), fd)], now);
        } else if self.held.get(id).is_some_and(|held| held.fd == fd) {
            self.lent.remove(id);
        }
    }

    /// Releases what is still held of this; returns how much.
    pub fn release(&mut self, what: &[(Identifier, u32)], now: Timestamp) -> u32 {
        self.expire(now);
        let mut count = 0;
        for (id, fd) in what {
            if self.held.get(id).is_some_and(|held| held.fd == *fd) {
                self.change(vec![(id.clone(), None)]);
                count += 1;
            }
        }
        count
    }

    pub fn setdump(
        &mut self,
        set: &[Entry<u32>],
        on_conflict: OnConflict,
        owner: u32,
        now: Timestamp,
    ) -> Result<(), Errno> {
        self.expire(now);
        let is_held = |entry: &&Entry<u32>| self.held.contains_key(&entry.id);
        if on_conflict == OnConflict::Fail && set.iter().any(|entry| is_held(&entry)) {
            return Err(Errno::EXIST);
        }
        let keep = on_conflict == OnConflict::Keep;
        let set: Vec<_> = set.iter().filter(|entry| !(keep && is_held(entry))).collect();
        let new: BTreeSet<_> =
            set.iter().filter(|entry| !is_held(entry)).map(|entry| &entry.id).collect();
        if self.held.len() + new.len() > self.capacity {
            return Err(Errno::NFILE);
        }
        let set = set.into_iter().map(|entry| (entry.id.clone(), Some(held(entry, owner))));
        let set = set.collect();
        self.change(set);
        self.expire(now);
        Ok(())
    }
}

fn held(entry: &Entry<u32>, owner: u32) -> Held {
    Held { fd: entry.fd, limit: entry.limit.timestamp(), owner }
}
