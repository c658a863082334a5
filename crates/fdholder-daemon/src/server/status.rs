//! How a server is.

use super::Server;
use crate::limits::{NOTIFY_STATUS_LEN_MAX, SERVICES_TOLD_MAX};
use crate::memory::reserve;
use crate::offspring::Offspring;
use fdholder::limits::ID_LEN_MAX;
use fdholder::{Standby, Status, Timestamp};
use std::time::{Instant, UNIX_EPOCH};

/// Bytes that are allocated for what is told of a service: its name and status, each escaped, as
/// they are and as they are sent.
const TOLD_PER_SERVICE: usize = 8 * (NOTIFY_STATUS_LEN_MAX + ID_LEN_MAX);

impl Server {
    /// Tells a client. It gets the answer in its next turn, and so no more than one in each.
    pub(super) fn tell_status(&mut self, token: usize) {
        let services = self.wards.all.len().min(SERVICES_TOLD_MAX);
        let has_room = reserve::has_room(services * TOLD_PER_SERVICE);
        let status = has_room.then(|| self.status());
        if let Some(peer) = self.peers.get_mut(token) {
            match status {
                Some(status) => peer.tell_status(&status),
                None => peer.refuse_status(),
            }
            let uid = peer.who.user.uid;
            self.rota.set(uid, token, &mut peer.turn, Some(Instant::now()));
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
        let pid = standby.process.as_ref().and_then(Offspring::pid);
        match pid.filter(|_| self.standby_is_ready()) {
            Some(pid) => Standby::Ready(pid.unsigned_abs()),
            None => Standby::Starting,
        }
    }
}
