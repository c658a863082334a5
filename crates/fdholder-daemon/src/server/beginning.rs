//! How a server begins: with nothing, or with what another has left it.

use super::admission::PLACE_LEN;
use super::readiness::Readiness;
use super::standby::Standby;
use super::waiters::Waiters;
use super::wards::Wards;
use super::watchdog::Watchdog;
use super::{
    Accepting, Closing, Options, Server, CHILD, CLOSED, EXPIRY, HUP, LISTENER, NEWS, TERM, USR2,
};
use crate::access::{Rules, User};
use crate::audit::{Auditor, Throttle};
use crate::children::Launcher;
use crate::clock;
use crate::closing::{self, Bell};
use crate::courier::Crew;
use crate::deadlines::Deadlines;
use crate::expiry_timer::ExpiryTimer;
use crate::fdstore::shelf::Shelf;
use crate::fdstore::{Notifier, Past};
use crate::hold::Hold;
use crate::inheritance::Inheritance;
use crate::launch::Launch;
use crate::limits::{PEERS_PLACED_MAX, READ_LEN, SERIALS_SKIPPED};
use crate::lookout::Lookout;
use crate::memory::reserve::has_room;
use crate::peer::Peer;
use crate::replication::roll::{Place, Roll};
use crate::replication::Mirrors;
use crate::room::Room;
use crate::rota::Rota;
use crate::shares::Ledger;
use crate::signals::Signals;
use crate::tally::Tally;
use fdholder::{strerror, Errno, Timestamp};
use rustix::event::epoll;
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::set_socket_passcred;
use slab::Slab;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// How long to wait before something is tried again without which nothing can be served.
const INSIST_PAUSE: Duration = Duration::from_millis(50);

/// Does what may fail for want of resources; for as long as it takes, if what is held would
/// be lost otherwise.
fn insist<T>(is_heir: bool, mut what: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut is_said = false;
    loop {
        match what() {
            Err(errno) if is_heir => {
                if !std::mem::replace(&mut is_said, true) {
                    warn!("unable to serve yet: {}; trying again", strerror(errno));
                }
                clock::pause(INSIST_PAUSE);
            }
            result => return result,
        }
    }
}

/// Whether others can know who serves. If not, says what is left out for that.
fn can_be_followed(otherwise: &str) -> bool {
    let can_be = Roll::can_be();
    if !can_be {
        warn!(
            "it {otherwise}: the limit on the size of files (ulimit -f, LimitFSIZE=) is too low, \
             it takes 4 KiB"
        );
    }
    can_be
}

/// Places for so many clients; where there is no memory for these, it is asked for when they come.
fn places(count: usize) -> Slab<Peer> {
    if has_room(count * PLACE_LEN) {
        Slab::with_capacity(count)
    } else {
        Slab::new()
    }
}

pub(super) fn prepare(listener: &OwnedFd) -> Result<(), Errno> {
    // The listener is not one of the descriptors held for others.
    let flags = fcntl_getfl(listener)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(listener, flags | OFlags::NONBLOCK)?;
    }
    // Accepted sockets would inherit it, and credentials take the room of descriptors.
    set_socket_passcred(listener, false)
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
        let room = Room::make(&options)?;
        let inheritance = Inheritance::of(listener, room.capacity);
        Self::inherit(inheritance, room, rules, signals, options)
    }

    /// Prepares a server that goes on where another has ended, with the room that was made
    /// before: nothing that may fail is left for later.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    // A field a line.
    #[allow(clippy::too_many_lines)]
    pub fn inherit(
        inheritance: Inheritance,
        room: Room,
        rules: Rules,
        signals: Signals,
        options: Options,
    ) -> io::Result<Self> {
        let Inheritance { listener, former, mut store, clients, dropped: _, place } = inheritance;
        store.hold_with_peers(options.drop_hung_up);
        store.reserve();
        // Nobody else may have what this one has been left.
        let is_heir = !(store.is_empty() && clients.is_empty());
        match prepare(&listener) {
            // Whoever left it has prepared it.
            Err(errno) if is_heir => {
                warn!("unable to prepare the listening socket: {}", strerror(errno));
            }
            result => result?,
        }
        let epoll = insist(is_heir, || epoll::create(epoll::CreateFlags::CLOEXEC))?;
        room.grow_descriptor_table(&epoll);
        insist(is_heir, closing::begin).map_err(|errno| {
            let errno = strerror(errno);
            io::Error::other(format!("no thread can be started (see ulimit -u): {errno}"))
        })?;
        let lookout = insist(is_heir, Lookout::begin).map_err(|errno| {
            let errno = strerror(errno);
            io::Error::other(format!("no thread can be started (see ulimit -u): {errno}"))
        })?;
        let expiry_timer = insist(is_heir, ExpiryTimer::new)?;
        let bell = insist(is_heir, Bell::new)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let bell_data = epoll::EventData::new_u64(CLOSED);
        insist(is_heir, || epoll::add(&epoll, &bell, bell_data, edge))?;
        let sources: [(BorrowedFd<'_>, u64); 7] = [
            (listener.as_fd(), LISTENER),
            (signals.term(), TERM),
            (signals.hup(), HUP),
            (signals.usr2(), USR2),
            (signals.child(), CHILD),
            (expiry_timer.as_fd(), EXPIRY),
            (lookout.as_fd(), NEWS),
        ];
        for (source, token) in sources {
            let data = epoll::EventData::new_u64(token);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            insist(is_heir, || epoll::add(&epoll, source, data, flags))?;
        }
        let user = User::this_process();
        let hold = Hold {
            store,
            mirrors: Mirrors::default(),
            crew: Crew::new(options.client_timeout),
            tally: Tally::default(),
            ledger: Ledger::new(room.sizes(room.connections_max), room.reserves()),
            auditor: Auditor::new(options.audit),
            buffer: vec![0; READ_LEN],
        };
        let mut server = Self {
            listener,
            former: Vec::new(),
            socket_file: None,
            signals,
            epoll,
            expiry_timer,
            hold,
            rules,
            user,
            peers: places(room.connections_max.min(PEERS_PLACED_MAX)),
            gated: BTreeSet::new(),
            borrowers: BTreeSet::new(),
            closing: Closing { waiting: BTreeSet::new(), bell, some_is_closed: false },
            swept_at: HashMap::new(),
            deadlines: Deadlines::default(),
            rota: Rota::default(),
            options: Options { connections_max: room.connections_max, ..options },
            accepting: Accepting::Yes,
            accept_failed_at: None,
            listening: true,
            has_lost_listener: false,
            links: Slab::new(),
            roll: None,
            place,
            is_new: true,
            standby: None,
            successor: None,
            launcher: None,
            hears_launcher: false,
            upgrade: None,
            is_upgrade_due: false,
            is_to_resume: true,
            shelf: None,
            readiness: None,
            watchdog: None,
            settles_until: None,
            is_starved: false,
            is_handing_over: false,
            handed: clients,
            undecided: None,
            full_since: HashMap::new(),
            ended: None,
            started: Timestamp::now(),
            configuration: None,
            room,
            wards: Wards::default(),
            lookout,
            asking: BTreeSet::new(),
            asking_until: None,
            listening_told: Vec::new(),
            waiters: Waiters::default(),
            throttle: Throttle::default(),
        };
        for former in former {
            server.keep_former_listener(former);
        }
        Ok(server)
    }

    /// Has the server start its child processes by this.
    #[must_use]
    pub fn with_launcher(self, launcher: Launcher) -> Self {
        Self { launcher: Some(launcher), ..self }
    }

    /// Has the server see to it that a standby follows it, which it starts in this way.
    #[must_use]
    pub fn with_standby(self, launch: Launch) -> Self {
        if !can_be_followed("has no standby") {
            return self;
        }
        Self { standby: Some(Standby::new(launch)), ..self }
    }

    /// Has the server keep a copy of everything in systemd's store of descriptors.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left for it.
    pub fn with_fdstore(
        mut self,
        notifier: impl Into<Arc<Notifier>>,
        past: &Past,
    ) -> io::Result<Self> {
        if !can_be_followed("keeps nothing with systemd") {
            return Ok(self);
        }
        if !past.is_known {
            self.hold.store.skip_serials(SERIALS_SKIPPED);
        }
        let Hold { store, mirrors, .. } = &mut self.hold;
        let mut told = Shelf::new(notifier, mirrors, store, past);
        if !past.has_listener() {
            let is_heir = !self.hold.store.is_empty();
            let listener = insist(is_heir, || fcntl_dupfd_cloexec(&self.listener, 0))?;
            told.keep_listener(Arc::new(listener));
        }
        let before = self.place.as_ref().map_or(0, Place::generation).max(past.generation);
        let roll = insist(!self.hold.store.is_empty(), || Roll::new(before + 1))?;
        // Whoever starts with what systemd has sees by it whether we serve.
        if self.is_pending() {
            roll.settle(false);
        }
        told.keep_roll(&roll);
        self.roll = Some(roll);
        if past.is_known {
            told.begin();
        }
        self.shelf = Some(told);
        Ok(self)
    }

    /// Has the loop say that it goes round, to one who takes it for dead when it has not for so
    /// long.
    #[must_use]
    pub fn with_watchdog(self, notifier: impl Into<Arc<Notifier>>, patience: Duration) -> Self {
        Self { watchdog: Some(Watchdog::new(notifier, patience, Instant::now())), ..self }
    }

    /// Has the server tell systemd that it is ready, with this status, once it serves.
    #[must_use]
    pub fn with_readiness(self, notifier: impl Into<Arc<Notifier>>, status: &str) -> Self {
        Self { readiness: Some(Readiness::new(notifier, status, clock::now())), ..self }
    }

    /// Has the server become this program when it is asked to: by SIGUSR2, or by a client.
    #[must_use]
    pub fn with_successor(self, launch: Launch) -> Self {
        Self { successor: Some(launch), ..self }
    }
}
