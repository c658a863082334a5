//! What clients are served from.

use crate::audit::Auditor;
use crate::clock;
use crate::closing::{self, ClientFd};
use crate::courier::Crew;
use crate::limits::MEMORY_PER_RELEASE;
use crate::memory::reserve::has_room;
use crate::replication::Mirrors;
use crate::shares::{Leaving, Ledger};
use crate::store::{Outcome, Store};
use crate::tally::Tally;
use fdholder::{Errno, Timestamp};

/// What clients are served from.
#[derive(Debug)]
pub(crate) struct Hold {
    pub store: Store<ClientFd>,
    pub mirrors: Mirrors<ClientFd>,
    pub crew: Crew,
    pub tally: Tally,
    /// What each user has of what there is for all.
    pub ledger: Ledger,
    /// Is told who was refused what, and who has changed what.
    pub auditor: Auditor,
    /// What is read goes here first.
    pub buffer: Vec<u8>,
}

impl Hold {
    /// Tells the store the time, and releases so much of what has expired, besides what was in the
    /// way.
    pub fn expire(&mut self, now: Timestamp, most: usize) {
        let mut left = most;
        loop {
            let expired = self.store.expire(now, left);
            if expired.is_empty() {
                return;
            }
            self.mirrors.record(&expired, &self.store);
            self.auditor.expired(&expired, clock::now());
            left = left.saturating_sub(expired.len());
        }
    }

    /// The same for all that has expired, if there is memory for what is told of it.
    pub fn expire_all(&mut self, now: Timestamp) -> Result<(), Errno> {
        if !has_room(self.store.overdue_len(now) * MEMORY_PER_RELEASE) {
            return Err(Errno::NOMEM);
        }
        self.expire(now, usize::MAX);
        Ok(())
    }

    /// Changes the store and records that for followers: what was evicted to make room comes before
    /// what came in its place, or a full follower would have no room for that.
    pub fn apply<T>(
        &mut self,
        now: Timestamp,
        change: impl FnOnce(&mut Store<ClientFd>) -> Outcome<T, ClientFd>,
    ) -> Outcome<T, ClientFd> {
        self.expire(now, 0);
        let outcome = change(&mut self.store);
        self.expire(now, 0);
        self.mirrors.record(&outcome.changes, &self.store);
        outcome
    }

    /// How many descriptors wait to be closed: here, or in a process that follows, whose table
    /// has no more places.
    fn leaving(&self, user: u32) -> Leaving {
        let here = closing::leaving(user);
        Leaving {
            user,
            own: here.own.max(self.mirrors.closing_of(user)),
            all: here.all.max(self.mirrors.closing()),
        }
    }

    /// Tells the ledger.
    pub fn note_leaving(&mut self, user: u32) -> Leaving {
        let leaving = self.leaving(user);
        self.ledger.note_leaving(leaving);
        leaving
    }
}
