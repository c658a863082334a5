//! Standard output.

use crate::failure::Failure;
use std::io::{self, Write};

/// Writes to stdout; what cannot be written is a failure, not a panic.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::system("write to stdout", error))
}
