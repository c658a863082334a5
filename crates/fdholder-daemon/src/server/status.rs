//! How a server is.

use super::Server;
use crate::children::Child;
use crate::clock;
use fdholder::{Standby, Status, Timestamp};
use std::time::UNIX_EPOCH;

impl Server {
    /// Tells a client. It gets the answer in its next turn, and so no more than one in each.
    pub(super) fn tell_status(&mut self, token: usize) {
        let status = self.status();
        if let Some(peer) = self.peers.get_mut(token) {
            peer.tell_status(&status);
            let uid = peer.who.user.uid;
            self.rota.set(uid, token, &mut peer.turn, Some(clock::now()));
        }
    }

    fn status(&self) -> Status {
        let started = self.started.to_system().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
        let Self { hold, peers, options, user, .. } = self;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: user.uid,
            started: started.unwrap_or_default().as_secs(),
            held: hold.store.count(Timestamp::now()) as u32, // At most FDS_MAX.
            capacity: hold.store.capacity() as u32,          // As above.
            connections: peers.len() as u32,                 // At most CONNECTIONS_MAX.
            connections_max: options.connections_max as u32, // As above.
            standby: self.standby_state(),
            fdstore: self.shelf.is_some(),
            counts: hold.tally.told(hold.store.expired()),
            services: self.services(),
        }
    }

    fn standby_state(&self) -> Standby {
        let Some(standby) = &self.standby else { return Standby::None };
        let pid = standby.process.as_ref().and_then(Child::pid);
        match pid.filter(|_| self.standby_is_ready()) {
            Some(pid) => Standby::Ready(pid.unsigned_abs()),
            None => Standby::Starting,
        }
    }
}
