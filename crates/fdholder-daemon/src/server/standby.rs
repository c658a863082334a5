//! The standby that a server keeps.

use super::Server;
use crate::launch::Launch;
use crate::limits::COURIER_STACK_LEN;
use crate::offspring::Offspring;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::process::{wait, WaitOptions};
use std::io;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a standby must have had everything for the next one to be started at once.
const READY_FOR_LONG: Duration = Duration::from_secs(1);

/// How long to wait otherwise; twice as long each time, if it never got ready.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// But never longer than this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long to wait for the end of a process that has hung up.
pub(super) const ENDING_PATIENCE: Duration = Duration::from_millis(20);

/// How often to look whether a process has ended that was killed.
const REAP_PAUSE: Duration = Duration::from_millis(20);

/// The standby that a server keeps, and how it is started.
#[derive(Debug)]
pub(super) struct Standby {
    launch: Launch,
    pub process: Option<Offspring>,
    /// The one before, which was killed and may not be quite gone.
    remains: Option<Offspring>,
    /// When to start the next one.
    pub start_at: Option<Instant>,
    pause: Duration,
}

impl Standby {
    pub fn new(launch: Launch) -> Self {
        let start_at = Some(Instant::now());
        Self { launch, process: None, remains: None, start_at, pause: RESTART_PAUSE }
    }

    /// Another one is to be started; at once, if this one has had everything for long.
    pub fn again(&mut self, was_ready_for: Option<Duration>, now: Instant) {
        let pause = match was_ready_for {
            Some(span) if span >= READY_FOR_LONG => Duration::ZERO,
            // If that goes on it must not take all the time there is.
            Some(_) => RESTART_PAUSE,
            None => self.pause,
        };
        let has_failed = was_ready_for.is_none();
        self.pause = if has_failed { (pause * 2).min(RESTART_PAUSE_MAX) } else { RESTART_PAUSE };
        self.start_at = Some(now + pause);
        self.remains = self.process.take();
        if let Some(remains) = &self.remains {
            remains.kill();
        }
    }

    fn token(&self) -> Option<usize> {
        self.process.as_ref().and_then(|process| process.token)
    }
}

impl Server {
    /// Starts this program, or another, with a connection by which it can follow.
    pub(super) fn start(&mut self, launch: &Launch) -> io::Result<Offspring> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut process = Offspring::start(launch.clone(), theirs)?;
        process.token = self.let_in_own(self.room.let_go_of_first(ours));
        Ok(process)
    }

    /// As the first process of a container this one has to let go of whatever ends.
    pub(super) fn reap_orphans(&mut self) {
        if self.signals.take_child() && std::process::id() == 1 {
            let reap = || while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {};
            // It will be tried again when the next one ends.
            drop(std::thread::Builder::new().stack_size(COURIER_STACK_LEN).spawn(reap));
        }
    }

    /// Starts a standby when one is due.
    pub(super) fn tend_standby(&mut self) {
        let Some(standby) = &mut self.standby else { return };
        let now = Instant::now();
        if standby.start_at.is_none_or(|at| at > now) {
            return;
        }
        if standby.remains.as_ref().is_some_and(|remains| remains.ended().is_none()) {
            standby.start_at = Some(now + REAP_PAUSE);
            return;
        }
        standby.remains = None;
        standby.start_at = None;
        let launch = standby.launch.clone();
        let started = self.start(&launch);
        let Some(standby) = &mut self.standby else { return };
        match started {
            Ok(process) => {
                info!("a standby is started");
                // One that could not be let in has nobody to follow.
                let is_let_in = process.token.is_some();
                standby.process = Some(process);
                if !is_let_in {
                    standby.again(None, Instant::now());
                }
            }
            Err(error) => {
                warn!("unable to start a standby: {error}");
                standby.again(None, Instant::now());
            }
        }
    }

    /// A client has gone. If that was to follow, there must be another, or it has failed.
    pub(super) fn notice_offspring(&mut self, token: usize) {
        if self.standby.as_ref().and_then(Standby::token) == Some(token) {
            if let Some(standby) = &mut self.standby {
                let how = standby.process.as_ref().and_then(|p| p.wait(ENDING_PATIENCE));
                warn!("the standby did not get ready: {}", how.unwrap_or_default());
                standby.again(None, Instant::now());
            }
        }
        self.notice_successor(token);
    }

    /// The client that a standby is until it follows is not for the next daemon.
    pub(super) fn leave_standby(&mut self) {
        if let Some(token) = self.standby.as_ref().and_then(Standby::token) {
            self.let_go(token, &crate::peer::Gone::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever becomes of them, they are not started in a loop.
    #[test]
    fn the_next_one_may_have_to_wait() {
        let mut standby = Standby::new(Launch::of_this_program());
        let now = Instant::now();
        let mut pause_after = |was_ready_for: Option<u64>| {
            standby.again(was_ready_for.map(Duration::from_millis), now);
            (standby.start_at.unwrap() - now).as_millis()
        };
        assert_eq!(
            [(); 9].map(|()| pause_after(None)),
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!([0, 0, 999, 0].map(|age| pause_after(Some(age))), [100; 4]);
        assert_eq!([1000, 100_000].map(|age| pause_after(Some(age))), [0; 2]);
        assert_eq!([(); 2].map(|()| pause_after(None)), [100, 200]);
    }
}
