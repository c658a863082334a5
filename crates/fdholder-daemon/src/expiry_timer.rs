//! Rings when the next descriptor expires.

use fdholder::{strerror, Errno, Timestamp, LEAP_SECONDS};
use rustix::event::Timespec;
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tracing::warn;

/// A timer by the real-time clock, which also rings when that clock is set.
#[derive(Debug)]
pub(crate) struct ExpiryTimer {
    timer: OwnedFd,
    /// What it is set to; `None` once it has rung.
    armed: Option<Timestamp>,
}

impl ExpiryTimer {
    pub fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        Ok(Self { timer, armed: None })
    }

    /// Sets it, if it is not set to that already.
    pub fn set(&mut self, next: Option<Timestamp>) {
        if next == self.armed {
            return;
        }
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = next.map_or(never, |moment| {
            let unix = moment.label().saturating_sub((1 << 62) + LEAP_SECONDS);
            Timespec {
                // A timer set to 0 never rings; what has passed rings at once.
                tv_sec: i64::try_from(unix).unwrap_or(i64::MAX).max(1),
                tv_nsec: moment.nanos().into(),
            }
        });
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let value = Itimerspec { it_interval: never, it_value: value };
        match timerfd_settime(&self.timer, flags, &value) {
            // The clock was set since it was last looked at; the timer is set all the same.
            Ok(_) | Err(Errno::CANCELED) => {}
            // What has expired is still never handed out, only closed later.
            Err(errno) => return warn!("unable to set the timer: {}", strerror(errno)),
        }
        self.armed = next;
    }

    pub fn rang(&mut self) {
        // Reading silences it; ECANCELED says that the clock was set. Either way it is
        // set anew before the loop waits again.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.armed = None;
    }
}

impl AsFd for ExpiryTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
