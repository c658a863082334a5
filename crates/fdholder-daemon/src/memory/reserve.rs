//! The allocator of a daemon: a small allocation that fails is made from a reserve.
//!
//! The standard library ends a process that cannot allocate. So large allocations that clients
//! cause are asked about before ([`has_room`]), and what is small is had from a reserve that was
//! set aside at start. The loop looks after each request whether that was needed ([`is_short`]),
//! and reads and accepts nothing until it has [`refilled`](refill) the reserve.
#![allow(unsafe_code)]

use crate::limits::{MEMORY_PIECE_LEN, MEMORY_RESERVE_LEN, MEMORY_RESERVE_PARTS};
use rustix::process::{getrlimit, Resource};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// To be installed as the `#[global_allocator]` of the program.
#[derive(Debug)]
pub struct Reserving;

/// In parts, so that it can be refilled where no large piece is free.
static RESERVE: [AtomicPtr<u8>; MEMORY_RESERVE_PARTS] =
    [const { AtomicPtr::new(null_mut()) }; MEMORY_RESERVE_PARTS];

/// It was needed, and not refilled since.
static IS_SHORT: AtomicBool = AtomicBool::new(false);

// SAFETY: MEMORY_RESERVE_PARTS is far less than MEMORY_RESERVE_LEN, so that the size is not 0; 16
// is a power of two.
const PART: Layout =
    unsafe { Layout::from_size_align_unchecked(MEMORY_RESERVE_LEN / MEMORY_RESERVE_PARTS, 16) };

/// Gives the reserve back to the system's allocator. Returns whether it had any.
#[cold]
fn release() -> bool {
    let mut had_any = false;
    for part in &RESERVE {
        let part = part.swap(null_mut(), Ordering::AcqRel);
        if !part.is_null() {
            // SAFETY: it was allocated by `refill` with this layout, and who swaps it out is the
            // only one that has it.
            unsafe { System.dealloc(part, PART) };
            had_any = true;
        }
    }
    if had_any {
        IS_SHORT.store(true, Ordering::Release);
    }
    had_any
}

/// Allocates a piece that is to be so long and is so long by now, if need be with the reserve. What
/// is larger than that does not cost it.
fn allocate(len: usize, is_now: usize, piece: impl Fn() -> *mut u8) -> *mut u8 {
    if len > is_now && is_withheld(len) {
        return null_mut();
    }
    let got = piece();
    if got.is_null() {
        rescue(len, piece)
    } else {
        got
    }
}

#[cold]
fn rescue(len: usize, again: impl Fn() -> *mut u8) -> *mut u8 {
    if len > MEMORY_RESERVE_LEN || !release() {
        return null_mut();
    }
    again()
}

/// For tests of debug builds: no piece is larger than the limit on resident memory, if there is one,
/// which the kernel ignores. So they see each large piece that is not asked for before.
fn is_withheld(len: usize) -> bool {
    if !cfg!(debug_assertions) || len <= MEMORY_PIECE_LEN {
        return false;
    }
    getrlimit(Resource::Rss).current.is_some_and(|longest| len as u64 > longest)
}

// SAFETY: each call is passed on to the system's allocator as it came, perhaps twice when the first
// has failed, which changes nothing then.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to what this function asks for, as in all of these.
        allocate(layout.size(), 0, || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        allocate(layout.size(), 0, || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, from: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // SAFETY: as above; when it fails, `from` is still what it was.
        allocate(len, layout.size(), || unsafe { System.realloc(from, layout, len) })
    }

    unsafe fn dealloc(&self, from: *mut u8, layout: Layout) {
        // SAFETY: as above; all of it comes from there.
        unsafe { System.dealloc(from, layout) }
    }
}

/// Sets the reserve aside, or what is missing of it. False if there is no memory for that.
pub fn refill() -> bool {
    for place in &RESERVE {
        if !place.load(Ordering::Acquire).is_null() {
            continue;
        }
        // SAFETY: the size of a part is not 0.
        let part = unsafe { System.alloc(PART) };
        if part.is_null() {
            return false;
        }
        let placed = place.compare_exchange(null_mut(), part, Ordering::AcqRel, Ordering::Acquire);
        if placed.is_err() {
            // SAFETY: it was allocated just now, with this layout, and nobody else has it.
            unsafe { System.dealloc(part, PART) };
        }
    }
    IS_SHORT.store(false, Ordering::Release);
    true
}

/// Whether the reserve was needed, and is not whole again.
pub fn is_short() -> bool {
    IS_SHORT.load(Ordering::Relaxed)
}

/// Whether so much could be allocated in one piece, without the reserve.
pub fn has_room(len: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(len, 16) else { return false };
    if len == 0 {
        return true;
    }
    if is_withheld(len) {
        return false;
    }
    // SAFETY: the size is not 0. Nothing is kept of it, which the compiler must not see.
    let got = black_box(unsafe { System.alloc(layout) });
    if !got.is_null() {
        // SAFETY: it was allocated just now, with this layout.
        unsafe { System.dealloc(got, layout) };
    }
    !got.is_null()
}

/// Has the C library find so much, if it is no more than the reserve: it cannot take that itself.
pub fn make_room(len: usize) {
    if !has_room(len) {
        release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the whole process, so this is one test.
    #[test]
    fn reserve_that_was_needed_is_refilled() {
        assert!(!is_short() && !release(), "there is none yet");
        assert!(refill() && !is_short());
        assert!(rescue(MEMORY_RESERVE_LEN + 1, || unreachable!()).is_null());
        assert!(!is_short(), "it would not have helped");
        let mut byte = 0;
        let start = &raw mut byte;
        assert_eq!(rescue(MEMORY_RESERVE_LEN, || start), start);
        assert!(is_short());
        assert!(rescue(1, || unreachable!()).is_null(), "there is none left");
        assert!(refill() && !is_short());
    }

    #[test]
    fn room_for_too_much_is_not_there() {
        assert!(has_room(0) && has_room(1 << 20));
        assert!(!has_room(usize::MAX) && !has_room(isize::MAX as usize - 16));
    }
}
