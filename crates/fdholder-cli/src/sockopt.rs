//! Options of sockets that no crate we use knows, by the C library: `TCP_FASTOPEN`.
#![allow(unsafe_code)]

use fdholder::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Lets a TCP listener take data with the first packet, of so many unfinished connections at
/// once: tcp(7), `TCP_FASTOPEN`.
///
/// # Errors
///
/// Those of setsockopt(2).
pub fn set_tcp_fastopen(socket: impl AsFd, pending: u32) -> Result<(), Errno> {
    let pending = libc::c_int::try_from(pending).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is borrowed for the call, and the pointer is to an int of the
    // length that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const pending).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(result)
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}
