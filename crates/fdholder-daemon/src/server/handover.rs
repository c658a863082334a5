//! Handing everything over to a process that follows.

use super::admission::newcomer;
use super::followers::{Lost, Role};
use super::Server;
use crate::clock;
use crate::exchange::{Broken, Exchange};
use crate::fdstore::shelf::Shelf;
use crate::limits::FOLLOWER_PATIENCE;
use crate::peer::Gone;
use crate::replication::roll::Handed;
use fdholder::{Errno, Timestamp};
use std::borrow::Cow;
use tracing::warn;

impl Server {
    /// Hands over, if somebody is to serve, and no client is in the middle of something; or
    /// it has been for too long.
    pub(super) fn hand_over_if_due(&mut self) {
        let wanted = self.links.iter().find_map(|(key, link)| Some((key, link.hand_over_at()?)));
        let Some((key, at)) = wanted else {
            if std::mem::take(&mut self.is_handing_over) {
                self.unpause();
            }
            return;
        };
        self.is_handing_over = true;
        let all_idle = self.peers.iter().all(|(_, peer)| peer.can_be_handed_over());
        if !(all_idle || at <= clock::now()) {
            return;
        }
        let Some(link) = self.links.get(key) else { return };
        let (pid, is_successor) = (link.who.pid, link.role == Role::Successor);
        let systemd_has_all = self.shelf.as_ref().is_some_and(Shelf::has_told_all);
        // Until the other one serves this process is the second copy, unless systemd has one.
        let until = if is_successor || systemd_has_all { Handed::Follows } else { Handed::Serves };
        match self.hand_over(key, until) {
            Ok(()) if is_successor => self.become_successor(key),
            Ok(()) => self.was_taken_over(pid),
            Err(broken) => self.lose(key, &Lost::DidNotServe(broken)),
        }
        self.is_handing_over = false;
        if self.ended.is_none() {
            self.unpause();
        }
    }

    /// Hands everything over to a follower; or, when it fails, nothing: then everything is
    /// as it was, but for clients that did not finish what they had begun.
    fn hand_over(&mut self, key: usize, until: Handed) -> Result<(), Broken> {
        self.leave_standby();
        self.leave_successor();
        self.cut_off_busy_clients();
        // Whoever is next does not know how late it was here, if the clock was set back.
        self.hold.expire_all(Timestamp::now())?;
        let (Some(link), Some(roll)) = (self.links.get_mut(key), &self.roll) else {
            return Err(Broken::Gone);
        };
        let number = link.number();
        let connection = (&link.socket, &mut link.decoder);
        let mirror = (&mut self.hold.mirrors, link.mirror);
        let mut exchange =
            Exchange::new(connection, mirror, &mut self.hold.buffer, FOLLOWER_PATIENCE);
        let clients = self.peers.iter().filter_map(|(_, peer)| peer.hand_over());
        let clients = clients.chain(self.undecided.clone().map(newcomer));
        let clients = clients.map(Cow::Owned).chain(self.handed.iter().map(Cow::Borrowed));
        let handed_over = exchange.hand_over(clients, roll, number, until, self.signals.term());
        // The others have not been heard meanwhile.
        for (_, link) in &mut self.links {
            link.progress = clock::now();
        }
        handed_over
    }

    fn cut_off_busy_clients(&mut self) {
        for token in 0..self.peers.capacity() {
            // Letting one go may have been the end of another.
            let Some(peer) = self.peers.get(token) else { continue };
            if peer.can_be_handed_over() {
                continue;
            }
            warn!("{} is cut off in the middle of something", peer.who);
            self.let_go(token, &Gone::Failed(Errno::CANCELED));
        }
    }
}
