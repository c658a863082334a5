//! Descriptors that this process was started with, and those that it leaves to the program
//! that it becomes, by their numbers.
//!
//! `unsafe` as numbers become descriptors.
#![allow(unsafe_code)]

use rustix::io::{dup2, fcntl_getfd, fcntl_setfd, Errno, FdFlags};
use std::io;
use std::mem::ManuallyDrop;
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

/// Has the program that this process becomes inherit nothing from this number on, but what is
/// kept.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn close_on_exec_from(first: u32, kept: &[u32]) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(number) = number.filter(|number| *number >= first && !kept.contains(number))
        else {
            continue;
        };
        match descriptor(number).and_then(|fd| fcntl_setfd(fd, FdFlags::CLOEXEC)) {
            // The one that the folder was read by.
            Ok(()) | Err(Errno::BADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Leaves a descriptor to the program that this process becomes, as this number. What has the
/// number is closed: nothing of this process may.
///
/// # Errors
///
/// Those of dup2(2): EBADF for a number that the limit on open files does not allow.
pub fn leave(fd: BorrowedFd<'_>, number: u32) -> Result<(), Errno> {
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: dup2 does not mind whether it is open, and it is never closed by this: from now
    // on the number belongs to the next program. That nothing of this process has it is the
    // caller's promise.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    dup2(fd, &mut place)
}
