//! How much a process has room for.

use crate::limits::{CONNECTIONS_MAX, FDS_MAX, FDS_RESERVED};
use crate::privileges::raise_open_files;
use crate::Options;
use rustix::io::fcntl_dupfd_cloexec;
use std::io;
use std::os::fd::AsFd;

/// What there is room for in this process.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Descriptors held.
    pub capacity: usize,
    /// Clients at once.
    pub connections_max: usize,
}

impl Room {
    /// Raises the soft limit on open files, and lowers what is asked for to what that
    /// allows.
    ///
    /// # Errors
    ///
    /// When not even one descriptor could be held.
    pub fn make(options: &Options) -> io::Result<Self> {
        let open_files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
        let available = open_files.saturating_sub(FDS_RESERVED);
        let connections_max = options.connections_max.clamp(1, CONNECTIONS_MAX).min(available / 2);
        let capacity = options.fds_max.clamp(1, FDS_MAX).min(available - connections_max);
        if connections_max == 0 || capacity == 0 {
            return Err(io::Error::other(format!(
                "the hard limit on open files, {open_files}, is too low to hold anything; it takes \
                 {} or more", FDS_RESERVED + 2
            )));
        }
        Ok(Self { capacity, connections_max })
    }

    /// Has the kernel make the process's table of descriptors as large as it can become.
    /// While there are couriers, making it larger would stop the loop for milliseconds
    /// each time.
    pub fn grow_descriptor_table(self, any: impl AsFd) {
        let len = self.capacity + self.connections_max + FDS_RESERVED;
        let highest = i32::try_from(len - 1).unwrap_or(i32::MAX);
        // If it cannot be had now, it will be tried again when it is needed.
        drop(fcntl_dupfd_cloexec(any, highest));
    }
}
