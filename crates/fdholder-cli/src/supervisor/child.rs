//! A generation of `run`, before it becomes PROG: this program once more, with the same command line.
//!
//! So PROG gets its descriptors from the code that `exec` uses, and what fails there is reported
//! through a pipe. PROG gets none of the variables that tell this process what it is.

use super::niceness;
use super::origin::Origin;
use super::output;
use crate::failure::{exit, Failure};
use crate::passing::becoming::become_program;
use crate::passing::inherited;
use crate::program::Invocation;
use crate::start::{self, Generation};
use fdholder::environ::Variable;
use rustix::process::{getppid, set_parent_process_death_signal, Signal};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Says to the same program that it is a generation, or copies what one writes to stderr.
const ROLE: &str = "FDHOLDER_RUN_ROLE";
/// The notify socket of this generation.
const NOTIFY: &str = "FDHOLDER_RUN_NOTIFY";
/// Where the supervisor's own holder listens.
const HOLDER: &str = "FDHOLDER_RUN_HOLDER";

/// Says to the same program that it is to become `--ready-command`, and whose child it is.
pub const PROBE: &str = "FDHOLDER_RUN_PROBE";

/// The number of a generation, as `run` counts from 1.
const GENERATION: &str = "FDHOLDER_GENERATION";
/// The same for programs made for `Server::Starter`.
const SERVER_STARTER_GENERATION: &str = "SERVER_STARTER_GENERATION";

/// What a child of `run` is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// The process of `run`.
    pub parent: u32,
    /// The signal that the kernel sends when that process ends.
    pub death_signal: i32,
    /// The number of the generation.
    pub generation: u64,
    /// The descriptor that takes the reason of a failure.
    pub report: u32,
    /// The descriptor for readiness, and the number that PROG has it under.
    pub ready: Option<(u32, u32)>,
    pub notify_socket: Option<OsString>,
    pub holder: Option<PathBuf>,
    /// Whether this process was to tell systemd that it lives.
    pub has_watchdog: bool,
    /// What is added to the niceness.
    pub nicer_by: i32,
    pub origin: Origin,
}

impl Role {
    /// The variables that tell a child what it is.
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let Self { parent, death_signal, generation, report, ready, nicer_by, .. } = self;
        let origin = self.origin.in_words();
        let (from, to) = ready.unwrap_or_default();
        let watchdog = u8::from(self.has_watchdog);
        let role = format!(
            "{parent} {death_signal} {generation} {report} {from} {to} {watchdog} {nicer_by} {origin}"
        );
        let mut all = vec![(ROLE, role.into())];
        all.extend(self.notify_socket.iter().map(|path| (NOTIFY, path.clone())));
        all.extend(self.holder.iter().map(|path| (HOLDER, path.clone().into_os_string())));
        all
    }

    fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        Some(Self {
            parent: next()?.parse().ok()?,
            death_signal: next()?.parse().ok()?,
            generation: next()?.parse().ok()?,
            report: next()?.parse().ok()?,
            ready: Some((next()?.parse().ok()?, next()?.parse().ok()?))
                .filter(|(from, _): &(u32, u32)| *from != 0),
            has_watchdog: next()? == "1",
            nicer_by: next()?.parse().ok()?,
            origin: Origin::read(next)?,
            notify_socket: std::env::var_os(NOTIFY),
            holder: std::env::var_os(HOLDER).map(PathBuf::from),
        })
    }

    /// What PROG is told besides.
    fn told(&self) -> Vec<Variable> {
        let number = || Some(OsString::from(self.generation.to_string()));
        let mut told: Vec<Variable> =
            [ROLE, NOTIFY, HOLDER].map(|name| (name.to_owned(), None)).into();
        told.push((GENERATION.to_owned(), number()));
        told.push((SERVER_STARTER_GENERATION.to_owned(), number()));
        if self.has_watchdog {
            told.push(("WATCHDOG_PID".to_owned(), Some(std::process::id().to_string().into())));
        }
        if let Some(path) = &self.notify_socket {
            told.push(("NOTIFY_SOCKET".to_owned(), Some(path.clone())));
        }
        told
    }
}

/// Does what this process was started for, if that is to be a child of `run`.
pub fn act(invocation: &Invocation) -> Option<Result<ExitCode, Failure>> {
    if output::is_copier() {
        return Some(output::copy());
    }
    if let Ok(parent) = std::env::var(PROBE) {
        return Some(Err(become_probe(invocation, &parent)));
    }
    let role = std::env::var(ROLE).ok()?;
    let Some(role) = Role::read(&role) else {
        return Some(Err(Failure::new(exit::USAGE, format_args!("{ROLE} is for run alone"))));
    };
    Some(become_generation(invocation, &role))
}

/// Has the kernel send a signal to this process, and to what it becomes, when `run` ends.
fn follow(run: u32, signal: Option<Signal>) -> Result<(), Failure> {
    // Before the look at the parent: it may end between the two.
    set_parent_process_death_signal(signal)
        .map_err(|errno| Failure::system("follow the end of run", errno))?;
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent == run {
        Ok(())
    } else {
        Err(Failure::new(exit::SYSTEM, "run has ended"))
    }
}

/// Becomes the shell that carries out `--ready-command`. One that hangs ends with `run`.
fn become_probe(invocation: &Invocation, run: &str) -> Failure {
    if let Err(failure) = follow(run.parse().unwrap_or(0), Some(Signal::KILL)) {
        return failure;
    }
    let command: Option<OsString> = invocation.optional("ready-command");
    let words = ["/bin/sh".into(), "-c".into(), command.unwrap_or_default()];
    become_program(&words, [(PROBE.to_owned(), None)])
}

/// Becomes PROG. Who has started this process is told why not, and says it.
fn become_generation(invocation: &Invocation, role: &Role) -> Result<ExitCode, Failure> {
    let report = inherited::take(role.report).ok();
    follow(role.parent, Signal::from_named_raw(role.death_signal))?;
    role.origin.restore();
    niceness::add(role.nicer_by);
    let mut generation = Generation {
        report,
        holder: role.holder.clone(),
        notify_socket: role.notify_socket.clone(),
        ready: role.ready,
        variables: role.told(),
    };
    let failure = start::start(invocation, Some(&mut generation));
    let text = format!("{} {failure}", failure.code());
    let report = generation.report.map(std::fs::File::from);
    if report.is_some_and(|mut report| report.write_all(text.as_bytes()).is_ok()) {
        return Ok(ExitCode::from(failure.code()));
    }
    Err(failure)
}

/// What a generation that did not become PROG has reported: its exit code and why.
pub fn read_report(bytes: &[u8]) -> Option<(u8, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (code, why) = text.split_once(' ')?;
    Some((code.parse().ok()?, why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_comes_back_as_it_was() {
        for ready in [None, Some((9, 3))] {
            let role = Role {
                parent: 17,
                death_signal: 15,
                generation: u64::MAX,
                report: 8,
                ready,
                has_watchdog: true,
                nicer_by: 10,
                ..Role::default()
            };
            let variables = role.variables();
            assert_eq!(Role::read(variables[0].1.to_str().unwrap()), Some(role));
        }
        for text in ["", "1 2 3", "1 2 3 4 5 x 0 0 0 0 0", "1 2 3 4 5 6 0 0 0 0", "- - - - - - -"] {
            assert_eq!(Role::read(text), None, "{text}");
        }
    }

    #[test]
    fn report_has_a_code_and_a_reason() {
        let report = read_report(b"126 unable to exec x: Permission denied").unwrap();
        assert_eq!(report, (126, "unable to exec x: Permission denied".to_owned()));
        assert_eq!(read_report(b"x y"), None);
    }
}
