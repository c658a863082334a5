//! Descriptors that this process was started with, by their numbers.
//!
//! The only `unsafe` of the programs: a number becomes a descriptor.
#![allow(unsafe_code)]

use rustix::io::{fcntl_getfd, Errno};
use std::os::fd::{BorrowedFd, RawFd};

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
