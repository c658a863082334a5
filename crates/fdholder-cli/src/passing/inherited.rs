//! Descriptors that this process was started with, and those that it leaves to the program
//! that it becomes, by their numbers.
//!
//! `unsafe` as numbers become descriptors.
#![allow(unsafe_code)]

use crate::startup::was_closed;
use fdholder_daemon::{nothing, retried};
use rustix::io::{dup2, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd, Errno, FdFlags};
use rustix::process::{getrlimit, Resource};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// The descriptor `number`, which must have been open when this process started; so it is
/// asked for before this process opens any of its own.
///
/// # Errors
///
/// EBADF when it is not open.
pub fn descriptor(number: u32) -> Result<BorrowedFd<'static>, Errno> {
    if was_closed(number) {
        return Err(Errno::BADF);
    }
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: not negative. If it is not open, fcntl says so and the borrow ends here. If
    // it is, it was inherited, so nothing in this process owns it or closes it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    retried(|| fcntl_getfd(descriptor))?;
    Ok(descriptor)
}

/// The same, where the next program would have it, too: what this process has taken is its own.
///
/// # Errors
///
/// EBADF when it is not open, or taken.
pub fn left(number: u32) -> Result<BorrowedFd<'static>, Errno> {
    let descriptor = descriptor(number)?;
    if retried(|| fcntl_getfd(descriptor))?.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF);
    }
    Ok(descriptor)
}

/// The same as [`descriptor`], for one that was left to this process and nobody else uses: it is
/// owned from now on, and not inherited any further. To be called once for a number.
///
/// # Errors
///
/// EBADF when it is not open.
pub fn take(number: u32) -> Result<OwnedFd, Errno> {
    let borrowed = descriptor(number)?;
    retried(|| fcntl_setfd(borrowed, FdFlags::CLOEXEC))?;
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: it is open, as was just seen, and the service manager has left it to
    // us alone, by a variable that is read once.
    let taken = unsafe { OwnedFd::from_raw_fd(number) };
    if number > libc::STDERR_FILENO {
        return Ok(taken);
    }
    // What is opened next must not become a standard stream.
    let elsewhere = retried(|| fcntl_dupfd_cloexec(&taken, libc::STDERR_FILENO + 1))?;
    let mut stream = ManuallyDrop::new(taken);
    let nothing = nothing::open()
        .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    dup2(&nothing, &mut stream)?;
    Ok(elsewhere)
}

/// Has the program that this process becomes inherit nothing from this number on, but what is
/// kept.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn close_on_exec_from(first: u32, kept: &[u32]) -> Result<(), Errno> {
    if gaps(first, kept).all(|(from, to)| close_range_on_exec(from, to)) {
        return Ok(());
    }
    // A kernel before 5.11, or a filter that does not know the call.
    for number in open_from(first)?.into_iter().filter(|number| !kept.contains(number)) {
        fcntl_setfd(descriptor(number)?, FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// Closes everything but standard streams and these numbers: for a process that needs nothing else
/// of what it has inherited. To be called before it opens anything.
pub fn close_others(kept: &[u32]) {
    let first = libc::STDERR_FILENO.unsigned_abs() + 1;
    for (from, to) in gaps(first, kept) {
        // SAFETY: nothing here owns what this process has inherited, and it has opened nothing yet.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) == 0 };
        if !closed {
            let open = open_from(from).unwrap_or_default();
            for number in open.into_iter().filter(|number| *number <= to) {
                // SAFETY: the same.
                unsafe { libc::close(number.cast_signed()) };
            }
        }
    }
}

/// What is open, from this number on.
///
/// # Errors
///
/// Those of getdents(2).
pub fn open_from(first: u32) -> Result<Vec<u32>, Errno> {
    let mut numbers = Vec::new();
    if let Ok(folder) = std::fs::read_dir("/proc/self/fd") {
        for entry in folder {
            let entry = entry.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    } else {
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(OPEN_FILES_MAX);
        numbers.extend(0..most as u32);
    }
    // The folder's own is closed by now.
    numbers.retain(|number| *number >= first && descriptor(*number).is_ok());
    Ok(numbers)
}

/// Copies a descriptor to the lowest free number from `above` on, for the program that this process
/// becomes: nothing here owns it.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn copy_to_keep(fd: BorrowedFd<'_>, above: u32) -> Result<u32, Errno> {
    let above = RawFd::try_from(above).map_err(|_| Errno::MFILE)?;
    let copy = fcntl_dupfd_cloexec(fd, above)?;
    fcntl_setfd(&copy, FdFlags::empty())?;
    Ok(copy.into_raw_fd().unsigned_abs()) // A descriptor is never negative.
}

/// The kernel's default for `fs.nr_open`: above that no descriptor is looked for one by one.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// What is between the kept numbers, from the first on.
fn gaps(first: u32, kept: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    let mut kept: Vec<_> = kept.iter().copied().filter(|number| *number >= first).collect();
    kept.sort_unstable();
    let starts: Vec<_> =
        std::iter::once(first).chain(kept.iter().map(|number| number.saturating_add(1))).collect();
    let ends = kept.into_iter().map(|number| number.checked_sub(1)).chain([Some(u32::MAX)]);
    starts.into_iter().zip(ends).filter_map(|(from, to)| Some((from, to?))).filter(|(a, b)| a <= b)
}

/// Whether the kernel has done that.
fn close_range_on_exec(from: u32, to: u32) -> bool {
    // SAFETY: it takes numbers, and closes nothing now. By number, as the C library may be older.
    unsafe { libc::syscall(libc::SYS_close_range, from, to, libc::CLOSE_RANGE_CLOEXEC) == 0 }
}

/// Leaves a descriptor to the program that this process becomes, as this number. What has the
/// number is closed: nothing of this process may.
///
/// # Errors
///
/// Those of dup2(2): EBADF for a number that the limit on open files does not allow.
pub fn leave(fd: OwnedFd, number: u32) -> Result<(), Errno> {
    let number = RawFd::try_from(number).map_err(|_| Errno::BADF)?;
    if fd.as_raw_fd() == number {
        fcntl_setfd(&fd, FdFlags::empty())?;
        // From now on the number belongs to the next program.
        let _ = fd.into_raw_fd();
        return Ok(());
    }
    // SAFETY: dup2 does not mind whether it is open, and it is never closed by this: from now
    // on the number belongs to the next program. That nothing of this process has it is the
    // caller's promise.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    dup2(&fd, &mut place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_leave_out_what_is_kept() {
        let of = |kept: &[u32]| gaps(3, kept).collect::<Vec<_>>();
        assert_eq!(of(&[]), [(3, u32::MAX)]);
        assert_eq!(of(&[9, 3, 4, 1]), [(5, 8), (10, u32::MAX)]);
        assert_eq!(of(&[5, 5]), [(3, 4), (6, u32::MAX)]);
    }
}
