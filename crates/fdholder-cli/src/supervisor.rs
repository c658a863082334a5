//! `run`: one service under any supervisor, whose next generation starts beside the last one.
//!
//! [`machine`] decides, and makes no system call. What is here waits for events, tells the machine,
//! and carries out what it says.

pub mod child;
pub mod control;
mod demand;
mod group;
pub mod machine;
mod niceness;
mod origin;
mod output;
mod process;
mod reaping;
pub mod report;
pub mod signals;
mod strays;
mod upward;
mod wakes;

use self::control::{Asker, Claim, Control};
use self::demand::Demand;
use self::machine::{Action, Event, Exit, Life, Machine, Number, Outcome, Policy};
use self::niceness::Niceness;
use self::origin::Origin;
use self::process::{Launch, Process};
use self::report::{in_words, GenerationReport, Report, RestartReport, State};
use self::signals::{Asked, Signals};
use self::upward::Upward;
use crate::failure::{exit, Failure};
use crate::passing::front_door::FrontDoor;
use crate::program::Invocation;
use crate::show::lines;
use crate::show::terminal::harmless;
use crate::start::folder::Folder;
use crate::start::notify::{close_elsewhere, NotifySocket, UNCLOSED_PAUSE};
use crate::start::{self, Source};
use fdholder::strerror;
use fdholder_daemon::embedded::Holder;
use nix::sys::signal::Signal;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Clients that wait for a restart at most. Each has a descriptor.
const ASKERS_MAX: usize = 64;

/// Requests that are read before anything else is done again.
const REQUESTS_PER_TURN: usize = 16;

/// Datagrams of one generation, likewise.
const DATAGRAMS_PER_TURN: usize = 64;

/// How long a holder may keep `run` from everything else.
const HOLDER_PATIENCE: Duration = Duration::from_millis(300);

/// The pause before the control socket is given to the holder again.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);

/// How long a program that is ready may take to open what it listens on.
const STRAYS_AFTER: Duration = Duration::from_secs(2);

/// What the command line says of the supervisor.
#[derive(Debug)]
pub struct Settings {
    pub name: OsString,
    pub policy: Policy,
    pub stop_signal: Signal,
    pub ready_fd: Option<u32>,
    pub has_ready_command: bool,
    /// The service whose FDSTORE goes into the holder.
    pub notify: Option<OsString>,
    /// The descriptor that gets a newline once the service is ready.
    pub notify_fd: Option<u32>,
    /// The niceness that is added to a generation which starts beside another.
    pub start_nice: Option<u32>,
}

/// A service that is running.
pub struct Supervisor<'a> {
    invocation: &'a Invocation,
    name: String,
    machine: Machine<Asker>,
    launch: Launch,
    processes: BTreeMap<Number, Process>,
    /// The generation whose datagram was read last: the others come before it, as what it sends may
    /// keep all from being read for a while.
    heard: Number,
    signals: Signals,
    upward: Upward,
    control: Option<Control>,
    register_at: Option<Instant>,
    claim: Claim,
    /// Where the holder reads what PROG stores.
    door: Option<(OsString, FrontDoor)>,
    /// Whether READY=1 makes a generation ready: only where that was asked for. gunicorn sends it
    /// before it loads the application, and a version that cannot be loaded would take over.
    counts_ready: bool,
    demand: Demand,
    holder_path: PathBuf,
    service: OsString,
    /// Who waits for a restart.
    askers: Vec<Asker>,
    /// When the holder was last asked to read what PROG stores.
    door_at: Option<Instant>,
    last_restart: Option<(RestartReport, Instant)>,
    starts: BTreeMap<String, u64>,
    time_to_ready: Duration,
    /// When to look at how a generation uses its sockets.
    strays_at: Option<(Number, Instant)>,
    end: Option<Exit>,
    folder: Folder,
    own_holder: Option<Holder>,
}

/// What has something to read.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Signals,
    Control,
    Demand,
    Upward,
    Notify(Number),
    Newline(Number),
    Report(Number),
}

impl<'a> Supervisor<'a> {
    /// Gets ready to start PROG.
    ///
    /// # Errors
    ///
    /// When the command line cannot be carried out, whatever happens later.
    pub fn new(invocation: &'a Invocation, settings: Settings) -> Result<Self, Failure> {
        start::check(invocation)?;
        let origin = Origin::take();
        let begun = lines::begin().and_then(|()| close_elsewhere());
        begun.map_err(|error| Failure::system("start a thread", error))?;
        let upward = Upward::of_environment(settings.notify_fd)?;
        let folder = Folder::make()?;
        let mut holder = None;
        let holder_path = if let Some(path) = invocation.optional::<PathBuf>("path") {
            path
        } else {
            let path = folder.path().join("holder");
            let started = Holder::start(&path);
            holder = Some(started.map_err(|error| Failure::system("start a holder", error))?);
            path
        };
        let mut door = None;
        if let Some(service) = &settings.notify {
            let mut source = Source::of(invocation, holder_path.clone(), true);
            let opened = start::open_door(invocation, service, &holder_path, &mut source)?;
            door = Some((service.clone(), opened));
        }
        // No sooner: until then a signal ends this process, which may wait for a holder.
        let signals = Signals::take().map_err(|error| Failure::system("take signals", error))?;
        // One that is only given time to start needs all of it.
        let start_nice = settings.start_nice.or(settings.policy.ready_after.map(|_| 0));
        let launch = Launch {
            stop_signal: settings.stop_signal as i32,
            ready_fd: settings.ready_fd,
            has_ready_command: settings.has_ready_command,
            holder: holder.as_ref().map(|_| holder_path.clone()),
            has_watchdog: upward.has_watchdog(),
            origin,
            niceness: Niceness::of(start_nice)?,
            gives_way: settings.policy.start_timeout.map(|timeout| timeout / 2),
        };
        let tells_otherwise = settings.ready_fd.is_some() || settings.has_ready_command;
        let counts_ready = settings.policy.ready_after.is_none()
            && (settings.notify.is_some() || !tells_otherwise);
        Ok(Self {
            invocation,
            name: settings.name.to_string_lossy().into_owned(),
            machine: Machine::new(settings.policy),
            launch,
            processes: BTreeMap::new(),
            heard: 0,
            signals,
            upward,
            control: None,
            register_at: Some(Instant::now()),
            claim: Claim::First,
            door,
            counts_ready,
            demand: Demand::default(),
            holder_path,
            service: settings.name,
            askers: Vec::new(),
            door_at: None,
            last_restart: None,
            starts: BTreeMap::new(),
            time_to_ready: Duration::ZERO,
            strays_at: None,
            end: None,
            folder,
            own_holder: holder,
        })
    }

    /// Runs the service until it ends; returns how.
    ///
    /// # Errors
    ///
    /// When this process cannot wait for events any more.
    pub fn run(mut self) -> Result<Exit, Failure> {
        self.feed(Event::Begin);
        loop {
            if let Some(exit) = self.end.take() {
                return Ok(exit);
            }
            for ready in self.wait()? {
                self.hear(ready);
            }
            let now = Instant::now();
            self.reap(now);
            self.run_probes(now);
            if self.register_at.is_some_and(|at| at <= now) {
                self.register();
            }
            self.look_for_clients(now);
            self.look_for_strays(now);
            self.upward.retry(now);
            self.upward.keep_watchdog_quiet(self.machine.is_serving(), now);
            let mut actions = Vec::new();
            self.machine.tick(now, &mut actions);
            self.carry_out(actions);
            self.take_niceness_back(now);
        }
    }

    /// Waits until something has come, or something is due.
    fn wait(&mut self) -> Result<Vec<Ready>, Failure> {
        let now = Instant::now();
        let due = self.processes.values().flat_map(|it| [it.probe_at(), it.last_words_at(now)]);
        let strays_at = self.strays_at.map(|(_, at)| at);
        let watchdog_at = self.upward.watchdog_at(self.machine.is_serving());
        let due = due.chain([self.machine.timeout(), self.register_at, self.look_at(now)]);
        let due = due.chain([strays_at, watchdog_at, self.upward.retry_at()]);
        let due = due.chain(self.processes.values().map(Process::gives_way_until));
        let mut left = due.flatten().min().map(|at| at.saturating_duration_since(now));
        let soon =
            |left: Option<_>| Some(left.map_or(UNCLOSED_PAUSE, |left| UNCLOSED_PAUSE.min(left)));
        let mut awaited: Vec<(Ready, BorrowedFd<'_>, bool)> =
            vec![(Ready::Signals, self.signals.as_fd(), false)];
        if let Some(control) = &self.control {
            match control.awaited() {
                Some(fd) => awaited.push((Ready::Control, fd, false)),
                None => left = soon(left),
            }
        }
        let wants_clients = self.machine.waits_for_clients();
        awaited.extend(self.upward.awaited().map(|fd| (Ready::Upward, fd, true)));
        awaited.extend(self.demand.awaited(wants_clients).map(|fd| (Ready::Demand, fd, false)));
        let mut again = Vec::new();
        for (number, process) in hearing::in_turn(&self.processes, self.heard) {
            if let Some((fd, is_for_writing)) = process.notify.awaited() {
                awaited.push((Ready::Notify(*number), fd, is_for_writing));
            } else {
                left = soon(left);
                again.extend(process.notify.is_pending().then_some(Ready::Notify(*number)));
            }
            let ready = process.ready.iter().map(|fd| (Ready::Newline(*number), fd.as_fd(), false));
            awaited.extend(ready);
            let report = process.report.iter();
            awaited.extend(report.map(|fd| (Ready::Report(*number), fd.as_fd(), false)));
        }
        let flags = |is_for_writing| if is_for_writing { PollFlags::OUT } else { PollFlags::IN };
        let mut polled: Vec<_> =
            awaited.iter().map(|(_, fd, out)| PollFd::from_borrowed_fd(*fd, flags(*out))).collect();
        let timeout = left.map(|left| {
            // Not a little too early, which would be once more for nothing.
            let left = left + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for events", errno)),
        }
        let has_come = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let ready = awaited.iter().zip(&polled).filter(|(_, polled)| has_come(polled));
        Ok(ready.map(|((ready, _, _), _)| *ready).chain(again).collect())
    }

    fn hear(&mut self, ready: Ready) {
        match ready {
            Ready::Signals => self.hear_signals(),
            Ready::Control => self.hear_requests(),
            Ready::Demand => self.feed(Event::Demand),
            Ready::Notify(number) => {
                self.hear_program(number);
            }
            Ready::Upward => self.upward.send_waiting(),
            Ready::Newline(number) => {
                if self.processes.get_mut(&number).is_some_and(Process::read_ready) {
                    self.is_ready(number);
                }
            }
            Ready::Report(number) => {
                if self.processes.get_mut(&number).is_some_and(Process::read_report) {
                    self.feed(Event::Executed(number));
                }
            }
        }
    }

    fn hear_signals(&mut self) {
        for asked in self.signals.come() {
            match asked {
                Asked::Restart => self.feed(Event::Restart(None)),
                // Ctrl-C for the second time.
                Asked::Stop(Signal::SIGINT) if self.machine.is_stopping() => {
                    self.feed(Event::Kill);
                }
                Asked::Stop(_) => self.feed(Event::Stop),
                Asked::PassOn(signal) => {
                    // Before it is PROG the signal would end it.
                    let speaker = self.machine.speaker().filter(|it| self.is_prog(*it));
                    if let Some(process) = speaker.and_then(|it| self.processes.get(&it)) {
                        process.signal(signal as i32);
                    }
                }
                // Looked after each turn.
                Asked::Child => {}
            }
        }
    }

    fn run_probes(&mut self, now: Instant) {
        let starting = self.machine.generations().iter();
        let starting: Vec<_> =
            starting.filter(|it| it.is_starting()).map(|it| (it.number, it.life)).collect();
        for (number, process) in &mut self.processes {
            match starting.iter().find(|(starting, _)| starting == number) {
                Some((_, Life::Prog)) => process.run_probe(now),
                Some(_) => {}
                None => process.end_probe(),
            }
        }
    }

    /// From those that are ready, start for too long, or while nobody serves any more.
    fn take_niceness_back(&mut self, now: Instant) {
        let gives_way = |number| {
            let mut all = self.machine.generations().iter();
            self.machine.is_serving() && all.any(|it| it.number == number && it.is_starting())
        };
        let mut failed = Vec::new();
        for (number, process) in &mut self.processes {
            if !gives_way(*number) || process.gives_way_until().is_some_and(|until| until <= now) {
                failed.extend(process.take_niceness_back().err().map(|errno| (*number, errno)));
            }
        }
        for (number, errno) in failed {
            self.warn(format_args!(
                "generation {number} stays nicer than it was: {}: see --start-nice",
                strerror(errno)
            ));
        }
    }

    /// Whether the process of a generation has become PROG, and lives.
    fn is_prog(&self, number: Number) -> bool {
        let mut all = self.machine.generations().iter();
        all.any(|it| it.number == number && it.life == Life::Prog)
    }

    fn look_for_strays(&mut self, now: Instant) {
        let Some((number, _)) = self.strays_at.filter(|(_, at)| *at <= now) else { return };
        self.strays_at = None;
        let process = self.processes.get(&number).filter(|process| process.is_alive());
        let Some(process) = process else { return };
        if let Some(problem) = strays::look(process.pid.as_raw_nonzero().get().unsigned_abs()) {
            self.warn(problem);
        }
    }

    fn feed(&mut self, event: Event<Asker>) {
        let mut actions = Vec::new();
        self.machine.handle(Instant::now(), event, &mut actions);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action<Asker>>) {
        for action in actions {
            match action {
                Action::Start(number) => self.start(number),
                Action::Stop(number) => self.stop(number),
                Action::Kill(number) => {
                    if self.processes.get_mut(&number).is_some_and(Process::kill) {
                        self.warn(format_args!("generation {number} does not stop: killed"));
                    }
                }
                Action::Answer(asker, outcome) => self.answer(&asker, &outcome),
                Action::Note(outcome) => self.note(&outcome),
                Action::Tell(told) => {
                    let speaker = self.machine.speaker().and_then(|it| self.processes.get(&it));
                    let status = speaker.and_then(|process| process.status.as_deref());
                    self.upward.tell(told, status);
                }
                Action::End(exit) => self.end = Some(exit),
            }
        }
    }

    fn start(&mut self, number: Number) {
        self.demand.forget();
        let notify = NotifySocket::make(self.folder.path(), None).map_err(io::Error::other);
        let started = notify.and_then(|notify| {
            let notify = if self.own_holder.is_some() { notify.unjudged() } else { notify };
            let gives_way = self.machine.is_serving();
            Process::start(&self.launch, number, notify, gives_way, Instant::now())
        });
        match started {
            Ok(process) => {
                let pid = process.pid.as_raw_nonzero();
                self.info(format_args!("generation {number} (pid {pid}) is starting"));
                self.processes.insert(number, process);
            }
            Err(error) => {
                let why = format!("unable to start a process: {error}");
                let exit = Exit::NotStarted { code: exit::SYSTEM, why };
                self.feed(Event::Ended { number, exit, leaves_others: false });
            }
        }
    }

    fn stop(&mut self, number: Number) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.stop(self.launch.stop_signal);
        if process.is_over() {
            self.info(format_args!("what generation {number} has left is told to stop"));
        } else {
            self.info(format_args!("generation {number} is told to stop"));
        }
    }

    fn answer(&mut self, asker: &Asker, outcome: &Outcome) {
        let report = self.restart_report(outcome);
        asker.answer(&as_line(&report));
        self.askers.retain(Asker::waits);
    }

    fn restart_report(&self, outcome: &Outcome) -> RestartReport {
        let (result, text) = in_words(outcome);
        let lines = match outcome {
            Outcome::Failed { number, .. } => {
                self.processes.get(number).map(Process::last_lines).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        RestartReport { result: result.to_owned(), text, lines, ago_ms: 0 }
    }

    /// Counts an outcome, and says it.
    fn note(&mut self, outcome: &Outcome) {
        let report = self.restart_report(outcome);
        *self.starts.entry(report.result.clone()).or_default() += 1;
        match outcome {
            Outcome::Ready(number, took) => {
                self.time_to_ready += *took;
                self.info(&report.text);
                self.strays_at = Some((*number, Instant::now() + STRAYS_AFTER));
            }
            Outcome::Asleep => self.info(&report.text),
            _ => self.warn(&report.text),
        }
        self.last_restart = Some((report, Instant::now()));
    }

    fn info(&self, text: impl Display) {
        self.say("info", text);
    }

    fn warn(&self, text: impl Display) {
        self.say("warning", text);
    }

    fn say(&self, level: &str, text: impl Display) {
        let line = harmless(format!("{}: {level}: {}: {text}", self.invocation.called, self.name));
        lines::say(&line);
    }
}

fn as_line(value: &impl serde::Serialize) -> String {
    // Maps with text as keys, numbers and text can always be written.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

mod hearing;
