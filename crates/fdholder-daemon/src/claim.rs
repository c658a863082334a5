//! A claim on a path: while a daemon serves there, it also listens on an abstract name made of that
//! path. So the next daemon finds it although its socket file was removed, renamed or replaced.
//!
//! A lock file would be removed with the folder, and could not tell who holds it. The kernel frees an
//! abstract name with the last descriptor of its socket, and tells the user and pid behind it.

use crate::credentials::{self, Credentials};
use crate::listen::connect_to_address;
use crate::reading::retried;
use crate::there::{self, if_there};
use rustix::io::Errno;
use rustix::net::{
    bind, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fs::metadata;
use std::hash::Hasher;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Daemons that wait to be let in by it.
const BACKLOG: i32 = 16;

/// Bytes of an abstract name at most, by unix(7).
const NAME_LEN_MAX: usize = 107;

/// Claims a path for this process.
///
/// # Errors
///
/// EADDRINUSE: another process has it. Others as of socket(2).
pub fn claim(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects with the process that has claimed a path.
///
/// # Errors
///
/// ECONNREFUSED: no process has. Others as of [`connect_to`](crate::listen::connect_to).
pub fn connect_to_claim(path: &Path, patience: Duration) -> Result<OwnedFd, Errno> {
    connect_to_address(&address(path)?, Some(patience))
}

/// Which process has claimed a path, if it is one of this user or root, and sees the same files there.
///
/// # Errors
///
/// When that cannot be found out: a daemon may live there.
pub fn claimant(path: &Path, uid: u32, patience: Duration) -> io::Result<Option<Credentials>> {
    let socket = match retried(|| connect_to_claim(path, patience)) {
        Ok(socket) => socket,
        // A sandbox may keep us from looking.
        Err(Errno::CONNREFUSED | Errno::PERM | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let who = retried(|| credentials::of_peer(&socket))?;
    // Anybody may take an abstract name; only these could be taken over from.
    Ok((([uid, 0].contains(&who.user.uid)) && !is_elsewhere(path, who.pid)?).then_some(who))
}

/// A file, if it is there and may be looked at.
fn file_at(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let file = there::retried(|| if_there(metadata(path)), |_| false)?;
    Ok(file.map(|file| (file.dev(), file.ino())))
}

/// Whether a process is known to find another folder by this path, as in a container.
fn is_elsewhere(path: &Path, pid: Option<i32>) -> io::Result<bool> {
    // One of another pid namespace cannot be looked at, and is in a container.
    let Some(pid) = pid else { return Ok(true) };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let own = file_at(Path::new("/proc/self/ns/mnt"))?;
    let its = file_at(&process.join("ns/mnt"))?;
    if own.is_none() || its.is_none() || own == its {
        return Ok(false);
    }
    let folder = whole(path)?.parent().map(Path::to_owned).unwrap_or_default();
    let its_folder = process.join("root").join(folder.strip_prefix("/").unwrap_or(&folder));
    let (own, its) = (file_at(&folder)?, file_at(&its_folder)?);
    Ok(own.is_none() || own != its)
}

/// The path from the root, through links.
fn whole(path: &Path) -> io::Result<PathBuf> {
    let whole = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else { return Ok(whole) };
    let folder = there::retried(|| if_there(folder.canonicalize()), |_| false)?;
    Ok(folder.map(|folder| folder.join(name)).unwrap_or(whole))
}

/// Names are shared by all that share a network, whatever their root is: so that is in it.
fn address(path: &Path) -> Result<SocketAddrUnix, Errno> {
    let parts = || Ok((file_at(Path::new("/"))?.unwrap_or_default(), whole(path)?));
    let (root, path) =
        parts().map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    let path = path.as_os_str().as_bytes();
    let mut hasher = Fnv::default();
    hasher.write(path);
    let mut name = format!("fdholder/{:x}/{:x}/{:x}", root.0, root.1, hasher.finish()).into_bytes();
    // People who look at /proc/net/unix see the end of it.
    let len = path.len().min(NAME_LEN_MAX - name.len());
    name.extend_from_slice(&path[path.len() - len..]);
    SocketAddrUnix::new_abstract_name(&name)
}

/// FNV-1a: the same in each version of this program, unlike the standard library's.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, remove_dir};
    use std::os::unix::fs::symlink;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn claim_is_exclusive_and_ends_with_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(claimant(&path, own_uid(), PATIENCE).unwrap(), None);
        let first = claim(&path).unwrap();
        assert_eq!(claim(&path).unwrap_err(), Errno::ADDRINUSE);
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(claimant(&path, own_uid(), PATIENCE).unwrap().unwrap().pid, Some(pid));
        // A claim by a stranger counts for nothing.
        if own_uid() != 0 {
            assert_eq!(claimant(&path, own_uid() + 1, PATIENCE).unwrap(), None);
        }
        drop(first);
        claim(&path).unwrap();
    }

    #[test]
    fn claim_is_found_by_every_name_of_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        create_dir(&real).unwrap();
        symlink(&real, folder.path().join("link")).unwrap();
        let path = real.join("socket");
        let _claim = claim(&path).unwrap();
        let is_found = |path: &Path| claimant(path, own_uid(), PATIENCE).unwrap().is_some();
        assert!(is_found(&folder.path().join("link/socket")));
        assert!(is_found(&folder.path().join("link/../real/./socket")));
        assert!(!is_found(&real.join("other")));
        assert!(!is_found(&folder.path().join("socket")));
        // The folder is removed and made again.
        remove_dir(&real).unwrap();
        create_dir(&real).unwrap();
        assert!(is_found(&path));
    }

    #[test]
    fn names_of_long_paths_differ() {
        let of = |text: &str| address(Path::new(text)).unwrap();
        let long = "x".repeat(200);
        assert_ne!(of(&format!("/a/{long}")), of(&format!("/b/{long}")));
        assert_eq!(of(&format!("/a/{long}")), of(&format!("/a/{long}")));
    }
}
