//! Bytes of a file in memory that are mapped: they can be written whatever limit on the size of
//! files there is by then (`RLIMIT_FSIZE`), and take no memory that is not there already.
#![allow(unsafe_code)]

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

/// How many: one page, which the kernel has as a whole.
pub(super) const LEN: usize = 4096;

/// The first bytes of a file, which others may have mapped as well.
#[derive(Debug)]
pub(super) struct Bytes {
    start: NonNull<AtomicU8>,
    /// How many the file had. It never becomes shorter.
    len: usize,
}

// SAFETY: others may write to these bytes at any time, and they are only used as atomics.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Those of a file in memory that is open for reading and writing.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let file = file.as_fd();
        let len = usize::try_from(fstat(file)?.st_size).unwrap_or(LEN).min(LEN);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is mapped.
        let start = unsafe { mmap(null_mut(), LEN, access, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Writes one; false if it is not there.
    pub fn set(&self, at: u64, value: u8) -> bool {
        let Some(at) = usize::try_from(at).ok().filter(|at| *at < self.len) else { return false };
        // SAFETY: `at` is within the mapping, which lasts as long as `self`, and within the file,
        // which no program that has it makes shorter. An atomic has no alignment to keep.
        unsafe { self.start.add(at).as_ref() }.store(value, Ordering::SeqCst);
        true
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `of`, with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{memfd_create, MemfdFlags};
    use rustix::io::{pread, pwrite};

    #[test]
    fn mapped_bytes_are_those_of_the_file() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert!(!Bytes::of(&file).unwrap().set(0, 1), "there is none");
        pwrite(&file, &[0], 5).unwrap();
        let bytes = Bytes::of(&file).unwrap();
        assert!(bytes.set(0, 1) && bytes.set(5, 2));
        assert!(!bytes.set(6, 3) && !bytes.set(u64::MAX, 3));
        let mut read = [9; 7];
        assert_eq!(pread(&file, &mut read, 0), Ok(6));
        assert_eq!(read, [1, 0, 0, 0, 0, 2, 9]);
    }
}
