//! When operations give up.

use crate::transport::Wait;
use std::time::{Duration, Instant};

/// When an operation gives up, by the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// The operation waits as long as it takes.
    pub const NEVER: Self = Self(None);

    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        // An instant that the clock cannot express is further away than any wait.
        Self(Instant::now().checked_add(span))
    }

    /// What is left: `None` when there is no end, zero once it has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// Calls that can wait by themselves do so when nothing bounds the wait.
    pub(crate) fn wait(self) -> Wait {
        if self.0.is_none() {
            Wait::Yes
        } else {
            Wait::No
        }
    }
}
