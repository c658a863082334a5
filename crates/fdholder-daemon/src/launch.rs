//! Starting this program once more, connected with this process.

use rustix::io::{fcntl_setfd, FdFlags};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The variable that tells a daemon whom to follow: the number of a connected socket.
pub const FOLLOW_VARIABLE: &str = "FDHOLDER_FOLLOW";

/// How this program is started.
#[derive(Debug, Clone)]
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
        let program = PathBuf::from("/proc/self/exe");
        Self { program, arguments: std::env::args_os().collect() }
    }

    /// A command that starts it, with one end of a connection. Dropped, that end is closed;
    /// until then whatever is started has it.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub fn command(&self, link: &OwnedFd) -> io::Result<Command> {
        fcntl_setfd(link, FdFlags::empty())?;
        let mut command = Command::new(&self.program);
        let mut arguments = self.arguments.iter();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).env(FOLLOW_VARIABLE, link.as_raw_fd().to_string());
        Ok(command)
    }

    /// Starts it beside this process.
    ///
    /// # Errors
    ///
    /// Those of fork(2) and execve(2).
    pub fn start(&self, link: &OwnedFd) -> io::Result<Child> {
        self.command(link)?.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    }
}
