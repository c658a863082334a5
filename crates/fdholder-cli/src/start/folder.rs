//! A folder for the sockets of one process, which is removed when that ends.

use crate::failure::Failure;
use fdholder_daemon::retried;
use rustix::fs::{flock, fstat, lstat, open, FlockOperation, Mode, OFlags};
use rustix::process::geteuid;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the names of these folders begin with.
const PREFIX: &str = "fdholder-run.";

/// The file in each whose lock says that it is in use.
const LOCK: &str = "lock";

/// How often to begin anew when somebody removes the folder that is being made.
const ATTEMPTS: usize = 16;

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
        let mut failure = None;
        for base in bases() {
            remove_abandoned(&base);
            match Self::make_in(&base) {
                Ok(folder) => return Ok(folder),
                Err(error) => {
                    let doing = format!("make a folder for sockets in {}", base.display());
                    failure = Some(Failure::system(doing, error));
                }
            }
        }
        // There is always the folder for temporary files.
        Err(failure.unwrap_or_else(|| Failure::system("make a folder", io::ErrorKind::NotFound)))
    }

    fn make_in(base: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(base)?;
            match lock(folder.path(), OFlags::CREATE) {
                Ok(Some(lock)) => {
                    if geteuid().is_root() {
                        // PROG may be another user by the time it sends something.
                        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
                    }
                    return Ok(Self { folder, lock });
                }
                // Another process has taken it for an abandoned one.
                Ok(None) => {}
                Err(_) if !folder.path().exists() => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves it to somebody else: the folder, and the lock that says that it is in use.
    pub fn keep(self) -> (PathBuf, OwnedFd) {
        (self.folder.keep(), self.lock)
    }
}

/// Where such a folder may be: `/run` is for root, and a user's own is in `XDG_RUNTIME_DIR`. A container
/// whose root is read-only may have no other place than `/dev/shm`.
fn bases() -> Vec<PathBuf> {
    let is_own = |path: &PathBuf| {
        path.is_absolute() && fs::metadata(path).is_ok_and(|it| it.uid() == geteuid().as_raw())
    };
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    // systemd names all of a unit's, with colons between.
    let of_unit = std::env::split_paths(&variable("RUNTIME_DIRECTORY")).next();
    let of_unit = of_unit.filter(|path| !geteuid().is_root() || others_may_enter(path));
    let run = Some(PathBuf::from("/run")).filter(|_| geteuid().is_root());
    let own = [of_unit, Some(variable("XDG_RUNTIME_DIR").into()), run];
    own.into_iter()
        .flatten()
        .filter(is_own)
        .chain([std::env::temp_dir(), PathBuf::from("/dev/shm")])
        .collect()
}

/// Root's PROG may be another user, who has to reach its socket. (`RuntimeDirectoryMode=` may be 0700.)
fn others_may_enter(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|it| it.mode() & 0o001 != 0)
}

/// Locks the file in a folder; `None`: another process has locked or removed it. The folder itself is
/// locked for a moment by a process that binds a socket.
fn lock(folder: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = retried(|| open(folder.join(LOCK), flags, Mode::RUSR | Mode::WUSR))?;
    let is_locked = flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok((is_locked && is_lock_of(folder, &opened)).then_some(opened))
}

/// Whether a descriptor is the file in this folder, now.
fn is_lock_of(folder: &Path, lock: impl AsFd) -> bool {
    let (Ok(opened), Ok(there)) = (fstat(lock), lstat(folder.join(LOCK))) else { return false };
    (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
}

fn is_ours(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let has_owner = |it: fs::Metadata| it.is_dir() && it.uid() == geteuid().as_raw();
    name.starts_with(PREFIX) && fs::symlink_metadata(folder).is_ok_and(has_owner)
}

/// Whether this is a folder that a process of this program has made, and its lock.
pub fn is_made(folder: &Path, lock: impl AsFd) -> bool {
    is_ours(folder) && is_lock_of(folder, lock)
}

/// Removes a folder that was [kept](Folder::keep), with what is in it. Other folders are none of ours.
pub fn remove(folder: &Path, lock: impl AsFd) {
    if !is_made(folder, lock) {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // A folder in it is not removed, and stays with this one.
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(folder);
}

/// Removes the folders of this user that no process has locked. What cannot be removed stays.
fn remove_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_ours(path)) {
        // One that is being made has no lock yet. The lock is kept until all is removed.
        if let Ok(Some(_lock)) = lock(&path, OFlags::empty()) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn folder_that_is_being_made_is_not_removed() {
        let base = tempfile::tempdir().unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        remove_abandoned(base.path());
                    }
                });
            }
            for _ in 0..300 {
                let folder = Folder::make_in(base.path());
                let has_lock = folder.as_ref().map(|it| is_made(it.path(), &it.lock));
                if !matches!(has_lock, Ok(true)) {
                    is_done.store(true, Ordering::Relaxed);
                    panic!("{folder:?}");
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn abandoned_folders_are_removed_and_others_stay() {
        let base = tempfile::tempdir().unwrap();
        let (abandoned, lock) = Folder::make_in(base.path()).unwrap().keep();
        let used = Folder::make_in(base.path()).unwrap();
        remove_abandoned(base.path());
        assert!(abandoned.exists());
        // Of somebody else.
        remove(used.path(), &lock);
        assert!(used.path().exists());
        drop(lock);
        remove_abandoned(base.path());
        assert!(!abandoned.exists() && used.path().exists());
        let (kept, lock) = used.keep();
        remove(&kept, lock);
        assert!(!kept.exists());
    }
}
