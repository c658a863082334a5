//! When there is no memory, clients wait.

use super::followers::{Link, Lost};
use super::Server;
use crate::clock;
use crate::closing;
use crate::limits::{MIRROR_BACKLOG_SHORT, ROOM_PAUSE};
use crate::memory::reserve;
use crate::peer::{Gone, Peer};
use crate::shares::Resource;
use fdholder::Errno;

impl Server {
    /// Whether there is memory to serve a client with: the reserve is whole, or can be again once
    /// those clients are disconnected that have the most.
    pub(super) fn has_memory(&mut self) -> bool {
        while reserve::is_short() && !reserve::refill() {
            if !self.give_back_memory() {
                self.is_starved = true;
                return reserve::refill();
            }
        }
        true
    }

    /// Disconnects the client that has the most, or else forgets what can be read again and gives up
    /// a follower for which much waits. Returns whether there was anybody.
    pub(super) fn give_back_memory(&mut self) -> bool {
        let Some(token) = self.heaviest() else {
            self.rules.forget();
            return self.give_up_who_is_far_behind();
        };
        self.is_starved = true;
        self.let_go(token, &Gone::Failed(Errno::NOMEM));
        true
    }

    fn give_up_who_is_far_behind(&mut self) -> bool {
        let waiting = |(key, link): (usize, &Link)| (self.hold.mirrors.waiting(link.mirror), key);
        let furthest = self.links.iter().map(waiting).max();
        let Some((_, key)) = furthest.filter(|(waiting, _)| *waiting > MIRROR_BACKLOG_SHORT) else {
            return false;
        };
        self.is_starved = true;
        self.lose(key, &Lost::Failed(Errno::NOMEM));
        true
    }

    /// The client whose requests and replies take the most bytes.
    fn heaviest(&self) -> Option<usize> {
        let bytes = |peer: &Peer| peer.charges().get(Resource::Bytes);
        let all = self.peers.iter().map(|(token, peer)| (bytes(peer), token));
        all.filter(|(bytes, _)| *bytes > 0).max().map(|(_, token)| token)
    }

    /// Waits for memory before anything else is done, if there was none. Serves all who may have
    /// waited, once there is.
    pub(super) fn look_after_memory(&mut self) {
        if !reserve::is_short() && !self.is_starved {
            return;
        }
        if !self.has_memory() {
            // Somebody else may give some back; until then the loop must not spin.
            drop(closing::begun());
            clock::pause(ROOM_PAUSE);
            return;
        }
        if std::mem::take(&mut self.is_starved) {
            let what =
                "there was no memory: clients waited, or those with the most bytes were cut off";
            self.warn_of(None, format_args!("{what}"));
            for token in 0..self.peers.capacity() {
                if !self.pauses(token) {
                    self.serve(token, clock::now());
                }
            }
        }
    }
}
