//! A process beside the program that `exec` becomes: it takes what the program says, tells the
//! service manager, and has the holder store what is to be stored.
//!
//! It is nobody's child, as the program may wait for all of its own, and ends with the program.

use super::folder::{self, Folder};
use super::notify::{
    close_elsewhere, tell, write_newline, Datagram, Next, NotifySocket, Unsent, UNCLOSED_PAUSE,
};
use crate::failure::{exit, Failure};
use crate::passing::inherited::{close_others, take};
use fdholder_daemon::launch::own_program;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, test_kill_process, Pid, PidfdFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Says to this program that it is a relay: for which process, and by which descriptors.
const ROLE: &str = "FDHOLDER_RELAY";
/// Where the holder reads.
const DOOR: &str = "FDHOLDER_RELAY_DOOR";
/// The folder of the socket.
const FOLDER: &str = "FDHOLDER_RELAY_FOLDER";

/// Where no descriptor tells of the end of a process, it is looked for so often.
const LOOK_PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long the holder may take to take what a program that has ended has stored.
const HOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// What a relay has to know.
#[derive(Debug)]
pub struct Relay {
    /// The service manager listens there.
    pub upward: Option<OsString>,
    /// Where the holder reads what the program stores.
    pub door: Option<OsString>,
    /// The descriptor that gets a newline when the program is ready.
    pub newline: Option<OwnedFd>,
    /// The mode of the socket, if that was asked for.
    pub mode: Option<u32>,
}

impl Relay {
    /// Starts it for the program that this process becomes; returns where that is to send.
    ///
    /// # Errors
    ///
    /// When there is no room for a socket, or no process can be started.
    pub fn start(&self) -> Result<OsString, Failure> {
        let failed = |error: std::io::Error| {
            Failure::system("start a process that passes on what PROG says", error)
        };
        let folder = Folder::make()?;
        let socket = NotifySocket::make(folder.path(), self.mode)
            .map_err(|problem| Failure::new(exit::SYSTEM, problem))?;
        let path = socket.path().to_owned();
        let (folder, lock) = folder.keep();
        let mut passed = vec![socket.into_inner(), lock];
        if let Some(newline) = &self.newline {
            passed.push(newline.try_clone().map_err(failed)?);
        }
        let numbers: Vec<_> = passed.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let role = format!("start {} {}", std::process::id(), numbers.join(" "));
        let mut command = own_command();
        command.env(ROLE, role).env(FOLDER, folder);
        command.env_remove("NOTIFY_SOCKET");
        command.envs(self.upward.iter().map(|upward| ("NOTIFY_SOCKET", upward)));
        command.envs(self.door.iter().map(|door| (DOOR, door)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = with_inherited(&passed, || command.spawn()).map_err(failed)?;
        // It only starts the one that stays.
        let ended = { child }.wait().map_err(failed)?;
        if !ended.success() {
            return Err(failed(std::io::Error::other(ended.to_string())));
        }
        Ok(path.into_os_string())
    }
}

/// This program once more, with the same arguments.
pub fn own_command() -> Command {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(own_program());
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    command
}

/// Starts something that inherits these descriptors, while no other thread starts anything.
///
/// # Errors
///
/// Those of fcntl(2) and of starting it.
pub fn with_inherited<T>(
    fds: &[OwnedFd],
    start: impl FnOnce() -> std::io::Result<T>,
) -> std::io::Result<T> {
    use rustix::io::{fcntl_setfd, FdFlags};
    for fd in fds {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    let started = start();
    for fd in fds {
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    started
}

/// Does the work of a relay, if this process is one.
pub fn act() -> Option<Result<ExitCode, Failure>> {
    let role = std::env::var(ROLE).ok()?;
    let mut words = role.split(' ');
    let step = words.next();
    let numbers: Option<Vec<u32>> = words.map(|word| word.parse().ok()).collect();
    let Some([program, kept @ ..]) = numbers.as_deref() else { return Some(Err(misused())) };
    Some(match step {
        Some("start") => start_again(&role, kept),
        Some("run") => work(*program, kept),
        _ => Err(misused()),
    })
}

fn misused() -> Failure {
    Failure::new(exit::USAGE, format_args!("{ROLE} is for this program alone"))
}

/// Starts the process that stays, and leaves it alone.
fn start_again(role: &str, kept: &[u32]) -> Result<ExitCode, Failure> {
    close_others(kept);
    let role = role.replacen("start", "run", 1);
    // In a group of its own, what the terminal sends does not reach it.
    let started = own_command().env(ROLE, role).process_group(0).spawn();
    started.map_err(|error| Failure::system("start a process", error))?;
    Ok(ExitCode::SUCCESS)
}

fn work(program: u32, kept: &[u32]) -> Result<ExitCode, Failure> {
    let failed = |errno| Failure::system("pass on what PROG says", errno);
    // A supervisor that tells all processes of the service to end is to hear what PROG says then.
    let _signals = crate::supervisor::signals::Signals::take()
        .map_err(|error| Failure::system("take signals", error))?;
    let mut fds = Vec::new();
    for number in kept {
        fds.push(take(*number).map_err(failed)?);
    }
    let mut fds = fds.into_iter();
    let (Some(socket), Some(lock)) = (fds.next(), fds.next()) else { return Err(misused()) };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap_or_default());
    if !folder::is_made(&folder, &lock) {
        return Err(misused());
    }
    close_elsewhere().map_err(|error| Failure::system("start a thread", error))?;
    let relayed = Relayed {
        upward: std::env::var_os("NOTIFY_SOCKET"),
        door: std::env::var_os(DOOR),
        newline: fds.next().map(File::from),
    };
    let outcome = relayed.run(NotifySocket::of(socket), program);
    folder::remove(&folder, &lock);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Waits until a socket can be read or written to, or a process has ended: whether it has; `None`
/// where that cannot be told.
fn wait(
    awaited: Option<(BorrowedFd<'_>, bool)>,
    pidfd: Option<&OwnedFd>,
) -> Result<Option<bool>, Failure> {
    let mut polled = Vec::new();
    polled.extend(pidfd.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    polled.extend(awaited.map(|(fd, is_for_writing)| {
        let flags = if is_for_writing { PollFlags::OUT } else { PollFlags::IN };
        PollFd::from_borrowed_fd(fd, flags)
    }));
    let closing_pause = Timespec { tv_sec: 0, tv_nsec: UNCLOSED_PAUSE.subsec_nanos().into() };
    let timeout = match (awaited, pidfd) {
        (None, _) => Some(&closing_pause),
        (_, None) => Some(&LOOK_PAUSE),
        _ => None,
    };
    match poll(&mut polled, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(Failure::system("wait for what PROG says", errno)),
    }
    let process = polled.first().filter(|_| pidfd.is_some());
    Ok(process.map(|polled| !polled.revents().is_empty()))
}

/// Where everything goes.
struct Relayed {
    upward: Option<OsString>,
    door: Option<OsString>,
    newline: Option<File>,
}

impl Relayed {
    /// Until the program has ended, and all that it has sent is passed on.
    fn run(mut self, mut socket: NotifySocket, program: u32) -> Result<(), Failure> {
        let pid = Pid::from_raw(program.cast_signed()).ok_or_else(misused)?;
        // ESRCH: it has ended already.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        let mut ended_at = None;
        loop {
            let awaited = socket.awaited();
            // Once it has ended only the socket is waited for.
            let pidfd = pidfd.as_ref().filter(|_| ended_at.is_none());
            let has_ended =
                wait(awaited, pidfd)?.unwrap_or_else(|| test_kill_process(pid).is_err());
            if has_ended && ended_at.is_none() {
                ended_at = Some(Instant::now());
            }
            let is_all = self.pass_all_on(&mut socket, program);
            let Some(ended_at) = ended_at else { continue };
            if is_all {
                return Ok(());
            }
            if ended_at.elapsed() >= HOLDER_PATIENCE {
                lost(fdholder::Errno::TIMEDOUT);
                return Ok(());
            }
        }
    }

    /// Returns whether nothing more waits.
    fn pass_all_on(&mut self, socket: &mut NotifySocket, program: u32) -> bool {
        if let Err(unsent) = socket.pass_pending() {
            lost(unsent.errno);
        }
        loop {
            match socket.next(program) {
                Next::Datagram(datagram) => self.pass_on(socket, datagram),
                Next::Later => return false,
                Next::Nothing => return !socket.is_pending(),
            }
        }
    }

    fn pass_on(&mut self, socket: &mut NotifySocket, datagram: Box<Datagram>) {
        let said = &datagram.said;
        if let Some(newline) = self.newline.take_if(|_| said.is_ready) {
            write_newline(newline);
        }
        let text = said.for_supervisor();
        if let Some(upward) = self.upward.as_ref().filter(|_| !text.is_empty()) {
            // It may have gone, and the program goes on.
            let _ = tell(upward, &text, Some(&datagram));
        }
        let door = self.door.as_deref().filter(|_| said.is_for_store || said.is_state());
        let sent = door.map_or(Ok(()), |door: &OsStr| socket.pass_to_holder(door, datagram));
        if let Err(Unsent { errno, .. }) = sent.map_err(|unsent| *unsent) {
            lost(errno);
        }
    }
}

fn lost(errno: fdholder::Errno) {
    // Who cannot be told need not know.
    let _ = writeln!(
        std::io::stderr(),
        "fdholder exec: warning: what the program has stored does not reach the holder: {}",
        fdholder::strerror(errno)
    );
}
