//! Clients that were let in: served, let go.

use super::{Accepting, Server, COURIER};
use crate::clock;
use crate::limits::{ROOM_PAUSE, SWEEP_PAUSE, TURN_LEN};
use crate::memory::reserve;
use crate::peer::{is_for_now, Gone, Peer};
use crate::reading::has_hung_up;
use crate::shares::{Claimant, Resource};
use fdholder::{strerror, Errno};
use rustix::event::epoll;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};
use tracing::debug;

impl Server {
    /// A client that is not read from may have gone all the same; its delivery with it. Or it is
    /// the one before that has, in the same place.
    pub(super) fn notice_hang_up(&mut self, token: usize, flags: epoll::EventFlags) {
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let has_gone = |peer: &Peer| peer.is_delivering() && has_hung_up(peer.socket());
        if hung_up && self.peers.get(token).is_some_and(has_gone) {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// A delivery has ended.
    pub(super) fn hear_courier(&mut self, token: usize) {
        if let Some(peer) = self.peers.get_mut(token) {
            peer.hear_courier();
            let now = clock::now();
            self.restart_clock(token, now);
            self.serve(token, now);
        }
    }

    /// Serves a client now, unless others come first, or its user's clients have had their time in
    /// this turn of the loop: then when its turn comes. Returns whether it was served.
    pub(super) fn serve_in_turn(&mut self, token: usize, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(token) else { return false };
        let uid = peer.who.user.uid;
        let is_alone = self.hold.ledger.users() < 2;
        let goes_first = self.rota.first_of(uid, now).is_none()
            && (is_alone || !self.rota.has_had_its_part(uid, now));
        if let Some(left) = self.rota.left(uid).filter(|_| goes_first) {
            self.serve_for(token, uid, now, left);
            return true;
        }
        self.rota.put_off(uid, token, &mut peer.turn, now);
        false
    }

    /// Serves those who were put off, and those to try again. Whoever was answered before that may
    /// wait for the processor that the loop has, and would for milliseconds if the kernel has just
    /// given it to the loop: a turn of the loop is much shorter than one of the kernel's. So it is
    /// offered, unless nobody else was answered: a program that is nobody's client would take it,
    /// too.
    pub(super) fn serve_whose_turn_it_is(&mut self, now: Instant) {
        let mut left = TURN_LEN;
        for uid in self.rota.users(now) {
            if !self.rota.is_alone(uid) {
                std::thread::yield_now();
            }
            left = self.serve_put_off(uid, now, left);
            if left.is_zero() {
                break;
            }
        }
    }

    /// Serves those of a user who were put off, for no longer than is left of this turn of the
    /// loop. Returns what is left of it then.
    pub(super) fn serve_put_off(&mut self, uid: u32, now: Instant, left: Duration) -> Duration {
        let mut left = left;
        while let Some(token) = self.rota.first_of(uid, now) {
            let part = self.rota.left(uid).unwrap_or_default().min(left);
            if part.is_zero() {
                break;
            }
            self.rota.set(uid, token, &mut self.peers[token].turn, None);
            if !self.pauses(token) {
                let took = self.serve_for(token, uid, clock::now(), part);
                left = left.saturating_sub(took);
            }
        }
        self.rota.has_served(uid);
        left
    }

    /// Serves a client, and returns how long that took.
    fn serve_for(&mut self, token: usize, uid: u32, now: Instant, left: Duration) -> Duration {
        self.serve_until(token, now, now + left);
        let took = clock::since(now);
        self.rota.note(uid, now, took);
        took
    }

    /// Does what there is to do for one client. An event may speak of a client that has
    /// just gone, or of its place's next owner: either is harmless. Returns whether there
    /// was anything to do.
    pub(super) fn serve(&mut self, token: usize, now: Instant) -> bool {
        self.serve_until(token, now, now + TURN_LEN)
    }

    pub(super) fn serve_until(&mut self, token: usize, now: Instant, until: Instant) -> bool {
        self.settle_loans();
        if reserve::is_short() && !self.has_memory() {
            // All are served when there is some again.
            return false;
        }
        let Some(peer) = self.peers.get_mut(token) else {
            return false;
        };
        let progress = match peer.serve(&mut self.hold, until) {
            Ok(progress) => progress,
            Err(gone) => {
                self.let_go(token, &gone);
                return false;
            }
        };
        peer.recharge(&mut self.hold.ledger);
        if peer.is_gated(&self.hold.mirrors) {
            self.gated.insert(token);
        }
        if peer.is_borrowing() {
            self.borrowers.insert(token);
        }
        if !self.watch_client(token) {
            return false;
        }
        let Some(peer) = self.peers.get_mut(token) else { return progress };
        let mut again = peer.again();
        if peer.watched != Some(peer.interest) || peer.has_new_courier() {
            // Nobody tells what it says, or not all of it.
            again = Some(again.unwrap_or(now + ROOM_PAUSE));
        }
        if let Some(until) = peer.closes_until() {
            self.closing.bell.want();
            // They may have ended before anybody listened for it.
            let have_ended = peer.closes_have_ended(&self.hold.mirrors);
            let until = if have_ended { clock::now() } else { until };
            again = Some(again.map_or(until, |again| again.min(until)));
            self.closing.waiting.insert(token);
        }
        let (uid, waits_for_readers) = (peer.who.user.uid, peer.waits_for_readers());
        self.rota.set(uid, token, &mut peer.turn, again);
        if peer.take_progress(now) || peer.deadline.is_none() {
            self.restart_clock(token, now);
        }
        if waits_for_readers {
            self.look_who_has_read(uid);
        }
        let Some(peer) = self.peers.get_mut(token) else { return progress };
        if let Some(awaited) = peer.awaits() {
            self.waiters.add(token, awaited, &mut self.hold.store);
        }
        let question = peer.question().cloned();
        let follower = peer.take_follower();
        let wants_upgrade = peer.take_upgrade();
        if let Some(capacity) = follower {
            self.let_follow(token, capacity);
        }
        if wants_upgrade {
            self.begin_upgrade();
        }
        if let Some(question) = question {
            self.answer(token, question);
        }
        progress
    }

    /// Serves those whose replies have waited until something is closed, and need not any
    /// longer, if something has been. Returns whether there were any.
    pub(super) fn serve_closed(&mut self) -> bool {
        if !std::mem::take(&mut self.closing.some_is_closed) {
            return false;
        }
        let waiting = std::mem::take(&mut self.closing.waiting);
        if !waiting.is_empty() {
            // What they wait for may be closed behind that.
            self.closing.bell.want();
        }
        let mut served_any = false;
        for token in waiting {
            match self.peers.get(token) {
                Some(peer) if peer.closes_until().is_none() => {}
                Some(peer) if peer.closes_have_ended(&self.hold.mirrors) => {
                    served_any = true;
                    self.serve_in_turn(token, clock::now());
                }
                Some(_) => {
                    self.closing.waiting.insert(token);
                }
                None => {}
            }
        }
        served_any
    }

    /// Descriptors that a user was sent may have been taken meanwhile, on its other connections.
    fn look_who_has_read(&mut self, uid: u32) {
        if !self.may_sweep(uid, clock::now()) {
            return;
        }
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.who.user.uid == uid) {
            peer.look_at_unread();
            peer.recharge(&mut self.hold.ledger);
        }
    }

    /// Whether all clients may be looked at for a user: not again and again, as there may be
    /// many, but whatever others want.
    pub(super) fn may_sweep(&mut self, uid: u32, now: Instant) -> bool {
        self.swept_at.retain(|_, at| now - *at < SWEEP_PAUSE);
        match self.swept_at.entry(uid) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(now);
                true
            }
        }
    }

    /// Leaves a client's next request to the process that is to serve it, if there is one and
    /// the client is in the middle of nothing: if new requests were begun, some client would
    /// always be in the middle of one. Returns whether it does.
    pub(super) fn pauses(&mut self, token: usize) -> bool {
        let Some(peer) = self.peers.get_mut(token) else { return false };
        if !self.is_handing_over || !peer.can_be_handed_over() {
            return false;
        }
        peer.interest = epoll::EventFlags::empty();
        self.watch_client(token);
        true
    }

    /// Has the kernel tell of what a client waits for, and of its courier. Returns whether the client
    /// is still there. One that cannot be watched for now is, as what it has asked is done; it
    /// is [served](Self::serve_until) again by and by.
    fn watch_client(&mut self, token: usize) -> bool {
        let Some(peer) = self.peers.get_mut(token) else { return false };
        let (data, interest) = (epoll::EventData::new_u64(token as u64), peer.interest);
        let told = match peer.watched {
            Some(watched) if watched == interest => Ok(()),
            Some(_) => epoll::modify(&self.epoll, peer.socket(), data, interest),
            None => epoll::add(&self.epoll, peer.socket(), data, interest),
        };
        if told.is_ok() {
            peer.watched = Some(interest);
        }
        let courier = peer.new_courier().map_or(Ok(()), |courier| {
            let data = epoll::EventData::new_u64(token as u64 | COURIER);
            epoll::add(&self.epoll, courier, data, epoll::EventFlags::IN)
        });
        if courier.is_err() {
            peer.watch_courier_again();
        }
        let Err(errno) = told.and(courier) else { return true };
        let (uid, stays) = (peer.who.user.uid, peer.watched.is_none() || is_for_now(errno));
        self.warn_of(Some(uid), format_args!("unable to watch a client: {}", strerror(errno)));
        if !stays {
            self.let_go(token, &Gone::Failed(errno));
        }
        stays
    }

    /// Goes on with all clients, as nobody else serves them.
    pub(super) fn unpause(&mut self) {
        for token in 0..self.peers.capacity() {
            self.serve(token, clock::now());
        }
        // Nothing else may happen that would have it watched again.
        self.watch_listener();
    }

    /// Whoever has taken a reply may have told others, who must find things accordingly.
    fn settle_loans(&mut self) {
        for token in std::mem::take(&mut self.borrowers) {
            let Some(peer) = self.peers.get_mut(token) else { continue };
            match peer.settle(&mut self.hold) {
                Ok(()) if peer.is_borrowing() => {
                    self.borrowers.insert(token);
                }
                Ok(()) => {}
                Err(gone) => self.let_go(token, &gone),
            }
        }
    }

    /// Serves those whose replies have waited for followers, and need not any longer. Returns
    /// whether any was.
    pub(super) fn serve_gated(&mut self) -> bool {
        let mut served_any = false;
        for token in std::mem::take(&mut self.gated) {
            match self.peers.get(token) {
                Some(peer) if peer.is_gated(&self.hold.mirrors) => {
                    self.gated.insert(token);
                }
                Some(_) => served_any |= self.serve_in_turn(token, clock::now()),
                None => {}
            }
        }
        served_any
    }

    /// Gives everybody that is here its last time.
    pub(super) fn stop_clocks(&mut self) {
        let Some(timeout) = self.options.client_timeout else { return };
        let deadline = Some(clock::now() + timeout);
        for (token, peer) in &mut self.peers {
            self.deadlines.set(token, &mut peer.deadline, deadline);
        }
    }

    /// Gives a client its time anew, if it has one and there is something to be in time for.
    fn restart_clock(&mut self, token: usize, now: Instant) {
        // Whoever always begins something else is not waited for when the daemon is to end.
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(token) {
            let timeout = self.options.client_timeout.filter(|_| peer.is_timed());
            let deadline = timeout.map(|timeout| now + timeout);
            self.deadlines.set(token, &mut peer.deadline, deadline);
        }
    }

    pub(super) fn let_go(&mut self, token: usize, why: &Gone) {
        let mut peer = self.remove(token);
        peer.settle_finally(why, &mut self.hold);
        match why {
            Gone::Malformed(_) if !peer.is_let_in() => debug!("{} refused", peer.who),
            Gone::Malformed(_) | Gone::Failed(Errno::TIMEDOUT) => {
                let who = peer.who;
                self.warn_of(Some(who.user.uid), format_args!("{who} dropped: {why}"));
            }
            Gone::Closed | Gone::Failed(_) => debug!("{} gone: {why}", peer.who),
        }
        if peer.is_read_to_its_end() {
            peer.close();
        } else {
            // It is closed later, by others, and must not wake us until then.
            let _ = epoll::delete(&self.epoll, peer.socket());
        }
    }

    /// Takes a client off all lists.
    pub(super) fn remove(&mut self, token: usize) -> Peer {
        let mut peer = self.peers.remove(token);
        peer.discharge(&mut self.hold.ledger);
        self.deadlines.set(token, &mut peer.deadline, None);
        self.rota.set(peer.who.user.uid, token, &mut peer.turn, None);
        self.notice_child_left(token);
        self.waiters.remove(token, &mut self.hold.store);
        peer
    }

    /// Does what has become due: clients to drop, to let in.
    pub(super) fn attend_to_clocks(&mut self, now: Instant) {
        self.wake_doors(now);
        if self.asking_until.is_some_and(|until| until <= now) {
            self.tell_those_who_ask();
        }
        let mut until = None;
        while let Some(token) = self.deadlines.passed(now) {
            let until = *until.get_or_insert_with(|| clock::now() + TURN_LEN);
            self.let_go(token, &Gone::Failed(Errno::TIMEDOUT));
            // The others are as late in the next turn.
            if clock::now() >= until {
                break;
            }
        }
        let has_room =
            |uid| self.hold.ledger.room(&Claimant::trusted(uid), Resource::Connections) > 0;
        self.accepting = match self.accepting {
            Accepting::LameDuck(_) => self.accepting,
            Accepting::PausedUntil(until) if now < until => self.accepting,
            Accepting::Full { uid, until } if now < until && !has_room(uid) => self.accepting,
            _ => Accepting::Yes,
        };
        if self.may_decide() {
            self.decide();
        }
        self.watch_listener();
    }
}
