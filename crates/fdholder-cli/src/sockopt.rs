//! Options of sockets that no crate we use knows, by the C library: `TCP_FASTOPEN` and
//! `TCP_INFO`.
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

/// How many connections wait to be accepted from a TCP listener, and how many may: tcp(7),
/// `TCP_INFO`, in which a listener has these where a connection has others.
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn tcp_accept_queue(listener: impl AsFd) -> Result<(u32, u32), Errno> {
    // SAFETY: it consists of integers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t; // Some 100 bytes.
                                                                  // SAFETY: the descriptor is borrowed for the call, the pointers are to a tcp_info and its
                                                                  // length, and any bytes the kernel writes are a valid tcp_info.
    let result = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    checked(result).map(|()| (info.tcpi_unacked, info.tcpi_sacked))
}
