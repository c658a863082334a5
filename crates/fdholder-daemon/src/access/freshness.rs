//! Whether the files that a decision was read from are still what they were.
//!
//! A witness remembers the stat(2) of each path that was looked at, those that were not
//! there included. Looking at them again costs a fraction of reading them, and it holds for
//! whatever changes a path: a symlink that is switched, a folder that is swapped, a mount, a
//! remote file system. Where the kernel tells of all of that, they need not even be looked at
//! ([`Watch`](super::watch::Watch)).
//!
//! A stat says nothing about a file that changed twice within one tick of the clock it is
//! stamped with. What changed just before it was read is therefore not relied upon.

use rustix::fs::{stat, Stat};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file must have been left alone this long before it was read to be relied upon:
/// longer than a tick of any clock that stamps files (2 s on FAT).
pub(super) const SETTLED: Duration = Duration::from_millis(2500);

/// What a path was.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    File(Identity),
    /// The errno of its stat: ENOENT, EACCES …
    Not(Errno),
}

/// What changes when a file is replaced, written, or gets other permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    dev: u64,
    ino: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Stat> for Identity {
    // The types of these fields differ between architectures.
    #[allow(clippy::cast_possible_wrap, clippy::cast_lossless, clippy::unnecessary_cast)]
    fn from(stat: Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}

fn look(path: &CString) -> Seen {
    match stat(path.as_c_str()) {
        Ok(stat) => Seen::File(stat.into()),
        Err(errno) => Seen::Not(errno),
    }
}

/// What was looked at to come to a decision.
#[derive(Debug)]
pub(super) struct Witness {
    paths: Vec<(CString, Seen)>,
    settled: Duration,
    unsettled: bool,
}

impl Witness {
    /// Nothing has been looked at yet. `settled` is how long a file must have been left
    /// alone to be relied upon: [`SETTLED`], but in tests.
    pub fn new(settled: Duration) -> Self {
        Self { paths: Vec::new(), settled, unsettled: false }
    }

    /// Looks at a path, before it is read.
    pub fn look_at(&mut self, path: CString) {
        let seen = look(&path);
        self.remember(path, seen);
    }

    /// A path has been looked at by who has opened it, before it is read.
    pub fn has_seen(&mut self, path: CString, stat: Stat) {
        self.remember(path, Seen::File(stat.into()));
    }

    fn remember(&mut self, path: CString, seen: Seen) {
        if let Seen::File(identity) = &seen {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (secs, nanos) = identity.changed;
            let changed =
                Duration::new(u64::try_from(secs).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
            // A stamp in the future is not settled either.
            self.unsettled |= changed + self.settled >= now;
        }
        self.paths.push((path, seen));
    }

    /// What was looked at.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(|(path, _)| Path::new(OsStr::from_bytes(path.as_bytes())))
    }

    /// Whether everything that was looked at is as it was.
    pub fn still_holds(&self) -> bool {
        !self.unsettled && self.is_unchanged()
    }

    /// Whether no change shows, be it that what changed a moment ago may change again without
    /// a trace.
    pub fn is_unchanged(&self) -> bool {
        self.paths.iter().all(|(path, seen)| look(path) == *seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{utimensat, AtFlags, Timespec, Timestamps, CWD};
    use std::fs;

    fn witness(path: &Path) -> Witness {
        let mut witness = Witness::new(SETTLED);
        witness.look_at(CString::new(path.as_os_str().as_bytes()).unwrap());
        witness
    }

    #[test]
    fn what_was_just_written_is_not_relied_upon() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "a").unwrap();
        assert!(!witness(&file).still_holds());
        // One such file is enough, and a second does not make up for it.
        let mut both = witness(&file);
        both.look_at(CString::new(file.as_os_str().as_bytes()).unwrap());
        assert!(!both.still_holds());
        both.look_at(CString::new(dir.path().join("none").as_os_str().as_bytes()).unwrap());
        assert!(!both.still_holds());
    }

    #[test]
    fn every_kind_of_change_shows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        // A ctime cannot be set, so the files are taken for settled ones.
        let settled = |path: &Path| Witness { unsettled: false, ..witness(path) };

        let absent = settled(&file);
        assert!(absent.still_holds());
        fs::write(&file, "a").unwrap();
        assert!(!absent.still_holds(), "it was created");

        let before = settled(&file);
        assert!(before.still_holds());
        fs::write(&file, "bc").unwrap();
        assert!(!before.still_holds(), "it was written");

        let before = settled(&file);
        let other = dir.path().join("other");
        fs::write(&other, "bc").unwrap();
        fs::rename(&other, &file).unwrap();
        assert!(!before.still_holds(), "it was replaced");

        let before = settled(&file);
        let past = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: past, last_modification: past };
        utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        assert!(!before.still_holds(), "its times were set");

        let before = settled(&file);
        fs::remove_file(&file).unwrap();
        assert!(!before.still_holds(), "it was removed");
    }
}
