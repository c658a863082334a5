//! What is told to people of what clients do, no more often than they can read it.

use super::Server;
use crate::clock;
use std::fmt;
use std::time::Instant;
use tracing::warn;

impl Server {
    /// Warns of what this user, or nobody in particular, can cause as often as it likes.
    pub(super) fn warn_of(&mut self, uid: Option<u32>, what: fmt::Arguments<'_>) {
        if let Some(unsaid) = self.throttle.admit(uid, clock::now()) {
            warn!("{what}{unsaid}");
        }
    }

    /// When there is something to tell although nothing happens.
    pub(super) fn left_out_due(&self) -> Option<Instant> {
        let due = [self.hold.auditor.due(), self.throttle.due()];
        due.into_iter().flatten().min()
    }

    pub(super) fn tell_what_was_left_out(&mut self, now: Instant) {
        self.hold.auditor.tend(now);
        self.throttle.tend(now);
    }
}
