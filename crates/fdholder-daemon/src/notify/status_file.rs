//! What a service says of itself, in a file in memory that is held for it. Whoever holds
//! the descriptor has what is in it, so it outlives this process without further ado.

use crate::limits::NOTIFY_STATUS_LEN_MAX;
use fdholder::{Errno, Service};
use rustix::fs::{fcntl_add_seals, fcntl_get_seals, memfd_create, MemfdFlags, SealFlags};
use rustix::io::{pread, pwrite};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of it at most: a status, and two numbers.
const LEN_MAX: usize = NOTIFY_STATUS_LEN_MAX + 64;

/// Nobody can change it any more, nor keep whoever reads it waiting.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A new one, in the place of the one before: that may be in others' hands.
///
/// # Errors
///
/// Those of `memfd_create(2)` and pwrite(2).
pub fn create(service: &Service) -> Result<OwnedFd, Errno> {
    let Service { ready, pid, status, .. } = service;
    let text = format!("READY={}\nPID={pid}\nSTATUS={status}\n", u8::from(*ready));
    let file = memfd_create("fdholder-status", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    if pwrite(&file, text.as_bytes(), 0)? < text.len() {
        // A limit on the size of files (RLIMIT_FSIZE) leaves room for a part of it.
        return Err(Errno::FBIG);
    }
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

/// Reads one; the name of the service is for the caller to fill in. `None` for what is no
/// such file: reading from anything else could take as long as its owner likes.
pub fn read(file: impl AsFd) -> Option<Service> {
    if !fcntl_get_seals(&file).ok()?.contains(SEALS) {
        return None;
    }
    let mut bytes = [0; LEN_MAX];
    let len = pread(&file, &mut bytes, 0).ok()?;
    let mut service = Service::default();
    for line in String::from_utf8_lossy(&bytes[..len]).lines() {
        match line.split_once('=') {
            Some(("READY", value)) => service.ready = value == "1",
            Some(("PID", value)) => service.pid = value.parse().unwrap_or(0),
            Some(("STATUS", text)) => text.clone_into(&mut service.status),
            _ => {}
        }
    }
    Some(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_and_stays_so() {
        let status = "x".repeat(NOTIFY_STATUS_LEN_MAX);
        let service = Service { ready: true, pid: u32::MAX, status, ..Service::default() };
        let file = create(&service).unwrap();
        assert_eq!(read(&file), Some(service));
        assert_eq!(pwrite(&file, b"READY=0", 0), Err(Errno::PERM));
    }

    #[test]
    fn what_others_could_change_is_not_read() {
        let (pipe, _other) = std::io::pipe().unwrap();
        assert_eq!(read(&pipe), None);
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        pwrite(&open, b"READY=1\n", 0).unwrap();
        assert_eq!(read(&open), None);
    }
}
