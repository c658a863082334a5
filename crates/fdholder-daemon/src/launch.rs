//! Starting this program once more, connected with this process.

use crate::closing::ClientFd;
use crate::confinement::is_confined;
use crate::nothing;
use crate::there::{if_there, retried};
use rustix::io::{fcntl_setfd, FdFlags};
use rustix::param::linux_execfn;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The variable that tells a daemon whom to follow, as the number of a connected socket.
pub const FOLLOW_VARIABLE: &str = "FDHOLDER_FOLLOW";

/// The same for one that is to take over at once.
pub const TAKE_OVER_VARIABLE: &str = "FDHOLDER_TAKE_OVER";

/// The variable that tells what is left to be closed: numbers of descriptors, and whose they are.
pub const UNCLOSED_VARIABLE: &str = "FDHOLDER_UNCLOSED";

/// The variable that says that whoever started a daemon was confined, and with it this one.
pub const CONFINED_VARIABLE: &str = "FDHOLDER_CONFINED";

/// The number of standard input.
const STDIN: RawFd = 0;

/// What systemd says of the descriptors that it gives to a process.
pub const LISTEN_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Which process is to tell systemd that it goes on; without it, whichever is asked.
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// How this program is started.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The file.
    pub program: PathBuf,
    /// Its arguments, with the name that it is called by.
    pub arguments: Vec<OsString>,
}

impl Launch {
    /// The program that runs here, with the arguments that it was given; whatever stands
    /// where it was started from by now.
    pub fn of_this_program() -> Self {
        Self { program: own_program(), arguments: std::env::args_os().collect() }
    }

    /// The program that by now is where this one was started from; to be asked at start,
    /// as long as that is known.
    ///
    /// # Errors
    ///
    /// When that cannot be found out: another program would be taken for it.
    pub fn of_successor() -> io::Result<Self> {
        retried(Self::find_successor, |_| false)
    }

    fn find_successor() -> io::Result<Self> {
        let arguments: Vec<_> = std::env::args_os().collect();
        let name = arguments.first().map(PathBuf::from).unwrap_or_default();
        let own = if_there(std::fs::read_link("/proc/self/exe"))?;
        // By the path it was called by: that may be a link, which will lead elsewhere.
        let called = if name.components().count() > 1 {
            if_there(std::path::absolute(&name))?
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut found = None;
            for file in std::env::split_paths(&path).map(|folder| folder.join(&name)) {
                if if_there(file.metadata())?.is_some_and(|it| it.is_file()) {
                    found = Some(file);
                    break;
                }
            }
            found
        };
        let called = match called {
            Some(file) if own.is_some() && if_there(file.canonicalize())? != own => None,
            called => called,
        };
        Ok(Self { program: called.or(own).unwrap_or(name), arguments })
    }

    /// A command that starts it, with one end of a connection under this number.
    fn command(&self, link: RawFd, variable: &str) -> Command {
        let mut command = Command::new(&self.program);
        let mut arguments = self.arguments.iter();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments);
        // What is for this process alone.
        let own = [FOLLOW_VARIABLE, TAKE_OVER_VARIABLE, UNCLOSED_VARIABLE];
        for name in own.iter().chain(&LISTEN_VARIABLES) {
            command.env_remove(name);
        }
        // What this process says to systemd is for whoever serves in its place to say.
        if std::env::var(WATCHDOG_PID).is_ok_and(|pid| pid == std::process::id().to_string()) {
            command.env_remove(WATCHDOG_PID);
        }
        command.env(variable, link.to_string());
        if is_confined() {
            command.env(CONFINED_VARIABLE, "1");
        } else {
            command.env_remove(CONFINED_VARIABLE);
        }
        command
    }

    /// A command that becomes it, to take over from whoever is at the other end, and to close
    /// what is left to it.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub fn take_over_command(&self, link: &OwnedFd, unclosed: &[ClientFd]) -> io::Result<Command> {
        fcntl_setfd(link, FdFlags::empty())?;
        let mut command = self.command(link.as_raw_fd(), TAKE_OVER_VARIABLE);
        let mut all = Vec::new();
        for fd in unclosed {
            fcntl_setfd(fd, FdFlags::empty())?;
            all.push(format!("{}:{}", fd.as_fd().as_raw_fd(), fd.owner()));
        }
        if !all.is_empty() {
            command.env(UNCLOSED_VARIABLE, all.join(","));
        }
        Ok(command)
    }

    /// Starts it beside this process, with a connection as its standard input.
    ///
    /// # Errors
    ///
    /// Those of fork(2) and execve(2).
    pub(crate) fn start(&self, link: OwnedFd) -> io::Result<Child> {
        let nothing = Stdio::from(nothing::open()?);
        self.command(STDIN, FOLLOW_VARIABLE).stdin(Stdio::from(link)).stdout(nothing).spawn()
    }
}

/// The file of this program, also where another one stands in its place by now. Without /proc that is
/// where the kernel has found it: another one may stand there.
pub fn own_program() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    if !matches!(if_there(link.symlink_metadata()), Ok(None)) {
        return link;
    }
    let found = PathBuf::from(OsStr::from_bytes(linux_execfn().to_bytes()));
    std::path::absolute(&found).unwrap_or(found)
}
