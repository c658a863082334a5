//! Becoming the program that is now where this one was started from.
//!
//! The new program is started beside this one first, and follows it. So it is known to
//! start, and has everything, before anything is given up. Then it is handed everything, to
//! keep while this process becomes the new program, with the pid that it has; that one
//! takes over from the keeper.

use super::followers::{Lost, Role};
use super::standby::ENDING_PATIENCE;
use super::{Accepting, Server};
use crate::closing;
use crate::limits::KEEP_PATIENCE;
use crate::offspring::{start_alone, Offspring, END_PATIENCE};
use crate::peer::Gone;
use crate::reading::has_hung_up;
use rustix::io::{fcntl_setfd, FdFlags};
use std::os::unix::process::CommandExt;
use std::time::Instant;
use tracing::{info, warn};

/// An upgrade under way.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// The new program, beside this one.
    process: Offspring,
    /// When it must have everything.
    pub deadline: Instant,
}

impl Upgrade {
    /// Whether this client is the new program.
    pub fn is(&self, token: usize) -> bool {
        self.process.token == Some(token)
    }

    /// It follows now.
    pub fn follows(&mut self) -> Option<i32> {
        self.process.token = None;
        self.process.pid()
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
        let Some(launch) = self.successor.clone() else {
            return self.upgrade_failed("this daemon does not know its program");
        };
        info!("becoming {}", launch.program.display());
        match self.start(&launch) {
            Ok(process) => {
                self.upgrade = Some(Upgrade { process, deadline: Instant::now() + KEEP_PATIENCE });
            }
            Err(error) => {
                let program = launch.program.display();
                self.upgrade_failed(&format!("unable to start {program}: {error}"));
            }
        }
    }

    /// A client has gone. If it was the new program, there is no upgrade.
    pub(super) fn notice_successor(&mut self, token: usize) {
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is(token)) {
            self.successor_failed();
        }
    }

    /// The new program has ended, or hangs.
    pub(super) fn successor_failed(&mut self) {
        let Some(upgrade) = self.upgrade.take() else { return };
        // It has hung up, so it is about to end; but one that does not is not waited for.
        let ended = upgrade.process.wait(ENDING_PATIENCE);
        let how = ended.unwrap_or_else(|| "it hangs, and is killed".to_owned());
        self.upgrade_failed(&format!("the new program did not get ready ({how}): see the log"));
    }

    /// The client that a new program is until it follows is not for the next daemon.
    pub(super) fn leave_successor(&mut self) {
        let token = self.upgrade.as_ref().and_then(|upgrade| upgrade.process.token);
        if let Some(token) = token {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// Gives up a new program that takes too long.
    pub(super) fn tend_upgrade(&mut self) {
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.deadline <= Instant::now()) {
            let successor = self.links.iter().find(|(_, link)| link.role == Role::Successor);
            match successor.map(|(key, _)| key) {
                Some(key) => self.lose(key, &Lost::Hangs),
                None => self.successor_failed(),
            }
        }
    }

    fn upgrade_failed(&mut self, why: &str) {
        warn!("unable to upgrade: {why}; this program goes on");
        // Served in a turn of their own: whoever is served may let go of others, and may ask
        // for the next upgrade, which fails in here, too.
        let now = Instant::now();
        for (token, peer) in &mut self.peers {
            if peer.awaits_upgrade() {
                peer.upgrade_ended(Err(why));
                self.rota.set(peer.who.user.uid, token, &mut peer.turn, Some(now));
            }
        }
    }

    /// The new program keeps everything: becomes it.
    pub(super) fn become_successor(&mut self, key: usize) {
        let Some(link) = self.links.try_remove(key) else { return };
        let Some(launch) = self.successor.clone() else { return };
        // What others are just starting must not have the end of this connection.
        let alone = start_alone();
        self.wards.leaving.clear();
        let unclosed = closing::leave();
        let error = match launch.take_over_command(&link.socket, &unclosed) {
            Ok(mut command) => command.exec(),
            Err(error) => error,
        };
        for fd in &unclosed {
            // It cannot fail, and if it did whoever is started would have it, too.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        drop((unclosed, alone));
        // This is still the old program, and has everything. The keeper serves nobody yet, or
        // it has hung up; and one that cannot be ended would serve some day.
        if let Some(upgrade) = self.upgrade.take() {
            let process = upgrade.process;
            let serves = has_hung_up(&link.socket) && process.wait(END_PATIENCE).is_none();
            if serves || !process.end() {
                let program = launch.program.display();
                warn!("unable to become {program}: {error}; the keeper of what is held serves");
                std::process::exit(111);
            }
        }
        self.hold.mirrors.remove(link.mirror);
        drop(link);
        // Who may serve when we are gone was settled by what has just failed.
        for key in self.link_keys() {
            self.lose(key, &Lost::Dismissed);
        }
        self.roll = None;
        if self.shelf.is_some() {
            // What systemd has says that somebody else serves. If there is no memory for another,
            // there will be when the next one wants to follow.
            let _ = self.renew_roll();
        }
        let program = launch.program.display();
        self.upgrade_failed(&format!("unable to become {program}: {error}"));
    }
}
