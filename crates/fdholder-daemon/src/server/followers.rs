//! Processes that follow: accepted, told of every change, given up.

use super::handover::hand_over_at;
use super::{Accepting, Ended, Server, LINK};
use crate::credentials::Credentials;
use crate::launch::Launch;
use crate::limits::{FOLLOWERS_MAX, FOLLOWER_PATIENCE, MIRROR_MESSAGES_PER_TURN, SEND_PAUSE};
use crate::peer::Gone;
use crate::replication::roll::Roll;
use fdholder::frame::Decoder;
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::link::{self, Head, Heard};
use fdholder::transport::{self, Wait};
use fdholder::{strerror, Errno};
use rustix::event::epoll;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long to wait before another standby is started when the last one never got ready;
/// twice as long each time.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// But never longer than this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How often to look whether a process has ended that was killed.
const REAP_PAUSE: Duration = Duration::from_millis(100);

/// A process that follows.
#[derive(Debug)]
pub(super) struct Link {
    pub who: Credentials,
    pub socket: OwnedFd,
    decoder: Decoder<OwnedFd>,
    /// Its key among the mirrors.
    pub mirror: usize,
    /// Its place on the roll.
    number: u32,
    /// It is our standby.
    is_standby: bool,
    /// It wants to serve in our place, since then.
    pub wants_over: Option<Instant>,
    /// It says that it does.
    pub has_committed: bool,
    /// It is known to have everything.
    has_everything: bool,
    /// When it last took something, or told that it had carried something out.
    progress: Instant,
    /// When to try again, as there was no room for descriptors in flight.
    retry: Option<Instant>,
    watched: epoll::EventFlags,
}

/// The standby that a server keeps, and how it is started.
#[derive(Debug)]
pub(super) struct Standby {
    launch: Launch,
    child: Option<Child>,
    /// The client that it is until it follows.
    token: Option<usize>,
    /// When to start the next one.
    start_at: Option<Instant>,
    pause: Duration,
}

impl Standby {
    pub fn new(launch: Launch) -> Self {
        let start_at = Some(Instant::now());
        Self { launch, child: None, token: None, start_at, pause: RESTART_PAUSE }
    }

    /// Ends the process, if there is one, and forgets it.
    fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
        }
    }

    /// Whether there is no process any more.
    fn is_gone(&mut self) -> bool {
        let gone = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if gone {
            self.child = None;
        }
        gone
    }

    /// Another one is to be started, sooner if this one was any good.
    fn again(&mut self, was_good: bool) {
        self.kill();
        self.token = None;
        self.pause = if was_good { RESTART_PAUSE } else { (self.pause * 2).min(RESTART_PAUSE_MAX) };
        let pause = if was_good { Duration::ZERO } else { self.pause };
        self.start_at = Some(Instant::now() + pause);
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
    /// It was to serve, and did not.
    DidNotServe,
    /// We are asked to end.
    Dismissed,
}

impl Server {
    /// A client wants to follow.
    pub(super) fn let_follow(&mut self, token: usize, capacity: u32) {
        match self.accept_follower(token, capacity) {
            Ok(()) => {}
            Err(errno) => {
                if let Some(peer) = self.peers.get_mut(token) {
                    peer.refuse_follower(errno);
                    self.serve(token);
                }
            }
        }
    }

    fn accept_follower(&mut self, token: usize, capacity: u32) -> Result<(), Errno> {
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return Err(Errno::SHUTDOWN);
        }
        let takes_over = self.links.iter().any(|(_, link)| link.wants_over.is_some());
        if takes_over || self.links.len() >= FOLLOWERS_MAX {
            return Err(Errno::BUSY);
        }
        let held = self.hold.store.len();
        if (capacity as usize) < held {
            return Err(Errno::NFILE);
        }
        if self.roll.is_none() {
            self.roll = Some(Roll::new()?);
        }
        let roll = self.roll.as_mut().ok_or(Errno::NOMEM)?;
        let about = Head {
            number: roll.enter(),
            pid: std::process::id(),
            count: held as u32,                          // At most FDS_MAX.
            capacity: self.hold.store.capacity() as u32, // At most FDS_MAX.
        };
        let first = link::head(about, self.listener.as_fd(), roll.file());
        let socket = self.peers.get(token).ok_or(Errno::BADF)?.socket();
        if transport::send(socket, first.bytes(), first.fds(), Wait::No)? != first.bytes().len() {
            return Err(Errno::MSGSIZE);
        }
        let is_standby = self.standby.as_ref().is_some_and(|standby| standby.token == Some(token));
        // The other end of a pair was made by ourselves.
        let child = self.standby.as_ref().filter(|_| is_standby).and_then(|s| s.child.as_ref());
        let who = self.peers.get(token).ok_or(Errno::BADF)?.who;
        let pid = child.and_then(|child| i32::try_from(child.id()).ok()).or(who.pid);
        let who = Credentials { pid, ..who };
        if let Some(standby) = self.standby.as_mut().filter(|_| is_standby) {
            standby.token = None;
        }
        let peer = self.remove(token);
        // Nothing else has it: it is in no message.
        let Some(socket) = peer.into_socket() else { return Ok(()) };
        let entry = self.links.vacant_entry();
        let data = epoll::EventData::new_u64(entry.key() as u64 | LINK);
        let watched = epoll::EventFlags::IN;
        epoll::modify(&self.epoll, &socket, data, watched)?;
        entry.insert(Link {
            who,
            socket,
            decoder: Decoder::new(REQUEST_PAYLOAD_MAX),
            mirror: self.hold.mirrors.add(&self.hold.store),
            number: about.number,
            is_standby,
            wants_over: None,
            has_committed: false,
            has_everything: false,
            progress: Instant::now(),
            retry: None,
            watched,
        });
        Ok(())
    }

    /// Tells followers what there is to tell, and then clients what depended on that.
    pub(super) fn tend_followers(&mut self) {
        self.tend_standby();
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
        self.serve_postponed();
        if self.links.is_empty() {
            // Nothing is waited for any more.
            return self.serve_gated();
        }
        loop {
            for key in self.link_keys() {
                self.tell(key, MIRROR_MESSAGES_PER_TURN);
            }
            let waiting = self.gated.len();
            self.serve_gated();
            if waiting == self.gated.len() {
                break;
            }
        }
        self.give_up_who_hangs();
        self.hand_over_if_due();
    }

    fn link_keys(&self) -> Vec<usize> {
        self.links.iter().map(|(key, _)| key).collect()
    }

    /// Sends a follower so many messages at most.
    pub(super) fn tell(&mut self, key: usize, budget: usize) {
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
                    link.progress = Instant::now();
                }
                Err(Errno::AGAIN) => {
                    waits_for_room = true;
                    break;
                }
                Err(Errno::TOOMANYREFS) => {
                    link.retry = Some(Instant::now() + SEND_PAUSE);
                    break;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => lost = Some(Lost::Gone),
                Err(errno) => lost = Some(Lost::Failed(errno)),
            }
            if lost.is_some() {
                break;
            }
        }
        if mirror.has_everything() && !link.has_everything {
            link.has_everything = true;
            let pid = link.who.pid.unwrap_or_default();
            if link.is_standby {
                info!("the standby (pid {pid}) has everything");
            }
        }
        // If only its turn was over, there is room, and it is served at once.
        waits_for_room |= link.retry.is_none() && mirror.front().is_some();
        let mut interest = epoll::EventFlags::IN;
        interest.set(epoll::EventFlags::OUT, waits_for_room);
        if interest != link.watched && lost.is_none() {
            let data = epoll::EventData::new_u64(key as u64 | LINK);
            match epoll::modify(&self.epoll, &link.socket, data, interest) {
                Ok(()) => link.watched = interest,
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
            Err(errno) => Lost::Failed(errno),
            Ok(received) => {
                let bytes = &self.hold.buffer[..received.len];
                link.decoder.push(bytes, received.fds, received.fds_lost);
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
                link.progress = Instant::now();
                match Heard::parse(&frame)? {
                    Heard::UpTo(up_to) => {
                        if let Some(mirror) = self.hold.mirrors.get_mut(link.mirror) {
                            mirror.has_carried_out(up_to);
                        }
                    }
                    Heard::TakeOver => link.wants_over = Some(Instant::now()),
                    Heard::Commit => link.has_committed = true,
                    Heard::Stop => is_to_stop = true,
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
        let was_good = self.hold.mirrors.remove(link.mirror);
        let whom = if link.is_standby { "the standby" } else { "a follower" };
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
            Lost::DidNotServe => {
                warn!("pid {pid} was to take over, and did not; this process goes on");
            }
        }
        if let Some(standby) = self.standby.as_mut().filter(|_| link.is_standby) {
            standby.again(was_good);
        }
    }

    fn give_up_who_hangs(&mut self) {
        let now = Instant::now();
        for key in self.link_keys() {
            if self.hangs_at(key).is_some_and(|deadline| deadline <= now) {
                self.lose(key, &Lost::Hangs);
            }
        }
    }

    /// When a follower is given up, if it takes nothing until then.
    fn hangs_at(&self, key: usize) -> Option<Instant> {
        let link = self.links.get(key)?;
        let is_behind = self.hold.mirrors.is_behind(link.mirror);
        is_behind.then(|| link.progress + FOLLOWER_PATIENCE)
    }

    /// Nobody follows any more.
    pub(super) fn dismiss_followers(&mut self) {
        self.standby = None;
        for key in self.link_keys() {
            self.lose(key, &Lost::Dismissed);
        }
    }

    /// When something is due about followers.
    pub(super) fn followers_deadline(&self) -> Option<Instant> {
        let links = self.links.iter().flat_map(|(key, link)| {
            [link.retry, self.hangs_at(key), hand_over_at(link)].into_iter().flatten()
        });
        let standby = self.standby.as_ref().and_then(|standby| standby.start_at);
        links.chain(standby).min()
    }

    /// Starts a standby when one is due.
    fn tend_standby(&mut self) {
        let Some(standby) = &mut self.standby else { return };
        let now = Instant::now();
        if standby.start_at.is_none_or(|at| at > now) {
            return;
        }
        if !standby.is_gone() {
            standby.start_at = Some(now + REAP_PAUSE);
            return;
        }
        standby.start_at = None;
        if let Err(error) = self.start_standby() {
            warn!("unable to start a standby: {error}");
            if let Some(standby) = &mut self.standby {
                standby.again(false);
            }
        }
    }

    fn start_standby(&mut self) -> std::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let token = self.let_in(ours).ok_or_else(|| std::io::Error::other("it is not let in"))?;
        let Some(standby) = &mut self.standby else { return Ok(()) };
        standby.token = Some(token);
        let child = standby.launch.start(&theirs)?;
        info!("a standby (pid {}) is started", child.id());
        standby.child = Some(child);
        Ok(())
    }

    /// A client has gone. If that was the standby, before it followed, there must be another.
    pub(super) fn notice_standby(&mut self, token: usize) {
        if let Some(standby) = self.standby.as_mut().filter(|s| s.token == Some(token)) {
            standby.again(false);
        }
    }

    /// The client that a standby is until it follows is not for the next daemon.
    pub(super) fn leave_standby(&mut self) {
        if let Some(token) = self.standby.as_ref().and_then(|standby| standby.token) {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// Another process holds everything now.
    pub(super) fn was_taken_over(&mut self, by: Option<i32>) {
        self.standby = None;
        self.ended = Some(Ended::TakenOver { by });
    }
}

/// The socket of a link, to wait for.
pub(super) fn socket_of(link: &Link) -> BorrowedFd<'_> {
    link.socket.as_fd()
}
