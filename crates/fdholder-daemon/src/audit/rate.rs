//! How many lines there may be, of one user and in all.
//!
//! No library: those that there are read clocks of their own, and remember every user.

use crate::limits::{Rate, RATED_USERS_MAX};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A bucket of permits. It is full again at one moment; how many are in it follows from that.
#[derive(Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
    /// How many lines there have not been since that was told last.
    left_out: u64,
}

impl Bucket {
    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }

    fn has_one(&self, rate: Rate, now: Instant) -> bool {
        let lacks = self.full_at.map_or(Duration::ZERO, |it| it.saturating_duration_since(now));
        lacks + rate.interval <= rate.span()
    }

    fn take_one(&mut self, rate: Rate, now: Instant) {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        self.full_at = Some(full_at + rate.interval);
    }
}

/// A bucket for each user, so that nobody uses up what others need, and one for all together.
/// What finds none of its own, as there are too many users, shares that of `None`.
#[derive(Debug)]
pub struct RateLimit {
    each: Rate,
    all: Rate,
    users: BTreeMap<Option<u32>, Bucket>,
    overall: Bucket,
    /// When it is looked at who has been left out, and is quiet.
    due: Option<Instant>,
    /// When users were forgotten last for want of room.
    swept: Option<Instant>,
}

impl RateLimit {
    /// With all buckets full.
    pub fn new(each: Rate, all: Rate) -> Self {
        let (users, overall) = (BTreeMap::new(), Bucket::default());
        Self { each, all, users, overall, due: None, swept: None }
    }

    /// Whether there may be one more line of this user (`None`: of nobody in particular); and
    /// how many there have not been before it, which is for that line to tell.
    pub fn admit(&mut self, user: Option<u32>, now: Instant) -> Option<u64> {
        let own = self.bucket_of(user, now);
        let Self { each, all, users, overall, due, .. } = self;
        let bucket = users.entry(own).or_default();
        if bucket.has_one(*each, now) && overall.has_one(*all, now) {
            bucket.take_one(*each, now);
            overall.take_one(*all, now);
            // Of a shared one it would be somebody else's.
            let is_own = own == user;
            return Some(if is_own { std::mem::take(&mut bucket.left_out) } else { 0 });
        }
        bucket.left_out += 1;
        due.get_or_insert(now + each.span());
        None
    }

    /// When there may be something [owed](Self::owed).
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How many lines there have not been, by user, where nothing has come since that would
    /// tell. Each counts as a line.
    pub fn owed(&mut self, now: Instant) -> Vec<(Option<u32>, u64)> {
        let mut owed = Vec::new();
        if self.due.is_none_or(|due| due > now) {
            return owed;
        }
        let Self { each, all, users, overall, due, .. } = self;
        let mut is_done = true;
        for (user, bucket) in users.iter_mut().filter(|(_, bucket)| bucket.left_out > 0) {
            if bucket.is_full(now) && overall.has_one(*all, now) {
                bucket.take_one(*each, now);
                overall.take_one(*all, now);
                owed.push((*user, std::mem::take(&mut bucket.left_out)));
            } else {
                is_done = false;
            }
        }
        *due = (!is_done).then(|| now + each.span());
        owed
    }

    /// Where a user's bucket is.
    fn bucket_of(&mut self, user: Option<u32>, now: Instant) -> Option<u32> {
        if self.users.len() < RATED_USERS_MAX || self.users.contains_key(&user) {
            return user;
        }
        // Not each time: it takes as long as there are users.
        if self.swept.is_none_or(|swept| swept + self.each.interval <= now) {
            self.swept = Some(now);
            self.forget_quiet(now);
        }
        user.filter(|_| self.users.len() < RATED_USERS_MAX)
    }

    /// Forgets who has been quiet for long enough. What they are owed is told of nobody.
    fn forget_quiet(&mut self, now: Instant) {
        let mut left_out = 0;
        self.users.retain(|user, bucket| {
            let is_kept = user.is_none() || !bucket.is_full(now);
            left_out += if is_kept { 0 } else { bucket.left_out };
            is_kept
        });
        if left_out > 0 {
            self.users.entry(None).or_default().left_out += left_out;
        }
    }
}

#[cfg(test)]
mod tests;
