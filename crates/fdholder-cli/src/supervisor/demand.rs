//! Clients that wait for a program that does not run, and those of one that does.

use super::machine::{Event, Exit};
use super::wakes::Wakes;
use super::{Supervisor, HOLDER_PATIENCE};
use crate::failure::{exit, Failure};
use crate::start::{self, Source};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often clients of a running program are looked for, at most.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// How long to wait for clients before it is looked whether something else is held.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The pause before descriptors are asked for again, where the holder did not give them.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long a holder may take the first time, when nothing else is to be done yet: an address that is
/// in use is tried for a second.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// What PROG would be given, as far as clients come there.
#[derive(Debug, Default)]
pub struct Demand {
    fds: Vec<OwnedFd>,
    wakes: Option<Wakes>,
    look_at: Option<Instant>,
    /// Why the holder did not give them, so that this is said once.
    problem: Option<String>,
}

impl Demand {
    /// What to wait for while no program runs.
    pub fn awaited(&self, wants_clients: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().filter(move |_| wants_clients).map(AsFd::as_fd)
    }

    /// The next program may be given others.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether a client has come since the last time, or waits.
    fn has_had_clients(&mut self) -> bool {
        if self.wakes.is_none() {
            // Without them a client is seen only while it waits.
            self.wakes = Wakes::of(&self.fds).ok();
        }
        let have_come = self.wakes.as_ref().map(|wakes| wakes.have_come(&self.fds));
        if matches!(have_come, Some(Err(_))) {
            self.wakes = None;
        }
        matches!(have_come, Some(Ok(true))) || self.has_waiting_clients()
    }

    fn has_waiting_clients(&self) -> bool {
        let polled = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut polled: Vec<_> = self.fds.iter().map(|fd| polled(fd.as_fd())).collect();
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

impl Supervisor<'_> {
    fn clients_matter(&self) -> bool {
        self.machine.waits_for_clients() || self.machine.idle_at().is_some()
    }

    /// When to look for clients: at once where they have begun to matter.
    pub(super) fn look_at(&self, now: Instant) -> Option<Instant> {
        self.clients_matter().then(|| self.demand.look_at.unwrap_or(now))
    }

    /// Gets what clients come by, if that matters, and looks whether a running program has any.
    pub(super) fn look_for_clients(&mut self, now: Instant) {
        if !self.clients_matter() {
            self.demand.look_at = None;
            return;
        }
        // Before it is stopped for having none there is one more look.
        let is_idle = self.machine.idle_at().is_some_and(|at| at <= now);
        if !is_idle && self.demand.look_at.is_some_and(|at| now < at) {
            return;
        }
        if self.demand.fds.is_empty() || self.machine.waits_for_clients() {
            let source = Source::of(self.invocation, self.holder_path.clone(), false);
            let is_first = !self.machine.is_announced();
            let patience = if is_first { FIRST_PATIENCE } else { HOLDER_PATIENCE };
            match start::descriptors(self.invocation, source.impatient(patience)) {
                Ok(mut fds) => {
                    fds.retain(start::clients_come_by);
                    if fds.is_empty() {
                        return self.lacks_clients(now, &start::no_clients());
                    }
                    self.demand.fds = fds;
                    self.demand.problem = None;
                }
                Err(failure) => return self.lacks_clients(now, &failure),
            }
            self.feed(Event::Listening);
        }
        if self.machine.idle_at().is_some() {
            self.demand.look_at = Some(now + LOOK_PAUSE);
            if self.demand.has_had_clients() {
                self.feed(Event::Active);
            }
        } else {
            self.demand.look_at = Some(now + LOOK_AGAIN);
        }
    }

    /// There is nothing that clients come by: as `exec` does, `run` ends if there never was.
    fn lacks_clients(&mut self, now: Instant, failure: &Failure) {
        // A holder that does not answer may have ended, and these may be the last copies.
        if failure.code() != exit::SYSTEM {
            self.demand.fds.clear();
        }
        // Who cannot see clients must not take a program for idle.
        if self.machine.idle_at().is_some() {
            self.feed(Event::Active);
        }
        self.demand.look_at = Some(now + RETRY_PAUSE);
        let problem = Some(failure.to_string());
        if self.demand.problem != problem {
            self.warn(failure);
        }
        self.demand.problem = problem;
        if !self.machine.is_announced() && failure.code() == exit::USAGE {
            self.end = Some(Exit::Code(failure.code()));
        }
    }
}
