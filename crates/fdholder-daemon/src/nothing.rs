//! What a standard stream becomes that nobody is to read or write.

use rustix::fs::{fcntl_add_seals, fcntl_get_seals, memfd_create, MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Opens /dev/null; where there is none, as in an image with nothing but a program, an empty file
/// that cannot grow: reading finds its end, and what is written takes no memory.
///
/// # Errors
///
/// Those of `memfd_create(2)`.
pub fn open() -> io::Result<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/null") {
        Ok(null) => Ok(null.into()),
        Err(_) => empty(),
    }
}

/// Whether that is what a stream has become already: nobody reads what is written to it.
pub fn is_nothing(stream: impl AsFd) -> bool {
    fcntl_get_seals(stream).is_ok_and(|seals| seals.contains(SealFlags::GROW))
}

fn empty() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let empty = memfd_create("nothing", flags)?;
    fcntl_add_seals(&empty, SealFlags::GROW)?;
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn empty_file_ends_at_once_and_does_not_grow() {
        let mut file = File::from(empty().unwrap());
        assert_eq!(file.read(&mut [0; 8]).unwrap(), 0);
        assert!(file.write(b"x").is_err());
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(is_nothing(&file) && !is_nothing(File::open("/dev/null").unwrap()));
    }
}
