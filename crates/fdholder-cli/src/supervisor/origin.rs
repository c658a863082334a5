//! What `run` was started with and changes for itself, and PROG gets as `exec` leaves it.

use crate::startup::{block_signals, blocked_signals, ignored_signals, set_ignored_signals};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// Signals that were ignored and blocked, and the limit on open files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    ignored: u64,
    blocked: u64,
    /// The soft limit, which the supervisor's own holder raises.
    open_files: Option<u64>,
}

impl Origin {
    /// Of this process, which gets all signals from now on.
    pub fn take() -> Self {
        let (ignored, blocked) = (ignored_signals(), blocked_signals());
        block_signals(0);
        Self { ignored, blocked, open_files: getrlimit(Resource::Nofile).current }
    }

    /// Gives it back to this process, a child of the one that took it, before it becomes PROG.
    pub fn restore(self) {
        set_ignored_signals(self.ignored);
        block_signals(self.blocked);
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // It was the limit before, so it can be again.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: self.open_files, maximum });
    }

    /// As words of a variable.
    pub fn in_words(self) -> String {
        let Self { ignored, blocked, open_files } = self;
        format!("{ignored} {blocked} {}", open_files.unwrap_or(u64::MAX))
    }

    /// Reads such words.
    pub fn read<'a>(mut next: impl FnMut() -> Option<&'a str>) -> Option<Self> {
        let mut number = || next()?.parse().ok();
        let (ignored, blocked, open_files) = (number()?, number()?, number()?);
        Some(Self { ignored, blocked, open_files: Some(open_files).filter(|it| *it != u64::MAX) })
    }
}
