//! A thread with a descriptor table of its own, in which nothing of the daemon's is open.
//!
//! The only `unsafe` of its kind: a number means one thing in this table, and another in that.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Standard streams stay.
const FIRST: RawFd = 3;

/// Gives the calling thread a table of its own: with the standard streams and `keep` of the one
/// that it had so far, and nothing else. Returns whether it has one; otherwise nothing has
/// changed. The other table still has `keep` open: see [`close_other`].
///
/// The thread must own no descriptor but `keep`, and borrow none.
///
/// Kernels since 5.9 copy only what is kept, so nothing that a client has given is flushed or kept
/// open by this. A seccomp filter may refuse it (ENOSYS, EPERM).
pub(crate) fn separate(keep: &OwnedFd) -> bool {
    let keep = keep.as_raw_fd();
    // SAFETY: the call touches no memory. It closes numbers in a table that this thread alone has
    // from then on, as it is copied first; by the condition above it owns none of them.
    let is_own = unsafe { close_range(keep + 1, RawFd::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if is_own && keep > FIRST {
        // SAFETY: as above; the table is this thread's own by now.
        unsafe { close_range(FIRST, keep - 1, 0) };
    }
    is_own
}

/// Closes, in the caller's table, the number that another thread has kept in its own.
pub(crate) fn close_other(number: RawFd) {
    // SAFETY: the `OwnedFd` of this number lives in the other table, which `separate` made; in this
    // one nobody owns it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// SAFETY: nothing in the calling thread's table may own what is closed.
unsafe fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> bool {
    // By its number: C libraries have a function for it only since lately.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 }
}
