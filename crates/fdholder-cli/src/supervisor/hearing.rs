//! What programs and people say to a supervisor.

use super::control::{Asker, Control, Request};
use super::machine::{Event, Number, Phase};
use super::{
    as_line, GenerationReport, Report, State, Supervisor, ASKERS_MAX, DATAGRAMS_PER_TURN,
    HOLDER_PATIENCE, REGISTER_PAUSE, REQUESTS_PER_TURN,
};
use crate::start::notify::Datagram;
use crate::start::{self, Source};
use fdholder::{strerror, Errno};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

impl Supervisor<'_> {
    /// Reads what a generation has sent to its notify socket. Returns whether that was all.
    pub(super) fn hear_program(&mut self, number: Number) -> bool {
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(process) = self.processes.get_mut(&number) else { return true };
            let passed = process.notify.pass_pending();
            let pid = process.pid.as_raw_nonzero().get().unsigned_abs();
            let next = process.notify.next(pid);
            let is_pending = process.notify.is_pending();
            if let Err(errno) = passed {
                self.lose_door(errno);
            }
            let Some(datagram) = next else { return !is_pending };
            self.obey(number, datagram);
        }
        false
    }

    fn obey(&mut self, number: Number, datagram: Datagram) {
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
        if said.is_ready && matches!(phase, Some(Phase::Starting { .. })) {
            self.is_ready(number);
        }
    }

    fn pass_to_holder(&mut self, number: Number, datagram: Datagram) {
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
        if let Err(errno) = process.notify.pass_to_holder(&address, datagram) {
            self.lose_door(errno);
        }
    }

    /// The holder does not read what PROG stores. Another one may be there by now.
    fn lose_door(&mut self, errno: Errno) {
        self.warn(format_args!(
            "what the program has stored does not reach the holder: {}",
            strerror(errno)
        ));
        let Some((service, _)) = &self.door else { return };
        let source = Source::of(self.invocation, self.holder_path.clone(), true);
        let mut source = source.impatient(HOLDER_PATIENCE);
        match start::open_door(self.invocation, service, &self.holder_path, &mut source) {
            Ok(door) => self.door = Some((service.clone(), door)),
            Err(failure) => self.warn(failure),
        }
    }

    /// Carries out what was asked by the control socket.
    pub(super) fn hear_requests(&mut self) {
        for _ in 0..REQUESTS_PER_TURN {
            let next = self.control.as_ref().map_or(Ok(None), Control::next);
            match next {
                Ok(Some((Request::Status, asker))) => asker.answer(&as_line(&self.report())),
                Ok(Some((Request::Restart, asker))) if self.askers >= ASKERS_MAX => {
                    refuse(asker, "too many wait for a restart");
                }
                Ok(Some((Request::Restart, asker))) => {
                    self.askers += 1;
                    self.feed(Event::Restart(Some(asker)));
                }
                Ok(None) => return,
                Err(_) => {
                    // The holder has ended, or somebody has deleted it there.
                    self.control = None;
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
        let warn = move |problem| {
            // Who cannot be told need not know.
            let _ = writeln!(std::io::stderr(), "{prefix}: {problem}");
        };
        match Control::register(self.holder_path.clone(), &self.service, warn) {
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
            askers: self.askers,
            last_restart: last,
            starts: self.starts.clone(),
            time_to_ready_ms: millis(self.time_to_ready),
        }
    }
}

fn refuse(asker: Asker, why: &str) {
    let report = super::RestartReport {
        result: "refused".to_owned(),
        text: why.to_owned(),
        ..super::RestartReport::default()
    };
    asker.answer(&as_line(&report));
}
