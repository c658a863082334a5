//! How much of what was sent over a Unix socket its reader has not taken yet: SIOCOUTQ,
//! by the C library.
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// What the kernel counts for a message is never less than this; while the last one is
/// just being let go of, it counts a byte or two.
const LEAST_MESSAGE: libc::c_int = 256;

/// Whether the reader has taken everything.
///
/// # Errors
///
/// Those of ioctl(2).
pub fn all_is_read(socket: impl AsFd) -> Result<bool, Errno> {
    let mut unread: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed for the call, and SIOCOUTQ (TIOCOUTQ on Linux)
    // writes one int to where the pointer says.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(unread < LEAST_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn it_is_told_when_all_is_read() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(all_is_read(&ours), Ok(true));
        ours.write_all(b"xy").unwrap();
        assert_eq!(all_is_read(&ours), Ok(false));
        theirs.read_exact(&mut [0]).unwrap();
        assert_eq!(all_is_read(&ours), Ok(false));
        theirs.read_exact(&mut [0]).unwrap();
        assert_eq!(all_is_read(&ours), Ok(true));
        assert_eq!(all_is_read(std::fs::File::open("/dev/null").unwrap()), Err(Errno::NOTTY));
    }
}
