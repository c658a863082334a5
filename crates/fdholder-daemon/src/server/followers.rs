//! Processes that follow: accepted, told of every change, given up.

use super::standby::Standby;
use super::upgrade::Upgrade;
use super::{Accepting, Ended, Server, LINK};
use crate::clock;
use crate::closing::ClientFd;
use crate::credentials::Credentials;
use crate::exchange::Broken;
use crate::limits::{
    FOLLOWERS_MAX, FOLLOWER_PATIENCE, HANDOVER_GRACE, KEEP_PATIENCE, MIRROR_MESSAGES_PER_TURN,
    SEND_PAUSE,
};
use crate::peer::Gone;
use crate::reading::{is_transient, of_daemon};
use crate::replication;
use crate::replication::roll::{Place, Roll};
use fdholder::frame::Decoder;
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::link::{self, Heard};
use fdholder::transport::{self, Wait};
use fdholder::{strerror, Errno, Timestamp};
use rustix::event::epoll;
use rustix::io::fcntl_dupfd_cloexec;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;

/// What a follower is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// We have started it, to have everything too.
    Standby,
    /// We have started it, to be the program that we become.
    Successor,
    /// It came by itself.
    Other,
}

/// A process that follows.
#[derive(Debug)]
pub(super) struct Link {
    pub who: Credentials,
    pub socket: OwnedFd,
    pub decoder: Decoder<ClientFd>,
    /// Its key among the mirrors.
    pub mirror: usize,
    /// Its place on the roll.
    number: u32,
    pub role: Role,
    /// It wants to serve in our place, since then.
    pub wants_over: Option<Instant>,
    /// When it has said that it has everything.
    pub synced_at: Option<Instant>,
    /// It was said so.
    pub is_announced: bool,
    /// When it last took something, or told that it had carried something out.
    pub progress: Instant,
    /// Since when there is something that it has not taken or carried out.
    behind_since: Option<Instant>,
    /// When to send again, as there was no room for descriptors in flight, or no memory.
    retry: Option<Instant>,
    /// When to read again, as there was no memory.
    deaf_until: Option<Instant>,
    watched: epoll::EventFlags,
}

impl Link {
    /// Its place on the roll.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// When it is handed everything at the latest, if it wants to serve.
    pub fn hand_over_at(&self) -> Option<Instant> {
        self.wants_over.map(|since| since + HANDOVER_GRACE)
    }
}

/// Why a follower is given up.
#[derive(Debug)]
pub(super) enum Lost {
    /// It has ended, or hung up.
    Gone,
    /// It has taken nothing for too long.
    Hangs,
    Malformed(fdholder::Malformed),
    Failed(Errno),
    /// It was to serve, and does not.
    DidNotServe(Broken),
    /// We are asked to end.
    Dismissed,
}

impl Server {
    /// Whether the standby that we see to has everything.
    pub(super) fn standby_is_ready(&self) -> bool {
        let is_ready = |link: &Link| link.role == Role::Standby && link.synced_at.is_some();
        self.links.iter().any(|(_, link)| is_ready(link))
    }

    /// A client wants to follow.
    pub(super) fn let_follow(&mut self, token: usize, capacity: u32) {
        match self.accept_follower(token, capacity) {
            Ok(()) => {}
            Err(errno) => {
                if let Some(peer) = self.peers.get_mut(token) {
                    peer.refuse_follower(errno);
                    self.serve(token, clock::now());
                }
            }
        }
    }

    fn accept_follower(&mut self, token: usize, capacity: u32) -> Result<(), Errno> {
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return Err(Errno::SHUTDOWN);
        }
        let takes_over = self.links.iter().any(|(_, link)| link.wants_over.is_some());
        // Before we serve, only a process of ours is told that we do not.
        let is_stranger = self.is_pending() && !self.is_standby(token);
        if takes_over || is_stranger || self.links.len() >= FOLLOWERS_MAX {
            return Err(Errno::BUSY);
        }
        // It need not have room for what goes anyway.
        self.hold.expire_all(Timestamp::now()).map_err(|_| Errno::BUSY)?;
        let held = self.hold.store.len();
        if (capacity as usize) < held {
            return Err(Errno::NFILE);
        }
        // Taken before anything is said to it.
        let copy = self.hold.store.try_all().ok_or(Errno::BUSY)?;
        if self.roll.is_none() {
            self.renew_roll()?;
        }
        let others = self.newer_listeners().map_err(|_| Errno::BUSY)?;
        let pending = self.place.as_ref().filter(|_| self.is_new).map(Place::pending);
        let followers = self.roll.as_mut().ok_or(Errno::NOMEM)?;
        let about = replication::head(followers, &self.hold.store);
        let oldest = self.former.first().unwrap_or(&self.listener);
        let first = link::head(about, oldest.as_fd(), followers.file().as_fd(), pending);
        let peer = self.peers.get(token).ok_or(Errno::BADF)?;
        let sent = transport::send(peer.socket(), first.bytes(), first.fds(), Wait::No);
        let data = epoll::EventData::new_u64(self.links.vacant_key() as u64 | LINK);
        let watched = epoll::EventFlags::IN;
        let failed = match sent {
            // Nothing has happened: it tries again.
            Err(errno) if is_transient(errno) => return Err(Errno::BUSY),
            Ok(len) if len == first.bytes().len() => {
                epoll::modify(&self.epoll, peer.socket(), data, watched).err()
            }
            sent => Some(sent.err().unwrap_or(Errno::MSGSIZE)),
        };
        // From here on it is no client any more, whatever happens.
        if let Some(errno) = failed {
            self.let_go(token, &Gone::Failed(errno));
            return Ok(());
        }
        let who = peer.who;
        let (role, pid) = self.take_for_offspring(token);
        // The other end of a pair was made by ourselves.
        let who = Credentials { pid: pid.or(who.pid), ..who };
        let peer = self.remove(token);
        // Nothing else has it: it is in no message.
        let Some(socket) = peer.into_socket() else { return Ok(()) };
        let mirror = self.hold.mirrors.add_with(copy);
        if let Some(mirror) = self.hold.mirrors.get_mut(mirror) {
            for listener in others {
                mirror.comes_in_by(listener);
            }
        }
        let entry = self.links.vacant_entry();
        entry.insert(Link {
            who,
            socket,
            decoder: Decoder::new(REQUEST_PAYLOAD_MAX),
            mirror,
            number: about.number,
            role,
            wants_over: None,
            synced_at: None,
            is_announced: false,
            progress: clock::now(),
            behind_since: None,
            retry: None,
            deaf_until: None,
            watched,
        });
        Ok(())
    }

    /// Where clients come in now, and did before: all but the oldest, which a follower is told first.
    fn newer_listeners(&self) -> Result<Vec<Arc<ClientFd>>, Errno> {
        let all = self.former.iter().chain([&self.listener]);
        let copy = |listener: &OwnedFd| {
            let copy = fcntl_dupfd_cloexec(listener, 0)?;
            Ok(Arc::new(ClientFd::new(copy, self.user.uid)))
        };
        all.skip(1).map(copy).collect()
    }

    /// A new roll, with nobody on it.
    pub(super) fn renew_roll(&mut self) -> Result<(), Errno> {
        let roll = Roll::new(self.place.as_ref().map_or(0, Place::generation) + 1)?;
        if let Some(shelf) = &mut self.shelf {
            shelf.keep_roll(&roll);
        }
        self.roll = Some(roll);
        Ok(())
    }

    fn is_standby(&self, token: usize) -> bool {
        let process = self.standby.as_ref().and_then(|standby| standby.process.as_ref());
        process.is_some_and(|process| process.token == Some(token))
    }

    /// Whether a client that follows now is a process of ours, and which.
    fn take_for_offspring(&mut self, token: usize) -> (Role, Option<i32>) {
        let standby = self.standby.as_mut().and_then(|standby| standby.process.as_mut());
        if let Some(process) = standby.filter(|process| process.token == Some(token)) {
            process.token = None;
            let pid = process.pid();
            if let Some(standby) = &mut self.standby {
                standby.follows();
            }
            return (Role::Standby, pid);
        }
        match self.upgrade.as_mut().filter(|upgrade| upgrade.is(token)) {
            Some(upgrade) => (Role::Successor, upgrade.follows()),
            None => (Role::Other, None),
        }
    }

    /// Tells followers what there is to tell, and then clients what depended on that.
    pub(super) fn tend_followers(&mut self) {
        let now = clock::now();
        self.tend_standby(now);
        self.tend_upgrade(now);
        loop {
            let links = self.links.len();
            self.tell_followers();
            // When one is given up, nothing else may wake us for those that waited for it.
            if links == self.links.len() || self.ended.is_some() {
                break;
            }
        }
    }

    fn tell_followers(&mut self) {
        loop {
            self.tell_systemd();
            for key in self.link_keys() {
                self.tell(key, MIRROR_MESSAGES_PER_TURN);
            }
            // Whoever was served may have changed more, and nothing else may wake us for that.
            if !(self.serve_gated() | self.serve_closed()) {
                break;
            }
        }
        self.give_up_who_hangs();
        self.hand_over_if_due();
    }

    pub(super) fn link_keys(&self) -> Vec<usize> {
        self.links.iter().map(|(key, _)| key).collect()
    }

    /// Sends a follower so many messages at most.
    fn tell(&mut self, key: usize, budget: usize) {
        let Some(link) = self.links.get_mut(key) else { return };
        let Some(mirror) = self.hold.mirrors.get_mut(link.mirror) else { return };
        let mut lost = None;
        let mut waits_for_room = false;
        link.retry = None;
        for _ in 0..budget {
            let Some((bytes, carriers)) = mirror.front() else { break };
            let fds: Vec<_> = carriers.iter().map(|carrier| carrier.fd().as_fd()).collect();
            match transport::send(&link.socket, bytes, &fds, Wait::No) {
                Ok(len) => {
                    mirror.advance(len);
                    link.progress = clock::now();
                }
                Err(Errno::AGAIN) => {
                    waits_for_room = true;
                    break;
                }
                Err(errno) if is_transient(errno) => {
                    link.retry = Some(clock::now() + SEND_PAUSE);
                    break;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => lost = Some(Lost::Gone),
                Err(errno) => lost = Some(Lost::Failed(errno)),
            }
            if lost.is_some() {
                break;
            }
        }
        // If only its turn was over, there is room, and it is served at once.
        waits_for_room |= link.retry.is_none() && mirror.front().is_some();
        link.deaf_until = link.deaf_until.filter(|until| *until > clock::now());
        let mut interest = epoll::EventFlags::empty();
        interest.set(epoll::EventFlags::IN, link.deaf_until.is_none());
        interest.set(epoll::EventFlags::OUT, waits_for_room);
        if interest != link.watched && lost.is_none() {
            let data = epoll::EventData::new_u64(key as u64 | LINK);
            match epoll::modify(&self.epoll, &link.socket, data, interest) {
                Ok(()) => link.watched = interest,
                Err(errno) if is_transient(errno) => {
                    link.retry = Some(clock::now() + SEND_PAUSE);
                }
                Err(errno) => lost = Some(Lost::Failed(errno)),
            }
        }
        if let Some(lost) = lost {
            self.lose(key, &lost);
        }
    }

    /// A follower has something to say, or takes something.
    pub(super) fn hear_link(&mut self, key: usize) {
        let Some(link) = self.links.get_mut(key) else { return };
        let lost = match transport::receive(&link.socket, &mut self.hold.buffer, Wait::No) {
            Err(Errno::AGAIN) => return,
            Ok(received) if received.len == 0 => Lost::Gone,
            Err(Errno::CONNRESET) => Lost::Gone,
            // Nothing was taken. It would be told of at once, and again.
            Err(errno) if is_transient(errno) => {
                link.deaf_until = Some(clock::now() + SEND_PAUSE);
                return;
            }
            Err(errno) => Lost::Failed(errno),
            Ok(received) => {
                let bytes = &self.hold.buffer[..received.len];
                let fds = of_daemon(received.fds);
                link.decoder.push(bytes, fds, received.fds_lost);
                match self.heed(key) {
                    Ok(()) => return,
                    Err(malformed) => Lost::Malformed(malformed),
                }
            }
        };
        self.lose(key, &lost);
    }

    fn heed(&mut self, key: usize) -> Result<(), fdholder::Malformed> {
        let mut is_to_stop = false;
        if let Some(link) = self.links.get_mut(key) {
            while let Some(frame) = link.decoder.next()? {
                link.progress = clock::now();
                let heard = Heard::parse(&frame)?;
                if let Some(mirror) = self.hold.mirrors.get_mut(link.mirror) {
                    self.closing.some_is_closed |= mirror.hear(&heard);
                }
                match heard {
                    Heard::UpTo(_) | Heard::Closing(_) | Heard::Closed(_) => {}
                    Heard::Synced => {
                        link.synced_at = Some(clock::now());
                        match link.role {
                            Role::Successor => link.wants_over = Some(clock::now()),
                            Role::Standby | Role::Other => {}
                        }
                    }
                    Heard::TakeOver => link.wants_over = Some(clock::now()),
                    Heard::Stop => is_to_stop = true,
                    // Nobody has been told that it may.
                    Heard::Commit => return Err(fdholder::Malformed::INCOMPLETE),
                }
            }
        }
        if is_to_stop {
            self.begin_lame_duck();
        }
        Ok(())
    }

    /// Gives a follower up. Whatever becomes of us, it does not serve.
    pub(super) fn lose(&mut self, key: usize, lost: &Lost) {
        let Some(link) = self.links.try_remove(key) else { return };
        let given_up = self.roll.as_ref().is_none_or(|roll| roll.give_up(link.number).is_ok());
        if !given_up {
            warn!("unable to write to the roll: a follower that hangs might serve one day");
        }
        self.hold.mirrors.remove(link.mirror);
        self.closing.some_is_closed = true;
        let whom = match link.role {
            Role::Standby => "the standby",
            Role::Successor => "the new program",
            Role::Other => "a follower",
        };
        let pid = link.who.pid.unwrap_or_default();
        match lost {
            Lost::Dismissed => {}
            Lost::Gone => warn!("{whom} (pid {pid}) has gone"),
            Lost::Hangs => warn!("{whom} (pid {pid}) takes nothing, and is given up"),
            Lost::Malformed(malformed) => {
                warn!("{whom} (pid {pid}) is given up: protocol error: {malformed}");
            }
            Lost::Failed(errno) => {
                warn!("{whom} (pid {pid}) is given up: {}", strerror(*errno));
            }
            Lost::DidNotServe(why) => {
                warn!("{whom} (pid {pid}) was to take over, and does not: {why}");
            }
        }
        match (link.role, &mut self.standby) {
            (Role::Standby, Some(standby)) => {
                let now = clock::now();
                standby.again(link.synced_at.map(|since| now - since), now);
            }
            (Role::Successor, _) => self.successor_left(clock::now()),
            _ => {}
        }
    }

    fn give_up_who_hangs(&mut self) {
        let now = clock::now();
        for key in self.link_keys() {
            if let Some(link) = self.links.get_mut(key) {
                let is_behind = self.hold.mirrors.is_behind(link.mirror);
                link.behind_since = is_behind.then(|| link.behind_since.unwrap_or(now));
            }
            if self.hangs_at(key).is_some_and(|deadline| deadline <= now) {
                self.lose(key, &Lost::Hangs);
            }
        }
    }

    /// When a follower is given up, if it takes nothing until then.
    fn hangs_at(&self, key: usize) -> Option<Instant> {
        let link = self.links.get(key)?;
        // One that had nothing to do for long has not been taking nothing for long.
        let behind = link.behind_since.map(|since| link.progress.max(since) + FOLLOWER_PATIENCE);
        // Whatever it was, one that never says that it has everything is of no use.
        let unsynced = link.synced_at.is_none().then(|| link.progress + KEEP_PATIENCE);
        behind.into_iter().chain(unsynced).min()
    }

    /// Nobody follows any more.
    pub(super) fn dismiss_followers(&mut self) {
        self.standby = None;
        self.abandon_upgrade();
        for key in self.link_keys() {
            self.lose(key, &Lost::Dismissed);
        }
    }

    /// When something is due about followers.
    pub(super) fn followers_deadline(&self) -> Option<Instant> {
        let links = self.links.iter().flat_map(|(key, link)| {
            [link.retry, link.deaf_until, self.hangs_at(key), link.hand_over_at()]
                .into_iter()
                .flatten()
        });
        let standby = self.standby.as_ref().and_then(Standby::due);
        let upgrade = self.upgrade.as_ref().map(Upgrade::due);
        let systemd = self.shelf.as_ref().and_then(|shelf| shelf.retry_at);
        links.chain(standby).chain(upgrade).chain(systemd).min()
    }

    /// Another process holds everything now.
    pub(super) fn was_taken_over(&mut self, by: Option<i32>) {
        self.standby = None;
        self.ended = Some(Ended::TakenOver { by });
    }
}
