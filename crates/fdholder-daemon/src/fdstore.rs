//! A copy of everything in systemd's own store of descriptors.
//!
//! systemd keeps descriptors under names for a service that has gone, and gives them to the
//! next one. A name is all that is certain: which descriptor came first is not, and one that
//! is there already is dropped without a word. So each gets a name of its own:
//!
//! | name | what |
//! | --- | --- |
//! | `hN` | what has number N ([`Origin::serial`](fdholder::Origin::serial)) |
//! | `bN` | the same, wrapped: a socket in whose queue it is, as systemd has another number's descriptor of the same open file, and would drop a second one |
//! | `m…` | what one number is, or some that came together: a sealed file in memory, see `about.rs`. What is not described is not held |
//! | `i…` | the same for all that was held at some moment; the last of these counts for everything up to a number that it says |
//! | `lN` | the listening socket, with inode N |
//! | `r0`, `r1` | the roll of followers: that of an even or odd generation (`replication/roll.rs`) |
//!
//! A socket, roll or list that takes the place of another has another name, so that systemd has
//! one of them at each moment.

pub(crate) mod about;
mod letter;
pub mod recovery;
pub(crate) mod shelf;

pub use crate::replication::roll::{is_abandoned, is_undecided};
pub use recovery::{may_recover, recover, Past, Recovered};

use crate::reading::{is_transient, retried};
use crate::there;
use fdholder::transport::{self, Wait};
use rustix::io::Errno;
use rustix::net::{
    connect, socket_with, socketpair, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Descriptors that systemd keeps beside those held: the listening socket, the roll, a list of
/// everything, of which two are there twice at most, as one takes the place of another, and what
/// describes those that are not in a list yet.
pub const BESIDE_MAX: usize = 5 + shelf::DESCRIBED_MAX;

/// How much systemd keeps for this service, by its own word (since 254); at most what makes
/// sense, see [`FDSTORE_FDS_MAX`](crate::limits::FDSTORE_FDS_MAX).
pub fn capacity() -> usize {
    let told = std::env::var("FDSTORE").ok().and_then(|max| max.parse::<usize>().ok());
    let left = told.map(|max| max.saturating_sub(BESIDE_MAX));
    left.unwrap_or(usize::MAX).min(crate::limits::FDSTORE_FDS_MAX)
}

/// A connection with systemd. Nothing waits in here.
#[derive(Debug)]
pub struct Notifier {
    socket: OwnedFd,
}

impl Notifier {
    /// To where `NOTIFY_SOCKET` says; `None` when it is not set.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and connect(2); what may pass was tried several times.
    pub fn from_environment() -> Result<Option<Self>, Errno> {
        match std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) {
            Some(address) => Self::to(&address).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn to(address: &OsStr) -> Result<Self, Errno> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let is_final = |errno: &Errno| !is_transient(*errno) && *errno != Errno::AGAIN;
        there::retried(
            || {
                let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
                connect(&socket, &address)?;
                Ok(Self { socket })
            },
            is_final,
        )
    }

    /// Sends one message, at once or not at all.
    ///
    /// # Errors
    ///
    /// EAGAIN: systemd has not read those before · ETOOMANYREFS: too many descriptors wait
    /// for it · ECONNREFUSED: it is just not there.
    pub fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        transport::send(&self.socket, text.as_bytes(), fd.as_slice(), Wait::No).map(drop)
    }
}

/// A socket with a descriptor in its queue, which stays there for as long as the socket does.
fn wrap(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, sender) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    transport::send(&sender, b"b", &[fd], Wait::No)?;
    Ok(socket)
}

/// A copy of what is in the queue of such a socket.
fn unwrap(socket: impl AsFd) -> Option<OwnedFd> {
    retried(|| transport::peek(&socket, &mut [0], Wait::No)).ok()?.fds.pop()
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
