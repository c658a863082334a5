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
    /// When it cannot be made.
    pub fn make() -> Result<Self, Failure> {
        let base = base();
        remove_abandoned(&base);
        let failed = |error: std::io::Error| {
            Failure::system(format!("make a folder for sockets in {}", base.display()), error)
        };
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&base).map_err(failed)?;
        let lock = lock(folder.path(), OFlags::CREATE).map_err(failed)?;
        if geteuid().is_root() {
            // PROG may be another user by the time it sends something.
            fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).map_err(failed)?;
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

/// Where such folders are: `/run` is for root, and a user's own is in `XDG_RUNTIME_DIR`.
fn base() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let is_own = |path: &PathBuf| {
        path.is_absolute() && fs::metadata(path).is_ok_and(|it| it.uid() == geteuid().as_raw())
    };
    let run = || Some(PathBuf::from("/run")).filter(|path| geteuid().is_root() && is_own(path));
    own.filter(is_own).or_else(run).unwrap_or_else(std::env::temp_dir)
}

/// Locks a file in the folder: the folder itself is locked for a moment by whoever binds a socket.
fn lock(folder: &Path, flags: OFlags) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = retried(|| open(folder.join("lock"), flags, Mode::RUSR | Mode::WUSR))?;
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
        if is_ours && lock(&entry.path(), OFlags::empty()).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
