//! The event loop: sockets, timers and signals around a store.

use crate::access::{Rules, User};
use crate::courier::Crew;
use crate::credentials;
use crate::deadlines::Deadlines;
use crate::limits::{
    ACCEPTS_PER_TURN, CONNECTIONS_MAX, CONNECTIONS_MAX_DEFAULT, FDS_MAX, FDS_MAX_DEFAULT,
    FDS_RESERVED, READ_LEN,
};
use crate::peer::{Gone, Peer};
use crate::privileges::raise_open_files;
use crate::signals::Signals;
use crate::store::Store;
use fdholder::{strerror, Errno, Timestamp, LEAP_SECONDS};
use rustix::event::{epoll, Timespec};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{accept_with, SocketFlags};
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
};
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// What a server is told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections at once; more wait in the socket's queue.
    pub connections_max: usize,
    /// Descriptors held at most.
    pub fds_max: usize,
    /// How long a client may take between two signs of life in the middle of something.
    pub client_timeout: Option<Duration>,
    /// How long clients may finish what they began once SIGTERM has come.
    pub lame_duck_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX_DEFAULT,
            fds_max: FDS_MAX_DEFAULT,
            client_timeout: None,
            lame_duck_timeout: None,
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Descriptors that were held, and are gone now.
    pub held: usize,
    /// Clients that were cut off.
    pub clients: usize,
}

/// A daemon: one listening socket, its clients, and what they have it hold.
pub struct Server {
    listener: OwnedFd,
    signals: Signals,
    epoll: OwnedFd,
    /// Rings when the next descriptor expires, by the real-time clock, and when that
    /// clock is set.
    expiry_timer: OwnedFd,
    /// What the timer is set to; `None` once it has rung.
    expiry_armed: Option<Timestamp>,
    store: Store<OwnedFd>,
    crew: Crew,
    rules: Rules,
    user: User,
    peers: Slab<Peer>,
    /// When clients in the middle of something are dropped.
    deadlines: Deadlines,
    /// When clients are served again although nothing happens.
    turns: Deadlines,
    options: Options,
    accepting: Accepting,
    /// Whether epoll watches the listener.
    listening: bool,
    buffer: Vec<u8>,
}

/// Whether new clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// All connections are in use.
    Full,
    /// The system had no resources for one more.
    PausedUntil(Instant),
    /// SIGTERM has come; the deadline is when those still here are cut off.
    LameDuck(Option<Instant>),
}

/// How long to wait when the system has no resources for a new client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Reads from each client when SIGTERM has come: more than a socket's buffer holds.
const LAST_READS: usize = 16;

/// Tokens of what is not a client; clients are numbered from 0.
const LISTENER: u64 = u64::MAX;
const TERM: u64 = u64::MAX - 1;
const HUP: u64 = u64::MAX - 2;
const EXPIRY: u64 = u64::MAX - 3;

/// Marks the token of a client's courier.
const COURIER: u64 = 1 << 62;

/// Has the kernel make the process's table of descriptors as large as it can become. While
/// there are couriers, making it larger would stop the loop for milliseconds each time.
fn grow_descriptor_table(any: impl AsFd, len: usize) {
    let highest = i32::try_from(len.saturating_sub(1)).unwrap_or(i32::MAX);
    // If it cannot be had now, it will be tried again when it is needed.
    drop(fcntl_dupfd_cloexec(any, highest));
}

impl Server {
    /// Prepares a server on a listening Unix stream socket. Raises the soft limit on open
    /// files, and lowers what is asked for to what that allows: see
    /// [`capacity`](Self::capacity).
    ///
    /// # Errors
    ///
    /// When a system call fails, or not even one descriptor could be held.
    pub fn new(
        listener: OwnedFd,
        rules: Rules,
        signals: Signals,
        options: Options,
    ) -> io::Result<Self> {
        let open_files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
        let available = open_files.saturating_sub(FDS_RESERVED);
        let connections_max = options.connections_max.clamp(1, CONNECTIONS_MAX).min(available / 2);
        let capacity = options.fds_max.clamp(1, FDS_MAX).min(available - connections_max);
        if connections_max == 0 || capacity == 0 {
            return Err(io::Error::other(format!(
                "the hard limit on open files, {open_files}, is too low to hold anything; it takes \
                 {} or more", FDS_RESERVED + 2
            )));
        }
        // The listener is not one of the descriptors held for others.
        let flags = fcntl_getfl(&listener)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&listener, flags | OFlags::NONBLOCK)?;
        }
        // Accepted sockets would inherit it, and credentials take the room of descriptors.
        set_socket_passcred(&listener, false)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        grow_descriptor_table(&epoll, capacity + connections_max + FDS_RESERVED);
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let expiry_timer = timerfd_create(TimerfdClockId::Realtime, timer_flags)?;
        let sources: [(BorrowedFd<'_>, u64); 4] = [
            (listener.as_fd(), LISTENER),
            (signals.term(), TERM),
            (signals.hup(), HUP),
            (expiry_timer.as_fd(), EXPIRY),
        ];
        for (source, token) in sources {
            epoll::add(&epoll, source, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
        }
        Ok(Self {
            listener,
            signals,
            epoll,
            expiry_timer,
            expiry_armed: None,
            store: Store::new(capacity),
            crew: Crew::new(options.client_timeout),
            rules,
            user: User::this_process(),
            peers: Slab::new(),
            deadlines: Deadlines::default(),
            turns: Deadlines::default(),
            options: Options { connections_max, ..options },
            accepting: Accepting::Yes,
            listening: true,
            buffer: vec![0; READ_LEN],
        })
    }

    /// How many descriptors this server can hold.
    pub fn capacity(&self) -> usize {
        self.store.capacity()
    }

    /// Serves until SIGTERM has come and every client has finished, or the time for that
    /// is up.
    ///
    /// # Errors
    ///
    /// Only when the loop itself cannot go on.
    pub fn run(mut self) -> io::Result<Ended> {
        let mut events = Vec::with_capacity(256);
        while !self.has_ended() {
            self.set_expiry_timer();
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    TERM => self.begin_lame_duck(),
                    HUP => self.reload(),
                    EXPIRY => self.expiry_timer_rang(),
                    // A slab's key.
                    token if token & COURIER != 0 => self.hear_courier((token & !COURIER) as usize),
                    token => {
                        self.notice_hang_up(token as usize, event.flags);
                        self.serve(token as usize);
                    }
                }
            }
            self.store.expire(Timestamp::now());
            self.attend_to_clocks(Instant::now());
        }
        Ok(Ended { held: self.store.len(), clients: self.peers.len() })
    }

    /// A lame duck ends when nobody is in the middle of anything, or its time is up.
    fn has_ended(&self) -> bool {
        match self.accepting {
            Accepting::LameDuck(deadline) => {
                !self.peers.iter().any(|(_, peer)| peer.is_busy())
                    || deadline.is_some_and(|deadline| deadline <= Instant::now())
            }
            _ => false,
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.accepting != Accepting::Yes || self.peers.len() >= self.options.connections_max
            {
                return;
            }
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket),
                Err(Errno::AGAIN) => return,
                // The client gave up, or a signal came.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(errno) => {
                    warn!("unable to accept a client: {}; trying again", strerror(errno));
                    self.accepting = Accepting::PausedUntil(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Lets a client in, or closes the connection.
    fn admit(&mut self, socket: OwnedFd) {
        let who = match credentials::of_peer(&socket) {
            Ok(who) => who,
            Err(errno) => return warn!("unable to see who connects: {}", strerror(errno)),
        };
        let rights = match self.rules.rights(who.user, self.user) {
            Ok(rights) => rights,
            Err(refusal @ crate::access::Refusal::Broken { .. }) => {
                return warn!("{who} refused, error in the rules: {refusal}");
            }
            Err(refusal) => return debug!("{who} refused: {refusal}"),
        };
        let peer = Peer::new(socket, who, rights);
        let entry = self.peers.vacant_entry();
        let token = entry.key();
        let data = epoll::EventData::new_u64(token as u64);
        if let Err(errno) = epoll::add(&self.epoll, peer.socket(), data, peer.interest) {
            return warn!("unable to watch a client: {}", strerror(errno));
        }
        debug!("{who} connected");
        let peer = entry.insert(peer);
        let deadline = self.options.client_timeout.map(|timeout| Instant::now() + timeout);
        self.deadlines.set(token, &mut peer.deadline, deadline);
    }

    /// A client that is not read from may have gone all the same; its delivery with it.
    fn notice_hang_up(&mut self, token: usize, flags: epoll::EventFlags) {
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if hung_up && self.peers.get(token).is_some_and(Peer::is_delivering) {
            self.let_go(token, &Gone::Closed);
        }
    }

    /// A delivery has ended.
    fn hear_courier(&mut self, token: usize) {
        if let Some(peer) = self.peers.get_mut(token) {
            peer.hear_courier();
            self.restart_clock(token);
            self.serve(token);
        }
    }

    /// Does what there is to do for one client. An event may speak of a client that has
    /// just gone, or of its place's next owner: either is harmless. Returns whether there
    /// was anything to do.
    fn serve(&mut self, token: usize) -> bool {
        let Some(peer) = self.peers.get_mut(token) else {
            return false;
        };
        let watched = peer.interest;
        let progress = match peer.serve(&mut self.store, &self.crew, &mut self.buffer) {
            Ok(progress) => progress,
            Err(gone) => {
                self.let_go(token, &gone);
                return false;
            }
        };
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
        let again = peer.again();
        self.turns.set(token, &mut peer.turn, again);
        if progress {
            self.restart_clock(token);
        }
        progress
    }

    /// Gives a client its time anew, if it has one and there is something to be in time for.
    fn restart_clock(&mut self, token: usize) {
        if let Some((timeout, peer)) = self.options.client_timeout.zip(self.peers.get_mut(token)) {
            let deadline = peer.is_timed().then(|| Instant::now() + timeout);
            self.deadlines.set(token, &mut peer.deadline, deadline);
        }
    }

    fn let_go(&mut self, token: usize, why: &Gone) {
        let mut peer = self.peers.remove(token);
        self.deadlines.set(token, &mut peer.deadline, None);
        self.turns.set(token, &mut peer.turn, None);
        match why {
            Gone::Malformed(_) | Gone::Failed(Errno::TIMEDOUT) => {
                warn!("{} dropped: {why}", peer.who);
            }
            Gone::Closed | Gone::Failed(_) => debug!("{} gone: {why}", peer.who),
        }
    }

    /// Does what has become due: clients to try again, to drop, to let in.
    fn attend_to_clocks(&mut self, now: Instant) {
        while let Some(token) = self.turns.passed(now) {
            self.turns.set(token, &mut self.peers[token].turn, None);
            self.serve(token);
        }
        while let Some(token) = self.deadlines.passed(now) {
            self.let_go(token, &Gone::Failed(Errno::TIMEDOUT));
        }
        let full = self.peers.len() >= self.options.connections_max;
        self.accepting = match self.accepting {
            Accepting::LameDuck(_) => self.accepting,
            Accepting::PausedUntil(until) if now < until => self.accepting,
            _ if full => Accepting::Full,
            _ => Accepting::Yes,
        };
        let listen = self.accepting == Accepting::Yes;
        if listen != self.listening {
            let flags = if listen { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(LISTENER);
            match epoll::modify(&self.epoll, &self.listener, data, flags) {
                Ok(()) => self.listening = listen,
                Err(errno) => warn!("unable to watch the listening socket: {}", strerror(errno)),
            }
        }
    }

    fn begin_lame_duck(&mut self) {
        if self.signals.take_term() && !matches!(self.accepting, Accepting::LameDuck(_)) {
            // What was sent before the signal is still answered.
            let tokens: Vec<_> = self.peers.iter().map(|(token, _)| token).collect();
            for token in tokens {
                // A client that never stops sending must not keep us.
                for _ in 0..LAST_READS {
                    if !self.serve(token) {
                        break;
                    }
                }
            }
            let timeout = self.options.lame_duck_timeout;
            self.accepting = Accepting::LameDuck(timeout.map(|span| Instant::now() + span));
        }
    }

    fn reload(&mut self) {
        if self.signals.take_hup() {
            if let Err(refusal) = self.rules.reload() {
                warn!("the rules in force stay: {refusal}");
            }
        }
    }

    /// When the loop must wake at the latest, by the monotonic clock.
    fn timeout(&self) -> Option<Timespec> {
        let accepting = match self.accepting {
            Accepting::PausedUntil(until) => Some(until),
            Accepting::LameDuck(deadline) => deadline,
            Accepting::Yes | Accepting::Full => None,
        };
        let next = [accepting, self.deadlines.next(), self.turns.next()];
        let next = next.into_iter().flatten().min()?;
        let span = next.saturating_duration_since(Instant::now());
        // A span too long for a timespec is as good as none.
        Timespec::try_from(span).ok()
    }

    /// Sets the timer to the next expiry, if that has changed.
    fn set_expiry_timer(&mut self) {
        let next = self.store.next_expiry();
        if next == self.expiry_armed {
            return;
        }
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = next.map_or(never, |moment| {
            let unix = moment.label().saturating_sub((1 << 62) + LEAP_SECONDS);
            Timespec {
                // A timer set to 0 never rings; what has passed rings at once.
                tv_sec: i64::try_from(unix).unwrap_or(i64::MAX).max(1),
                tv_nsec: moment.nanos().into(),
            }
        });
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let value = Itimerspec { it_interval: never, it_value: value };
        match timerfd_settime(&self.expiry_timer, flags, &value) {
            // The clock was set since it was last looked at; the timer is set all the same.
            Ok(_) | Err(Errno::CANCELED) => {}
            // What has expired is still never handed out, only closed later.
            Err(errno) => warn!("unable to set the timer: {}", strerror(errno)),
        }
        self.expiry_armed = next;
    }

    fn expiry_timer_rang(&mut self) {
        // Reading silences it; ECANCELED says that the clock was set. Either way it is
        // set anew before the loop waits again.
        let _ = rustix::io::read(&self.expiry_timer, &mut [0; 8]);
        self.expiry_armed = None;
    }
}
