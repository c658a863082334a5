//! When clients in the middle of something have taken too long, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Deadlines of connections, each known by its token, the earliest first.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    set: BTreeSet<(Instant, usize)>,
}

impl Deadlines {
    /// Moves a connection's deadline; `current` is where the caller keeps it.
    pub fn set(&mut self, token: usize, current: &mut Option<Instant>, deadline: Option<Instant>) {
        if let Some(old) = current.take() {
            self.set.remove(&(old, token));
        }
        if let Some(new) = deadline {
            self.set.insert((new, token));
        }
        *current = deadline;
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.set.first().map(|(deadline, _)| *deadline)
    }

    /// A connection whose deadline has passed at `now`.
    pub fn passed(&self, now: Instant) -> Option<usize> {
        self.set.first().filter(|(deadline, _)| *deadline <= now).map(|(_, token)| *token)
    }
}

/// The same for each user: when its clients are served again, those first that have waited for
/// longest. Looking costs as much as there are users, however many clients each has.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    users: BTreeMap<u32, Deadlines>,
}

impl Turns {
    /// As [`Deadlines::set`].
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
        let user = self.users.entry(uid).or_default();
        user.set(token, current, at);
        if user.set.is_empty() {
            self.users.remove(&uid);
        }
    }

    /// When the next client is to be served.
    pub fn next(&self) -> Option<Instant> {
        self.users.values().filter_map(Deadlines::next).min()
    }

    /// Users some of whose clients are to be served at `now`.
    pub fn users(&self, now: Instant) -> Vec<u32> {
        let waits = |turns: &Deadlines| turns.passed(now).is_some();
        self.users.iter().filter(|(_, turns)| waits(turns)).map(|(uid, _)| *uid).collect()
    }

    /// Which of a user's is the next, if it is its turn at `now`.
    pub fn first_of(&self, uid: u32, now: Instant) -> Option<usize> {
        self.users.get(&uid)?.passed(now)
    }
}
