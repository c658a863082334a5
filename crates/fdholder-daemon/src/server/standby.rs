//! The standby that a server keeps.

use super::followers::Role;
use super::upgrade::Upgrade;
use super::{Server, CHILDREN};
use crate::children::{Child, Launcher};
use crate::clock;
use crate::launch::Launch;
use crate::limits::{CHILD_END_GRACE, KEEP_PATIENCE, KILL_PATIENCE};
use crate::peer::Gone;
use rustix::event::epoll;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use std::io;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a standby must have had everything for the next one to be started at once.
const READY_FOR_LONG: Duration = Duration::from_secs(1);

/// How long to wait otherwise; twice as long each time, if it never got ready.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// But never longer than this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Children that were killed and have not ended by [`KILL_PATIENCE`]: so many at most, as each is a
/// process and a thread. With more, no standby is started until one has ended.
const REMAINS_MAX: usize = 4;

/// The standby that a server keeps, and how it is started.
#[derive(Debug)]
pub(super) struct Standby {
    launch: Launch,
    pub process: Option<Child>,
    /// When it must follow, if it does not yet.
    follows_by: Option<Instant>,
    /// When it hung up before it followed.
    left_at: Option<Instant>,
    /// Those before, which were killed and may not be quite gone, and when.
    remains: Vec<(Child, Instant)>,
    /// When to start the next one.
    start_at: Option<Instant>,
    pause: Duration,
}

impl Standby {
    pub fn new(launch: Launch) -> Self {
        let start_at = Some(clock::now());
        let (process, remains) = (None, Vec::new());
        let (follows_by, left_at, pause) = (None, None, RESTART_PAUSE);
        Self { launch, process, follows_by, left_at, remains, start_at, pause }
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
        (self.left_at, self.follows_by) = (None, None);
        if let Some(process) = self.process.take() {
            process.kill();
            self.remains.push((process, now));
        }
    }

    fn token(&self) -> Option<usize> {
        self.process.as_ref().and_then(|process| process.token)
    }

    /// The process follows now.
    pub fn follows(&mut self) {
        self.follows_by = None;
    }

    /// Whether the last one never had everything.
    pub fn has_failed(&self) -> bool {
        self.pause > RESTART_PAUSE
    }

    /// When something is due about it.
    pub fn due(&self) -> Option<Instant> {
        let left = self.left_at.map(|at| at + CHILD_END_GRACE);
        [self.start_at, self.follows_by, left].into_iter().flatten().min()
    }

    /// When those before leave room for the next one: `None` if they do now.
    fn waits_for_remains(&mut self, now: Instant) -> Option<Instant> {
        self.remains.retain(|(child, _)| child.ended().is_none());
        let (_, killed_at) = self.remains.last()?;
        // One that cannot be killed, as it waits in the kernel, keeps no other from following.
        let until = *killed_at + KILL_PATIENCE;
        if now < until {
            return Some(until);
        }
        (self.remains.len() >= REMAINS_MAX).then_some(now + KILL_PATIENCE)
    }
}

impl Server {
    /// Starts this program, or another, with a connection by which it can follow.
    pub(super) fn start(&mut self, launch: &Launch) -> io::Result<Child> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut child = self.launcher()?.start_child(launch.clone(), &theirs)?;
        child.token = self.let_in_own(self.room.let_go_of_first(ours));
        if child.token.is_none() {
            // It has nobody to follow.
            return Err(io::Error::other("it cannot be let in"));
        }
        Ok(child)
    }

    /// What starts child processes, which was started before this server if there was a thread.
    fn launcher(&mut self) -> io::Result<&Launcher> {
        let launcher = match self.launcher.take() {
            Some(launcher) => launcher,
            None => Launcher::start()?,
        };
        if !self.hears_launcher {
            let data = epoll::EventData::new_u64(CHILDREN);
            epoll::add(&self.epoll, &launcher, data, epoll::EventFlags::IN)?;
            self.hears_launcher = true;
        }
        Ok(self.launcher.insert(launcher))
    }

    /// A child of ours has started or ended.
    pub(super) fn hear_children(&mut self) {
        if let Some(launcher) = &mut self.launcher {
            launcher.hear();
        }
        // One that has ended may have left its end of the connection to somebody.
        let ended = |child: Option<&Child>| {
            child.filter(|child| child.ended().is_some()).and_then(|child| child.token)
        };
        let standby = ended(self.standby.as_ref().and_then(|standby| standby.process.as_ref()));
        let successor = ended(self.upgrade.as_ref().map(Upgrade::child));
        for token in [standby, successor].into_iter().flatten() {
            self.let_go(token, &Gone::Closed);
        }
        self.reap_orphans();
    }

    /// As the first process of a container this one has to wait for all that end.
    pub(super) fn reap_orphans(&mut self) {
        let has_any = self.signals.take_child();
        if std::process::id() == 1 && (has_any || self.launcher.is_some()) {
            // It is tried again when the next one ends.
            if let Ok(launcher) = self.launcher() {
                launcher.reap_orphans();
            }
        }
    }

    /// Starts a standby when one is due, and gives up one that has hung up before it followed.
    pub(super) fn tend_standby(&mut self, now: Instant) {
        self.announce_standby();
        let Some(standby) = &mut self.standby else { return };
        if standby.follows_by.is_some_and(|by| by <= now) {
            warn!("the standby does not follow, and is killed");
            standby.follows_by = None;
            if let Some(token) = standby.token() {
                self.let_go(token, &Gone::Closed);
            }
        }
        let Some(standby) = &mut self.standby else { return };
        if let Some(left_at) = standby.left_at {
            let ended = standby.process.as_ref().and_then(Child::ended);
            if ended.is_none() && now < left_at + CHILD_END_GRACE {
                return;
            }
            let how = ended.unwrap_or_else(|| "it has hung up".to_owned());
            warn!("the standby did not get ready: {how}");
            standby.again(None, now);
        }
        if standby.start_at.is_none_or(|at| at > now) {
            return;
        }
        if let Some(until) = standby.waits_for_remains(now) {
            standby.start_at = Some(until);
            return;
        }
        standby.start_at = None;
        let launch = standby.launch.clone();
        let started = self.start(&launch);
        let Some(standby) = &mut self.standby else { return };
        match started {
            Ok(child) => {
                info!("a standby is started");
                standby.process = Some(child);
                standby.follows_by = Some(now + KEEP_PATIENCE);
            }
            Err(error) => {
                warn!("unable to start a standby: {error}");
                standby.again(None, now);
            }
        }
    }

    /// Says that the standby has everything, once it is known which process that is.
    fn announce_standby(&mut self) {
        if self.settles_until.is_some() {
            return;
        }
        let child = self.standby.as_ref().and_then(|standby| standby.process.as_ref());
        let Some(pid) = child.and_then(Child::pid) else { return };
        let links = self.links.iter_mut().map(|(_, link)| link);
        for link in links.filter(|link| link.role == Role::Standby) {
            link.who.pid = Some(pid);
            if link.synced_at.is_some() && !std::mem::replace(&mut link.is_announced, true) {
                info!("the standby (pid {pid}) has everything");
            }
        }
    }

    /// A client has gone. If that was to follow, it has failed.
    pub(super) fn notice_child_left(&mut self, token: usize) {
        let now = clock::now();
        if let Some(standby) = self.standby.as_mut().filter(|it| it.token() == Some(token)) {
            standby.left_at = Some(now);
            if let Some(child) = &mut standby.process {
                child.token = None;
            }
        }
        self.notice_successor(token, now);
    }

    /// The client that a standby is until it follows is not for the next daemon.
    pub(super) fn leave_standby(&mut self) {
        if let Some(token) = self.standby.as_ref().and_then(Standby::token) {
            self.let_go(token, &Gone::Closed);
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
