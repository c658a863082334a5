//! What a service says of itself, in a file in memory that is held for it. Whoever holds
//! the descriptor has what is in it, so it outlives this process without further ado.

use crate::limits::NOTIFY_STATUS_LEN_MAX;
use fdholder::{Errno, Service};
use rustix::fs::{fcntl_get_seals, ftruncate, memfd_create, MemfdFlags};
use rustix::io::{pread, pwrite};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of it at most: a status, and two numbers.
const LEN_MAX: usize = NOTIFY_STATUS_LEN_MAX + 64;

/// A new one.
pub fn create() -> Result<OwnedFd, Errno> {
    memfd_create("fdholder-status", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

/// Reads one; the name of the service is for the caller to fill in. `None` for what is no
/// file in memory: reading from anything else could take as long as its owner likes.
pub fn read(file: impl AsFd) -> Option<Service> {
    // Only such files have seals.
    fcntl_get_seals(&file).ok()?;
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

/// Writes it anew.
///
/// # Errors
///
/// EINVAL when it is no file in memory; EPERM when its owner has sealed it.
pub fn write(file: impl AsFd, service: &Service) -> Result<(), Errno> {
    fcntl_get_seals(&file)?;
    let Service { ready, pid, status, .. } = service;
    let text = format!("READY={}\nPID={pid}\nSTATUS={status}\n", u8::from(*ready));
    let written = pwrite(&file, text.as_bytes(), 0)?;
    ftruncate(&file, written as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_add_seals, SealFlags};

    #[test]
    fn it_comes_back_as_it_was() {
        let file = create().unwrap();
        let mut service =
            Service { ready: true, pid: 7, status: "x".repeat(512), ..Service::default() };
        write(&file, &service).unwrap();
        assert_eq!(read(&file), Some(service.clone()));
        service.status = "short".into();
        write(&file, &service).unwrap();
        assert_eq!(read(&file), Some(service));
    }

    #[test]
    fn what_is_no_file_in_memory_is_not_touched() {
        let (pipe, _other) = std::io::pipe().unwrap();
        assert_eq!(read(&pipe), None);
        assert!(write(&pipe, &Service::default()).is_err());
        let sealed = create().unwrap();
        fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        assert_eq!(write(&sealed, &Service::default()), Err(Errno::PERM));
    }
}
