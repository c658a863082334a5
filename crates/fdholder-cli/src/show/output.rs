//! Standard output.

use crate::failure::Failure;
use crate::startup::was_closed;
use fdholder::Errno;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Writes to stdout; what cannot be written is a failure, not a panic.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text).map_err(|error| Failure::system("write to stdout", error))
}

/// The same, with the error. The standard library would take a stdout that is closed, or open for
/// reading, for one that takes everything.
pub fn write(text: &str) -> io::Result<()> {
    if was_closed(libc::STDOUT_FILENO.unsigned_abs()) {
        return Err(Errno::BADF.into());
    }
    let mut stdout = io::stdout().lock();
    stdout.flush()?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(stdout.as_fd(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
