//! Clients: let in, served, let go.

use super::{Accepting, Server, COURIER, LISTENER};
use crate::access::Refusal;
use crate::audit::{Event, Operation, Verdict, Who};
use crate::closing::ClientFd;
use crate::connection::Standing;
use crate::credentials::{self, Credentials};
use crate::limits::{IDLE_SAFE, SWEEP_PAUSE, TURN_LEN};
use crate::peer::{Gone, Peer};
use crate::shares::{Claimant, Resource, Short};
use fdholder::link::HandedClient;
use fdholder::transport::{self, Wait};
use fdholder::{reply, strerror, Errno, OnConflict};
use rustix::event::epoll;
use rustix::net::sockopt::set_socket_oobinline;
use rustix::net::{accept_with, SocketFlags};
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long to wait when the system has no resources for a new client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// Lets in who has come, so many at most in this turn, be it only until a time, but one at
    /// least.
    pub(super) fn accept(&mut self, most: usize, until: Option<Instant>) {
        for number in 0..most {
            if number > 0 && until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            if self.accepting != Accepting::Yes
                || self.undecided.is_some()
                || self.is_handing_over
                || self.peers.len() >= self.options.connections_max
            {
                return;
            }
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    self.accept_failed_at = None;
                    if let Some(token) = self.let_in(socket, Instant::now()) {
                        // Most have asked something by now.
                        self.serve_in_turn(token, Instant::now());
                    }
                }
                Err(Errno::AGAIN) => return,
                // The client gave up, or a signal came.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(errno) if is_lost(errno) => {
                    return self.lose_listener(&strerror(errno));
                }
                // There are no descriptors, or no memory: clients wait.
                Err(errno) => {
                    if self.accept_failed_at.replace(Instant::now()).is_none() {
                        warn!("unable to accept clients: {}; trying again", strerror(errno));
                    }
                    self.pause_accepting();
                    return;
                }
            }
        }
    }

    /// Somebody has come; or nobody can any more. Of a socket that does not wait accept(2) never
    /// tells that it was shut down.
    pub(super) fn hear_listener(&mut self, flags: epoll::EventFlags, most: usize) {
        if flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP) {
            self.lose_listener("it was shut down");
        } else {
            self.accept(most, Some(Instant::now() + TURN_LEN));
        }
    }

    /// Nobody can come any more, here or to a process that follows: it is the same socket there.
    /// So this is the end, as if it was asked for.
    fn lose_listener(&mut self, why: &str) {
        // It would tell of it all the time.
        let _ = epoll::delete(&self.epoll, &self.listener);
        self.listening = false;
        let is_ending = matches!(self.accepting, Accepting::LameDuck(_));
        if is_ending || std::mem::replace(&mut self.has_lost_listener, true) {
            return;
        }
        warn!("the listening socket is lost: {why}; no client can come any more");
        self.begin_lame_duck();
    }

    fn pause_accepting(&mut self) {
        if self.accepting == Accepting::Yes {
            self.accepting = Accepting::PausedUntil(Instant::now() + ACCEPT_PAUSE);
        }
    }

    /// Lets a client in, has it wait, or closes the connection. Returns its token.
    pub(super) fn let_in(&mut self, socket: OwnedFd, now: Instant) -> Option<usize> {
        // Nobody but the kernel has sent anything to it if it is closed before it is read: it
        // has to be closed like everything that a client has given.
        let who = who(&socket);
        let socket = ClientFd::new(socket, who.map_or(self.user.uid, |who| who.user.uid));
        let who = who?;
        // What is urgent would be left out of what is read, and its descriptors closed by the
        // kernel, here.
        if let Err(errno) = set_socket_oobinline(&socket, true) {
            let uid = Some(who.user.uid);
            self.warn_of(uid, format_args!("unable to prepare a client: {}", strerror(errno)));
            return None;
        }
        let socket = Arc::new(socket);
        match self.standing(who) {
            Err(LeftOut::Refused) => None,
            Err(LeftOut::NotNow(refusal)) => {
                let uid = Some(who.user.uid);
                self.warn_of(uid, format_args!("unable to read the rules: {refusal}; {who} waits"));
                self.undecided = Some(socket);
                None
            }
            Ok(standing) => self.seat(socket, who, standing, now),
        }
    }

    /// Lets in a process of ours, whatever the rules say: it has no use for rights.
    pub(super) fn let_in_own(&mut self, socket: OwnedFd) -> Option<usize> {
        let socket = ClientFd::new(socket, self.user.uid);
        let who = who(&socket)?;
        let standing = Standing { uid: who.user.uid, is_own: true, rights: None };
        self.admit(Peer::new(Arc::new(socket), who, standing))
    }

    /// Whether somebody waits to be let in who may be now.
    pub(super) fn may_decide(&self) -> bool {
        let waits = self.undecided.is_some() || !self.handed.is_empty();
        waits && self.accepting == Accepting::Yes && !self.is_handing_over
    }

    /// Decides on those of whom it could not be told before what they may do.
    fn decide(&mut self) {
        self.resume_handed();
        let Some(socket) = self.undecided.take() else { return };
        let Some(who) = who(&socket) else { return };
        match self.standing(who) {
            Err(LeftOut::Refused) => {}
            Err(LeftOut::NotNow(_)) => self.undecided = Some(socket),
            Ok(standing) => {
                let now = Instant::now();
                if let Some(token) = self.seat(socket, who, standing, now) {
                    self.serve_in_turn(token, now);
                }
            }
        }
    }

    /// Lets in one whose rights are known, if it may have one more connection.
    fn seat(
        &mut self,
        socket: Arc<ClientFd>,
        who: Credentials,
        standing: Standing,
        now: Instant,
    ) -> Option<usize> {
        let claimant = standing.claimant();
        if self.hold.ledger.room(&claimant, Resource::Connections) == 0
            && !self.drop_idle(&claimant, now)
        {
            self.turn_away(&socket, who, &claimant);
            return None;
        }
        self.admit(Peer::new(socket, who, standing))
    }

    /// It has as many connections as it may.
    fn turn_away(&mut self, socket: &ClientFd, who: Credentials, claimant: &Claimant) {
        self.hold.tally.turned_away += 1;
        let short = Short::Connections(claimant.may_have(Resource::Connections));
        self.note_turned_away(who, Verdict::DeniedAs(short.errno(), &short));
        debug!("{who} refused: {short}");
        // It takes this for the answer to whatever it asks. If it does not get it, it sees that
        // the connection is closed.
        let answer = reply::status::<BorrowedFd<'_>>(Err(short.errno()));
        let _ = transport::send(socket, answer.bytes(), &[], Wait::No);
    }

    /// Lets go of a connection of a user who wants one more, if it has one that nothing has
    /// been asked on for long: its other end may be held here, and nobody have it any more.
    fn drop_idle(&mut self, claimant: &Claimant, now: Instant) -> bool {
        if !self.may_sweep(claimant.uid, now) {
            return false;
        }
        let is_its = |peer: &Peer| peer.who.user.uid == claimant.uid && !peer.is_busy();
        let idle = self.peers.iter().filter(|(_, peer)| is_its(peer));
        let Some((token, peer)) = idle.min_by_key(|(_, peer)| peer.active_at) else {
            return false;
        };
        if now.saturating_duration_since(peer.active_at) < IDLE_SAFE {
            return false;
        }
        let who = peer.who;
        let what = "is let go of, as it has been idle and its user wants another connection";
        self.warn_of(Some(claimant.uid), format_args!("{who} {what}"));
        self.let_go(token, &Gone::Failed(Errno::CANCELED));
        true
    }

    /// Goes on serving those whom another daemon has served.
    pub(super) fn resume_handed(&mut self) {
        for client in std::mem::take(&mut self.handed) {
            self.resume(client);
        }
    }

    fn resume(&mut self, mut handed: HandedClient<Arc<ClientFd>>) {
        let Some(who) = who(&handed.socket) else { return };
        let uid = who.user.uid;
        if let Some(socket) = Arc::get_mut(&mut handed.socket) {
            socket.set_owner(uid);
        }
        let standing = match self.standing(who) {
            Ok(standing) => standing,
            Err(LeftOut::Refused) => return,
            Err(LeftOut::NotNow(_)) => return self.handed.push(handed),
        };
        if let Some(token) = self.admit(Peer::resume(handed, who, standing)) {
            // It may have sent its next request already, or a part of it.
            self.serve(token);
        }
    }

    fn standing(&mut self, who: Credentials) -> Result<Standing, LeftOut> {
        let is_own = who.user.uid == self.user.uid;
        let rights = match self.rules.rights(who.user, self.user) {
            Ok(rights) => Some(rights),
            Err(refusal @ Refusal::NotNow { .. }) => {
                // Whoever comes next would fare alike.
                self.pause_accepting();
                return Err(LeftOut::NotNow(refusal));
            }
            Err(refusal) => {
                self.note_turned_away(who, Verdict::TurnedAway(&refusal));
                if matches!(refusal, Refusal::Broken { .. }) {
                    let uid = Some(who.user.uid);
                    self.warn_of(uid, format_args!("{who} refused, error in the rules: {refusal}"));
                } else {
                    debug!("{who} refused: {refusal}");
                }
                None
            }
        };
        self.hold.tally.turned_away += u64::from(rights.is_none());
        let standing = Standing { uid: who.user.uid, is_own, rights };
        let is_let_in = standing.is_own || standing.rights.is_some();
        is_let_in.then_some(standing).ok_or(LeftOut::Refused)
    }

    fn note_turned_away(&mut self, who: Credentials, verdict: Verdict<'_>) {
        let (who, operation) = (Who::from(who), Operation::Connect);
        self.hold.auditor.note(&Event { who, operation, id: None, verdict }, Instant::now());
    }

    fn admit(&mut self, peer: Peer) -> Option<usize> {
        let entry = self.peers.vacant_entry();
        let token = entry.key();
        let data = epoll::EventData::new_u64(token as u64);
        if let Err(errno) = epoll::add(&self.epoll, peer.socket(), data, peer.interest) {
            let uid = Some(peer.who.user.uid);
            self.warn_of(uid, format_args!("unable to watch a client: {}", strerror(errno)));
            return None;
        }
        debug!("{} connected", peer.who);
        self.hold.tally.connections += 1;
        let peer = entry.insert(peer);
        peer.recharge(&mut self.hold.ledger);
        let deadline = self.options.first_timeout.map(|timeout| Instant::now() + timeout);
        self.deadlines.set(token, &mut peer.deadline, deadline);
        Some(token)
    }

    /// A client that is not read from may have gone all the same; its delivery with it.
    pub(super) fn notice_hang_up(&mut self, token: usize, flags: epoll::EventFlags) {
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if hung_up && self.peers.get(token).is_some_and(Peer::is_delivering) {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// A delivery has ended.
    pub(super) fn hear_courier(&mut self, token: usize) {
        if let Some(peer) = self.peers.get_mut(token) {
            peer.hear_courier();
            self.restart_clock(token);
            self.serve(token);
        }
    }

    /// Serves a client now, unless its user's clients have had their time in this turn of the
    /// loop: then in the next one, behind whoever else has come. Returns whether it was.
    pub(super) fn serve_in_turn(&mut self, token: usize, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(token) else { return false };
        let uid = peer.who.user.uid;
        if self.served.get(&uid).is_some_and(|served| *served >= TURN_LEN) {
            let next = now + Duration::from_nanos(1);
            self.turns.set(token, &mut peer.turn, Some(next));
            return false;
        }
        self.serve(token);
        *self.served.entry(uid).or_default() += now.elapsed();
        true
    }

    /// Does what there is to do for one client. An event may speak of a client that has
    /// just gone, or of its place's next owner: either is harmless. Returns whether there
    /// was anything to do.
    pub(super) fn serve(&mut self, token: usize) -> bool {
        self.settle_loans();
        let Some(peer) = self.peers.get_mut(token) else {
            return false;
        };
        let watched = peer.interest;
        let progress = match peer.serve(&mut self.hold) {
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
        let mut result = Ok(());
        if let Some(courier) = peer.new_courier() {
            let data = epoll::EventData::new_u64(token as u64 | COURIER);
            result = epoll::add(&self.epoll, courier, data, epoll::EventFlags::IN);
        }
        if peer.interest != watched {
            let data = epoll::EventData::new_u64(token as u64);
            result = result
                .and_then(|()| epoll::modify(&self.epoll, peer.socket(), data, peer.interest));
        }
        if let Err(errno) = result {
            self.let_go(token, &Gone::Failed(errno));
            return false;
        }
        let mut again = peer.again();
        if let Some(until) = peer.closes_until() {
            self.closing.bell.want();
            // They may have ended before anybody listened for it.
            let have_ended = peer.closes_have_ended(&self.hold.mirrors);
            let until = if have_ended { Instant::now() } else { until };
            again = Some(again.map_or(until, |again| again.min(until)));
            self.closing.waiting.insert(token);
        }
        self.turns.set(token, &mut peer.turn, again);
        let (uid, waits_for_readers) = (peer.who.user.uid, peer.waits_for_readers());
        if peer.take_progress() || peer.deadline.is_none() {
            self.restart_clock(token);
        }
        if waits_for_readers {
            self.look_who_has_read(uid);
        }
        let Some(peer) = self.peers.get_mut(token) else { return progress };
        let asks_status = peer.asks_status();
        let follower = peer.take_follower();
        let wants_upgrade = peer.take_upgrade();
        if let Some(capacity) = follower {
            self.let_follow(token, capacity);
        }
        if wants_upgrade {
            self.begin_upgrade();
        }
        if asks_status {
            self.tell_status(token);
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
                    self.serve_in_turn(token, Instant::now());
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
        if !self.may_sweep(uid, Instant::now()) {
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
        if !self.is_handing_over || peer.hand_over().is_none() {
            return false;
        }
        peer.interest = epoll::EventFlags::empty();
        let data = epoll::EventData::new_u64(token as u64);
        if let Err(errno) = epoll::modify(&self.epoll, peer.socket(), data, peer.interest) {
            self.let_go(token, &Gone::Failed(errno));
        }
        true
    }

    /// Goes on with all clients, as nobody else serves them.
    pub(super) fn unpause(&mut self) {
        let tokens: Vec<_> = self.peers.iter().map(|(token, _)| token).collect();
        for token in tokens {
            self.serve(token);
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
                Some(_) => served_any |= self.serve_in_turn(token, Instant::now()),
                None => {}
            }
        }
        served_any
    }

    /// Gives everybody that is here its last time.
    pub(super) fn stop_clocks(&mut self) {
        let Some(timeout) = self.options.client_timeout else { return };
        let deadline = Some(Instant::now() + timeout);
        for (token, peer) in &mut self.peers {
            self.deadlines.set(token, &mut peer.deadline, deadline);
        }
    }

    /// Gives a client its time anew, if it has one and there is something to be in time for.
    fn restart_clock(&mut self, token: usize) {
        // Whoever always begins something else is not waited for when the daemon is to end.
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(token) {
            let timeout = self.options.client_timeout.filter(|_| peer.is_timed());
            let deadline = timeout.map(|timeout| Instant::now() + timeout);
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
        self.turns.set(token, &mut peer.turn, None);
        self.notice_offspring(token);
        peer
    }

    /// Does what has become due: clients to try again, to drop, to let in.
    pub(super) fn attend_to_clocks(&mut self, now: Instant) {
        while let Some(token) = self.turns.passed(now) {
            self.turns.set(token, &mut self.peers[token].turn, None);
            if !self.pauses(token) {
                self.serve_in_turn(token, now.max(Instant::now()));
            }
        }
        self.wake_doors(now);
        let until = Instant::now() + TURN_LEN;
        while let Some(token) = self.deadlines.passed(now) {
            self.let_go(token, &Gone::Failed(Errno::TIMEDOUT));
            // The others are as late in the next turn.
            if Instant::now() >= until {
                break;
            }
        }
        let full = self.peers.len() >= self.options.connections_max;
        self.accepting = match self.accepting {
            Accepting::LameDuck(_) => self.accepting,
            Accepting::PausedUntil(until) if now < until => self.accepting,
            _ if full => Accepting::Full,
            _ => Accepting::Yes,
        };
        if self.may_decide() {
            self.decide();
        }
        self.watch_listener();
    }

    /// Has the listening socket wake us while clients are let in, and when it is lost.
    fn watch_listener(&mut self) {
        let listen = self.accepting == Accepting::Yes && !self.is_handing_over;
        if listen != self.listening {
            let mut flags = epoll::EventFlags::RDHUP;
            flags.set(epoll::EventFlags::IN, listen);
            let data = epoll::EventData::new_u64(LISTENER);
            match epoll::modify(&self.epoll, &self.listener, data, flags) {
                Ok(()) => self.listening = listen,
                Err(errno) => warn!("unable to watch the listening socket: {}", strerror(errno)),
            }
        }
    }
}

/// Whether accept(2) will always fail: it is no socket, or none that listens. All else is over some
/// time.
fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)
}

/// Why a client is not let in.
enum LeftOut {
    /// By the rules, or as they are broken.
    Refused,
    /// It is to be tried again.
    NotNow(Refusal),
}

/// A client of whom nothing was read, for the daemon that is to serve it.
pub(super) fn newcomer(socket: Arc<ClientFd>) -> HandedClient<Arc<ClientFd>> {
    HandedClient {
        socket,
        is_fdholder: false,
        awaits_upgrade: false,
        on_conflict: OnConflict::default(),
        taken: None,
        unread: Vec::new(),
    }
}

fn who(socket: impl AsFd) -> Option<Credentials> {
    let who = credentials::of_peer(socket);
    who.map_err(|errno| warn!("unable to see who connects: {}", strerror(errno))).ok()
}

#[cfg(test)]
mod tests;
