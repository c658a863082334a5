//! A folder for the sockets of one process, which is removed when that ends.

use crate::failure::Failure;
use fdholder_daemon::retried;
use rustix::fs::{flock, open, FlockOperation, Mode, OFlags};
use rustix::process::geteuid;
use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the names of these folders begin with.
const PREFIX: &str = "fdholder-run.";

/// The file in it that is locked while it is in use.
const LOCK: &str = "lock";

/// The folder, and a lock that says that it is in use.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    lock: OwnedFd,
}

impl Folder {
    /// Makes one, and removes those of processes that were killed.
    ///
    /// # Errors
    ///
    /// When it can be made nowhere.
    pub fn make() -> Result<Self, Failure> {
        let mut refusals = Vec::new();
        for base in bases() {
            match Self::make_in(&base) {
                Ok(folder) => return Ok(folder),
                Err(error) => refusals.push(format!("{}: {error}", base.display())),
            }
        }
        let error = std::io::Error::other(refusals.join("; "));
        Err(Failure::system("make a folder for sockets", error))
    }

    fn make_in(base: &Path) -> std::io::Result<Self> {
        remove_abandoned(base);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(base)?;
        // Under its name it is locked from the start: another process takes it for abandoned else.
        let new = folder.path().join("lock.new");
        let lock = lock(&new, OFlags::CREATE)?;
        fs::rename(&new, folder.path().join(LOCK))?;
        if geteuid().is_root() {
            // PROG may be another user by the time it sends something.
            fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        }
        Ok(Self { folder, lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves it to somebody else: the folder, and the lock that says that it is in use.
    pub fn keep(self) -> (PathBuf, OwnedFd) {
        (self.folder.keep(), self.lock)
    }
}

/// Where such folders are: a user's own is in `XDG_RUNTIME_DIR`, and `/run` is for root. A container
/// whose root is read-only may have no other place than `/dev/shm`.
fn bases() -> impl Iterator<Item = PathBuf> {
    let is_own = |path: &PathBuf| {
        path.is_absolute() && fs::metadata(path).is_ok_and(|it| it.uid() == geteuid().as_raw())
    };
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_own);
    let run = Some(PathBuf::from("/run")).filter(|path| geteuid().is_root() && is_own(path));
    own.into_iter().chain(run).chain([std::env::temp_dir(), PathBuf::from("/dev/shm")])
}

/// Locks a file in a folder: the folder itself is locked for a moment by whoever binds a socket.
fn lock(file: &Path, flags: OFlags) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = retried(|| open(file, flags, Mode::RUSR | Mode::WUSR))?;
    flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
    Ok(opened)
}

/// Removes the folders of this user that no process has locked. What cannot be removed stays.
fn remove_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|it| it.is_dir() && it.uid() == geteuid().as_raw());
        // One that is being made has no lock yet.
        if is_ours && lock(&entry.path().join(LOCK), OFlags::empty()).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
