//! When something is to be done with clients: the earliest first.

use std::collections::BTreeSet;
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

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// A connection whose deadline has passed at `now`.
    pub fn passed(&self, now: Instant) -> Option<usize> {
        self.set.first().filter(|(deadline, _)| *deadline <= now).map(|(_, token)| *token)
    }
}
