//! Telling systemd that the loop goes round. The loop itself says so: a thread would go on when
//! the loop hangs.

use crate::fdstore::Notifier;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whoever waits for less would keep the loop busy.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Whom to tell, and when next.
#[derive(Debug)]
pub(super) struct Watchdog {
    notifier: Arc<Notifier>,
    pause: Duration,
    due: Instant,
}

impl Watchdog {
    /// For one who waits for so long. It is told at once: the loop may have stood still
    /// meanwhile, to take over from another daemon.
    pub fn new(notifier: impl Into<Arc<Notifier>>, patience: Duration, now: Instant) -> Self {
        Self { notifier: notifier.into(), pause: (patience / 2).max(PAUSE_MIN), due: now }
    }

    /// When the loop must be here again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Says it when it is time.
    pub fn tend(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        let pause = match self.notifier.send("WATCHDOG=1", None) {
            Ok(()) => self.pause,
            // systemd does not read, or is becoming another program: it is not waited for.
            Err(_) => (self.pause / 8).max(PAUSE_MIN),
        };
        self.due = now + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn it_is_said_twice_in_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        let mut watchdog = Watchdog::new(notifier, 2 * second, start);
        let mut buffer = [0; 64];
        for (after, is_said) in [(0, true), (999, false), (1000, true), (1001, false), (9000, true)]
        {
            watchdog.tend(start + Duration::from_millis(after));
            let said = systemd.recv(&mut buffer).map(|length| buffer[..length].to_vec()).ok();
            assert_eq!(said, is_said.then(|| b"WATCHDOG=1".to_vec()), "after {after} ms");
        }
        assert_eq!(watchdog.due(), start + 10 * second);

        // Whoever is not there is asked again sooner, but not in a loop.
        drop(systemd);
        watchdog.tend(start + 10 * second);
        assert_eq!(watchdog.due(), start + 10 * second + second / 8);
    }

    #[test]
    fn the_loop_is_not_kept_busy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        let now = Instant::now();
        let mut watchdog = Watchdog::new(notifier, Duration::ZERO, now);
        watchdog.tend(now);
        assert_eq!(watchdog.due(), now + PAUSE_MIN);
        drop(systemd);
    }
}
