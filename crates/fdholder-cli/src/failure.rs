//! How a program says that it failed: one line on stderr, and an exit code.

use crate::show::terminal::harmless;
use fdholder::{Cause, Client, Deadline, Errno, Error, Left, Side, TransferError};
use std::fmt::{self, Display};
use std::io::Write;
use std::process::ExitCode;

/// Exit codes, as the pages of s6's programs document them.
pub mod exit {
    /// The holder denied the operation; for a transfer, the source did.
    pub const DENIED: u8 = 1;
    /// The destination of a transfer denied it.
    pub const DENIED_BY_DESTINATION: u8 = 2;
    /// Wrong usage.
    pub const USAGE: u8 = 100;
    /// A system call failed, "no daemon there" included.
    pub const SYSTEM: u8 = 111;
    /// A program to execute could not be.
    pub const CANNOT_EXEC: u8 = 126;
    /// A program to execute was not found.
    pub const NOT_FOUND: u8 = 127;
}

/// A failure of a program.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    /// What became of the exchange with a holder, if it was that, and nothing else, that failed.
    cause: Option<Cause>,
}

impl Failure {
    /// A failure with a message that reads behind "fatal: ".
    pub fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: message.to_string(), cause: None }
    }

    /// Whether a holder has answered, and the answer was no.
    pub fn is_refusal(&self) -> bool {
        matches!(self.cause, Some(Cause::Denied(_)))
    }

    /// What became of the exchange with a holder, if that failed.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// The same with what there is to say besides.
    #[must_use]
    pub fn with(mut self, besides: impl Display) -> Self {
        self.message = format!("{} ({besides})", self.message);
        self
    }

    /// The same, when more has come of it than that the answer was no.
    #[must_use]
    pub fn not_only_refused(self) -> Self {
        Self { cause: None, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// A system call that failed.
    pub fn system(doing: impl Display, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let text = match Errno::from_io_error(&error) {
            Some(errno) => fdholder::strerror(errno),
            None => error.to_string(),
        };
        Self::new(exit::SYSTEM, format_args!("unable to {doing}: {text}"))
    }

    /// Says it, and gives the exit code.
    pub fn report(&self, called: &str) -> ExitCode {
        // What others have written, a path or a holder's reason, is still one line. Whether that can
        // be written or not, the exit code says it, too.
        let line = harmless(format!("{called}: fatal: {}", self.message));
        let _ = writeln!(std::io::stderr(), "{line}");
        ExitCode::from(self.code)
    }

    /// An error of an operation, and which limit it is that leaves no room, if that is why.
    pub fn asking_why(error: Error, holder: &mut Client, deadline: Deadline) -> Self {
        let why = match error.cause() {
            Cause::Denied(Errno::NFILE | Errno::DQUOT) => holder.why(deadline),
            _ => None,
        };
        match why {
            Some(why) => Self::new(exit::DENIED, format_args!("{error} ({why})")),
            None => error.into(),
        }
    }

    /// An error with what there is to say besides.
    fn of_exchange(error: &Error, denied: u8, left: Option<Left>) -> Self {
        let code = match error.cause() {
            Cause::Connect(_) => exit::SYSTEM,
            _ => denied,
        };
        let advice = advice(error.cause()).map(str::to_owned);
        let besides: Vec<_> = advice.into_iter().chain(left.map(|left| left.to_string())).collect();
        let failure = Self::new(code, error);
        let failure = if besides.is_empty() { failure } else { failure.with(besides.join("; ")) };
        Self { cause: Some(error.cause()), ..failure }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of_exchange(&error, exit::DENIED, None)
    }
}

impl From<TransferError> for Failure {
    fn from(TransferError { side, error, left }: TransferError) -> Self {
        let denied = match side {
            Side::Source => exit::DENIED,
            Side::Destination => exit::DENIED_BY_DESTINATION,
        };
        // Who was not reached is known to have done nothing.
        let left = Some(left).filter(|_| !matches!(error.cause(), Cause::Connect(_)));
        Self::of_exchange(&error, denied, left)
    }
}

/// What to do about it. The text before is s6's to the letter; this comes behind it.
fn advice(cause: Cause) -> Option<&'static str> {
    Some(match cause {
        Cause::Connect(Errno::NOENT) => "no such socket: is the daemon running, is the path right?",
        Cause::Connect(Errno::CONNREFUSED) => {
            "nobody listens there, or it is no socket: is the daemon running, is the path right?"
        }
        Cause::Connect(Errno::ACCESS) => {
            "the socket's or a folder's permissions keep this user out"
        }
        Cause::Connect(Errno::NAMETOOLONG) => "the path of a socket has at most 107 bytes",
        Cause::Connect(Errno::PROTOTYPE) => "that socket is not a stream: is the path right?",
        Cause::Connect(Errno::MFILE) => "this process has no room for a socket: see ulimit -n",
        Cause::Connect(Errno::NFILE) => {
            "the system has no room for open files: see /proc/sys/fs/file-nr"
        }
        Cause::Connect(Errno::TIMEDOUT) => "the daemon accepts nobody: is it stopped, is it full?",
        Cause::Denied(Errno::PERM) => "the holder's access rules do not grant this user that",
        Cause::Denied(Errno::NFILE) => "no room: see option -n of the holder, and ulimit -n",
        Cause::Denied(Errno::DQUOT) => {
            "this user has as many connections, or as much unread, as it may: the rules say how \
             much (FDHOLDER_MAXCONN, …)"
        }
        Cause::Denied(Errno::OPNOTSUPP) => "that holder is no fdholder, or one too old for this",
        Cause::Denied(Errno::BUSY) => "the id is in use: delete it first, or take another",
        Cause::Denied(Errno::EXIST) => "it holds some of these ids: see --dry-run",
        Cause::Exchange(Errno::AGAIN) => "it changes faster than it can be read: try again",
        Cause::Denied(Errno::NOENT) => "nothing is held under that id: list shows what is",
        Cause::Exchange(Errno::PIPE) => {
            "the connection was closed without an answer: the holder's access rules do not let \
             this user in, or it ended, or it is not an fd-holder"
        }
        Cause::BrokenOff => {
            "the holder closed the connection after it had answered: did it end? Its log says why"
        }
        Cause::Exchange(Errno::NFILE) => {
            "this process has no room for them: see ulimit -n, and /proc/sys/fs/file-nr"
        }
        Cause::Exchange(Errno::BADF) => "that descriptor is closed, or cannot be passed on",
        Cause::Exchange(Errno::NAMETOOLONG) => "an id has at most 255 bytes",
        Cause::Exchange(Errno::INVAL) => "an id has at least one byte",
        Cause::TimedOut => {
            "no answer in time: is it stopped, is that an fd-holder, is option -t too short?"
        }
        _ => return None,
    })
}
