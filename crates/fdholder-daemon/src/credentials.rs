//! Who is at the other end of a Unix socket: `SO_PEERCRED`, by the C library.
//!
//! Of a process in a pid namespace that cannot be seen from ours (a client on the host of
//! a container, say) the kernel gives 0 as the pid. rustix's type for it cannot hold that,
//! so it is asked for here.
#![allow(unsafe_code)]

use crate::access::User;
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

/// The other end of a socket, as it was when it connected (or, for the end that accepts,
/// when it began to listen).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its process; `None` when that cannot be seen from here.
    pub pid: Option<i32>,
    /// Its effective user and group.
    pub user: User,
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client ({}", self.user)?;
        match self.pid {
            Some(pid) => write!(f, " pid {pid})"),
            None => f.write_str(" of another pid namespace)"),
        }
    }
}

/// Asks the kernel.
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn of_peer(socket: impl AsFd) -> Result<Credentials, Errno> {
    let mut ucred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    // A ucred is 12 bytes.
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, the pointers are to a ucred and to
    // its length, and any bytes the kernel writes are a valid ucred.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut ucred).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    let user = User { uid: ucred.uid, gid: ucred.gid };
    Ok(Credentials { pid: (ucred.pid != 0).then_some(ucred.pid), user })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let credentials = of_peer(&ours).unwrap();
        assert_eq!(credentials.pid, i32::try_from(std::process::id()).ok());
        assert_eq!(credentials.user, User::this_process());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(of_peer(&file), Err(Errno::NOTSOCK));
    }
}
