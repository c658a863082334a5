//! Descriptors that this process was started with, by their numbers.
//!
//! The only `unsafe` of the programs: numbers become descriptors.
#![allow(unsafe_code)]

use rustix::io::{fcntl_getfd, fcntl_setfd, Errno, FdFlags};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The descriptor `number`, which must have been open when this process started; so it is
/// asked for before this process opens any of its own.
///
/// # Errors
///
/// EBADF when it is not open.
pub fn descriptor(number: u32) -> Result<BorrowedFd<'static>, Errno> {
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: not negative. If it is not open, fcntl says so and the borrow ends here. If
    // it is, it was inherited, so nothing in this process owns it or closes it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(descriptor)?;
    Ok(descriptor)
}

/// The same, for a descriptor that was left to this process and nobody else uses: it is
/// owned from now on, and not inherited any further. To be called once for a number.
///
/// # Errors
///
/// EBADF when it is not open.
pub fn take(number: u32) -> Result<OwnedFd, Errno> {
    let borrowed = descriptor(number)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: it is open, as was just seen, and whoever started this process has left it to
    // us alone, by a variable that is read once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
