//! What programs and people say to a supervisor.

use super::control::{Asker, Claim, Control, Request};
use super::machine::{Event, Number, Phase};
use super::{
    as_line, GenerationReport, Report, State, Supervisor, ASKERS_MAX, DATAGRAMS_PER_TURN,
    HOLDER_PATIENCE, REGISTER_PAUSE, REQUESTS_PER_TURN,
};
use crate::show::lines;
use crate::start::notify::{Datagram, Next, Unsent};
use crate::start::{self, Source};
use fdholder::{strerror, Errno};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

impl Supervisor<'_> {
    /// Reads what a generation has sent to its notify socket. Returns whether that was all.
    pub(super) fn hear_program(&mut self, number: Number) -> bool {
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(process) = self.processes.get_mut(&number) else { return true };
            if let Err(unsent) = process.notify.pass_pending() {
                self.pass_again(number, *unsent);
                continue;
            }
            let pid = process.pid.as_raw_nonzero().get().unsigned_abs();
            match process.notify.next(pid) {
                Next::Datagram(datagram) => {
                    self.heard = number;
                    self.obey(number, datagram);
                }
                Next::Later => return false,
                Next::Nothing => return !process.notify.is_pending(),
            }
        }
        false
    }

    fn obey(&mut self, number: Number, datagram: Box<Datagram>) {
        let said = datagram.said.clone();
        if let Some(by) = said.extends {
            self.feed(Event::Extend(number, by));
        }
        let is_speaker = self.machine.speaker() == Some(number);
        if let Some(process) = self.processes.get_mut(&number) {
            if said.status.is_some() {
                process.status.clone_from(&said.status);
            }
        }
        let generations = self.machine.generations().iter();
        let phase = generations.filter(|it| it.number == number).map(|it| it.phase).next();
        let mut passed_on = said.passed_on.clone();
        if !self.machine.is_stopping() {
            // This generation stops, but not the service.
            let is_kept = |line: &&str| !line.starts_with("STOPPING=");
            passed_on = passed_on.split_inclusive('\n').filter(is_kept).collect();
        }
        if let Some(status) = &said.status {
            // Writing to a string does not fail.
            let _ = writeln!(passed_on, "STATUS={status}");
        }
        if said.is_ready && phase == Some(Phase::Ready) {
            // It has loaded its configuration again.
            passed_on.push_str("READY=1\n");
        }
        if is_speaker && !passed_on.is_empty() {
            self.upward.pass_on(&passed_on);
        }
        if said.is_for_store || (said.is_state() && is_speaker) {
            self.pass_to_holder(number, datagram);
        }
        if said.is_ready && self.counts_ready && matches!(phase, Some(Phase::Starting { .. })) {
            self.is_ready(number);
        }
    }

    fn pass_to_holder(&mut self, number: Number, datagram: Box<Datagram>) {
        let Some((_, door)) = &self.door else {
            if datagram.said.stores {
                self.warn(format_args!(
                    "generation {number} stores descriptors (FDSTORE=1), which takes --notify: \
                     they are not held"
                ));
            }
            return;
        };
        let address = door.address().to_owned();
        let Some(process) = self.processes.get_mut(&number) else { return };
        if let Err(unsent) = process.notify.pass_to_holder(&address, datagram) {
            self.pass_again(number, *unsent);
        }
    }

    /// The holder did not take it. Another one may be there by now, and is given it once more.
    fn pass_again(&mut self, number: Number, unsent: Unsent) {
        let Unsent { datagram, mut errno } = unsent;
        let is_for_store = datagram.said.is_for_store;
        // The holder reads on where this process may not speak for a sender.
        if errno != Errno::PERM {
            self.reopen_door();
            let address = self.door.as_ref().map(|(_, door)| door.address().to_owned());
            let process = self.processes.get_mut(&number);
            if let Some((address, process)) = address.zip(process) {
                match process.notify.pass_to_holder(&address, Box::new(datagram)) {
                    Ok(()) => return,
                    Err(unsent) => errno = unsent.errno,
                }
            }
        }
        if is_for_store {
            self.warn(format_args!(
                "what generation {number} stores does not reach the holder: {}",
                strerror(errno)
            ));
        }
    }

    /// Has the holder that is there now read what PROG stores. One that does not answer keeps this
    /// process from everything else, so it is asked once in a while.
    fn reopen_door(&mut self) {
        let now = Instant::now();
        if self.door_at.is_some_and(|at| now < at + REGISTER_PAUSE) {
            return;
        }
        self.door_at = Some(now);
        let Some((service, _)) = &self.door else { return };
        let source = Source::of(self.invocation, self.holder_path.clone(), true);
        let mut source = source.impatient(HOLDER_PATIENCE);
        match start::open_door(self.invocation, service, &self.holder_path, &mut source) {
            Ok(door) => self.door = Some((service.clone(), door)),
            Err(failure) => self.warn(failure),
        }
        // What it took counts, too.
        self.door_at = Some(Instant::now());
    }

    /// Carries out what was asked by the control socket.
    pub(super) fn hear_requests(&mut self) {
        for _ in 0..REQUESTS_PER_TURN {
            let next = self.control.as_ref().map_or(Ok(None), Control::next);
            match next {
                Ok(Some((Request::Status, asker))) => asker.answer(&as_line(&self.report())),
                Ok(Some((Request::Restart, asker))) => {
                    if self.askers.len() >= ASKERS_MAX {
                        self.askers.retain(Asker::waits);
                        self.machine.forget_askers(|asker| !asker.waits());
                    }
                    if self.askers.len() >= ASKERS_MAX {
                        refuse(&asker, "too many wait for a restart");
                    } else {
                        self.askers.push(asker.clone());
                        self.feed(Event::Restart(Some(asker)));
                    }
                }
                Ok(None) => return,
                Err(_) => {
                    // The holder has ended, or somebody has deleted it there: another run of this
                    // name, perhaps, which keeps it.
                    self.control = None;
                    self.claim = Claim::IfFree;
                    self.register_at = Some(Instant::now() + REGISTER_PAUSE);
                    return;
                }
            }
        }
    }

    /// Has the holder hold the control socket.
    pub(super) fn register(&mut self) {
        self.register_at = None;
        let prefix = format!("{}: warning: {}", self.invocation.called, self.name);
        let warn = move |problem: String| lines::say(&format!("{prefix}: {problem}"));
        match Control::register(self.holder_path.clone(), &self.service, self.claim, warn) {
            Ok(control) => self.control = Some(control),
            Err(failure) => self.warn(failure),
        }
    }

    /// What `status` shows.
    fn report(&self) -> Report {
        let now = Instant::now();
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let generation = |it: &super::machine::Generation| GenerationReport {
            number: it.number,
            pid: self
                .processes
                .get(&it.number)
                .map_or(0, |process| process.pid.as_raw_nonzero().get().unsigned_abs()),
            state: match it.phase {
                Phase::Starting { .. } => State::Starting,
                Phase::Ready => State::Ready,
                Phase::Stopping { .. } | Phase::Killed => State::Draining,
            },
            since_ms: millis(now.saturating_duration_since(it.since)),
        };
        let last = self.last_restart.as_ref().map(|(report, at)| {
            let ago_ms = millis(now.saturating_duration_since(*at));
            super::RestartReport { ago_ms, ..report.clone() }
        });
        Report {
            name: self.name.clone(),
            pid: std::process::id(),
            generations: self.machine.generations().iter().map(generation).collect(),
            waits_for_clients: self.machine.waits_for_clients(),
            askers: self.askers.iter().filter(|asker| asker.waits()).count(),
            last_restart: last,
            starts: self.starts.clone(),
            time_to_ready_ms: millis(self.time_to_ready),
        }
    }
}

fn refuse(asker: &Asker, why: &str) {
    let report = super::RestartReport {
        result: "refused".to_owned(),
        text: why.to_owned(),
        ..super::RestartReport::default()
    };
    asker.answer(&as_line(&report));
}

/// All generations, those after `last` first.
pub(super) fn in_turn<T>(
    all: &BTreeMap<Number, T>,
    last: Number,
) -> impl Iterator<Item = (&Number, &T)> {
    let next = last.saturating_add(1);
    all.range(next..).chain(all.range(..next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_that_was_heard_last_is_the_last_to_be_read() {
        let all = BTreeMap::from([(3, 'a'), (5, 'b'), (6, 'c')]);
        let order = |last| in_turn(&all, last).map(|(number, _)| *number).collect::<Vec<_>>();
        assert_eq!([0, 3, 5, 6].map(order), [[3, 5, 6], [5, 6, 3], [6, 3, 5], [3, 5, 6]]);
        assert_eq!([4, Number::MAX].map(order), [[5, 6, 3], [3, 5, 6]]);
    }
}
