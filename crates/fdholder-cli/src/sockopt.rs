//! Options of sockets by the C library: those with an int as a table names them, and what no
//! crate we use knows: `SO_NETNS_COOKIE`, `SIOCUNIXFILE`.
#![allow(unsafe_code)]

use fdholder::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An option whose value is an int: its level and name, as for setsockopt(2).
pub type IntOption = (libc::c_int, libc::c_int);

/// Sets one.
///
/// # Errors
///
/// Those of setsockopt(2).
pub fn set_int(socket: impl AsFd, (level, name): IntOption, value: i32) -> Result<(), Errno> {
    let value: libc::c_int = value;
    // SAFETY: the descriptor is borrowed for the call, and the pointer is to an int of the
    // length that is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(result)
}

/// Reads one.
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn get_int(socket: impl AsFd, (level, name): IntOption) -> Result<i32, Errno> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, the pointers are to an int and its length,
    // and any bytes that the kernel writes are a valid int.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    checked(result).map(|()| value)
}

/// The number of the network namespace that a socket belongs to: socket(7), since Linux 5.14.
///
/// # Errors
///
/// ENOPROTOOPT where the kernel is older.
pub fn network_namespace(socket: impl AsFd) -> Result<u64, Errno> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, the pointers are to a u64 and its length,
    // and any bytes that the kernel writes are a valid u64.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    checked(result).map(|()| cookie)
}

/// The file that a Unix socket was bound to, opened with `O_PATH`.
///
/// # Errors
///
/// EPERM without `CAP_NET_ADMIN` over its network namespace · ENOENT it has none.
pub fn bound_file(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    const SIOCUNIXFILE: libc::Ioctl = 0x89E0;
    // SAFETY: the descriptor is borrowed for the call, which takes no pointer.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) };
    checked(result.min(0))?;
    // SAFETY: the kernel has just opened it, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}
