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

/// How long to wait before another standby is started when the last one never got ready;
/// twice as long each time.
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

    /// Another one is to be started, sooner if this one was any good.
    pub fn again(&mut self, was_good: bool) {
        let pause = if was_good { Duration::ZERO } else { self.pause };
        self.pause = if was_good { RESTART_PAUSE } else { (self.pause * 2).min(RESTART_PAUSE_MAX) };
        self.start_at = Some(Instant::now() + pause);
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
        process.token = self.let_in(ours);
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
                    standby.again(false);
                }
            }
            Err(error) => {
                warn!("unable to start a standby: {error}");
                standby.again(false);
            }
        }
    }

    /// A client has gone. If that was to follow, there must be another, or it has failed.
    pub(super) fn notice_offspring(&mut self, token: usize) {
        if self.standby.as_ref().and_then(Standby::token) == Some(token) {
            if let Some(standby) = &mut self.standby {
                let how = standby.process.as_ref().and_then(|p| p.wait(ENDING_PATIENCE));
                warn!("the standby did not get ready: {}", how.unwrap_or_default());
                standby.again(false);
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
