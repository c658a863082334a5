//! What clients ask of a server: how it is, and what others may do.

use super::Server;
use crate::access::{Refusal, User};
use crate::children::Child;
use crate::clock;
use crate::connection::{Answered, Question};
use crate::limits::{MEASURE_PATIENCE, NOTIFY_STATUS_LEN_MAX, SERVICES_TOLD_MAX};
use crate::memory::reserve;
use crate::peer::Peer;
use fdholder::limits::ID_LEN_MAX;
use fdholder::reply::Answer;
use fdholder::{Errno, Identifier, Standby, Status, Timestamp};
use std::time::UNIX_EPOCH;

/// Bytes that are allocated for what is told of a service: its name and status, each escaped, as
/// they are and as they are sent.
const TOLD_PER_SERVICE: usize = 8 * (NOTIFY_STATUS_LEN_MAX + ID_LEN_MAX);

impl Server {
    /// Tells a client. It gets the answer in its next turn, and so no more than one in each.
    pub(super) fn answer(&mut self, token: usize, question: Question) {
        if question == Question::Status && self.lookout.has_listeners() {
            // What has come is to be among them.
            while self.hold.store.has_fresh() {
                self.look_for_listeners();
            }
            if self.asking.insert(token) {
                self.lookout.measure();
                self.asking_until.get_or_insert(clock::now() + MEASURE_PATIENCE);
            }
            return;
        }
        if question == Question::Status {
            self.listening_told.clear();
        }
        self.tell_answer(token, question);
    }

    /// Tells those who have waited for it how the server is.
    pub(super) fn tell_those_who_ask(&mut self) {
        self.asking_until = None;
        for token in std::mem::take(&mut self.asking) {
            // Another one may be in its place.
            if self.peers.get(token).and_then(Peer::question) == Some(&Question::Status) {
                self.tell_answer(token, Question::Status);
            }
        }
    }

    fn tell_answer(&mut self, token: usize, question: Question) {
        let answer = match question {
            Question::Status if !self.has_room_for_status() => Err(Errno::NOMEM),
            Question::Status => Ok(Answered::Status(Box::new(self.status()))),
            Question::MayStore(user, id) => self.may_store(user, &id).map(Answered::MayStore),
        };
        if let Some(peer) = self.peers.get_mut(token) {
            peer.answer(&answer);
            let uid = peer.who.user.uid;
            self.rota.set(uid, token, &mut peer.turn, Some(clock::now()));
        }
    }

    fn has_room_for_status(&self) -> bool {
        let services = self.wards.all.len().min(SERVICES_TOLD_MAX);
        reserve::has_room(services * TOLD_PER_SERVICE)
    }

    fn may_store(&mut self, user: User, id: &Identifier) -> Answer<bool> {
        match self.rules.rights(user, self.user) {
            Ok(rights) => Ok(rights.may_store(id)),
            Err(Refusal::NotNow { .. }) => Err(Errno::AGAIN),
            Err(_) => Ok(false),
        }
    }

    fn status(&self) -> Status {
        let started = self.started.to_system().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
        let Self { hold, options, user, .. } = self;
        let waiting = self.waiters.len();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: user.uid,
            started: started.unwrap_or_default().as_secs(),
            held: hold.store.count(Timestamp::now()) as u32, // At most FDS_MAX.
            capacity: hold.store.capacity() as u32,          // As above.
            connections: (self.peers.len() - waiting) as u32, // A few more than that.
            connections_max: options.connections_max as u32, // As above.
            waiting: waiting as u32,                         // At most WAITING_MAX.
            standby: self.standby_state(),
            fdstore: self.shelf.is_some(),
            counts: hold.tally.told(hold.store.expired()),
            services: self.services(),
            listeners: self.listening_told.clone(),
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
