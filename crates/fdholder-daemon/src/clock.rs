//! The clock by which others are judged: it stands still while this process does.
//!
//! A container is paused, a machine moved, a process stopped. When it goes on it finds all its
//! deadlines passed, although nobody had a chance to be in time. So every wait is measured: one that
//! took much longer than asked for is time in which this process did not run, and does not count.

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How much later than asked for a wait may end on a busy machine. A pause that is shorter makes
/// nobody late: all patience is at least four times as long.
const SLACK: Duration = Duration::from_millis(500);

/// How long a thread may work between two looks at the clock: it looks every millisecond or so.
const WORK_MAX: Duration = Duration::from_secs(1);

/// How long to wait at most before the clock is looked at again if there is a deadline: a pause
/// within a longer wait, ended by an event, would go unnoticed.
const WAIT_MAX: Duration = Duration::from_secs(5);

thread_local! {
    /// For how long this thread did not run.
    static PAUSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// When it last looked at the clock; `None` while it waits.
    static LOOKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn add_pause(span: Duration) {
    PAUSED.set(PAUSED.get() + span);
}

/// The time, less all for which this thread did not run. Each thread has its own, so a time must
/// not be compared with one of another thread, or with `Instant::now()`.
pub(crate) fn now() -> Instant {
    let now = Instant::now();
    let worked = LOOKED.replace(Some(now)).map(|looked| now - looked);
    if let Some(span) = worked.filter(|span| *span > WORK_MAX) {
        add_pause(span);
    }
    // Less than the time since this thread began; the kernel's clock began before that.
    now.checked_sub(PAUSED.get()).unwrap_or(now)
}

/// How much time has passed.
pub(crate) fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// What is left until a deadline, as long as that may be waited for.
pub(crate) fn wait_until(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(now()).min(WAIT_MAX))
}

/// A wait.
#[derive(Debug)]
pub(crate) struct Wait {
    began: Instant,
    span: Option<Duration>,
}

impl Wait {
    /// Begins one of so long at most.
    pub fn of(span: Option<Duration>) -> Self {
        now();
        LOOKED.set(None);
        Self { began: Instant::now(), span }
    }

    /// Ends it. `stopped`: it ended with EINTR, as it does when the process was stopped.
    pub fn end(self, stopped: bool) {
        let took = self.began.elapsed();
        let is_over = self.span.is_some_and(|span| took > span + SLACK);
        if is_over || stopped {
            add_pause(took);
        }
        LOOKED.set(Some(Instant::now()));
    }
}

/// poll(2) until a deadline; may return 0 before that.
pub(crate) fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<usize, Errno> {
    let span = wait_until(deadline);
    let wait = Wait::of(span);
    let timeout = span.and_then(|span| Timespec::try_from(span).ok());
    let polled = rustix::event::poll(fds, timeout.as_ref());
    wait.end(polled == Err(Errno::INTR));
    polled
}

/// Waits for so long.
pub(crate) fn sleep(span: Duration) {
    let wait = Wait::of(Some(span));
    pause(span);
    wait.end(false);
}

/// Waits for so long, or less if the kernel does not let it: the standard library's function panics
/// when the call fails. For threads that judge nobody by the clock.
pub fn pause(span: Duration) {
    if let Ok(span) = Timespec::try_from(span) {
        // A signal or a lack of memory ends it early.
        let _ = rustix::event::poll(&mut [], Some(&span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits that began in the past stand for those in which the process was stopped.
    fn began(ago: Duration, span: Option<Duration>) -> Wait {
        Wait { began: Instant::now().checked_sub(ago).unwrap(), span }
    }

    #[test]
    fn clock_stands_still_while_process_does() {
        let hour = Duration::from_secs(3600);
        let minute = Duration::from_secs(60);
        let deadline = now() + minute;
        let is_late = || now() >= deadline;
        began(hour, Some(minute)).end(false);
        assert!(!is_late(), "an hour in which it did not run");
        began(minute, Some(minute)).end(false);
        began(hour, None).end(false);
        assert!(!is_late() && since(deadline.checked_sub(minute).unwrap()) < minute);
        began(hour, None).end(true);
        assert!(!is_late(), "it was stopped");
        LOOKED.set(Instant::now().checked_sub(hour));
        assert!(!is_late(), "it was stopped at work");
        // What is short counts: others had that time.
        let before = now();
        let short = Duration::from_millis(10);
        sleep(short);
        assert!(since(before) >= short);
    }

    #[test]
    fn long_waits_are_cut() {
        assert_eq!(wait_until(None), None);
        assert_eq!(wait_until(Some(now() + 100 * WAIT_MAX)), Some(WAIT_MAX));
        assert_eq!(wait_until(Some(now())), Some(Duration::ZERO));
    }
}
