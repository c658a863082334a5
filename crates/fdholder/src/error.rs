//! What can go wrong, who is to blame, and what was being done.

use rustix::io::Errno;
use std::fmt;

/// A message that breaks the protocol; the text says how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub(crate) &'static str);

impl Malformed {
    /// A message is missing, or another one came in its place.
    pub const INCOMPLETE: Self = Self("not the message that was due");
    /// A user asks whom no rule lets in.
    pub const NOT_LET_IN: Self = Self("the access rules do not let this user in");
    /// A request came where a part of the announced set was due.
    pub const MID_SET: Self = Self("a request in the middle of a set");
    /// A part of a set came that was not announced.
    pub const UNANNOUNCED_SET: Self = Self("a part of a set that was not announced");
    /// A set has more descriptors than announced.
    pub const SET_TOO_LONG: Self = Self("more descriptors in a set than it announced");
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A system call failed before there was a connection: no such socket, nobody
    /// listening there, no answer to the attempt in time.
    Connect(Errno),
    /// The holder answered, and the answer was no.
    Denied(Errno),
    /// The exchange broke: the holder closed the connection without an answer (EPIPE: it does not
    /// let this user connect, or it ended), or the descriptor could not be sent (EBADF).
    Exchange(Errno),
    /// The holder closed the connection after it had answered a request: it ended, or disconnected
    /// this client for a reason that its log says.
    BrokenOff,
    /// The holder did not answer before the deadline.
    TimedOut,
    /// What answered does not speak the protocol.
    Malformed(Malformed),
}

impl Cause {
    /// The errno that says it best; the one a peer's program would print.
    pub fn errno(self) -> Errno {
        match self {
            Self::Connect(errno) | Self::Denied(errno) | Self::Exchange(errno) => errno,
            Self::BrokenOff => Errno::PIPE,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Malformed(_) => Errno::PROTO,
        }
    }
}

impl From<Malformed> for Cause {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// An operation that failed: what was being done, and the [`Cause`].
///
/// Shown as `unable to <what>: <text of the errno>`, the words s6's programs use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    doing: String,
    cause: Cause,
}

impl Error {
    /// An error in doing something, to read behind "unable to".
    pub fn new(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { doing: doing.into(), cause: cause.into() }
    }

    /// What was being done, to read behind "unable to".
    pub fn doing(&self) -> &str {
        &self.doing
    }

    /// Why it failed.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The errno of the cause.
    pub fn errno(&self) -> Errno {
        self.cause.errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unable to {}: {}", self.doing, strerror(self.errno()))?;
        if let Cause::Malformed(malformed) = self.cause {
            write!(f, " ({malformed})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The C library's text for an errno: "Broken pipe".
pub fn strerror(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    // The standard library appends the number, which the peers' messages do not have.
    match text.rsplit_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_like_the_peers() {
        let error = Error::new("store fd", Cause::Denied(Errno::BUSY));
        assert_eq!(error.to_string(), "unable to store fd: Device or resource busy");
        let error = Error::new("get dump", Malformed("an empty reply"));
        assert_eq!(error.to_string(), "unable to get dump: Protocol error (an empty reply)");
    }
}
