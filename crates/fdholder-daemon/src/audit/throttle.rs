//! Warnings that a client can cause as often as it likes.

use super::RateLimit;
use crate::limits::{WARNINGS_IN_ALL, WARNINGS_PER_USER};
use std::fmt;
use std::time::Instant;
use tracing::warn;

/// Lets as many of them pass as people read.
///
/// ```
/// # use fdholder_daemon::audit::Throttle;
/// # let (mut throttle, who, now) = (Throttle::default(), 1000, std::time::Instant::now());
/// if let Some(unsaid) = throttle.admit(Some(who), now) {
///     tracing::warn!("uid {who} did it again{unsaid}");
/// }
/// ```
#[derive(Debug)]
pub struct Throttle {
    limit: RateLimit,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { limit: RateLimit::new(WARNINGS_PER_USER, WARNINGS_IN_ALL) }
    }
}

impl Throttle {
    /// Whether there may be a warning that this user has caused, or nobody in particular; and
    /// what to say at its end.
    pub fn admit(&mut self, uid: Option<u32>, now: Instant) -> Option<Unsaid> {
        self.limit.admit(uid, now).map(Unsaid)
    }

    /// When [`tend`](Self::tend) has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.limit.due()
    }

    /// Tells what was left out where nothing came since.
    pub fn tend(&mut self, now: Instant) {
        for (uid, count) in self.limit.owed(now) {
            let whose = uid.map_or_else(String::new, |uid| format!(" of uid {uid}"));
            warn!("{count} warnings{whose} were left out");
        }
    }
}

/// How many warnings there were not, to be said at the end of the next one: nothing, if none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsaid(u64);

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} warnings before it were left out)"),
        }
    }
}
