//! Whose turn it is: users share the daemon's time, each with all its clients.
//!
//! In a turn of the loop those come first who have asked for little. Whoever has had more than its
//! part lately is put into a queue of its user's; these are served one after the other for as long
//! as a turn lasts, first whoever has had the least of what is more than its part, and each user's
//! clients in the order in which they came. So who asks for little waits for what is just being
//! done, and not for those who ask for much, however many they are and however many connections
//! they have; and of those none is forgotten.

use crate::deadlines::Deadlines;
use crate::limits::TURN_LEN;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For how long it counts at most that a user has had more than its part.
const REMEMBERED: Duration = Duration::from_millis(10);

/// What a user has had.
#[derive(Debug, Clone, Copy)]
struct Had {
    /// In this turn of the loop.
    served: Duration,
    /// Until when all of it would last if all users had the same.
    lasts_until: Instant,
}

/// Who waits, and who has had how much. Costs as much as there are users, however many clients
/// each has.
#[derive(Debug, Default)]
pub(crate) struct Rota {
    /// When clients are served again although nothing happens, by user.
    waiting: BTreeMap<u32, Deadlines>,
    /// Those who were served lately.
    had: BTreeMap<u32, Had>,
    /// Whose clients are the next in the queue: the user with this number, or a higher one.
    next: u32,
}

impl Rota {
    /// A turn of the loop has ended.
    pub fn end_turn(&mut self, now: Instant) {
        self.had.retain(|_, had| {
            had.served = Duration::ZERO;
            had.lasts_until > now
        });
    }

    /// Has a client served again at some time, or not; `current` is where the caller keeps it.
    pub fn set(
        &mut self,
        uid: u32,
        token: usize,
        current: &mut Option<Instant>,
        at: Option<Instant>,
    ) {
        if *current == at {
            return;
        }
        let user = self.waiting.entry(uid).or_default();
        user.set(token, current, at);
        if user.is_empty() {
            self.waiting.remove(&uid);
        }
    }

    /// Puts a client in the queue of its user; it keeps the place that it has.
    pub fn put_off(&mut self, uid: u32, token: usize, current: &mut Option<Instant>, now: Instant) {
        if current.is_none_or(|at| at > now) {
            self.set(uid, token, current, Some(now));
        }
    }

    /// When the next client is to be served.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.values().filter_map(Deadlines::next).min()
    }

    /// How much longer a user may be served in this turn; `None` if not at all.
    pub fn left(&self, uid: u32) -> Option<Duration> {
        let served = self.had.get(&uid).map(|had| had.served).unwrap_or_default();
        TURN_LEN.checked_sub(served).filter(|left| !left.is_zero())
    }

    /// Whether a user has had more than its part lately.
    pub fn has_had_its_part(&self, uid: u32, now: Instant) -> bool {
        self.had.get(&uid).is_some_and(|had| had.lasts_until > now)
    }

    /// Whether nobody but this user was served lately.
    pub fn is_alone(&self, uid: u32) -> bool {
        self.had.keys().all(|other| *other == uid)
    }

    /// A user was served.
    pub fn note(&mut self, uid: u32, now: Instant, took: Duration) {
        let users = self.had.len().max(1) as u32; // At most CONNECTIONS_MAX.
        let nothing = Had { served: Duration::ZERO, lasts_until: now };
        let had = self.had.entry(uid).or_insert(nothing);
        had.served += took;
        let part = took.saturating_mul(users).min(REMEMBERED);
        had.lasts_until = (had.lasts_until.max(now) + part).min(now + REMEMBERED);
    }

    /// Users whose clients wait to be served at `now`: first who has had the least of what is more
    /// than its part, and of several with the same who is the next.
    pub fn users(&self, now: Instant) -> Vec<u32> {
        let waits = |(uid, turns): (&u32, &Deadlines)| turns.passed(now).map(|_| *uid);
        let (before, after) = (self.waiting.range(..self.next), self.waiting.range(self.next..));
        let mut users: Vec<_> = after.chain(before).filter_map(waits).collect();
        users.sort_by_key(|uid| self.had.get(uid).map_or(now, |had| had.lasts_until.max(now)));
        users
    }

    /// Of those who have had the same the others come before this one.
    pub fn has_served(&mut self, uid: u32) {
        self.next = uid.wrapping_add(1);
    }

    /// Which of a user's is the next, if it is its turn at `now`.
    pub fn first_of(&self, uid: u32, now: Instant) -> Option<usize> {
        self.waiting.get(&uid)?.passed(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenth of a turn.
    const BIT: Duration = Duration::from_micros(10);

    #[test]
    fn each_user_has_a_queue() {
        let (mut rota, now) = (Rota::default(), Instant::now());
        let mut turns = [None; 4];
        for (token, turn) in turns.iter_mut().enumerate() {
            rota.put_off(7 + (token as u32 % 2), token, turn, now + BIT * (token as u32));
        }
        // Whoever was to be tried again later has a place now.
        let mut later = None;
        rota.set(9, 4, &mut later, Some(now + 9 * BIT));
        rota.put_off(9, 4, &mut later, now);
        assert_eq!((rota.first_of(9, now), later), (Some(4), Some(now)));
        rota.set(9, 4, &mut later, None);
        // Whoever is put off again does not lose its place.
        rota.put_off(7, 0, &mut turns[0], now + 9 * BIT);
        assert_eq!(rota.next(), Some(now));
        assert_eq!(rota.users(now), [7]);
        let later = now + 9 * BIT;
        assert_eq!(rota.users(later), [7, 8]);
        assert_eq!((rota.first_of(7, later), rota.first_of(8, later)), (Some(0), Some(1)));
        rota.set(7, 0, &mut turns[0], None);
        assert_eq!(rota.first_of(7, later), Some(2));
        rota.has_served(7);
        assert_eq!(rota.users(later), [8, 7]);
        rota.has_served(8);
        assert_eq!(rota.users(later), [7, 8]);
        rota.has_served(u32::MAX);
        assert_eq!(rota.users(later), [7, 8]);
        // Whoever has had more is behind, whoever is the next.
        rota.note(7, later, BIT);
        assert_eq!(rota.users(later), [8, 7]);
        rota.note(8, later, 2 * BIT);
        assert_eq!(rota.users(later), [7, 8]);
        // That is over some time.
        rota.has_served(7);
        let later = later + 2 * REMEMBERED;
        assert_eq!(rota.users(later), [8, 7]);
        for (token, turn) in turns.iter_mut().enumerate() {
            rota.set(7 + (token as u32 % 2), token, turn, None);
        }
        assert!(rota.users(later).is_empty() && rota.next().is_none() && rota.waiting.is_empty());
    }

    #[test]
    fn a_turn_is_as_long_for_each() {
        let (mut rota, now) = (Rota::default(), Instant::now());
        assert_eq!(rota.left(1), Some(TURN_LEN));
        rota.note(1, now, BIT);
        assert_eq!((rota.left(1), rota.left(2)), (Some(9 * BIT), Some(TURN_LEN)));
        rota.note(1, now, 9 * BIT);
        assert_eq!((rota.left(1), rota.left(2)), (None, Some(TURN_LEN)));
        rota.end_turn(now);
        assert_eq!(rota.left(1), Some(TURN_LEN));
    }

    #[test]
    fn who_was_served_in_this_turn_or_has_had_more_is_no_stranger() {
        let (mut rota, now) = (Rota::default(), Instant::now());
        assert!(rota.is_alone(1));
        rota.note(1, now, BIT);
        assert!(rota.is_alone(1) && !rota.is_alone(2));
        rota.note(2, now, 5 * BIT);
        assert!(!rota.is_alone(1) && !rota.is_alone(2));
        rota.end_turn(now + 2 * BIT);
        assert!(rota.is_alone(2) && !rota.is_alone(1));
    }

    /// Of three users who are served, each may have a third.
    #[test]
    fn who_has_had_its_part_is_behind_the_others() {
        let (mut rota, now) = (Rota::default(), Instant::now());
        for uid in [1, 2, 3] {
            rota.note(uid, now, Duration::ZERO);
        }
        rota.note(3, now, BIT);
        assert!(rota.has_had_its_part(3, now + 2 * BIT));
        assert!(!rota.has_had_its_part(3, now + 3 * BIT));
        assert!(!rota.has_had_its_part(2, now) && !rota.has_had_its_part(4, now));
        // However much it was, it is forgotten some time.
        rota.note(3, now, Duration::from_secs(10));
        rota.note(3, now, Duration::from_secs(10));
        assert!(rota.has_had_its_part(3, now + REMEMBERED / 2));
        rota.end_turn(now + REMEMBERED);
        assert!(!rota.has_had_its_part(3, now + REMEMBERED) && rota.had.is_empty());
    }
}
