//! Standard error, for a process that must not wait for it.

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::io::{self, Write};

/// Writes a line, if that can be done at once. A pipe that is ready has room for one:
/// `PIPE_BUF` bytes.
pub fn write(line: &[u8]) -> bool {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut ready, Some(&Timespec::default())) == Ok(1)
        && ready[0].revents().contains(PollFlags::OUT)
        && !ready[0].revents().contains(PollFlags::ERR)
        && (&stderr).write_all(line).is_ok()
}
