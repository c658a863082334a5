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
use crate::memory::cgroup::MOUNTED_AT;
use crate::there::{if_there, retried};
use landlock::{
    Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use rustix::fs::{accessat, fstat, open, openat, Access, AtFlags, FileType, Mode, OFlags, CWD};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, fs};
use tracing::warn;

/// The latest version whose rights are known here. Of those that a kernel does not know,
/// nothing is refused.
const KNOWN: ABI = ABI::V7;

/// What may be opened, and for what.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    rules: BTreeMap<PathBuf, BitFlags<AccessFs>>,
    /// A path that may lead to another folder later: it is relative, or a symbolic link is part of
    /// it. Rules stay with the folder that it leads to now.
    movable: Option<PathBuf>,
}

/// What became of [`confine`].
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process is confined.
    Confined,
    /// This kernel has no Landlock.
    Unsupported,
    /// This path may lead to another folder later.
    Movable(PathBuf),
}

/// Why a process is not confined.
#[derive(Debug)]
pub enum ConfinementError {
    /// Whether a file is there is not known, so a rule that it needs might be left out.
    Unknown {
        /// The file.
        path: PathBuf,
        /// Why it is not known.
        error: io::Error,
    },
    /// The kernel refused a rule, or all of them.
    Landlock(RulesetError),
    /// The kernel has Landlock, and once did not answer.
    NotEnforced,
}

impl ConfinementError {
    /// Whether the kernel will not confine this process, however often it is asked: there are 16
    /// such layers already, or a filter forbids it.
    pub fn is_refusal(&self) -> bool {
        let Self::Landlock(error) = self else { return false };
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        let mut errno = None;
        while let Some(error) = cause {
            errno = error.downcast_ref().and_then(Errno::from_io_error).or(errno);
            cause = error.source();
        }
        let refusals = [Errno::TOOBIG, Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::OPNOTSUPP];
        errno.is_some_and(|errno| refusals.contains(&errno))
    }
}

impl fmt::Display for ConfinementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Landlock(error) => error.fmt(f),
            Self::NotEnforced => f.write_str("the kernel did not say which rules it knows"),
        }
    }
}

impl Error for ConfinementError {}

impl From<RulesetError> for ConfinementError {
    fn from(error: RulesetError) -> Self {
        Self::Landlock(error)
    }
}

type Result<T> = std::result::Result<T, ConfinementError>;

/// What is looked at; `None` if it is not there, or not for this user. Then it needs no rule.
fn look<T, E: Into<io::Error>>(
    path: &Path,
    result: std::result::Result<T, E>,
) -> Result<Option<T>> {
    if_there(result.map_err(Into::into))
        .map_err(|error| ConfinementError::Unknown { path: path.to_owned(), error })
}

fn canonical(path: &Path) -> Result<Option<PathBuf>> {
    look(path, path.canonicalize())
}

fn to_read() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

impl Confinement {
    /// What any daemon needs: to become that program, or start another process of its own.
    ///
    /// # Errors
    ///
    /// Here and below: when it is not known what is there.
    pub fn with_program(successor: &Launch) -> Result<Self> {
        let mut all = Self::default();
        all.note(&successor.program)?;
        let to_execute = to_read() | AccessFs::Execute;
        let link = Path::new("/proc/self/exe");
        let own = look(link, fs::read_link(link))?;
        for program in [Some(successor.program.as_path()), own.as_deref()].into_iter().flatten() {
            // Not also the folder of a link to it: that may be one with all the programs there are.
            let program = canonical(program)?.unwrap_or_else(|| program.to_owned());
            all.replaceable(&program, to_execute)?;
        }
        for folder in folders_of_libraries()? {
            all.allow(folder, to_execute);
        }
        // Standard streams of what is started.
        all.allow("/dev/null", AccessFs::ReadFile | AccessFs::WriteFile);
        // Its own maps and children. Not by a folder of its own number: processes that follow
        // have others, and the kernel forgets such a folder when memory is short. Of processes
        // outside, what matters is refused to one who may not trace them.
        all.allow("/proc", AccessFs::ReadFile);
        // How much memory the next program has.
        if look(Path::new(MOUNTED_AT), fs::metadata(MOUNTED_AT))?.is_some() {
            all.allow(MOUNTED_AT, AccessFs::ReadFile);
        }
        Ok(all)
    }

    /// A file that is read again, or the one that is put in its place.
    ///
    /// # Errors
    ///
    /// [`ConfinementError::Unknown`].
    pub fn read_file(&mut self, file: &Path) -> Result<()> {
        self.note(file)?;
        self.replaceable(file, to_read())
    }

    /// A folder that is read; it may be replaced, too. So are files and folders that links in it
    /// lead to by now: rules can be shared like that.
    ///
    /// # Errors
    ///
    /// [`ConfinementError::Unknown`].
    pub fn read_folder(&mut self, folder: &Path) -> Result<()> {
        self.note(folder)?;
        self.replaceable(folder, to_read())?;
        for (target, is_folder) in targets_of_links_in(folder)? {
            if !target.starts_with(folder) {
                self.movable.get_or_insert_with(|| target.clone());
            }
            if is_folder {
                self.allow(target, to_read());
            } else {
                self.replaceable(&target, to_read())?;
            }
        }
        Ok(())
    }

    /// A socket that is made, in the place of a dead one.
    ///
    /// # Errors
    ///
    /// [`ConfinementError::Unknown`].
    pub fn make_socket(&mut self, path: &Path) -> Result<()> {
        self.note(path)?;
        // Its lock is on the folder.
        let access = AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile;
        if let Some(folder) = canonical(folder_of(path))? {
            self.allow(folder, access);
        }
        Ok(())
    }

    /// The same in a folder that is put in the place of that one: it may be removed and made again,
    /// or something mounted there. Nothing is allowed for the root folder.
    ///
    /// # Errors
    ///
    /// [`ConfinementError::Unknown`].
    pub fn make_socket_anew(&mut self, path: &Path) -> Result<()> {
        let above = folder_of(path).parent().filter(|above| above.parent().is_some());
        if let Some(above) = above.map(canonical).transpose()?.flatten() {
            self.allow(above, AccessFs::MakeSock);
        }
        Ok(())
    }

    /// A fifo that is made, and opened.
    ///
    /// # Errors
    ///
    /// [`ConfinementError::Unknown`].
    pub fn make_fifo(&mut self, path: &Path) -> Result<()> {
        let access = AccessFs::MakeFifo | AccessFs::ReadFile | AccessFs::WriteFile;
        self.note(path)?;
        self.replaceable(path, access)
    }

    fn note(&mut self, path: &Path) -> Result<()> {
        if self.movable.is_none() && may_move(path)? {
            self.movable = Some(path.to_owned());
        }
        Ok(())
    }

    fn allow(&mut self, path: impl Into<PathBuf>, access: impl Into<BitFlags<AccessFs>>) {
        *self.rules.entry(path.into()).or_default() |= access.into();
    }

    /// The folder of a file, and of what it leads to; but where that is all there is, the file.
    fn replaceable(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<()> {
        let target = canonical(path)?;
        for path in [Some(path), target.as_deref()].into_iter().flatten() {
            // What is not there yet may be made with its folder.
            let mut folder = None;
            for ancestor in folder_of(path).ancestors() {
                let here = ancestor.as_os_str().is_empty();
                folder = canonical(if here { Path::new(".") } else { ancestor })?;
                if folder.is_some() {
                    break;
                }
            }
            match folder.filter(|folder| folder != Path::new("/")) {
                Some(folder) => self.allow(folder, access),
                None => self.allow(path, access),
            }
        }
        Ok(())
    }

    /// Has the kernel refuse everything else, to this process and to whatever it starts or
    /// becomes; beside that, to connect by TCP, and to send signals to strangers.
    ///
    /// The kernel does this for one thread; it must be called before there is a second.
    ///
    /// # Errors
    ///
    /// When it refuses, as it does for more than 16 one upon the other; or when it is not known
    /// what is there. Then nothing is confined.
    pub fn apply(&self) -> Result<()> {
        debug_assert!(is_alone(), "another thread would stay as it is");
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::ConnectTcp)?
            .scope(Scope::Signal)?
            .create()?;
        for (path, access) in &self.rules {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let Some(there) = look(path, openat(CWD, path, flags, Mode::empty()))? else {
                continue;
            };
            let is_folder = look(path, fstat(&there))?
                .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            let access = if is_folder { *access } else { *access & AccessFs::from_file(KNOWN) };
            ruleset = ruleset.add_rule(PathBeneath::new(there, access))?;
        }
        if ruleset.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
            return Err(ConfinementError::NotEnforced);
        }
        CONFINED.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Finds out what is needed, and applies it; again from the beginning if that failed for a moment.
/// With `only_fixed` not if a path may lead to another folder later.
///
/// # Errors
///
/// Those of the last attempt; nothing is confined then.
pub fn confine(needs: impl Fn() -> Result<Confinement>, only_fixed: bool) -> Result<Outcome> {
    // The crate takes any failure for a kernel without Landlock, so a second look decides.
    if !is_known() && !is_known() {
        return Ok(Outcome::Unsupported);
    }
    let attempt = || {
        let needs = needs()?;
        match &needs.movable {
            Some(path) if only_fixed => Ok(Outcome::Movable(path.clone())),
            _ => needs.apply().map(|()| Outcome::Confined),
        }
    };
    retried(attempt, ConfinementError::is_refusal)
}

fn may_move(path: &Path) -> Result<bool> {
    if !path.is_absolute() {
        return Ok(true);
    }
    for part in path.ancestors() {
        if look(part, part.symlink_metadata())?.is_some_and(|it| it.is_symlink()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_known() -> bool {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict.handle_access(AccessFs::Execute).is_ok()
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
fn folders_of_libraries() -> Result<HashSet<PathBuf>> {
    let maps = Path::new("/proc/self/maps");
    let maps = match look(maps, fs::read(maps))? {
        None if !cfg!(target_feature = "crt-static") => return Ok(HashSet::from(["/".into()])),
        maps => maps.unwrap_or_default(),
    };
    let folders = maps.split(|&byte| byte == b'\n').filter_map(folder_of_code);
    Ok(folders.filter(|folder| folder != Path::new("/")).collect())
}

/// By a line of /proc/self/maps: see proc(5).
fn folder_of_code(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is_code = words.nth(1)?.contains(&b'x');
    let path = line.iter().position(|&byte| byte == b'/').map(|at| &line[at..])?;
    let folder = Path::new(OsStr::from_bytes(path)).parent();
    folder.filter(|_| is_code).map(Path::to_owned)
}

/// Where links in a folder of rules lead, when that is elsewhere; and whether to a folder.
fn targets_of_links_in(folder: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let mut targets = Vec::new();
    let mut is_known = HashSet::new();
    let mut waiting: Vec<_> = canonical(folder)?.into_iter().collect();
    let mut left = RULES_LOOKED_AT_MAX;
    while let Some(folder) = waiting.pop() {
        if !is_known.insert(folder.clone()) {
            continue;
        }
        for entry in look(&folder, fs::read_dir(&folder))?.into_iter().flatten() {
            let Some(entry) = look(&folder, entry)? else { continue };
            if left == 0 {
                warn!(
                    "{} has over {RULES_LOOKED_AT_MAX} files: links beyond that are not followed",
                    folder.display()
                );
                return Ok(targets);
            }
            left -= 1;
            let path = entry.path();
            let Some(kind) = look(&path, entry.file_type())? else { continue };
            let target = if kind.is_symlink() { canonical(&path)? } else { Some(path) };
            let Some(path) = target else { continue };
            let is_folder = if kind.is_symlink() {
                look(&path, fs::metadata(&path))?.is_some_and(|it| it.is_dir())
            } else {
                kind.is_dir()
            };
            if is_folder {
                waiting.push(path.clone());
            }
            if kind.is_symlink() {
                targets.push((path, is_folder));
            }
        }
    }
    Ok(targets)
}

fn is_alone() -> bool {
    fs::read_dir("/proc/self/task").map_or(true, |threads| threads.flatten().count() <= 1)
}

#[cfg(test)]
mod tests;
