//! What a daemon may still open once it serves: little of the file system, by Landlock.
//!
//! A daemon is spoken with by everybody. If one of them ever found a mistake in it, nothing
//! should be gained by that but what is held. So before it serves, a process has the kernel
//! refuse to it, and to whatever it starts or becomes, all that it will not need.
//!
//! What it will need is said by folders rather than by files: rules, configuration and
//! program are replaced by others of the same name.

use crate::launch::{Launch, CONFINED_VARIABLE, FOLLOW_VARIABLE, TAKE_OVER_VARIABLE};
use crate::limits::RULES_LOOKED_AT_MAX;
use landlock::{
    Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use rustix::fs::{accessat, open, Access, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The latest version whose rights are known here. Of those that a kernel does not know,
/// nothing is refused.
const KNOWN: ABI = ABI::V7;

/// What may be opened, and for what.
#[derive(Debug, Clone)]
pub struct Confinement(BTreeMap<PathBuf, BitFlags<AccessFs>>);

fn to_read() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

impl Confinement {
    /// What any daemon needs: to become that program, or start another process of its own.
    pub fn with_program(successor: &Launch) -> Self {
        let mut all = Self(BTreeMap::new());
        let to_execute = to_read() | AccessFs::Execute;
        let own = std::env::current_exe().ok();
        for program in [Some(successor.program.as_path()), own.as_deref()].into_iter().flatten() {
            // Not also the folder of a link to it: that may be one with all the programs there are.
            let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
            all.replaceable(&program, to_execute);
        }
        for folder in folders_of_libraries() {
            all.allow(folder, to_execute);
        }
        // Standard streams of what is started.
        all.allow("/dev/null", AccessFs::ReadFile | AccessFs::WriteFile);
        // Its own maps and children. Not by a folder of its own number: processes that follow
        // have others, and the kernel forgets such a folder when memory is short. Of processes
        // outside, what matters is refused to one who may not trace them.
        all.allow("/proc", AccessFs::ReadFile);
        all
    }

    /// A file that is read again, or the one that is put in its place.
    pub fn read_file(&mut self, file: &Path) {
        self.replaceable(file, to_read());
    }

    /// A folder that is read; it may be replaced, too. So are files and folders that links in it
    /// lead to by now: rules can be shared like that.
    pub fn read_folder(&mut self, folder: &Path) {
        self.replaceable(folder, to_read());
        for target in targets_of_links_in(folder) {
            if target.is_dir() {
                self.allow(target, to_read());
            } else {
                self.replaceable(&target, to_read());
            }
        }
    }

    /// A socket that is made, in the place of a dead one.
    pub fn make_socket(&mut self, path: &Path) {
        let folder = folder_of(path).canonicalize();
        // Its lock is on the folder.
        let access = AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile;
        self.allow(folder.unwrap_or_default(), access);
    }

    /// A fifo that is made, and opened.
    pub fn make_fifo(&mut self, path: &Path) {
        let access = AccessFs::MakeFifo | AccessFs::ReadFile | AccessFs::WriteFile;
        self.replaceable(path, access);
    }

    fn allow(&mut self, path: impl Into<PathBuf>, access: impl Into<BitFlags<AccessFs>>) {
        *self.0.entry(path.into()).or_default() |= access.into();
    }

    /// The folder of a file, and of what it leads to; but where that is all there is, the file.
    fn replaceable(&mut self, path: &Path, access: BitFlags<AccessFs>) {
        let target = path.canonicalize().ok();
        for path in [Some(path), target.as_deref()].into_iter().flatten() {
            // What is not there yet may be made with its folder.
            let folder = folder_of(path);
            let folder = folder.ancestors().find_map(|folder| folder.canonicalize().ok());
            match folder.filter(|folder| folder != Path::new("/")) {
                Some(folder) => self.allow(folder, access),
                None => self.allow(path, access),
            }
        }
    }

    /// Has the kernel refuse everything else, to this process and to whatever it starts or
    /// becomes; beside that, to connect by TCP, and to send signals to strangers. False: it
    /// knows nothing of that.
    ///
    /// The kernel does this for one thread; it must be called before there is a second.
    ///
    /// # Errors
    ///
    /// When it refuses, as it does for more than 16 one upon the other.
    pub fn apply(&self) -> Result<bool, RulesetError> {
        debug_assert!(is_alone(), "another thread would stay as it is");
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::ConnectTcp)?
            .scope(Scope::Signal)?
            .create()?;
        for (path, access) in &self.0 {
            // What is not there, or cannot be come by, cannot be used either.
            let Ok(folder) = PathFd::new(path) else { continue };
            let access = if path.is_dir() { *access } else { *access & AccessFs::from_file(KNOWN) };
            ruleset = ruleset.add_rule(PathBeneath::new(folder, access))?;
        }
        let is_applied = ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced;
        CONFINED.fetch_or(is_applied, Ordering::Relaxed);
        Ok(is_applied)
    }
}

static CONFINED: AtomicBool = AtomicBool::new(false);

/// Whether this process was started, or has been before it became this program, by one that is
/// confined: so it is, too, and need not be once more.
pub fn is_inherited() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    is_set(CONFINED_VARIABLE) && (is_set(FOLLOW_VARIABLE) || is_set(TAKE_OVER_VARIABLE))
}

/// Whether this process is confined, since it began or since [`Confinement::apply`].
pub fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed) || is_inherited()
}

/// What to say behind an error of the system: what to do, if it may have come of this.
pub fn advice(kind: ErrorKind) -> &'static str {
    if kind == ErrorKind::PermissionDenied && is_confined() {
        " (in a folder that it did not begin with? Start the daemon anew, which takes over, or say \
         landlock = false)"
    } else {
        ""
    }
}

/// The same behind an error of executing a program, which may be one that nobody may execute:
/// access(2) does not ask Landlock.
pub fn advice_to_execute(program: &Path, kind: ErrorKind) -> &'static str {
    match accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(Errno::ACCESS) => "",
        _ => advice(kind),
    }
}

/// An errno in words, with that.
pub fn explain(errno: Errno) -> String {
    format!("{}{}", fdholder::strerror(errno), advice(errno.kind()))
}

/// Whether what this process could read, by its user, is refused to it nevertheless.
pub fn is_refused(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    is_confined()
        && accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS).is_ok()
        && open(path, flags, Mode::empty()).err() == Some(Errno::ACCESS)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Where the code comes from that this program shares with others, its loader included; also
/// the next program needs that. A static one has none. Of another one nothing is known without
/// /proc, and then it may be anywhere.
fn folders_of_libraries() -> HashSet<PathBuf> {
    let maps = match fs::read_to_string("/proc/self/maps") {
        Err(_) if !cfg!(target_feature = "crt-static") => return HashSet::from(["/".into()]),
        maps => maps.unwrap_or_default(),
    };
    maps.lines().filter_map(folder_of_code).filter(|folder| folder != Path::new("/")).collect()
}

/// By a line of /proc/self/maps: see proc(5).
fn folder_of_code(line: &str) -> Option<PathBuf> {
    let is_code = line.split_ascii_whitespace().nth(1)?.contains('x');
    let path = line.find('/').map(|at| Path::new(&line[at..]))?;
    path.parent().filter(|_| is_code).map(Path::to_owned)
}

/// Where links in a folder of rules lead, when that is elsewhere.
fn targets_of_links_in(folder: &Path) -> Vec<PathBuf> {
    let mut targets = Vec::new();
    let mut is_known = HashSet::new();
    let mut waiting: Vec<_> = folder.canonicalize().into_iter().collect();
    let mut left = RULES_LOOKED_AT_MAX;
    while let Some(folder) = waiting.pop() {
        if !is_known.insert(folder.clone()) {
            continue;
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if left == 0 {
                return targets;
            }
            left -= 1;
            let Ok(kind) = entry.file_type() else { continue };
            let path =
                if kind.is_symlink() { entry.path().canonicalize() } else { Ok(entry.path()) };
            let Ok(path) = path else { continue };
            if path.is_dir() {
                waiting.push(path.clone());
            }
            if kind.is_symlink() {
                targets.push(path);
            }
        }
    }
    targets
}

fn is_alone() -> bool {
    fs::read_dir("/proc/self/task").map_or(true, |threads| threads.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folders(confinement: &Confinement) -> Vec<&Path> {
        confinement.0.keys().map(PathBuf::as_path).collect()
    }

    #[test]
    fn the_folder_is_what_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (rules, shared, releases) =
            (root.join("etc/rules"), root.join("shared"), root.join("releases/1"));
        for folder in [rules.join("uid/5"), shared.join("admin"), releases.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let none = || Confinement(BTreeMap::new());
        let mut files = none();
        files.read_file(&root.join("etc/config"));
        assert_eq!(folders(&files), [root.join("etc")]);
        // One that is reached by a link is switched with that.
        symlink(releases.join("config"), root.join("etc/link")).unwrap();
        fs::write(releases.join("config"), "").unwrap();
        files.read_file(&root.join("etc/link"));
        assert_eq!(folders(&files), [root.join("etc"), releases]);

        let mut read = none();
        read.read_folder(&rules);
        assert_eq!(folders(&read), [root.join("etc")]);
        // By now it leads elsewhere, and from there still elsewhere; round in circles, too.
        symlink(shared.join("admin"), rules.join("uid/7")).unwrap();
        symlink(&rules, shared.join("admin/back")).unwrap();
        fs::write(root.join("value"), "").unwrap();
        symlink("../../value", shared.join("admin/env")).unwrap();
        symlink("nowhere", rules.join("uid/8")).unwrap();
        let mut read = none();
        read.read_folder(&rules);
        let expected = [root.clone(), root.join("etc"), rules, shared.join("admin")];
        assert_eq!(folders(&read), expected);

        let mut absent = none();
        absent.read_folder(&root.join("etc/no/such/folder"));
        assert_eq!(folders(&absent), [root.join("etc")]);
    }

    /// A program or configuration there does not make it all the world.
    #[test]
    fn the_root_is_not_a_folder_like_others() {
        let mut files = Confinement(BTreeMap::new());
        files.read_file(Path::new("/config"));
        files.make_fifo(Path::new("/fifo"));
        assert_eq!(folders(&files), [Path::new("/config"), Path::new("/fifo")]);
    }

    /// Which is full of other programs.
    #[test]
    fn a_program_is_where_a_link_leads() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (bin, own) = (root.join("bin"), root.join("own"));
        for folder in [&bin, &own] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(own.join("program"), "").unwrap();
        symlink(own.join("program"), bin.join("program")).unwrap();
        let launch = Launch { program: bin.join("program"), arguments: Vec::new() };
        let all = Confinement::with_program(&launch);
        assert!(folders(&all).contains(&own.as_path()));
        assert!(!folders(&all).contains(&bin.as_path()));
    }

    #[test]
    fn code_says_where_it_comes_from() {
        let folder = |line| folder_of_code(line);
        let line = "1000-3000 r-xp 0009e000 fe:00 1318    /usr/lib/x y/libc.so.6";
        assert_eq!(folder(line), Some("/usr/lib/x y".into()));
        for none in [
            "1000-3000 r--p 0009e000 fe:00 1318   /usr/lib/locale/x",
            "1000-3000 r-xp 00000000 00:00 0      [vdso]",
            "1000-3000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(folder(none), None, "{none}");
        }
        // There is at least this program.
        let own = std::env::current_exe().unwrap();
        assert!(folders_of_libraries().contains(own.parent().unwrap()));
    }
}
