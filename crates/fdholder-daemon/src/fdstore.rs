//! A copy of everything in systemd's own store of descriptors.
//!
//! systemd keeps descriptors under names for a service that has gone, and gives them to the
//! next one. A name is all that is certain: which descriptor came first is not, and one that
//! is there already is dropped without a word. So each gets a name of its own:
//!
//! | name | what |
//! | --- | --- |
//! | `hN` | what has number N ([`Record::serial`](crate::Record::serial)) |
//! | `mN` | what number N is: a sealed file in memory, see [`about`] |
//! | `iG` | the same for all that was held at moment G, which counts for everything up to a number that it says |
//! | `l` | the listening socket |
//! | `r` | the roll of followers |
//!
//! Several identifiers may have one open file description, which systemd takes once: then
//! only the first of them has a descriptor there, its *home*.

pub(crate) mod about;
pub mod recovery;
pub(crate) mod shelf;

pub use recovery::{is_ours, recover, Past, Recovered};

use rustix::io::Errno;
use rustix::net::{
    connect, sendmsg, socket_with, AddressFamily, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::ffi::OsStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Descriptors that systemd keeps beside those held: the listening socket, the roll, two
/// lists of everything, and as many that are not in a list yet.
pub const BESIDE_MAX: usize = 4 + shelf::LISTED_ONE_BY_ONE_MAX + 1;

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
    /// Those of connect(2).
    pub fn from_environment() -> Result<Option<Self>, Errno> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(address) => Self::to(&address).map(Some),
            None => Ok(None),
        }
    }

    fn to(address: &OsStr) -> Result<Self, Errno> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(Self { socket })
    }

    /// Sends one message, at once or not at all.
    ///
    /// # Errors
    ///
    /// EAGAIN: systemd has not read those before · ETOOMANYREFS: too many descriptors wait
    /// for it · ECONNREFUSED: it is just not there.
    pub fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = &fd {
            let fits = control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
            debug_assert!(fits, "there is room for one");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(text.as_bytes())], &mut control, flags).map(drop)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
