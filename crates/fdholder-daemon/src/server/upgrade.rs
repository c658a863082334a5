//! Becoming the program that is now where this one was started from.
//!
//! The new program is started beside this one first, and follows it. So it is known to
//! start, and has everything, before anything is given up. Then it is handed everything, to
//! keep while this process becomes the new program, with the pid that it has; that one
//! takes over from the keeper.

use super::followers::{Lost, Role};
use super::{Accepting, Server};
use crate::children::Child;
use crate::clock;
use crate::closing;
use crate::launch::Launch;
use crate::limits::{CHILD_END_GRACE, KEEP_PATIENCE, KILL_PATIENCE};
use crate::peer::Gone;
use crate::replication::roll::Roll;
use crate::signals::ignore_what_would_end;
use rustix::io::{fcntl_setfd, FdFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often to look whether the lease is free.
const LEASE_PAUSE: Duration = Duration::from_millis(1);

/// An upgrade under way.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// The new program, beside this one.
    child: Child,
    /// When it must have everything.
    deadline: Instant,
    /// When it hung up, or was given up.
    left_at: Option<Instant>,
}

impl Upgrade {
    /// The new program.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Whether this client is the new program.
    pub fn is(&self, token: usize) -> bool {
        self.child.token == Some(token)
    }

    /// It follows now.
    pub fn follows(&mut self) -> Option<i32> {
        self.child.token = None;
        self.child.pid()
    }

    /// When something is due about it.
    pub fn due(&self) -> Instant {
        self.left_at.map_or(self.deadline, |at| at + CHILD_END_GRACE)
    }
}

impl Server {
    /// Starts an upgrade, unless one is under way.
    pub(super) fn begin_upgrade(&mut self) {
        if self.upgrade.is_some() {
            return;
        }
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return self.upgrade_failed("this daemon is about to end");
        }
        // Our predecessor goes on if we end before we serve, as this process does on execve(2).
        if self.is_pending() {
            self.is_upgrade_due = true;
            return;
        }
        // The new program has what it is told first.
        self.look_at_socket_file();
        let Some(launch) = self.successor.clone() else {
            return self.upgrade_failed("this daemon does not know its program");
        };
        info!("becoming {}", launch.program.display());
        match self.start(&launch) {
            Ok(child) => {
                let deadline = clock::now() + KEEP_PATIENCE;
                self.upgrade = Some(Upgrade { child, deadline, left_at: None });
            }
            Err(error) => {
                let program = launch.program.display();
                self.upgrade_failed(&format!("unable to start {program}: {error}"));
            }
        }
    }

    /// Starts one that was asked for before this daemon served.
    pub(super) fn begin_upgrade_that_is_due(&mut self) {
        if !self.is_pending() && std::mem::take(&mut self.is_upgrade_due) {
            self.begin_upgrade();
        }
    }

    /// A client has gone. If it was the new program, there is no upgrade.
    pub(super) fn notice_successor(&mut self, token: usize, now: Instant) {
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.is(token)) {
            upgrade.child.token = None;
            upgrade.left_at.get_or_insert(now);
        }
    }

    /// The new program has ended, or hangs: its end is waited for by [`tend_upgrade`](Self::tend_upgrade).
    pub(super) fn successor_left(&mut self, now: Instant) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.left_at.get_or_insert(now);
        }
    }

    /// The client that a new program is until it follows is not for the next daemon.
    pub(super) fn leave_successor(&mut self) {
        let token = self.upgrade.as_ref().and_then(|upgrade| upgrade.child.token);
        if let Some(token) = token {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// Gives up a new program that takes too long, and ends an upgrade whose program has gone.
    pub(super) fn tend_upgrade(&mut self, now: Instant) {
        let Some(upgrade) = &self.upgrade else { return };
        if upgrade.left_at.is_none() {
            if now < upgrade.deadline {
                return;
            }
            let successor = self.links.iter().find(|(_, link)| link.role == Role::Successor);
            if let Some(key) = successor.map(|(key, _)| key) {
                self.lose(key, &Lost::Hangs);
            }
            return self.end_upgrade("it hangs, and is killed");
        }
        match upgrade.child.ended() {
            Some(how) => self.end_upgrade(&how),
            None if now >= upgrade.due() => self.end_upgrade("it hangs, and is killed"),
            None => {}
        }
    }

    fn end_upgrade(&mut self, how: &str) {
        // Dropped, the child is killed.
        if self.upgrade.take().is_some() {
            self.upgrade_failed(&format!("the new program did not get ready ({how}): see the log"));
        }
    }

    /// This daemon is to end: there is no upgrade, and who asked for one hears of it.
    pub(super) fn abandon_upgrade(&mut self) {
        if self.upgrade.take().is_some() {
            self.upgrade_failed("this daemon is about to end, as it was asked to (SIGTERM)");
        }
    }

    fn upgrade_failed(&mut self, why: &str) {
        let goes_on = !matches!(self.accepting, Accepting::LameDuck(_));
        warn!("unable to upgrade: {why}{}", if goes_on { "; this program goes on" } else { "" });
        // Served in a turn of their own: whoever is served may let go of others, and may ask
        // for the next upgrade, which fails in here, too.
        let now = clock::now();
        for (token, peer) in &mut self.peers {
            if peer.awaits_upgrade() {
                peer.upgrade_ended(Err(why));
                self.rota.set(peer.who.user.uid, token, &mut peer.turn, Some(now));
            }
        }
    }

    /// The new program keeps everything, and has the lease: becomes it.
    pub(super) fn become_successor(&mut self, key: usize) {
        let Some(link) = self.links.try_remove(key) else { return };
        let (keeper, launch) = (self.upgrade.take(), self.successor.clone());
        let error = match &launch {
            Some(launch) => self.execute(launch, &link.socket),
            None => io::Error::other("this daemon does not know its program"),
        };
        let program = launch.unwrap_or_default().program;
        let program = program.display();
        // This is still the old program, and has everything. But the keeper has the lease.
        let keeper = keeper.as_ref().map(Upgrade::child);
        if !self.roll.as_ref().is_some_and(|roll| reclaim(roll, link.number(), keeper)) {
            warn!("unable to become {program}: {error}; the keeper of what is held serves");
            std::process::exit(111);
        }
        self.hold.mirrors.remove(link.mirror);
        self.upgrade_failed(&format!("unable to become {program}: {error}"));
    }

    /// Becomes another program, with this connection. Returns only why it has not.
    fn execute(&mut self, launch: &Launch, link: &OwnedFd) -> io::Error {
        self.wards.leaving.clear();
        let unclosed = closing::leave();
        let error = match launch.take_over_command(link, &unclosed) {
            Ok(mut command) => command.exec(),
            Err(error) => error,
        };
        // The standard library has set SIGPIPE to its default for the program that did not come.
        ignore_what_would_end();
        for fd in unclosed.iter().map(AsFd::as_fd).chain([link.as_fd()]) {
            // It cannot fail, and if it did a child would not have it: see `children`.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        error
    }
}

/// Takes the lease back from a keeper that serves nobody yet, which ends it. False when it serves, or
/// may: then what it has told others must not be lost, and this process must stay silent.
fn reclaim(roll: &Roll, number: u32, keeper: Option<&Child>) -> bool {
    let until = clock::now() + KILL_PATIENCE;
    // What it does next must not come between the look and its end.
    let is_idle = keeper.is_some_and(|keeper| keeper.freeze(KILL_PATIENCE)) && roll.is_kept();
    if let Some(keeper) = keeper {
        if !is_idle {
            keeper.thaw();
            return false;
        }
        keeper.kill();
    }
    while !roll.take_back(number) {
        if clock::now() >= until {
            return false;
        }
        clock::sleep(LEASE_PAUSE);
    }
    true
}
