//! Starting a program with held descriptors: what `exec` does, and `run` for each generation.

pub mod choice;
pub mod folder;
pub mod notify;
pub mod options;
pub mod relay;
mod source;

use self::choice::{bind_specs, choices};
use self::relay::Relay;
pub use self::source::Source;
use crate::endpoint::{set_nonblocking, Mode};
use crate::failure::{exit, Failure};
use crate::passing::activation;
use crate::passing::becoming::{become_program, check_program, words};
use crate::passing::front_door::{self, FrontDoor};
use crate::passing::inherited::take;
use crate::passing::kept::{check_given, Kept};
use crate::passing::placeholders::{fill_in, known};
use crate::passing::{
    assign, is_for_others, is_of_servers, leave, variables, EnvStyle, Passed, Pids, FIRST,
};
use crate::program::Invocation;
use crate::show::lines;
use fdholder::environ::Variable;
use fdholder::{Errno, Identifier};
use fdholder_daemon::privileges::raise_open_files;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fstat, FileType};
use rustix::process::{
    getpid, getrlimit, pidfd_open, set_parent_process_death_signal, setrlimit, PidfdFlags, Resource,
};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const STDERR: u32 = 2;

/// What `run` adds for one generation of PROG.
#[derive(Debug, Default)]
pub struct Generation {
    /// Where the holder listens, if the command line does not say it.
    pub holder: Option<PathBuf>,
    /// The notify socket of this generation.
    pub notify_socket: Option<OsString>,
    /// A descriptor of this process, and the number that PROG is to have it under.
    pub ready: Option<(u32, u32)>,
    /// More variables for PROG.
    pub variables: Vec<Variable>,
    /// Takes why PROG was not started. It closes when PROG is, and never has a number of PROG's.
    pub report: Option<OwnedFd>,
}

/// Becomes PROG, with everything that the command line says. Returns why that failed.
pub fn start(invocation: &Invocation, mut generation: Option<&mut Generation>) -> Failure {
    let mut report = generation.as_mut().and_then(|generation| generation.report.take());
    let failure = match prepare(invocation, generation.as_deref(), &mut report) {
        // From here on a process beside PROG has it stop with `run`.
        Ok((words, variables)) => match unfollow(generation.is_some()) {
            Ok(()) => become_program(&words, variables),
            Err(failure) => failure,
        },
        Err(failure) => failure,
    };
    if let Some(generation) = generation {
        generation.report = report;
    }
    failure
}

/// The kernel would send one more signal, but not to a PROG that changes its user.
fn unfollow(is_generation: bool) -> Result<(), Failure> {
    // Without these descriptors, before Linux 5.3, that process cannot.
    if !is_generation || pidfd_open(getpid(), PidfdFlags::empty()).is_err() {
        return Ok(());
    }
    let failed = |errno| Failure::system("leave the end of run to another process", errno);
    set_parent_process_death_signal(None).map_err(failed)
}

/// Fails as [`start`] would by what this process was given.
///
/// # Errors
///
/// When PROG would lose what systemd has passed to this process.
pub fn check(invocation: &Invocation) -> Result<(), Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    if flag("inherited") || flag("keep-all") {
        return Ok(());
    }
    check_given(activation::count())
}

/// The descriptors that the command line names, without anything else that PROG gets.
///
/// # Errors
///
/// Those of [`Source::get`].
pub fn descriptors(
    invocation: &Invocation,
    mut source: Source<'_>,
) -> Result<Vec<OwnedFd>, Failure> {
    let specs = bind_specs(invocation)?;
    source.bind(&specs)?;
    let passed = source.get(choices(invocation, &specs))?;
    Ok(passed.into_iter().map(|one| one.fd).collect())
}

/// Waits until a client has come by one of the descriptors that PROG would get.
fn wait_for_clients(invocation: &Invocation, holder: &Path) -> Result<(), Failure> {
    loop {
        // The connection ends here, and what is held may change while no client comes.
        let source = Source::of(invocation, holder.to_owned(), false);
        let mut fds = descriptors(invocation, source)?;
        fds.retain(clients_come_by);
        if fds.is_empty() {
            return Err(no_clients());
        }
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&LOOK_AGAIN)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(Failure::system("wait for clients", errno)),
        }
    }
}

/// Nothing that PROG would get can have clients.
pub fn no_clients() -> Failure {
    Failure::new(exit::USAGE, "--on-demand: no client can come by what PROG would get")
}

/// How long to wait for clients before it is looked whether something else is held.
pub const LOOK_AGAIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Whether clients come there: a file could be read at any time.
pub fn clients_come_by(fd: &OwnedFd) -> bool {
    let kind = fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::Socket | FileType::Fifo))
}

/// Puts each descriptor where PROG expects it, and returns PROG with its arguments, and the
/// variables that it gets.
fn prepare(
    invocation: &Invocation,
    generation: Option<&Generation>,
    report: &mut Option<OwnedFd>,
) -> Result<(Vec<OsString>, Vec<Variable>), Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    let style = invocation.required("env-style")?;
    // Before this process opens any descriptor.
    let ready = generation.and_then(|generation| generation.ready);
    let ready = ready.map(|(from, to)| take(from).map(|fd| (fd, to))).transpose();
    let ready = ready.map_err(|errno| Failure::system("pass on --ready-fd", errno))?;
    let newline = notify_fd(invocation).filter(|_| generation.is_none());
    let newline = newline.map(taken_for_newline).transpose()?;
    let (mut kept, mut passed) = inherited(invocation, style)?;
    if let Some((_, to)) = ready {
        kept.reserve(to, "it is --ready-fd")?;
    }
    // For a moment each descriptor has two numbers. PROG gets the limit of before.
    let limit = getrlimit(Resource::Nofile);
    raise_open_files();
    let specs = bind_specs(invocation)?;
    let choices = choices(invocation, &specs);
    let notify: Option<OsString> = invocation.optional("notify");
    let mut told = others_variables(&kept);
    let mut door = None;
    if !choices.is_empty() || notify.is_some() {
        let holder = holder_path(invocation, generation)?;
        let mut source = Source::of(invocation, holder.clone(), notify.is_some());
        if notify.is_some() {
            // First, because no holder but a fdholder will do.
            source.connected()?;
        }
        source.bind(&specs)?;
        if flag("on-demand") && generation.is_none() {
            wait_for_clients(invocation, &holder)?;
        }
        let mut chosen = source.get(choices)?;
        set_blocking(invocation, &chosen)?;
        for warning in source.parts_of_groups(&chosen, &specs) {
            warn(invocation, warning);
        }
        passed.append(&mut chosen);
        if let Some(service) = notify {
            let (client, deadline) = source.connected()?;
            let opened = match generation.and_then(|it| it.notify_socket.clone()) {
                Some(address) => FrontDoor::behind(address, client, &service, deadline)?,
                None => open_door(invocation, &service, &holder, &mut source)?,
            };
            let (client, deadline) = source.connected()?;
            let mut stored = opened.stored(client, deadline)?;
            // A descriptor that --fd has named is not passed on twice.
            stored.retain(|one| passed.iter().all(|other| other.id != one.id));
            passed.append(&mut stored);
            door = Some(opened);
        }
    } else if passed.is_empty() && generation.is_none() && newline.is_none() {
        let problem = "nothing to pass on: say --fd ID, --fd-prefix PREFIX, --bind ID=ADDRESS, \
                       --notify NAME or --inherited";
        return Err(Failure::new(exit::USAGE, problem));
    }
    let mut numbers = assign(&passed, kept.taken(), style)?;
    let kept = kept.settle(&numbers)?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let own = (!flag("no-pid")).then(std::process::id);
    let pids = Pids { own, parent: parent.unsigned_abs() };
    told.extend(variables(&passed, &numbers, style, pids)?);
    told.extend(kept.variables);
    let relayed =
        if generation.is_none() { relay(invocation, door.as_ref(), newline)? } else { None };
    told.extend(door.into_iter().flat_map(FrontDoor::variables));
    told.extend(relayed.map(|address| ("NOTIFY_SOCKET".to_owned(), Some(address))));
    told.extend(generation.into_iter().flat_map(|it| it.variables.iter().cloned()));
    let words = fill_in(words(invocation), &known(&passed, &numbers));
    if let Some((fd, number)) = ready {
        let id = Identifier::new("ready").map_err(|bad| Failure::new(exit::SYSTEM, bad))?;
        let (name, is_named) = (String::new(), false);
        passed.push(Passed { fd, id, name, is_named, number: Some(number) });
        numbers.push(number);
    }
    if numbers.contains(&STDERR) {
        // Afterwards nobody could be told.
        check_program(&words)?;
    }
    leave(passed, &numbers, kept.numbers.as_deref(), report)?;
    setrlimit(Resource::Nofile, limit).map_err(|errno| Failure::system("set a limit", errno))?;
    Ok((words, told))
}

/// The descriptor that is to get a newline once PROG is ready.
pub fn notify_fd(invocation: &Invocation) -> Option<u32> {
    invocation.optional("notify-fd")
}

/// Takes the descriptor of `--notify-fd`: before this process has opened one with that number.
///
/// # Errors
///
/// When it is not open.
pub fn taken_for_newline(number: u32) -> Result<OwnedFd, Failure> {
    let doing = || format!("use descriptor {number} (--notify-fd)");
    take(number).map_err(|errno| Failure::system(doing(), errno))
}

/// Starts a process that tells the service manager what PROG says, if anybody wants to
/// know. Returns where PROG is to send then.
fn relay(
    invocation: &Invocation,
    door: Option<&FrontDoor>,
    newline: Option<OwnedFd>,
) -> Result<Option<OsString>, Failure> {
    let upward = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
    if newline.is_none() && (door.is_none() || upward.is_none()) {
        return Ok(None);
    }
    let mode = invocation.optional("notify-mode").map(|Mode(mode)| mode);
    let door = door.map(|door| door.address().to_owned());
    let relay = Relay { upward, door, newline, mode };
    match relay.start() {
        Ok(address) => Ok(Some(address)),
        // PROG's descriptors can be stored without one.
        Err(failure) if relay.newline.is_none() => {
            warn(
                invocation,
                format_args!("{failure}: NOTIFY_SOCKET is not told what PROG says of itself"),
            );
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// What this process was started with and PROG gets, too: descriptors that stay where they are,
/// and those that systemd has passed to this process.
fn inherited(
    invocation: &Invocation,
    style: EnvStyle,
) -> Result<(Kept, Vec<Passed<OwnedFd>>), Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    let asked: Vec<u32> = many(invocation, "keep");
    if !(flag("inherited") || flag("keep-all")) {
        check_given(activation::count())?;
    }
    let inherited = if flag("inherited") { activation::passed_on()? } else { Vec::new() };
    let given = FIRST..FIRST + inherited.len() as u32; // As many as can be open.
    if let Some(number) = asked.iter().find(|number| given.contains(number)) {
        let problem = format!("{number} is one of those that LISTEN_FDS tells of: it is passed on");
        return Err(Failure::new(exit::USAGE, problem));
    }
    let kept = Kept::find(&asked, flag("keep-all"), &words(invocation), given, style)?;
    let mut passed = Vec::new();
    for (name, fd) in inherited {
        let id = Identifier::new(name.as_bytes()).or_else(|_| Identifier::new("unknown"));
        let id = id.map_err(|bad| Failure::new(exit::SYSTEM, bad))?;
        passed.push(Passed { fd, id, name, is_named: false, number: None });
    }
    Ok((kept, passed))
}

/// Where the holder listens.
fn holder_path(
    invocation: &Invocation,
    generation: Option<&Generation>,
) -> Result<PathBuf, Failure> {
    let own = generation.and_then(|generation| generation.holder.clone());
    own.or_else(|| invocation.optional("path"))
        .ok_or_else(|| Failure::new(exit::USAGE, "no PATH: where does the holder listen?"))
}

/// The notify socket of a service, as the command line asks for it.
///
/// # Errors
///
/// Those of [`FrontDoor::open`].
pub fn open_door(
    invocation: &Invocation,
    service: &OsStr,
    holder: &Path,
    source: &mut Source<'_>,
) -> Result<FrontDoor, Failure> {
    let wanted = front_door::Wanted {
        path: invocation.optional("notify-socket"),
        mode: invocation.optional("notify-mode"),
        owner: invocation.optional("notify-owner"),
    };
    let (client, deadline) = source.connected()?;
    let door = FrontDoor::open(client, service, &wanted, holder, deadline)?;
    if let Some(owner) = wanted.owner {
        if let Some(id) = door.refused(client, owner, deadline) {
            warn(
                invocation,
                format_args!(
                    "the holder's rules do not let the owner of the socket, {owner}, store under \
                     {id}: what PROG sends as that user will be refused"
                ),
            );
        }
    }
    Ok(door)
}

/// Sets or clears `O_NONBLOCK`, if that is asked for.
fn set_blocking(invocation: &Invocation, passed: &[Passed<OwnedFd>]) -> Result<(), Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    if !flag("nonblock") && !flag("blocking") {
        return Ok(());
    }
    for Passed { fd, id, .. } in passed {
        set_nonblocking(fd.as_fd(), flag("nonblock"))
            .map_err(|errno| Failure::system(format!("set O_NONBLOCK of {id}"), errno))?;
    }
    Ok(())
}

fn warn(invocation: &Invocation, problem: impl std::fmt::Display) {
    lines::say(&format!("{}: warning: {problem}", invocation.called));
}

/// What the environment says of descriptors that were for somebody else, and is not said anew:
/// unset first.
fn others_variables(kept: &Kept) -> Vec<Variable> {
    let is_stale = |name: &String| is_of_servers(name) && !kept.is_named_by(name);
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let names = names.filter(|name| is_for_others(name) || is_stale(name));
    names.map(|name| (name, None)).collect()
}

/// All values of an option or operand.
fn many<T: Clone + Send + Sync + 'static>(invocation: &Invocation, id: &str) -> Vec<T> {
    invocation.matches.get_many(id).into_iter().flatten().cloned().collect()
}
