//! A claim on a path: while a daemon serves there, it also listens on an abstract name made of that
//! path. So the next daemon finds it although its socket file was removed, renamed or replaced.
//!
//! A lock file would be removed with the folder, and could not tell who holds it. The kernel frees an
//! abstract name with the last descriptor of its socket, and tells the user and pid behind it.

use crate::credentials::{self, Credentials};
use crate::listen::connect_to_address;
use crate::reading::retried;
use crate::there::{self, if_there};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{
    bind, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::ffi::OsStr;
use std::fs::{metadata, read};
use std::hash::Hasher;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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

/// Who has claimed a path.
#[derive(Debug)]
pub enum Claimed {
    /// Nobody; or one who finds another folder by this path, as in a container.
    ByNobody,
    /// A process of this user or root, which this is connected with.
    By(Credentials, OwnedFd),
    /// One of another user: anybody may take an abstract name.
    ByStranger(Credentials),
}

/// Connects with the process that has claimed a path, if it is one of this user or root.
///
/// # Errors
///
/// When it cannot be found out who has: a daemon may live there.
pub fn claimant(path: &Path, uid: u32, patience: Duration) -> io::Result<Claimed> {
    let socket = match retried(|| connect_to_claim(path, patience)) {
        Ok(socket) => socket,
        // A sandbox may keep us from looking.
        Err(Errno::CONNREFUSED | Errno::PERM | Errno::ACCESS) => return Ok(Claimed::ByNobody),
        Err(errno) => return Err(errno.into()),
    };
    let who = retried(|| credentials::of_peer(&socket))?;
    if ![uid, 0].contains(&who.user.uid) {
        return Ok(Claimed::ByStranger(who));
    }
    let is_elsewhere = is_elsewhere(path, who.pid)?;
    Ok(if is_elsewhere { Claimed::ByNobody } else { Claimed::By(who, socket) })
}

/// Whether a socket other than this one listens by a path, be it that its file is gone: of all of the
/// same network that can be seen, though not whose they are. `None` where there is no /proc.
///
/// # Errors
///
/// When it cannot be found out.
pub fn another_listens_by(path: &Path, own: impl AsFd) -> io::Result<Option<bool>> {
    let table = there::retried(|| if_there(read("/proc/net/unix")), |_| false)?;
    let (own, path) = (fstat(own)?.st_ino, whole(path)?);
    let is_another = |(inode, name): (u64, &[u8])| {
        // A path is told as it was said, and may be relative, or lead through links.
        let name = Path::new(OsStr::from_bytes(name));
        let ends_alike = inode != own && path.file_name() == name.file_name();
        let is_same = || {
            let relative = name.is_relative() && path.ends_with(name);
            relative || name == path || whole(name).is_ok_and(|name| name == path)
        };
        ends_alike && is_same()
    };
    Ok(table.map(|table| listeners(&table).any(is_another)))
}

/// The inodes of the streams in a table that listen, and what they are bound to.
fn listeners(table: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut rest = line;
        // Num, RefCount, Protocol, Flags, Type, St, Inode; and what is left is the path.
        let fields: [&[u8]; 7] = std::array::from_fn(|_| {
            let from = rest.trim_ascii_start();
            let end = from.iter().position(|&byte| byte == b' ').unwrap_or(from.len());
            let (field, behind) = from.split_at(end);
            rest = behind;
            field
        });
        let is_listener = fields[3] == b"00010000" && fields[4] == b"0001";
        let name = rest.strip_prefix(b" ").filter(|_| is_listener)?;
        Some((std::str::from_utf8(fields[6]).ok()?.parse().ok()?, name))
    })
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
    use std::os::unix::net::{UnixListener, UnixStream};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    fn claimed_by(path: &Path, uid: u32) -> Option<Credentials> {
        match claimant(path, uid, PATIENCE).unwrap() {
            Claimed::By(who, _) => Some(who),
            Claimed::ByNobody | Claimed::ByStranger(_) => None,
        }
    }

    #[test]
    fn claim_is_exclusive_and_ends_with_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(claimed_by(&path, own_uid()).is_none());
        let first = claim(&path).unwrap();
        assert_eq!(claim(&path).unwrap_err(), Errno::ADDRINUSE);
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(claimed_by(&path, own_uid()).unwrap().pid, Some(pid));
        // A claim by a stranger counts for nothing.
        if own_uid() != 0 {
            let claimed = claimant(&path, own_uid() + 1, PATIENCE).unwrap();
            assert!(matches!(claimed, Claimed::ByStranger(who) if who.user.uid == own_uid()));
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
        let is_found = |path: &Path| claimed_by(path, own_uid()).is_some();
        assert!(is_found(&folder.path().join("link/socket")));
        assert!(is_found(&folder.path().join("link/../real/./socket")));
        assert!(!is_found(&real.join("other")));
        assert!(!is_found(&folder.path().join("socket")));
        // The folder is removed and made again.
        remove_dir(&real).unwrap();
        create_dir(&real).unwrap();
        assert!(is_found(&path));
    }

    /// A process whose queue is full may live: that is no answer, least of all "nobody".
    #[test]
    fn full_queue_of_a_claim_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let claim = claim(&path).unwrap();
        let short = Duration::from_millis(1);
        let waiting: Vec<_> = std::iter::from_fn(|| connect_to_claim(&path, short).ok()).collect();
        let error = claimant(&path, own_uid(), short).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::AGAIN));
        drop((waiting, claim));
    }

    #[test]
    fn another_that_listens_is_seen_although_its_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        let first = UnixListener::bind(&path).unwrap();
        assert_eq!(another_listens_by(&path, &first).unwrap(), Some(false));
        std::fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(another_listens_by(&path, &second).unwrap(), Some(true));
        assert_eq!(
            another_listens_by(&folder.path().join("socket"), &second).unwrap(),
            Some(false)
        );
        drop(first);
        assert_eq!(another_listens_by(&path, &second).unwrap(), Some(false));
    }

    #[test]
    fn only_streams_that_listen_are_in_the_table() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0: 00000003 00000000 00000000 0001 03 3603016\n\
            0: 00000002 00000000 00010000 0001 01  1495 /run/a b\n\
            0: 00000002 00000000 00010000 0005 01 22222 /run/seq\n\
            0: 00000002 00000000 00010000 0001 01 33333\n\
            0: 00000002 00000000 00000000 0001 01 44444 /run/bound\n";
        let found: Vec<_> = listeners(table).collect();
        assert_eq!(found, [(1495, b"/run/a b".as_slice())]);
        assert_eq!(listeners(b"").count(), 0);
    }

    #[test]
    fn names_of_long_paths_differ() {
        let of = |text: &str| address(Path::new(text)).unwrap();
        let long = "x".repeat(200);
        assert_ne!(of(&format!("/a/{long}")), of(&format!("/b/{long}")));
        assert_eq!(of(&format!("/a/{long}")), of(&format!("/a/{long}")));
    }
}
