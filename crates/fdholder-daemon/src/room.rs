//! How much a process has room for.

use crate::limits::{
    ARRIVING_SPARE, BYTES_BASE, BYTES_PER_FD, BYTES_RESERVED, BYTES_RESERVED_PER_FD,
    CONNECTIONS_MAX, CONNECTIONS_RESERVED, FDS_MAX, FDS_RESERVED, FOLLOWERS_MAX, LOANS_MAX,
    LOANS_RESERVED, MEMORY_BASE, MEMORY_PER_FD, MEMORY_RESERVE_LEN, MEMORY_TAKEN_MAX, READ_LEN,
    WAITING_MAX,
};
use crate::privileges::raise_open_files;
use crate::shares::{Amounts, Resource};
use crate::Options;
use fdholder::limits::MESSAGE_FDS_MAX;
use rustix::io::fcntl_dupfd_cloexec;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// What there is room for in this process.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Descriptors held.
    pub capacity: usize,
    /// Clients at once.
    pub connections_max: usize,
    /// Descriptors that have come and are not held yet, when all that can be held is.
    pub arriving: usize,
    /// Clients that only wait until something is held, besides.
    waiting: usize,
    /// Bytes that wait in requests and replies of all clients.
    bytes: usize,
    /// Open files of this process.
    open_files: usize,
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
        let fds_wanted = options.fds_max.clamp(1, FDS_MAX);
        // If there is not enough for both, half is for clients.
        let for_clients = available.saturating_sub(fds_wanted).max(available / 2);
        let connections_max = options.connections_max.clamp(1, CONNECTIONS_MAX).min(for_clients);
        let capacity = fds_wanted.min(available - connections_max);
        if connections_max == 0 || capacity == 0 {
            return Err(io::Error::other(format!(
                "the hard limit on open files, {open_files}, is too low to hold anything; it takes \
                 {} or more", FDS_RESERVED + 2
            )));
        }
        let spare = available - connections_max - capacity;
        let waiting = WAITING_MAX.min(spare / 4);
        let spare = spare - waiting;
        let arriving = MESSAGE_FDS_MAX + spare.min(capacity + ARRIVING_SPARE);
        let bytes = BYTES_BASE + capacity * BYTES_PER_FD;
        Ok(Self { capacity, connections_max, arriving, waiting, bytes, open_files })
    }

    /// Lets clients take no more memory than there is beside what this process and a standby take,
    /// where so many bytes are allowed to both. Returns how much they may have if that is less than
    /// otherwise.
    pub fn within(&mut self, limit: u64) -> Option<usize> {
        let taken = (self.capacity.saturating_mul(MEMORY_PER_FD)).min(MEMORY_TAKEN_MAX);
        let own = MEMORY_BASE + taken + MEMORY_RESERVE_LEN;
        let left = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(2 * own);
        // What is allocated in pieces takes more than its length.
        let bytes = (left / 4).max(2 * READ_LEN + self.capacity * BYTES_RESERVED_PER_FD);
        let is_less = bytes < self.bytes;
        self.bytes = self.bytes.min(bytes);
        is_less.then_some(bytes)
    }

    /// What there is for all clients, when there are so many at most.
    pub fn sizes(&self, connections_max: usize) -> Amounts {
        Amounts::of(Resource::Connections, connections_max)
            .with(Resource::Arriving, self.arriving - 2 * self.message_reserved())
            .with(Resource::Bytes, self.bytes)
            .with(Resource::Unread, self.open_files - 2 * self.message_reserved())
            .with(Resource::Loans, LOANS_MAX)
            .with(Resource::Waiting, self.waiting)
    }

    /// What root may have besides, whatever others have, and as much the daemon's own user.
    pub fn reserves(&self) -> Amounts {
        Amounts::of(Resource::Connections, CONNECTIONS_RESERVED)
            .with(Resource::Arriving, self.message_reserved())
            .with(Resource::Bytes, BYTES_RESERVED + self.capacity * BYTES_RESERVED_PER_FD)
            .with(Resource::Unread, self.message_reserved())
            .with(Resource::Loans, LOANS_RESERVED)
    }

    /// The descriptors of one message, if there is room for those of three.
    fn message_reserved(&self) -> usize {
        MESSAGE_FDS_MAX.min((self.arriving - MESSAGE_FDS_MAX) / 2)
    }

    /// Clients at most, of all users, whatever they do.
    pub fn clients_max(&self) -> usize {
        self.connections_max + self.waiting + 2 * CONNECTIONS_RESERVED
    }

    /// Has the kernel make the process's table of descriptors as large as it can become.
    /// While there are couriers, making it larger would stop the loop for milliseconds
    /// each time.
    pub fn grow_descriptor_table(self, any: impl AsFd) {
        // If it cannot be had now, it will be tried again when it is needed.
        drop(fcntl_dupfd_cloexec(any, self.number_from_the_end(1)));
    }

    /// One of the last numbers that descriptors need to have.
    fn number_from_the_end(self, nth: usize) -> i32 {
        let arriving = self.arriving - MESSAGE_FDS_MAX;
        let clients = self.connections_max + self.waiting;
        let len = self.capacity + clients + arriving + FDS_RESERVED;
        i32::try_from(len - nth).unwrap_or(i32::MAX)
    }

    /// One that others watch to hear when this process has gone, with a number at the end of the
    /// table, if one is free there. Of a process that was killed the kernel lets go of what has the
    /// highest number first (`task_work_run`); an inotify instance, or what lingers, would have them
    /// wait.
    pub fn let_go_of_first(self, fd: OwnedFd) -> OwnedFd {
        fcntl_dupfd_cloexec(&fd, self.number_from_the_end(FOLLOWERS_MAX)).unwrap_or(fd)
    }
}
