//! Clients that wait for a program that does not run, and those of one that does.

use super::machine::Event;
use super::Supervisor;
use crate::start::{self, Source};
use rustix::event::epoll;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often clients of a running program are looked for, at most.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// How long to wait for clients before it is looked whether something else is held.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The pause before descriptors are asked for again, where the holder did not give them.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What PROG would be given, as far as clients come there.
#[derive(Debug, Default)]
pub struct Demand {
    fds: Vec<OwnedFd>,
    /// Tells once when a client comes by one of them.
    watch: Option<OwnedFd>,
    look_at: Option<Instant>,
}

impl Demand {
    /// What to wait for while no program runs.
    pub fn awaited(&self, wants_clients: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().filter(move |_| wants_clients).map(AsFd::as_fd)
    }

    /// When to look again.
    pub fn due(&self) -> Option<Instant> {
        self.look_at
    }

    /// The next program may be given others.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Has the watch tell of the next client, and returns whether one has come since the last time.
    fn has_had_clients(&mut self) -> bool {
        let Ok(watch) = self.watched() else { return true };
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 8];
        let none = rustix::event::Timespec::default();
        let count = epoll::wait(&watch, &mut events[..], Some(&none)).unwrap_or(0);
        for fd in &self.fds {
            let _ = epoll::modify(&watch, fd, epoll::EventData::new_u64(0), ONCE);
        }
        self.watch = Some(watch);
        count > 0
    }

    fn watched(&mut self) -> rustix::io::Result<OwnedFd> {
        if let Some(watch) = self.watch.take() {
            return Ok(watch);
        }
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in &self.fds {
            epoll::add(&watch, fd, epoll::EventData::new_u64(0), ONCE)?;
        }
        Ok(watch)
    }
}

/// By edges: a client that comes and is accepted at once is seen, too.
const ONCE: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::ET).union(epoll::EventFlags::ONESHOT);

impl Supervisor<'_> {
    /// Gets what clients come by, if that matters, and looks whether a running program has any.
    pub(super) fn look_for_clients(&mut self, now: Instant) {
        let matters = self.machine.waits_for_clients() || self.machine.watches_activity();
        if !matters {
            self.demand.look_at = None;
            return;
        }
        if self.demand.look_at.is_some_and(|at| now < at) {
            return;
        }
        if self.demand.fds.is_empty() || self.machine.waits_for_clients() {
            let source = Source::of(self.invocation, self.holder_path.clone(), false);
            match start::descriptors(self.invocation, source) {
                Ok(mut fds) => {
                    fds.retain(start::clients_come_by);
                    self.demand.fds = fds;
                }
                Err(failure) => {
                    self.warn(failure);
                    self.demand.look_at = Some(now + RETRY_PAUSE);
                    return;
                }
            }
        }
        if self.machine.watches_activity() {
            self.demand.look_at = Some(now + LOOK_PAUSE);
            if self.demand.has_had_clients() {
                self.feed(Event::Active);
            }
        } else {
            self.demand.look_at = Some(now + LOOK_AGAIN);
        }
    }
}
