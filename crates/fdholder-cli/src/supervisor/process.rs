//! The process of one generation, and what belongs to it.

use super::child::{read_report, Role, PROBE};
use super::group;
use super::machine::{Exit, Number};
use super::niceness::Niceness;
use super::origin::Origin;
use super::output::Copier;
use crate::start::notify::NotifySocket;
use crate::start::relay::{own_command, with_inherited};
use rustix::io::{read, Errno};
use rustix::pipe::{pipe_with, PipeFlags};
use rustix::process::{kill_process, kill_process_group, Pid, Signal, WaitStatus};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long to wait for the last lines of a program that has ended: something that it has started
/// may still have its stderr.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(200);

/// A copier that ends sooner than this is not started once more.
const COPIER_MIN_LIFE: Duration = Duration::from_secs(1);

/// How long a holder may take to take what a program that has ended has stored.
const HOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two runs of `--ready-command`.
const READY_COMMAND_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a report at most.
const REPORT_LEN_MAX: usize = 4096;

/// What all generations are started with.
#[derive(Debug)]
pub struct Launch {
    pub stop_signal: i32,
    pub ready_fd: Option<u32>,
    pub has_ready_command: bool,
    /// Where the supervisor's own holder listens, if it has one.
    pub holder: Option<PathBuf>,
    pub has_watchdog: bool,
    pub origin: Origin,
    /// What is added while a generation starts beside another.
    pub niceness: Niceness,
    /// How long it may give way: a start must not fail for that.
    pub gives_way: Option<Duration>,
}

/// A generation.
#[derive(Debug)]
pub struct Process {
    pub number: Number,
    pub pid: Pid,
    pub notify: NotifySocket,
    /// The end of the pipe for `--ready-fd`.
    pub ready: Option<OwnedFd>,
    /// The end of the pipe that tells why PROG does not start. It closes when PROG does.
    pub report: Option<OwnedFd>,
    reported: Vec<u8>,
    output: Option<Copier>,
    /// Nothing more comes on PROG's stderr.
    output_has_ended: bool,
    /// When the copier was started again last.
    copied_again_at: Option<Instant>,
    /// The number of its process may be another one's by then.
    ended: Option<End>,
    was_killed: bool,
    /// The status line that it has sent.
    pub status: Option<String>,
    probe: Option<Probe>,
    /// It is nicer than others, and may be until then.
    gives_way: Option<(Niceness, Option<Instant>)>,
}

/// The end of PROG.
#[derive(Debug)]
struct End {
    status: WaitStatus,
    at: Instant,
    /// Processes of its group were left each time that this was looked at.
    leaves_others: bool,
    /// The machine knows of it, and when to look next whether its processes have ended.
    over: Option<Instant>,
}

/// `--ready-command`, run again and again.
#[derive(Debug)]
struct Probe {
    running: Option<Pid>,
    next_at: Instant,
}

impl Process {
    /// Starts a generation; one that gives way is nicer than others until it is
    /// [taken back](Self::take_niceness_back).
    ///
    /// # Errors
    ///
    /// Those of pipe(2) and fork(2).
    pub fn start(
        launch: &Launch,
        number: Number,
        notify: NotifySocket,
        gives_way: bool,
        now: Instant,
    ) -> io::Result<Self> {
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut passed = vec![report_end];
        let mut ready = None;
        if launch.ready_fd.is_some() {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            passed.push(theirs);
            ready = Some(ours);
        }
        let place = |fd: &OwnedFd| fd.as_raw_fd().unsigned_abs();
        let role = Role {
            parent: std::process::id(),
            death_signal: launch.stop_signal,
            generation: number,
            report: place(&passed[0]),
            ready: passed.get(1).map(place).zip(launch.ready_fd),
            notify_socket: Some(notify.path().as_os_str().to_owned()),
            holder: launch.holder.clone(),
            has_watchdog: launch.has_watchdog,
            nicer_by: if gives_way { launch.niceness.added } else { 0 },
            origin: launch.origin,
        };
        let (copier, stderr) = Copier::start(launch.stop_signal)?;
        let mut command = own_command();
        command.envs(role.variables()).process_group(0);
        if let Some(stderr) = stderr {
            command.stderr(Stdio::from(stderr));
            // It is the pipe that PROG would take for the journal.
            command.env_remove("JOURNAL_STREAM");
        }
        let child = with_inherited(&passed, || command.spawn())?;
        let pid = Pid::from_child(&child);
        let until = launch.gives_way.map(|span| now + span);
        let gives_way =
            (gives_way && launch.niceness.added > 0).then_some((launch.niceness, until));
        // What failed here is that the copier has ended: another one is started.
        let _ = copier.guard(pid);
        let probe = launch.has_ready_command.then_some(Probe { running: None, next_at: now });
        Ok(Self {
            number,
            pid,
            notify,
            ready,
            report: Some(report),
            reported: Vec::new(),
            output: Some(copier),
            output_has_ended: false,
            copied_again_at: None,
            ended: None,
            was_killed: false,
            status: None,
            probe,
            gives_way,
        })
    }

    /// Whether PROG, or the process that becomes it, lives.
    pub fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    /// Until when it gives way to others, if that ends by itself.
    pub fn gives_way_until(&self) -> Option<Instant> {
        self.gives_way.and_then(|(_, until)| until)
    }

    /// It does not give way any more.
    ///
    /// # Errors
    ///
    /// Those of setpriority(2).
    pub fn take_niceness_back(&mut self) -> Result<(), Errno> {
        match self.gives_way.take() {
            Some((niceness, _)) if self.is_alive() || self.leaves_others() => {
                niceness.take_back(self.pid)
            }
            _ => Ok(()),
        }
    }

    /// Sends a signal to PROG.
    pub fn signal(&self, signal: i32) {
        let signal = Signal::from_named_raw(signal).filter(|_| self.is_alive());
        if let Some(signal) = signal {
            // It may have ended just now.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Tells PROG to stop, or what it has left.
    pub fn stop(&mut self, signal: i32) {
        self.end_probe();
        if self.report.is_some() {
            // It is not PROG yet: the signal may mean something else to it.
            self.signal(Signal::TERM.as_raw());
        } else {
            self.signal(signal);
        }
        if let Some(signal) = Signal::from_named_raw(signal).filter(|_| self.leaves_others()) {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Kills PROG and all in its process group. Returns whether that is for the first time.
    pub fn kill(&mut self) -> bool {
        if self.is_alive() || self.leaves_others() {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.signal(Signal::KILL.as_raw());
        }
        !std::mem::replace(&mut self.was_killed, true)
    }

    /// Whether processes that it has started are left. While there are any, no other process is
    /// given its number.
    pub fn leaves_others(&mut self) -> bool {
        let Some(end) = &mut self.ended else { return false };
        end.leaves_others = end.leaves_others && group::has_living(self.pid);
        end.leaves_others
    }

    /// Whether the machine knows of its end.
    pub fn is_over(&self) -> bool {
        self.ended.as_ref().is_some_and(|end| end.over.is_some())
    }

    /// The machine is told of its end. Returns whether processes are left.
    pub fn end(&mut self, now: Instant) -> bool {
        if let Some(end) = &mut self.ended {
            end.over = Some(now + group::LOOK_PAUSE);
        }
        self.leaves_others()
    }

    /// Whether all that it has left has ended. To look takes all of /proc, so that is done once in a
    /// while.
    pub fn has_gone(&mut self, now: Instant) -> bool {
        let over = self.ended.as_mut().and_then(|end| end.over.as_mut());
        let Some(look_at) = over.filter(|look_at| **look_at <= now) else { return false };
        *look_at = now + group::LOOK_PAUSE;
        !self.leaves_others()
    }

    /// Reads what the process says before it becomes PROG. Returns whether it just has.
    pub fn read_report(&mut self) -> bool {
        let Some(report) = &self.report else { return false };
        let mut buffer = [0; 512];
        match read(report, &mut buffer) {
            Ok(0) => {
                self.report = None;
                return self.is_alive() && self.reported.is_empty();
            }
            Ok(len) if self.reported.len() + len <= REPORT_LEN_MAX => {
                self.reported.extend_from_slice(&buffer[..len]);
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.report = None,
        }
        false
    }

    /// Whether a newline has come by `--ready-fd`. What comes without one, or the end of all that,
    /// says nothing.
    pub fn read_ready(&mut self) -> bool {
        let Some(ready) = &self.ready else { return false };
        let mut buffer = [0; 512];
        loop {
            match read(ready, &mut buffer) {
                Ok(0) => self.ready = None,
                // More may follow: each worker of a server writes its own, and closing the pipe would
                // end it with EPIPE.
                Ok(len) if buffer[..len].contains(&b'\n') => return true,
                Ok(_) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(_) => self.ready = None,
            }
            return false;
        }
    }

    /// A child of this process has ended: whether it belongs here.
    pub fn has_ended(&mut self, pid: Pid, status: WaitStatus, now: Instant) -> Option<Ended> {
        // Numbers are given again.
        if self.is_alive() && pid == self.pid {
            let leaves_others = group::has_living(pid);
            self.ended = Some(End { status, at: now, leaves_others, over: None });
            self.end_probe();
            return Some(Ended::Program);
        }
        let copier = self.output.as_ref().filter(|_| !self.output_has_ended);
        if copier.is_some_and(|copier| copier.pid == pid) {
            self.output_has_ended = true;
            return Some(Ended::Copier);
        }
        let probe = self.probe.as_mut().filter(|probe| probe.running == Some(pid))?;
        probe.running = None;
        probe.next_at = now + READY_COMMAND_PAUSE;
        Some(Ended::Probe(status.exit_status() == Some(0)))
    }

    /// Starts another copier in the place of one that has ended before PROG. One that ends at once is
    /// not started for ever.
    ///
    /// # Errors
    ///
    /// Why none could be started: what PROG writes to stderr goes nowhere from now on.
    pub fn copy_on(&mut self, stop_signal: i32, now: Instant) -> io::Result<()> {
        let is_alive = self.is_alive();
        let Some(copier) = self.output.as_mut().filter(|_| self.output_has_ended && is_alive)
        else {
            return Ok(());
        };
        let has_failed = self.copied_again_at.is_some_and(|at| now < at + COPIER_MIN_LIFE);
        let started = if has_failed {
            Err(io::Error::other("it ends at once"))
        } else {
            copier.start_again(stop_signal, self.pid)
        };
        if started.is_err() {
            self.output = None;
        } else {
            self.output_has_ended = false;
            self.copied_again_at = Some(now);
        }
        started
    }

    /// How PROG has ended, once its last words are known, or waiting for them takes too long.
    pub fn exit(&mut self, now: Instant) -> Option<Exit> {
        let &End { status, at, .. } = self.ended.as_ref()?;
        let patience = self.output.as_ref().map_or(Duration::ZERO, |_| LAST_WORDS_PATIENCE);
        if !self.output_has_ended && now < at + patience {
            return None;
        }
        // All that will ever come is there.
        for _ in 0..REPORT_LEN_MAX {
            let len = self.reported.len();
            self.read_report();
            if self.reported.len() == len {
                break;
            }
        }
        if let Some((code, why)) = read_report(&self.reported) {
            return Some(Exit::NotStarted { code, why });
        }
        Some(match (status.exit_status(), status.terminating_signal()) {
            (_, Some(signal)) => Exit::Signal(signal),
            (code, None) => {
                Exit::Code(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
            }
        })
    }

    /// When to look again whether its last words are known, or what it has left has ended.
    pub fn last_words_at(&self, now: Instant) -> Option<Instant> {
        let &End { at, over, .. } = self.ended.as_ref()?;
        if over.is_some() {
            return over;
        }
        let times = [at + LAST_WORDS_PATIENCE, at + HOLDER_PATIENCE];
        times.into_iter().find(|it| *it > now)
    }

    /// Whether to wait until the holder has taken what it has stored.
    pub fn may_be_heard(&self, now: Instant) -> bool {
        self.ended.as_ref().is_some_and(|end| now < end.at + HOLDER_PATIENCE)
    }

    /// The last lines that PROG has written to stderr.
    pub fn last_lines(&self) -> Vec<String> {
        self.output.as_ref().map(Copier::last_lines).unwrap_or_default()
    }

    /// When to run `--ready-command` next.
    pub fn probe_at(&self) -> Option<Instant> {
        let probe = self.probe.as_ref().filter(|_| self.is_prog());
        probe.filter(|probe| probe.running.is_none()).map(|probe| probe.next_at)
    }

    /// Whether the process has become PROG: before that it may not even have its sockets, and a
    /// command that succeeds says nothing.
    fn is_prog(&self) -> bool {
        self.report.is_none() && self.reported.is_empty()
    }

    /// Runs `--ready-command`, if that is due.
    pub fn run_probe(&mut self, now: Instant) {
        let (pid, number) = (self.pid, self.number);
        let is_prog = self.is_prog();
        let Some(probe) = self.probe.as_mut().filter(|_| is_prog) else { return };
        if probe.running.is_some() || now < probe.next_at {
            return;
        }
        let mut command = own_command();
        command.env(PROBE, std::process::id().to_string()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("FDHOLDER_GENERATION", number.to_string());
        command.env("MAINPID", pid.as_raw_nonzero().to_string());
        match command.spawn() {
            Ok(child) => probe.running = Some(Pid::from_child(&child)),
            // As if it had not succeeded.
            Err(_) => probe.next_at = now + READY_COMMAND_PAUSE,
        }
    }

    /// It is ready, or will not be.
    pub fn end_probe(&mut self) {
        if let Some(running) = self.probe.take().and_then(|probe| probe.running) {
            let _ = kill_process_group(running, Signal::KILL);
        }
    }
}

/// What of a generation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Program,
    /// Nothing more comes on PROG's stderr.
    Copier,
    /// `--ready-command`, and whether it has succeeded.
    Probe(bool),
}
