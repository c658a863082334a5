//! The event loop: sockets, timers and signals around a store.

mod admission;
mod auditing;
mod beginning;
mod clients;
mod configuration;
mod doors;
mod followers;
mod handover;
mod memory;
mod readiness;
mod settling;
mod socket_file;
mod standby;
mod status;
#[cfg(test)]
mod tests;
mod upgrade;
mod waiters;
mod wards;
mod watchdog;

use crate::access::{Rules, User};
use crate::audit::Throttle;
use crate::children::Launcher;
use crate::clock;
use crate::closing::{self, Bell, ClientFd, Gathering};
use crate::deadlines::Deadlines;
use crate::expiry_timer::ExpiryTimer;
use crate::fdstore::shelf::Shelf;
use crate::hold::Hold;
use crate::launch::Launch;
use crate::limits::{
    ACCEPTS_PER_TURN, CLIENT_PATIENCE, CONNECTIONS_MAX_DEFAULT, EXPIRED_PER_TURN, FDS_MAX_DEFAULT,
};
use crate::lookout::Lookout;
use crate::peer::Peer;
use crate::reading::{is_transient, RETRY_PAUSE};
use crate::replication::roll::{Place, Roll};
use crate::room::Room;
use crate::rota::Rota;
use crate::signals::Signals;
pub use configuration::{Reload, Reloaded};
use fdholder::link::HandedClient;
use fdholder::{Errno, Listening, Timestamp};
use followers::Link;
use readiness::Readiness;
use rustix::event::{epoll, Timespec};
use slab::Slab;
use socket_file::SocketFile;
use standby::Standby;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use upgrade::Upgrade;
use waiters::Waiters;
use wards::Wards;
use watchdog::Watchdog;

/// What a server is told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections at once. What others have taken of them does not keep root out.
    pub connections_max: usize,
    /// Descriptors held at most.
    pub fds_max: usize,
    /// How long a client may take in the middle of something until it has finished a request,
    /// or taken a message.
    pub client_timeout: Option<Duration>,
    /// How long it may take until it has made its first request.
    pub first_timeout: Option<Duration>,
    /// Whether everything goes when its peer does, as what programs for systemd store does.
    pub drop_hung_up: bool,
    /// How long clients may finish what they began once SIGTERM has come.
    pub lame_duck_timeout: Option<Duration>,
    /// Log who was refused what, and who has changed what.
    pub audit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX_DEFAULT,
            fds_max: FDS_MAX_DEFAULT,
            client_timeout: Some(CLIENT_PATIENCE),
            first_timeout: None,
            drop_hung_up: false,
            lame_duck_timeout: None,
            audit: false,
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped {
        /// Descriptors that were held, and are gone now.
        held: usize,
        /// Descriptors that systemd keeps.
        kept: usize,
        /// Clients that were cut off.
        clients: usize,
    },
    /// The listening socket is of no use any more: nobody can come. Otherwise as asked to.
    Lost {
        /// Descriptors that were held, and are gone now.
        held: usize,
        /// Descriptors that systemd keeps.
        kept: usize,
    },
    /// Another process holds everything now.
    TakenOver {
        /// Which, if it can be seen from here.
        by: Option<i32>,
    },
}

/// A daemon: one listening socket, its clients, and what they have it hold.
// Each is about something of its own.
#[allow(clippy::struct_excessive_bools)]
pub struct Server {
    listener: OwnedFd,
    /// Where clients came in before its file was made again, the latest last.
    former: Vec<OwnedFd>,
    /// Its file, if that is looked after.
    socket_file: Option<SocketFile>,
    signals: Signals,
    epoll: OwnedFd,
    expiry_timer: ExpiryTimer,
    hold: Hold,
    rules: Rules,
    user: User,
    peers: Slab<Peer>,
    /// Clients whose replies wait for followers.
    gated: BTreeSet<usize>,
    /// Clients of whom it is not known yet whether they have what they were lent.
    borrowers: BTreeSet<usize>,
    closing: Closing,
    /// For whom all clients were looked at, and when.
    swept_at: HashMap<u32, Instant>,
    /// When clients in the middle of something are dropped.
    deadlines: Deadlines,
    /// Whose turn it is.
    rota: Rota,
    options: Options,
    accepting: Accepting,
    /// When the last attempt to let one in has failed, which was said.
    accept_failed_at: Option<Instant>,
    /// Whether epoll watches the listener.
    listening: bool,
    /// It is of no use any more.
    has_lost_listener: bool,
    /// Processes that follow.
    links: Slab<Link>,
    /// Who of them may serve when we are gone; `None` while nobody has to know.
    roll: Option<Roll>,
    /// The place of the daemon before, which is ours for as long as we live.
    place: Option<Place>,
    /// Nothing has changed since that one had it.
    is_new: bool,
    /// The one that we see to ourselves.
    standby: Option<Standby>,
    /// The program to become when that is asked for.
    successor: Option<Launch>,
    /// What starts child processes, and whether epoll watches it.
    launcher: Option<Launcher>,
    hears_launcher: bool,
    upgrade: Option<Upgrade>,
    /// One was asked for before there could be one.
    is_upgrade_due: bool,
    /// Clients that were handed over are not served yet.
    is_to_resume: bool,
    /// What systemd is told of everything.
    shelf: Option<Shelf>,
    /// What systemd is told once this serves, until it was.
    readiness: Option<Readiness>,
    /// Whoever is told that the loop goes round.
    watchdog: Option<Watchdog>,
    /// Nobody is served until there is a second copy, or until then.
    settles_until: Option<Instant>,
    /// There was no memory, and clients may wait for it.
    is_starved: bool,
    /// A follower is to serve: clients that are in the middle of nothing wait.
    is_handing_over: bool,
    /// Clients that another daemon has served, until this one does.
    handed: Vec<HandedClient<Arc<ClientFd>>>,
    /// One that has come when there was no room to read the rules, or for another connection of root
    /// or the daemon's own user. Others wait behind it.
    undecided: Option<Arc<ClientFd>>,
    /// Since when each of those two found none.
    full_since: HashMap<u32, Instant>,
    /// How the server has ended.
    ended: Option<Ended>,
    /// When it began to serve.
    started: Timestamp,
    /// How to read the configuration again.
    configuration: Option<Reload>,
    /// Clients that there is room for.
    room: Room,
    /// What is held and looked after.
    wards: Wards,
    /// Looks at devices and listeners that are held.
    lookout: Lookout,
    /// Clients that are told how the server is once listeners are measured, and until when that
    /// may take.
    asking: BTreeSet<usize>,
    asking_until: Option<Instant>,
    /// What was measured last.
    listening_told: Vec<Listening>,
    /// Clients that wait until something is held.
    waiters: Waiters,
    /// Lets pass as many warnings of what clients do as people read.
    throttle: Throttle,
}

/// Clients whose replies wait until something is closed.
struct Closing {
    waiting: BTreeSet<usize>,
    /// Rings when something is, here.
    bell: Arc<Bell>,
    /// It has, or a follower has closed something, or need not any more.
    some_is_closed: bool,
}

/// Whether new clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// One has come of this user, who may have all there is, and has: until one of its connections
    /// goes, or until then.
    Full {
        uid: u32,
        until: Instant,
    },
    /// The system had no resources for one more.
    PausedUntil(Instant),
    /// SIGTERM has come; the deadline is when those still here are cut off.
    LameDuck(Option<Instant>),
}

/// Events that are read at once.
const EVENTS_PER_TURN: usize = 256;

/// Turns of each client when SIGTERM has come: more than what a socket's buffer holds takes.
const LAST_READS: usize = 512;

/// Tokens of what is not a client; clients are numbered from 0.
const LISTENER: u64 = u64::MAX;
const TERM: u64 = u64::MAX - 1;
const HUP: u64 = u64::MAX - 2;
const EXPIRY: u64 = u64::MAX - 3;
const USR2: u64 = u64::MAX - 4;
const CHILD: u64 = u64::MAX - 5;
const CLOSED: u64 = u64::MAX - 6;
const CHILDREN: u64 = u64::MAX - 7;
const NEWS: u64 = u64::MAX - 8;
const FORMER: u64 = u64::MAX - 9;
const CLAIM: u64 = u64::MAX - 10;

/// Marks the token of a client's courier, and that of a follower.
const COURIER: u64 = 1 << 62;
const LINK: u64 = 1 << 61;

/// And that of something held that the server itself looks after.
const CARE: u64 = 1 << 60;

impl Server {
    /// How many descriptors this server can hold.
    pub fn capacity(&self) -> usize {
        self.hold.store.capacity()
    }

    /// How many it holds.
    pub fn held(&self) -> usize {
        self.hold.store.len()
    }

    /// Serves until SIGTERM has come and every client has finished, or the time for that
    /// is up, or another process has taken over.
    ///
    /// # Errors
    ///
    /// Only when the loop itself cannot go on.
    pub fn run(mut self) -> io::Result<Ended> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let _gathering = Gathering::begin();
        self.tell_systemd();
        loop {
            if let Some(ended) = self.turn(&mut events)? {
                return Ok(ended);
            }
        }
    }

    /// Does what is due, waits until something happens, and does what that needs. Returns how the
    /// server has ended, if it has.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<Option<Ended>> {
        self.look_after_memory();
        self.resume_once();
        self.look_after_wards();
        self.look_for_listeners();
        self.tend_followers();
        self.begin_upgrade_that_is_due();
        self.let_leave();
        if let Some(ended) = self.has_ended() {
            return Ok(Some(ended));
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.tend(Instant::now());
        }
        // Before that another process may have to serve.
        if !self.is_new {
            self.readiness.take_if(|readiness| readiness.tend(clock::now()));
        }
        self.expiry_timer.set(self.hold.store.next_expiry());
        let span = self.timeout();
        let timeout = span.and_then(|span| Timespec::try_from(span).ok());
        // Nobody waits for what was closed between requests, but it is closed now.
        drop(closing::begun());
        events.clear();
        let wait = clock::Wait::of(span);
        let waited =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref());
        wait.end(waited == Err(Errno::INTR));
        match waited {
            Ok(_) => {}
            // What there is to do by the clock is done all the same.
            Err(errno) if errno == Errno::AGAIN || is_transient(errno) => {
                clock::sleep(RETRY_PAUSE);
            }
            Err(errno) => return Err(errno.into()),
        }
        self.take_turn(events);
        Ok(None)
    }

    /// A turn of the loop, in which this has happened.
    fn take_turn(&mut self, events: &[epoll::Event]) {
        // When little happens a single client has come: to find that nobody else has takes
        // half as long as to let one in.
        let accepts = if events.len() > 2 { ACCEPTS_PER_TURN } else { 1 };
        for event in events {
            match event.data.u64() {
                LISTENER => self.hear_listener(event.flags, accepts),
                FORMER => self.hear_former(event.flags, accepts),
                CLAIM => self.hear_claim(event.flags),
                TERM => self.term_came(),
                HUP => self.hup_came(),
                USR2 => self.usr2_came(),
                CHILD => self.reap_orphans(),
                CHILDREN => self.hear_children(),
                EXPIRY => self.expiry_timer.rang(),
                CLOSED => self.closing.some_is_closed = true,
                NEWS => self.hear_lookout(),
                // Keys of slabs, or places in the store.
                token if token & COURIER != 0 => self.hear_courier((token & !COURIER) as usize),
                token if token & LINK != 0 => self.hear_link((token & !LINK) as usize),
                token if token & CARE != 0 => self.hear_ward((token & !CARE) as u32),
                token => {
                    let flags = event.flags;
                    self.notice_hang_up(token as usize, flags);
                    // Who has gone is let go; it would be told of again and again.
                    let has_gone = flags.contains(epoll::EventFlags::HUP);
                    if has_gone || !self.pauses(token as usize) {
                        self.serve_in_turn(token as usize, clock::now());
                    }
                }
            }
        }
        self.hold.expire(Timestamp::now(), EXPIRED_PER_TURN);
        let now = clock::now();
        self.serve_whose_turn_it_is(now);
        self.wake_waiters();
        self.attend_to_clocks(now);
        self.tell_what_was_left_out(now);
        self.tend_socket_file(now);
        self.rota.end_turn(now);
    }

    /// A lame duck ends when nobody is in the middle of anything, or its time is up. Before its place
    /// is its own its predecessor would go on, whom nobody has asked to end.
    fn has_ended(&self) -> Option<Ended> {
        let Accepting::LameDuck(deadline) = self.accepting else { return self.ended };
        // Nor before those are served who were served there.
        if self.is_pending() || self.is_to_resume {
            return None;
        }
        let is_over = !self.peers.iter().any(|(_, peer)| peer.is_busy())
            || deadline.is_some_and(|deadline| deadline <= clock::now());
        let held = self.hold.store.len();
        let kept = if self.shelf.is_some() { held } else { 0 };
        let held = held - kept;
        is_over.then(|| {
            if self.has_lost_listener {
                return Ended::Lost { held, kept };
            }
            Ended::Stopped { held, kept, clients: self.peers.len() }
        })
    }

    fn term_came(&mut self) {
        if self.signals.take_term() {
            self.begin_lame_duck();
        }
    }

    fn usr2_came(&mut self) {
        if self.signals.take_usr2() {
            self.begin_upgrade();
        }
    }

    fn begin_lame_duck(&mut self) {
        if matches!(self.accepting, Accepting::LameDuck(_)) {
            return;
        }
        // Whatever comes of what was taken over, it comes of it here.
        self.settles_until = None;
        self.tell_systemd();
        // Who has come before the signal may be told of behind it.
        self.accept(ACCEPTS_PER_TURN, None);
        let timeout = self.options.lame_duck_timeout;
        self.accepting = Accepting::LameDuck(timeout.map(|span| clock::now() + span));
        self.stop_clocks();
        // Whoever is asked to end does not want to be followed.
        self.dismiss_followers();
        // What was sent before the signal is still answered.
        let tokens: Vec<_> = self.peers.iter().map(|(token, _)| token).collect();
        for token in tokens {
            // A client that never stops sending must not keep us.
            for _ in 0..LAST_READS {
                if !self.serve(token, clock::now()) {
                    break;
                }
            }
        }
    }

    fn hup_came(&mut self) {
        if self.signals.take_hup() {
            self.look_at_socket_file();
            self.reload();
        }
    }

    /// How long the loop may wait at most.
    fn timeout(&self) -> Option<Duration> {
        let accepting = match self.accepting {
            Accepting::PausedUntil(until) | Accepting::Full { until, .. } => Some(until),
            Accepting::LameDuck(deadline) => deadline.filter(|_| !self.is_pending()),
            Accepting::Yes => None,
        };
        let followers = self.followers_deadline();
        // Its clock is the one of who watches.
        let due = |watchdog: &Watchdog| watchdog.due().saturating_duration_since(Instant::now());
        let watchdog = self.watchdog.as_ref().map(|watchdog| clock::now() + due(watchdog));
        let readiness = self.readiness.as_ref().filter(|_| !self.is_new).map(Readiness::due);
        let left_out = self.left_out_due();
        let (deadline, turn) = (self.deadlines.next(), self.rota.next());
        let doors = self.wards.rest_until;
        let undecided = self.may_decide().then(clock::now);
        let resumes = self.is_to_resume_now().then(clock::now);
        let fresh = self.hold.store.has_fresh().then(clock::now);
        let (asking, socket) = (self.asking_until, self.socket_file_due());
        let next = [accepting, undecided, deadline, turn, followers, watchdog, doors, left_out];
        let next = next.into_iter().chain([fresh, resumes, asking, socket, readiness]);
        clock::wait_until(next.flatten().min())
    }
}
