//! Whether anything has happened to a folder of rules since it was looked at, as the kernel
//! tells it.
//!
//! To look at each file again is most of what it costs to let a client in. When nothing has
//! happened in a folder and to those that lead to it (inotify), and nothing was mounted
//! (`/proc/self/mountinfo`), then each file is what it was. What has happened may be anything, or
//! nothing of importance: then, as wherever the kernel does not tell of everything (a file
//! system that others change, too, a symlink that leads out), files are looked at.
//!
//! A notification is there before the system call returns that it tells of, so a changed rule
//! holds for whoever connects next. Only what is written through a mapping (mmap) is told
//! when the mapping goes.

use rustix::buffer::spare_capacity;
use rustix::event::{epoll, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{
    fstat, open, stat, statat, statfs, AtFlags, FileType, Mode, OFlags, Stat, StatFs,
};
use rustix::io::{read, Errno};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// File systems that nobody changes but through this kernel, and by whichever name, so that it
/// tells of all that happens to them: ext2 to ext4, XFS, Btrfs, F2FS, ZFS, bcachefs, tmpfs, ramfs
/// (statfs(2)).
const TOLD_OF: [u64; 8] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0xca45_1a4e,
    0x0102_1994,
    0x8584_58f6,
];

/// One that is full tells that, too, so this is a matter of speed alone.
const EVENTS_LEN: usize = 4096;

/// How often something has happened to a folder of rules, as far as the kernel tells that.
#[derive(Debug)]
pub(super) struct Told {
    /// `None`: there is none.
    folder: Option<PathBuf>,
    watch: Option<Watch>,
    /// To begin to watch it was tried, or done.
    is_tried: bool,
    happened: u64,
}

impl Told {
    /// Of this folder.
    pub fn of(folder: Option<PathBuf>) -> Self {
        Self { folder, watch: None, is_tried: false, happened: 0 }
    }

    /// How often something has happened; `None` when nobody tells that.
    pub fn happened(&mut self) -> Option<u64> {
        let has = self.watch.as_ref()?.has_something_happened();
        self.happened += u64::from(has != Some(false));
        if has.is_none() {
            self.watch = None;
            self.is_tried = false;
        }
        has.map(|_| self.happened)
    }

    /// The same, and what happens to these paths from now on is told, too.
    pub fn happened_with<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) -> Option<u64> {
        if !std::mem::replace(&mut self.is_tried, true) {
            self.watch = self.folder.as_deref().and_then(Watch::begin);
        }
        let happened = self.happened()?;
        self.watch.as_mut()?.covers(paths).then_some(happened)
    }

    /// If it could not be watched, it may be another one now.
    pub fn try_again(&mut self) {
        self.is_tried = self.watch.is_some();
    }
}

/// Is told of what happens to a folder.
#[derive(Debug)]
struct Watch {
    inotify: OwnedFd,
    /// Of inotify and of the mounts, all the time: to look whether there is anything costs a
    /// third of what poll(2) takes to ask both.
    epoll: OwnedFd,
    /// Watched for as long as it is open.
    #[allow(dead_code)]
    mounts: OwnedFd,
    path: PathBuf,
    c_path: CString,
    /// The device of the folder, and its number there.
    is: (u64, u64),
    /// It is told when the path leads to another one.
    path_is_covered: bool,
}

#[allow(clippy::unnecessary_cast)] // The types of these fields differ between architectures.
fn which(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Whatever may make a difference to a file, or to a folder and what is in it.
fn whatever_happens() -> WatchFlags {
    WatchFlags::ATTRIB
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF
        | WatchFlags::DELETE_SELF
        | WatchFlags::DONT_FOLLOW
}

/// What may make a difference to a folder on the way: not what else is in it.
fn whatever_happens_to_it() -> WatchFlags {
    WatchFlags::ATTRIB
        | WatchFlags::MOVE_SELF
        | WatchFlags::DELETE_SELF
        | WatchFlags::DONT_FOLLOW
        | WatchFlags::ONLYDIR
}

/// Whether everything that happens there is told.
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, clippy::unnecessary_cast)]
fn is_told_of(kind: &StatFs) -> bool {
    TOLD_OF.contains(&(kind.f_type as u64 & 0xffff_ffff))
}

impl Watch {
    /// Begins to watch what is [told](Self::covers) of the folder that `path` leads to; `None`
    /// where this kernel, or this file system, does not tell of everything.
    fn begin(path: &Path) -> Option<Self> {
        let flags = OFlags::CLOEXEC | OFlags::RDONLY;
        let mounts = open("/proc/self/mountinfo", flags, Mode::empty()).ok()?;
        let path = std::path::absolute(path).ok()?;
        let c_path = CString::new(path.as_os_str().as_bytes()).ok()?;
        if !is_told_of(&statfs(c_path.as_c_str()).ok()?) {
            return None;
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        let nothing = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &inotify, nothing, epoll::EventFlags::IN).ok()?;
        epoll::add(&epoll, &mounts, nothing, epoll::EventFlags::PRI).ok()?;
        let is = which(&stat(c_path.as_c_str()).ok()?);
        let path_is_covered = false;
        Some(Self { inotify, epoll, mounts, path, c_path, is, path_is_covered })
    }

    /// Whether something has happened since this was asked last; `None` when it is not the
    /// folder any more that is watched.
    fn has_something_happened(&self) -> Option<bool> {
        let mut told = [MaybeUninit::uninit(); 2];
        let (told, _) = epoll::wait(&self.epoll, &mut told, Some(&Timespec::default())).ok()?;
        let has = !told.is_empty();
        if has {
            let mut events = Vec::with_capacity(EVENTS_LEN);
            // What is left is told next time, which is once more than needed.
            match read(&self.inotify, spare_capacity(&mut events)) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
        if has || !self.path_is_covered {
            let is = which(&stat(self.c_path.as_c_str()).ok()?);
            return (is == self.is).then_some(has);
        }
        Some(false)
    }

    /// Has the kernel tell when the path leads elsewhere; false when it does not tell that. The
    /// same for the folder itself: it is there as long as there is something in it, and then
    /// the folders before it are.
    fn covers_path(&self) -> bool {
        let Some(parent) = self.path.parent() else { return false };
        let mut way: Vec<_> = self.path.ancestors().collect();
        way.reverse();
        way.into_iter().all(|place| {
            let mask = if place == self.path {
                whatever_happens() | WatchFlags::ONLYDIR
            } else if place == parent {
                // Its own end is not told while somebody has it open.
                whatever_happens_to_it() | WatchFlags::DELETE
            } else {
                whatever_happens_to_it()
            };
            // A symlink is no folder, and so not told of.
            inotify::add_watch(&self.inotify, place, mask).is_ok()
                && statfs(place).is_ok_and(|kind| is_told_of(&kind))
        })
    }

    /// Has the kernel tell from now on of whatever may change what these paths lead to, all of
    /// them in the folder; false when it does not tell of everything.
    fn covers<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) -> bool {
        self.path_is_covered = self.covers_path();
        let mut places = BTreeSet::from([Path::new("")]);
        for path in paths {
            let Ok(path) = path.strip_prefix(&self.path) else { return false };
            places.extend(path.ancestors());
        }
        let flags = OFlags::CLOEXEC | OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(folder) = open(self.c_path.as_c_str(), flags, Mode::empty()) else { return false };
        if !fstat(&folder).is_ok_and(|stat| which(&stat) == self.is) {
            return false;
        }
        // In order, so that whatever replaces a folder behind our back is told by the one before.
        places.into_iter().all(|place| self.covers_place(&folder, place))
    }

    fn covers_place(&self, folder: &OwnedFd, place: &Path) -> bool {
        let name = Path::new(&format!("/proc/self/fd/{}/", folder.as_raw_fd())).join(place);
        match inotify::add_watch(&self.inotify, &name, whatever_happens()) {
            Ok(_) => {}
            // Whoever makes it changes the folder before, and so does what takes a file's place.
            Err(Errno::NOENT | Errno::NOTDIR) => return true,
            Err(_) => return false,
        }
        let stat = statat(folder, Path::new(".").join(place), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            which(&stat).0 == self.is.0
                && matches!(kind, FileType::Directory | FileType::RegularFile)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_getfl, utimensat, Timespec, Timestamps, CWD};
    use rustix::io::{fcntl_getfd, FdFlags};
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{symlink, PermissionsExt};

    /// A folder with `a/b/file`, watched for that and `a/none/file`.
    fn watched() -> (tempfile::TempDir, Watch) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("rules/a/b")).unwrap();
        fs::write(dir.path().join("rules/a/b/file"), "x").unwrap();
        let watch = Watch::begin(&dir.path().join("rules")).expect("a file system that tells");
        (dir, watch)
    }

    fn cover(dir: &tempfile::TempDir, watch: &mut Watch) -> bool {
        let paths = ["a/b/file", "a/none/file"].map(|path| dir.path().join("rules").join(path));
        watch.covers(paths.iter().map(PathBuf::as_path))
    }

    type Deed = fn(&Path);

    #[test]
    fn whatever_happens_is_told() {
        let deeds: [(&str, Deed); 12] = [
            ("written", |rules| fs::write(rules.join("a/b/file"), "y").unwrap()),
            ("appended to", |rules| {
                let mut file =
                    fs::OpenOptions::new().append(true).open(rules.join("a/b/file")).unwrap();
                file.write_all(b"y").unwrap();
            }),
            ("replaced", |rules| {
                fs::write(rules.join("other"), "y").unwrap();
                fs::rename(rules.join("other"), rules.join("a/b/file")).unwrap();
            }),
            ("removed", |rules| fs::remove_file(rules.join("a/b/file")).unwrap()),
            ("made unreadable", |rules| {
                let mode = fs::Permissions::from_mode(0o000);
                fs::set_permissions(rules.join("a/b/file"), mode).unwrap();
            }),
            ("written by its other name", |rules| {
                fs::write(rules.join("../other"), "y").unwrap();
            }),
            ("given other times", |rules| {
                let past = Timespec { tv_sec: 1, tv_nsec: 0 };
                let times = Timestamps { last_access: past, last_modification: past };
                utimensat(CWD, rules.join("a/b/file"), &times, AtFlags::empty()).unwrap();
            }),
            ("in a folder that is replaced", |rules| {
                fs::rename(rules.join("a"), rules.join("old")).unwrap();
                fs::create_dir(rules.join("a")).unwrap();
            }),
            ("in a folder that is hidden", |rules| {
                fs::set_permissions(rules.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
                fs::set_permissions(rules.join("a/b"), fs::Permissions::from_mode(0o755)).unwrap();
            }),
            ("one of more", |rules| {
                fs::create_dir(rules.join("a/none")).unwrap();
                fs::write(rules.join("a/none/file"), "").unwrap();
            }),
            ("one of more, made elsewhere", |rules| {
                fs::write(rules.join("../elsewhere"), "").unwrap();
                fs::rename(rules.join("../elsewhere"), rules.join("a/none")).unwrap();
            }),
            ("in a folder that is hidden as a whole", |rules| {
                fs::set_permissions(rules, fs::Permissions::from_mode(0o700)).unwrap();
            }),
        ];
        for (what, deed) in deeds {
            let (dir, mut watch) = watched();
            let rules = dir.path().join("rules");
            fs::hard_link(rules.join("a/b/file"), dir.path().join("other")).unwrap();
            assert!(cover(&dir, &mut watch) && watch.path_is_covered);
            watch.has_something_happened().unwrap();
            assert_eq!(watch.has_something_happened(), Some(false), "nothing has happened");
            deed(&rules);
            assert_eq!(watch.has_something_happened(), Some(true), "it was {what}");
        }
    }

    #[test]
    fn what_else_is_in_the_folders_before_it_is_not_told() {
        let (dir, mut watch) = watched();
        assert!(cover(&dir, &mut watch) && watch.path_is_covered);
        watch.has_something_happened().unwrap();
        fs::write(dir.path().join("beside"), "").unwrap();
        fs::rename(dir.path().join("beside"), dir.path().join("other")).unwrap();
        assert_eq!(watch.has_something_happened(), Some(false));
    }

    /// Whoever is started by this process is not to have them; and a mount, of which inotify
    /// tells nothing, is not to stop it.
    #[test]
    fn its_descriptors_stay_here_and_stop_nobody() {
        let (_dir, watch) = watched();
        for fd in [&watch.inotify, &watch.epoll, &watch.mounts] {
            assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
        }
        assert!(fcntl_getfl(&watch.inotify).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn another_folder_in_its_place_is_told() {
        let deeds: [(&str, Deed); 5] = [
            ("moved away", |rules| fs::rename(rules, rules.join("../old")).unwrap()),
            ("moved away with the one it is in", |rules| {
                let parent = rules.parent().unwrap();
                fs::rename(parent, parent.with_extension("old")).unwrap();
                fs::create_dir_all(rules).unwrap();
            }),
            ("replaced by a link to another", |rules| {
                fs::rename(rules, rules.join("../old")).unwrap();
                fs::create_dir(rules.with_file_name("other")).unwrap();
                symlink("other", rules).unwrap();
            }),
            ("replaced by another while somebody is in it", |rules| {
                let is_in_it = fs::File::open(rules).unwrap();
                fs::remove_dir_all(rules).unwrap();
                fs::create_dir(rules).unwrap();
                drop(is_in_it);
            }),
            ("removed", |rules| fs::remove_dir_all(rules).unwrap()),
        ];
        for (what, deed) in deeds {
            // Covered, and with a link on the way, which is looked at.
            for link in [None, Some("link")] {
                let (dir, _) = watched();
                let parent = dir.path().join("parent");
                fs::create_dir(&parent).unwrap();
                fs::create_dir(parent.join("rules")).unwrap();
                symlink("parent", dir.path().join("link")).unwrap();
                let rules = dir.path().join(link.unwrap_or("parent")).join("rules");
                let mut watch = Watch::begin(&rules).unwrap();
                assert!(watch.covers([rules.join("a")].iter().map(PathBuf::as_path)));
                assert_eq!(watch.path_is_covered, link.is_none());
                assert!(watch.has_something_happened().is_some());
                assert_eq!(watch.has_something_happened(), Some(false));
                deed(&parent.join("rules"));
                assert_eq!(watch.has_something_happened(), None, "it was {what}, {link:?}");
            }
        }
    }

    #[test]
    fn a_link_on_the_way_is_looked_at() {
        let (dir, _) = watched();
        symlink("rules", dir.path().join("link")).unwrap();
        let mut watch = Watch::begin(&dir.path().join("link")).unwrap();
        assert!(watch.covers([dir.path().join("link/a/b/file")].iter().map(PathBuf::as_path)));
        assert!(!watch.path_is_covered && watch.has_something_happened().is_some());
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::remove_file(dir.path().join("link")).unwrap();
        symlink("other", dir.path().join("link")).unwrap();
        assert_eq!(watch.has_something_happened(), None);
    }

    /// Whoever remembers a number must not find it again when it is another folder.
    #[test]
    fn numbers_do_not_come_again() {
        let (dir, _) = watched();
        let rules = dir.path().join("rules");
        let file = rules.join("a/b/file");
        let mut told = Told::of(Some(rules.clone()));
        assert_eq!(told.happened(), None, "nobody was asked to tell");
        let first = told.happened_with([file.as_path()].into_iter()).unwrap();
        assert_eq!(told.happened(), Some(first));
        fs::rename(&rules, dir.path().join("old")).unwrap();
        assert_eq!(told.happened(), None);
        assert_eq!(told.happened_with([file.as_path()].into_iter()), None);
        fs::create_dir(&rules).unwrap();
        assert_eq!(told.happened_with([file.as_path()].into_iter()), None, "it was tried");
        told.try_again();
        let second = told.happened_with([file.as_path()].into_iter()).unwrap();
        assert_ne!(second, first);
        assert_eq!(told.happened(), Some(second));
    }

    #[test]
    fn where_not_everything_is_told_it_says_so() {
        assert!(Watch::begin(Path::new("/proc/self")).is_none());
        assert!(Watch::begin(Path::new("/proc/self/none")).is_none());
        let (dir, mut watch) = watched();
        assert!(!watch.covers([dir.path()].into_iter()), "outside");
        let rules = dir.path().join("rules");
        fs::rename(rules.join("a/b"), dir.path().join("b")).unwrap();
        symlink("../../b", rules.join("a/b")).unwrap();
        assert!(!cover(&dir, &mut watch), "a link leads out");
    }
}
