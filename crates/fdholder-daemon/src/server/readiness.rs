//! Telling systemd that the daemon serves. The loop says so, and waits for nobody to read it: a thread
//! could not be started when there is no memory.

use crate::fdstore::Notifier;
use fdholder::strerror;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// How long to wait before it is said again: twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is to be said, and when next.
#[derive(Debug)]
pub(super) struct Readiness {
    notifier: Arc<Notifier>,
    text: String,
    pause: Duration,
    due: Instant,
}

impl Readiness {
    pub fn new(notifier: impl Into<Arc<Notifier>>, status: &str, now: Instant) -> Self {
        // A line of it would be one more message.
        let status = status.replace(char::is_control, " ");
        let text = format!("READY=1\nSTATUS={status}");
        Self { notifier: notifier.into(), text, pause: PAUSE_MIN, due: now }
    }

    /// When to be here again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Says it when it is time. Returns whether it has been said.
    pub fn tend(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        let Err(errno) = self.notifier.send(&self.text, None) else { return true };
        let is_long = self.pause >= PAUSE_MAX / 2 && self.pause < PAUSE_MAX;
        if is_long {
            warn!("unable to tell systemd that this is ready: {}; trying again", strerror(errno));
        }
        self.due = now + self.pause;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn it_is_said_once_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        let full = UnixDatagram::unbound().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.send_to(b"STATUS=full", &path).is_ok() {}
        let mut now = Instant::now();
        let mut readiness = Readiness::new(notifier, "serving a\nMAINPID=1", now);
        let mut early = now;
        for _ in 0..20 {
            assert!(!readiness.tend(now), "nobody reads");
            assert!(readiness.due() > now && readiness.due() <= now + PAUSE_MAX);
            (early, now) = (now, readiness.due());
        }
        let mut buffer = [0; 64];
        systemd.set_nonblocking(true).unwrap();
        while systemd.recv(&mut buffer).is_ok() {}
        assert!(!readiness.tend(early), "it is not time");
        assert!(readiness.tend(now));
        let len = systemd.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"READY=1\nSTATUS=serving a MAINPID=1");
    }
}
