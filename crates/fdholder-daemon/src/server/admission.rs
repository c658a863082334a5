//! Clients are let in, or left out.

use super::{Accepting, Server, FORMER, LISTENER};
use crate::access::Refusal;
use crate::audit::{Event, Operation, Verdict, Who};
use crate::clock;
use crate::closing::ClientFd;
use crate::connection::Standing;
use crate::credentials::{self, Credentials};
use crate::limits::{IDLE_SAFE, IDLE_SAFE_TRUSTED, TURN_LEN};
use crate::memory::reserve;
use crate::peer::{Gone, Peer};
use crate::shares::{Allowance, Claimant, Resource, Short};
use fdholder::link::HandedClient;
use fdholder::transport::{self, Wait};
use fdholder::{reply, strerror, Errno, OnConflict};
use rustix::event::epoll;
use rustix::net::sockopt::set_socket_oobinline;
use rustix::net::{accept_with, SocketFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long to wait when the system has no resources for a new client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Clients that are disconnected for memory to read one rule with, before that has to wait: each
/// has some 60 KiB at most.
const GIVEN_BACK_AT_ONCE: usize = 16;

/// Bytes that a client's place in the table of them takes.
pub(super) const PLACE_LEN: usize = size_of::<Peer>() + size_of::<usize>();

impl Server {
    /// Lets in who has come, so many at most in this turn, be it only until a time, but one at
    /// least.
    pub(super) fn accept(&mut self, most: usize, until: Option<Instant>) {
        for number in 0..most {
            if number > 0 && until.is_some_and(|until| clock::now() >= until) {
                return;
            }
            if self.accepting != Accepting::Yes || self.undecided.is_some() || self.is_silent() {
                return;
            }
            if !self.has_memory_for_one_more() {
                self.give_back_memory();
                return self.pause_accepting();
            }
            match self.next_client() {
                Ok(socket) => {
                    self.accept_failed_at = None;
                    let now = clock::now();
                    if let Some(token) = self.let_in(socket, now) {
                        // Most have asked something by now.
                        self.serve_in_turn(token, now);
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
                    if self.accept_failed_at.replace(clock::now()).is_none() {
                        warn!("unable to accept clients: {}; trying again", strerror(errno));
                    }
                    self.pause_accepting();
                    return;
                }
            }
        }
    }

    /// One that waits, at a former listening socket first.
    fn next_client(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut former = self.former.iter().map(|former| accept_with(former, flags));
        former.find_map(Result::ok).map_or_else(|| accept_with(&self.listener, flags), Ok)
    }

    /// Whether nobody is let in, as another process is to serve, or may still have to.
    fn is_silent(&self) -> bool {
        self.is_handing_over || self.is_pending()
    }

    /// Whether there is memory for one more client: the table of them may have to grow.
    fn has_memory_for_one_more(&mut self) -> bool {
        let (len, capacity) = (self.peers.len(), self.peers.capacity());
        let grows_to = if len < capacity { 0 } else { (capacity * 2).max(4) };
        (!reserve::is_short() || self.has_memory()) && reserve::has_room(grows_to * PLACE_LEN)
    }

    /// Somebody has come; or nobody can any more. Of a socket that does not wait accept(2) never
    /// tells that it was shut down.
    pub(super) fn hear_listener(&mut self, flags: epoll::EventFlags, most: usize) {
        if flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP) {
            self.lose_listener("it was shut down");
        } else {
            self.accept(most, (most > 1).then(|| clock::now() + TURN_LEN));
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
            self.accepting = Accepting::PausedUntil(clock::now() + ACCEPT_PAUSE);
        }
    }

    fn wait_for_room(&mut self, uid: u32, until: Instant) {
        if self.accepting == Accepting::Yes {
            self.accepting = Accepting::Full { uid, until };
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
        let now = clock::now();
        let token = self.admit(Peer::new(Arc::new(socket), who, standing, now), now);
        // It is known by its token by then.
        self.rota.put_off(who.user.uid, token, &mut self.peers[token].turn, now);
        Some(token)
    }

    /// Whether somebody waits to be let in who may be now.
    pub(super) fn may_decide(&self) -> bool {
        let waits = self.undecided.is_some() || !self.handed.is_empty();
        waits && self.accepting == Accepting::Yes && !self.is_silent()
    }

    /// Decides on those of whom it could not be told before what they may do.
    pub(super) fn decide(&mut self) {
        self.resume_handed();
        let Some(socket) = self.undecided.take() else { return };
        let Some(who) = who(&socket) else { return };
        match self.standing(who) {
            Err(LeftOut::Refused) => {}
            Err(LeftOut::NotNow(_)) => self.undecided = Some(socket),
            Ok(standing) => {
                let now = clock::now();
                if let Some(token) = self.seat(socket, who, standing, now) {
                    self.serve_in_turn(token, now);
                }
            }
        }
    }

    /// Lets in one whose rights are known, if it may have one more connection. One of who may have all
    /// waits a moment for another to go, as many who come at once each do little.
    fn seat(
        &mut self,
        socket: Arc<ClientFd>,
        who: Credentials,
        standing: Standing,
        now: Instant,
    ) -> Option<usize> {
        let claimant = standing.claimant();
        if self.hold.ledger.room(&claimant, Resource::Connections) > 0 {
            self.full_since.remove(&claimant.uid);
        } else if !self.drop_idle(&claimant, now) {
            if may_have_all(&claimant) {
                let since = *self.full_since.entry(claimant.uid).or_insert(now);
                let until = since + IDLE_SAFE_TRUSTED;
                if now < until {
                    self.undecided = Some(socket);
                    self.wait_for_room(claimant.uid, until);
                    return None;
                }
            }
            self.turn_away(&socket, who, &claimant);
            return None;
        }
        Some(self.admit(Peer::new(socket, who, standing, now), now))
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
    /// been asked on for long: its other end may be held here, and nobody have it any more. Who may
    /// have all must get in: one of its that got stuck in the middle of something goes, too.
    fn drop_idle(&mut self, claimant: &Claimant, now: Instant) -> bool {
        let may_all = may_have_all(claimant);
        // Once one has waited for so long the next does not: there may be thousands of them.
        let has_waited = self
            .full_since
            .get(&claimant.uid)
            .is_some_and(|since| now.saturating_duration_since(*since) >= IDLE_SAFE_TRUSTED);
        let safe = match may_all {
            true if has_waited => Duration::ZERO,
            true => IDLE_SAFE_TRUSTED,
            false => IDLE_SAFE,
        };
        if !may_all && !self.may_sweep(claimant.uid, now) {
            return false;
        }
        let may_go = |peer: &Peer| {
            peer.who.user.uid == claimant.uid
                && peer.is_a_connection()
                // Without rights it is a process of ours that is about to follow.
                && peer.is_let_in()
                && peer.waits_for_client()
                && (may_all || !peer.is_busy())
                && now.saturating_duration_since(peer.active_at) >= safe
        };
        let may_go = self.peers.iter().filter(|(_, peer)| may_go(peer));
        let longest = may_go.min_by_key(|(_, peer)| (peer.is_timed(), peer.active_at));
        let Some((token, peer)) = longest else { return false };
        let who = peer.who;
        let how = if peer.is_busy() { "stuck in the middle of something" } else { "idle" };
        let what = format_args!(
            "{who} is disconnected, as it has been {how} and its user wants another connection"
        );
        self.warn_of(Some(claimant.uid), what);
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
        let now = clock::now();
        let token = self.admit(Peer::resume(handed, who, standing), now);
        // It may have sent its next request already, or a part of it.
        self.serve(token, now);
    }

    fn standing(&mut self, who: Credentials) -> Result<Standing, LeftOut> {
        let is_own = who.user.uid == self.user.uid;
        let mut decision = self.rules.rights(who.user, self.user);
        for _ in 0..GIVEN_BACK_AT_ONCE {
            let lacks_memory = matches!(decision, Err(Refusal::NotNow { errno: Errno::NOMEM, .. }));
            if !lacks_memory || !self.give_back_memory() {
                break;
            }
            decision = self.rules.rights(who.user, self.user);
        }
        let rights = match decision {
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
        self.hold.auditor.note(&Event { who, operation, id: None, verdict }, clock::now());
    }

    /// Gives a client a place. It is watched once it is [served](Self::serve_until), which is for the
    /// caller to see to: it has its answer sooner if the kernel is told of it afterwards.
    fn admit(&mut self, peer: Peer, now: Instant) -> usize {
        debug!("{} connected", peer.who);
        self.hold.tally.connections += 1;
        let entry = self.peers.vacant_entry();
        let token = entry.key();
        let peer = entry.insert(peer);
        peer.recharge(&mut self.hold.ledger);
        let deadline = self.options.first_timeout.map(|timeout| now + timeout);
        self.deadlines.set(token, &mut peer.deadline, deadline);
        token
    }

    /// Has the listening socket wake us while clients are let in, and when it is lost.
    pub(super) fn watch_listener(&mut self) {
        let listen = self.accepting == Accepting::Yes && !self.is_silent();
        if listen != self.listening {
            let mut flags = epoll::EventFlags::RDHUP;
            flags.set(epoll::EventFlags::IN, listen);
            let former = self.former.iter().map(|former| (former, FORMER));
            let mut failed = None;
            for (socket, token) in former.chain([(&self.listener, LISTENER)]) {
                let data = epoll::EventData::new_u64(token);
                match epoll::modify(&self.epoll, socket, data, flags) {
                    Ok(()) => self.listening = listen,
                    Err(errno) => failed = Some(errno),
                }
            }
            if let Some(errno) = failed {
                let what = "unable to watch the listening socket";
                self.warn_of(None, format_args!("{what}: {}", strerror(errno)));
                // Nothing else may happen that would have it tried again.
                self.pause_accepting();
            }
        }
    }
}

/// Whether accept(2) will always fail: it is no socket, or none that listens. All else is over some
/// time.
pub(super) fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)
}

/// Whether somebody may have all connections there are.
fn may_have_all(claimant: &Claimant) -> bool {
    claimant.may_have(Resource::Connections) == Allowance::All
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
