//! Memory for what is to be held, taken before it is needed.
//!
//! The kernel promises more memory than there is and takes a page from somewhere when it
//! is first written to. A holder that finds none then would end, and lose what it holds;
//! and finding one takes longer than storing a descriptor. So a daemon touches, when it
//! starts, the memory for as many descriptors as it may hold, and keeps it. What it takes to
//! start, on the other hand, is given back when it has: most of the program is for that, and
//! for the other commands.
//! When there is none left all the same, clients wait: see [`reserve`].
#![allow(unsafe_code)]

pub mod cgroup;
pub mod reserve;

use crate::limits::{MEMORY_PER_FD, MEMORY_TAKEN_MAX, STACK_LEN};
use rustix::mm::{madvise, Advice};
use rustix::process::{getrlimit, Resource};
use std::ffi::c_void;
use std::fs;
use std::mem::MaybeUninit;
use std::ptr;

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
    let mut taken = Vec::new();
    // What is not to be had now may be later, and is asked for then.
    if taken.try_reserve_exact(len).is_ok() {
        taken.resize(len, 1u8);
    }
    std::hint::black_box(&taken);
    drop(taken);
    if may_grow_stack() {
        grow_stack();
    }
    // A daemon that has no memory to begin with finds out soon.
    reserve::refill();
}

/// Whether the limit on stacks allows for as much, and for what is on it by now.
fn may_grow_stack() -> bool {
    getrlimit(Resource::Stack).current.is_none_or(|limit| limit >= 2 * STACK_LEN as u64)
}

/// Has the kernel make the stack of this thread as long as it may become: where it has no room for
/// that later, the process would end. Its pages are given back.
#[inline(never)]
fn grow_stack() {
    let mut stack = MaybeUninit::<[u8; STACK_LEN]>::uninit();
    let start = stack.as_mut_ptr().cast::<u8>();
    // SAFETY: within the array. This is its lowest byte, and so that of the stack.
    unsafe { start.write_volatile(0) };
    let skipped = start.align_offset(rustix::param::page_size());
    let len = STACK_LEN - rustix::param::page_size();
    // SAFETY: whole pages of the array, in which nothing is kept.
    let _ = unsafe { madvise(start.wrapping_add(skipped).cast(), len, Advice::LinuxDontNeed) };
}

/// Gives back the pages of this program's code, of which only what serves comes again: from
/// the page cache, when it is needed. Without /proc nothing is given back.
pub fn give_back_code() {
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in maps.lines().filter_map(|line| code(line, &program.to_string_lossy())) {
        let start = ptr::with_exposed_provenance_mut::<c_void>(start);
        // SAFETY: the range is a mapping of a file that is private and cannot be written to, so
        // what is in it is what is in the file, and stays so: whoever reads it next, be it to
        // run it, has it read again.
        let _ = unsafe { madvise(start, len, Advice::LinuxDontNeed) };
    }
}

/// Where code of a program is, by a line of /proc/self/maps: see proc(5).
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let path = line.find('/').map(|at| &line[at..])?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (is_code && path == program).then(|| (start, end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_given_back() {
        let code = |line| code(line, "/usr/bin/a b");
        let line = "1000-3000 r-xp 0009e000 fe:00 1318 /usr/bin/a b";
        assert_eq!(code(line), Some((0x1000, 0x2000)));
        for other in [
            "1000-3000 r--p 0009e000 fe:00 1318 /usr/bin/a b",
            "1000-3000 rwxp 0009e000 fe:00 1318 /usr/bin/a b",
            "1000-3000 r-xp 0009e000 fe:00 1318 /usr/lib/libc.so.6",
            "1000-3000 r-xp 00000000 00:00 0 [vdso]",
            "1000-3000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
        // And it goes on.
        give_back_code();
    }
}
