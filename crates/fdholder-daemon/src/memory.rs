//! Memory for what is to be held, taken before it is needed.
//!
//! The kernel promises more memory than there is and takes a page from somewhere when it
//! is first written to. A holder that finds none then would end, and lose what it holds;
//! and finding one takes longer than storing a descriptor. So a daemon touches, when it
//! starts, the memory for as many descriptors as it may hold, and keeps it.
#![allow(unsafe_code)]

use crate::limits::{MEMORY_PER_FD, MEMORY_TAKEN_MAX};

/// Takes the memory for so many descriptors, for the rest of this process's life.
///
/// This sets how the whole process allocates memory: it is for a process that is a holder
/// and nothing else.
pub fn take(capacity: usize) {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only sets parameters of the allocator; no other thread runs yet.
        unsafe {
            // What is free stays with the process, also in large pieces …
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            // … and threads use what is there.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
    let len = capacity.saturating_mul(MEMORY_PER_FD).min(MEMORY_TAKEN_MAX);
    let taken = vec![1u8; len];
    std::hint::black_box(&taken);
}
