//! When operations give up.

use crate::transport::Wait;
use std::time::{Duration, Instant};

/// When an operation gives up, by the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(When);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Never,
    At(Instant),
    Each(Duration),
}

impl Deadline {
    /// The operation waits as long as it takes.
    pub const NEVER: Self = Self(When::Never);

    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        // An instant that the clock cannot express is further away than any wait.
        Self(Instant::now().checked_add(span).map_or(When::Never, When::At))
    }

    /// `span` for the connection, and for each message that is sent or waited for: as long as a
    /// holder goes on, there is no end to the whole.
    pub const fn each(span: Duration) -> Self {
        Self(When::Each(span))
    }

    /// What is left: `None` when there is no end, zero once it has passed. For [`each`](Self::each)
    /// it is all that one message has.
    pub fn remaining(self) -> Option<Duration> {
        match self.0 {
            When::Never => None,
            When::At(at) => Some(at.saturating_duration_since(Instant::now())),
            When::Each(span) => Some(span),
        }
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// When one message that begins now is given up.
    pub(crate) fn of_message(self) -> Self {
        match self.0 {
            When::Each(span) => Self::after(span),
            _ => self,
        }
    }

    /// Calls that can wait by themselves do so when nothing bounds the wait.
    pub(crate) fn wait(self) -> Wait {
        if self.0 == When::Never {
            Wait::Yes
        } else {
            Wait::No
        }
    }
}
