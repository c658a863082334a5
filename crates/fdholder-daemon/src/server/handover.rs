//! Handing everything over to a process that follows.
//!
//! From here to the end nothing else is done: clients wait, and what they send stays in
//! their sockets. Either the follower serves, by then, or everything is as it was.

use super::followers::{socket_of, Link, Lost};
use super::Server;
use crate::limits::{COMMIT_PATIENCE, HANDOVER_GRACE};
use crate::peer::Gone;
use fdholder::link::HandedClient;
use fdholder::Errno;
use rustix::event::{epoll, poll, PollFd, PollFlags, Timespec};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// How often to look whether a follower has the lock.
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// When a follower is handed everything at the latest.
pub(super) fn hand_over_at(link: &Link) -> Option<Instant> {
    link.wants_over.map(|since| since + HANDOVER_GRACE)
}

impl Server {
    /// Leaves a client's next request to the process that is to serve it, if there is one and
    /// the client is in the middle of nothing: if new requests were begun, some client would
    /// always be in the middle of one. Returns whether it does.
    pub(super) fn postpone(&mut self, token: usize) -> bool {
        if !self.is_to_hand_over() {
            return false;
        }
        let Some(peer) = self.peers.get_mut(token) else { return false };
        if peer.hand_over().is_none() {
            return false;
        }
        let (data, none) = (epoll::EventData::new_u64(token as u64), epoll::EventFlags::empty());
        if epoll::modify(&self.epoll, peer.socket(), data, none).is_err() {
            return false;
        }
        peer.interest = none;
        self.postponed.push(token);
        true
    }

    /// Serves those that were left to a process which does not serve after all.
    pub(super) fn serve_postponed(&mut self) {
        if !self.is_to_hand_over() {
            for token in std::mem::take(&mut self.postponed) {
                self.serve(token);
            }
        }
    }

    fn is_to_hand_over(&self) -> bool {
        self.links.iter().any(|(_, link)| link.wants_over.is_some())
    }

    /// Hands over, if somebody wants that, and no client is in the middle of something; or
    /// it has been for too long.
    pub(super) fn hand_over_if_due(&mut self) {
        let now = Instant::now();
        let wanted = self.links.iter().find_map(|(key, link)| {
            let at = hand_over_at(link)?;
            Some((key, at))
        });
        let Some((key, at)) = wanted else { return };
        let all_idle = self.peers.iter().all(|(_, peer)| peer.hand_over().is_some());
        if !(all_idle || at <= now) {
            return;
        }
        match self.hand_over(key, false) {
            Ok(()) => {
                let by = self.links.get(key).and_then(|link| link.who.pid);
                self.was_taken_over(by);
            }
            Err(lost) => self.lose(key, &lost),
        }
    }

    /// Hands everything over to a follower; or, when it fails, nothing.
    pub(super) fn hand_over(&mut self, key: usize, for_next: bool) -> Result<(), Lost> {
        let deadline = Instant::now() + COMMIT_PATIENCE;
        self.leave_standby();
        self.cut_off_busy_clients();
        self.tell_all(key, deadline)?;
        let clients: Vec<_> = self.peers.iter().filter_map(|(_, peer)| peer.hand_over()).collect();
        for client in clients {
            self.tell_client(key, client, deadline)?;
        }
        let link = self.links.get(key).ok_or(Lost::Gone)?;
        self.hold.mirrors.get_mut(link.mirror).ok_or(Lost::Gone)?.is_yours(for_next);
        self.tell_all(key, deadline)?;
        while !self.links.get(key).ok_or(Lost::Gone)?.has_committed {
            self.wait_for(key, PollFlags::IN, deadline)?;
        }
        self.let_serve(key, deadline)
    }

    fn cut_off_busy_clients(&mut self) {
        let busy = self.peers.iter().filter(|(_, peer)| peer.hand_over().is_none());
        let busy: Vec<_> = busy.map(|(token, _)| token).collect();
        for token in busy {
            warn!("{} is cut off in the middle of something", self.peers[token].who);
            self.let_go(token, &Gone::Failed(Errno::CANCELED));
        }
    }

    fn tell_client(
        &mut self,
        key: usize,
        client: HandedClient<Arc<OwnedFd>>,
        deadline: Instant,
    ) -> Result<(), Lost> {
        let link = self.links.get(key).ok_or(Lost::Gone)?;
        self.hold.mirrors.get_mut(link.mirror).ok_or(Lost::Gone)?.hand_over(client);
        self.tell_all(key, deadline)
    }

    /// Sends a follower everything, and waits until it has carried it out.
    fn tell_all(&mut self, key: usize, deadline: Instant) -> Result<(), Lost> {
        loop {
            self.tell(key, usize::MAX);
            let link = self.links.get(key).ok_or(Lost::Gone)?;
            let mirror = self.hold.mirrors.get_mut(link.mirror).ok_or(Lost::Gone)?;
            if mirror.front().is_some() {
                self.wait_for(key, PollFlags::IN | PollFlags::OUT, deadline)?;
            } else if self.hold.mirrors.is_behind(link.mirror) {
                self.wait_for(key, PollFlags::IN, deadline)?;
            } else {
                return Ok(());
            }
        }
    }

    /// Waits for a follower, and heeds what it says.
    fn wait_for(&mut self, key: usize, what: PollFlags, deadline: Instant) -> Result<(), Lost> {
        let link = self.links.get(key).ok_or(Lost::Gone)?;
        let now = Instant::now();
        if deadline <= now {
            return Err(Lost::DidNotServe);
        }
        // A few seconds; and after a while one without room for descriptors is tried again.
        let span = Timespec::try_from((deadline - now).min(Duration::from_millis(20)));
        let mut socket = [PollFd::from_borrowed_fd(socket_of(link), what)];
        match poll(&mut socket, span.ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Lost::Failed(errno)),
        }
        if socket[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.hear_link(key);
        }
        Ok(())
    }

    /// Lets a follower have our place, which it says it takes, and waits until it has. The
    /// kernel decides: it has the lock, or we take it back.
    fn let_serve(&mut self, key: usize, deadline: Instant) -> Result<(), Lost> {
        let roll = self.roll.as_ref().ok_or(Lost::Gone)?;
        roll.let_go().map_err(Lost::Failed)?;
        loop {
            if roll.has_been_followed() {
                return Ok(());
            }
            let link = self.links.get(key).ok_or(Lost::Gone)?;
            let mut socket = [PollFd::from_borrowed_fd(socket_of(link), PollFlags::empty())];
            let has_gone = poll(&mut socket, Some(&Timespec::default())) == Ok(1);
            if (has_gone || deadline <= Instant::now()) && roll.take_back() {
                return Err(Lost::DidNotServe);
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}
