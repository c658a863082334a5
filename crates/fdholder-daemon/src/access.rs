//! Who may do what.
//!
//! A client's rights are decided once, when it connects, from its uid and gid; handlers
//! only ask the value that came of it. The formats are s6's, see `docs/protocol.md`,
//! "Access rules".

pub mod cdb;
pub mod check;
pub mod dir;
mod freshness;
pub mod pattern;
mod watch;

use crate::confinement::explain;
use crate::limits::RIGHTS_CACHED_MAX;
use crate::shares::Quotas;
use fdholder::{Errno, Identifier};
use pattern::Pattern;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A user as the kernel knows it: effective uid and gid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl User {
    /// The user this process runs as.
    pub fn this_process() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} gid {}", self.uid, self.gid)
    }
}

/// Which identifiers an operation is allowed for.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// None.
    #[default]
    None,
    /// Every one.
    All,
    /// Those in which the regular expression is found.
    Matching(Pattern),
}

impl Ids {
    fn contain(&self, id: &Identifier) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Matching(pattern) => pattern.is_found_in(id),
        }
    }

    /// Allows what a variable says, unless an earlier one has spoken.
    fn or_matching(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if matches!(self, Self::None) {
            *self = Pattern::new(value).map(Self::Matching).map_err(|problem| {
                let (name, value) = (name.escape_ascii(), value.escape_ascii());
                format!("{name}: '{value}' is not a regular expression: {problem}")
            })?;
        }
        Ok(())
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("-"),
            Self::All => f.write_str("all"),
            Self::Matching(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// What a connected client may do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Identifiers it may store and delete.
    pub store: Ids,
    /// Identifiers it may retrieve.
    pub retrieve: Ids,
    /// It may list.
    pub list: bool,
    /// It may take a dump.
    pub getdump: bool,
    /// It may give a dump.
    pub setdump: bool,
    /// How much it may have of what there is for all.
    pub quotas: Quotas,
}

/// The variables that grant rights, or limit them.
pub const VARIABLES: [&str; 9] = [
    "S6_FDHOLDER_STORE_REGEX",
    "S6_FDHOLDER_RETRIEVE_REGEX",
    "S6_FDHOLDER_LIST",
    "S6_FDHOLDER_GETDUMP",
    "S6_FDHOLDER_SETDUMP",
    "FDHOLDER_MAXFDS",
    "FDHOLDER_MAXCONN",
    "FDHOLDER_MAXBYTES",
    "FDHOLDER_MAXUNREAD",
];

impl Rights {
    /// The right to everything.
    pub fn all() -> Self {
        let (store, retrieve, quotas) = (Ids::All, Ids::All, Quotas::default());
        Self { store, retrieve, list: true, getdump: true, setdump: true, quotas }
    }

    /// Whether nothing is granted.
    pub fn is_nothing(&self) -> bool {
        matches!((&self.store, &self.retrieve), (Ids::None, Ids::None))
            && !(self.list || self.getdump || self.setdump)
    }

    /// Whether the client may store and delete under `id`.
    pub fn may_store(&self, id: &Identifier) -> bool {
        self.store.contain(id)
    }

    /// Whether the client may retrieve what is held under `id`.
    pub fn may_retrieve(&self, id: &Identifier) -> bool {
        self.retrieve.contain(id)
    }

    /// The rights that an environment grants. Of a variable that is there twice, the
    /// first counts.
    ///
    /// # Errors
    ///
    /// When a value is no regular expression; says which.
    #[doc(hidden)]
    pub fn from_environment<'a>(
        variables: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, String> {
        let mut rights = Self::default();
        for (name, value) in variables {
            match name {
                b"S6_FDHOLDER_STORE_REGEX" => rights.store.or_matching(name, value)?,
                b"S6_FDHOLDER_RETRIEVE_REGEX" => rights.retrieve.or_matching(name, value)?,
                b"S6_FDHOLDER_LIST" => rights.list = true,
                b"S6_FDHOLDER_GETDUMP" => rights.getdump = true,
                b"S6_FDHOLDER_SETDUMP" => rights.setdump = true,
                b"FDHOLDER_MAXFDS" => limit(&mut rights.quotas.fds, name, value)?,
                b"FDHOLDER_MAXCONN" => limit(&mut rights.quotas.connections, name, value)?,
                b"FDHOLDER_MAXBYTES" => limit(&mut rights.quotas.bytes, name, value)?,
                b"FDHOLDER_MAXUNREAD" => limit(&mut rights.quotas.unread, name, value)?,
                _ => {}
            }
        }
        Ok(rights)
    }
}

/// Sets a limit, unless an earlier variable has.
fn limit(limit: &mut Option<usize>, name: &[u8], value: &[u8]) -> Result<(), String> {
    if limit.is_none() {
        let digits = value.iter().all(u8::is_ascii_digit);
        let number = str::from_utf8(value).ok().filter(|_| digits).and_then(|it| it.parse().ok());
        *limit = Some(number.ok_or_else(|| {
            let (name, value) = (name.escape_ascii(), value.escape_ascii());
            format!("{name}: '{value}' is not a number")
        })?);
    }
    Ok(())
}

/// Why a client was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No rule speaks of it.
    NoRule,
    /// This rule denies it.
    Denied(String),
    /// A rule could not be read; in doubt, nobody gets in.
    Broken {
        /// The rule, or the file of it.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// There was no room to read a rule, which says nothing of the rule, nor of the client.
    NotNow {
        /// The rule, or the file of it.
        place: String,
        /// What there is too little of.
        errno: Errno,
    },
}

impl Refusal {
    /// What it comes to that a system call has failed for `place`.
    fn of(place: &Path, errno: Errno) -> Self {
        match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                Self::NotNow { place: place.display().to_string(), errno }
            }
            errno => broken(place, explain(errno)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no rule for this user"),
            Self::Denied(key) => write!(f, "denied by rule {key}"),
            Self::Broken { place, problem } => write!(f, "{place}: {problem}"),
            Self::NotNow { place, errno } => write!(f, "{place}: {}", fdholder::strerror(*errno)),
        }
    }
}

/// What one rule says.
#[derive(Debug)]
enum Verdict {
    Allow(Rights),
    Deny,
    NoMatch,
}

/// The keys under which rules for `user` are looked up, in order, by a daemon that runs
/// as `own`.
pub fn keys(user: User, own: User) -> impl Iterator<Item = String> {
    [
        (user.uid == own.uid).then(|| "uid/self".to_owned()),
        Some(format!("uid/{}", user.uid)),
        (user.gid == own.gid).then(|| "gid/self".to_owned()),
        Some(format!("gid/{}", user.gid)),
        Some("uid/default".to_owned()),
    ]
    .into_iter()
    .flatten()
}

/// The first rule for `user` that matches, by its key, and what it grants.
fn decide(
    user: User,
    own: User,
    mut look_up: impl FnMut(&str) -> Result<Verdict, Refusal>,
) -> Result<(String, Rights), Refusal> {
    for key in keys(user, own) {
        match look_up(&key)? {
            Verdict::Allow(rights) => return Ok((key, rights)),
            Verdict::Deny => return Err(Refusal::Denied(key)),
            Verdict::NoMatch => {}
        }
    }
    Err(Refusal::NoRule)
}

/// What came of looking up a user: rights, or why not.
type Decision = Result<Arc<Rights>, Refusal>;

/// Where rules come from.
#[derive(Debug)]
enum Source {
    /// The daemon's own user may do everything, nobody else anything.
    OwnerOnly,
    Dir(PathBuf),
    Cdb {
        path: PathBuf,
        content: cdb::Cdb,
    },
}

/// A remembered decision, and what it was read from.
#[derive(Debug)]
struct Remembered {
    decision: Decision,
    read: freshness::Witness,
    /// How often something had happened when it was seen to hold, if all is told that may change
    /// it.
    held_at: Option<u64>,
}

/// The rules of a daemon, with what they said before.
///
/// A folder of rules is read again when anything that was read has changed, which is looked at
/// when anything has happened there; so a changed rule holds for the very next connection; a cdb when [`reload`](Self::reload) is called.
#[derive(Debug)]
pub struct Rules {
    source: Source,
    remembered: BTreeMap<User, Remembered>,
    told: watch::Told,
    settled: Duration,
}

impl Rules {
    /// Without any rules: the daemon's own user may do everything, nobody else connects.
    pub fn owner_only() -> Self {
        Self::from(Source::OwnerOnly)
    }

    /// Rules in a folder. It is not read before a client comes.
    pub fn in_dir(path: impl Into<PathBuf>) -> Self {
        Self::from(Source::Dir(path.into()))
    }

    /// Rules in a cdb, read now.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is no cdb.
    pub fn in_cdb(path: impl Into<PathBuf>) -> Result<Self, Refusal> {
        let path = path.into();
        let content = cdb::Cdb::read(&path)?;
        Ok(Self::from(Source::Cdb { path, content }))
    }

    /// Rules in a cdb that is in memory, for the fuzzers.
    #[doc(hidden)]
    pub fn of_cdb(content: cdb::Cdb) -> Self {
        Self::from(Source::Cdb { path: PathBuf::new(), content })
    }

    /// Rules in a folder whose files count as settled at once, so that a test need not wait
    /// until what they said is remembered.
    #[cfg(test)]
    fn in_settled_dir(path: impl Into<PathBuf>) -> Self {
        Self { settled: Duration::ZERO, ..Self::in_dir(path) }
    }

    #[cfg(test)]
    fn remembers(&self, user: User) -> bool {
        self.remembered.contains_key(&user)
    }

    /// Whether a decision holds until something is told.
    #[cfg(test)]
    fn is_told_of(&mut self, user: User) -> bool {
        let held_at = self.remembered.get(&user).and_then(|remembered| remembered.held_at);
        held_at.is_some() && self.told.happened() == held_at
    }

    fn from(source: Source) -> Self {
        let folder = match &source {
            Source::Dir(path) => Some(path.clone()),
            Source::OwnerOnly | Source::Cdb { .. } => None,
        };
        Self {
            source,
            remembered: BTreeMap::new(),
            told: watch::Told::of(folder),
            settled: freshness::SETTLED,
        }
    }

    /// Reads a cdb again, as SIGHUP asks; a folder needs no such thing.
    ///
    /// # Errors
    ///
    /// When the file cannot be read: the rules in force stay.
    pub fn reload(&mut self) -> Result<(), Refusal> {
        if let Source::Cdb { path, content } = &mut self.source {
            *content = cdb::Cdb::read(path)?;
            self.remembered.clear();
        }
        Ok(())
    }

    /// Forgets what was decided, for the memory of compiled expressions: it is decided anew.
    pub fn forget(&mut self) {
        self.remembered = BTreeMap::new();
    }

    /// The rights of `user` in a daemon that runs as `own`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] says why the user may not connect.
    pub fn rights(&mut self, user: User, own: User) -> Result<Arc<Rights>, Refusal> {
        if let Some(Remembered { decision, read, held_at }) = self.remembered.get_mut(&user) {
            if held_at.is_some() && self.told.happened() == *held_at {
                return decision.clone();
            }
            // Told of from before it is looked at: what happens in between is told.
            let happened = self.told.happened_with(read.paths());
            if read.still_holds() {
                *held_at = happened;
                return decision.clone();
            }
        }
        self.told.try_again();
        let (decision, read) = self.source.decide(user, own, self.settled);
        let decision = decision.map(|(_key, rights)| self.shared(user, rights));
        // What is broken may be so for a moment only, and nothing would show when it is not any
        // more.
        if matches!(decision, Err(Refusal::Broken { .. } | Refusal::NotNow { .. })) {
            self.remembered.remove(&user);
            return decision;
        }
        if self.remembered.len() >= RIGHTS_CACHED_MAX {
            self.remembered.clear();
        }
        self.remembered
            .insert(user, Remembered { decision: decision.clone(), read, held_at: None });
        decision
    }

    /// Those that the user's other connections have, if they are the same: expressions take ten
    /// or twenty kilobytes, and what has just been written is read again for each connection.
    fn shared(&self, user: User, rights: Rights) -> Arc<Rights> {
        match self.remembered.get(&user).map(|remembered| &remembered.decision) {
            Some(Ok(before)) if **before == rights => Arc::clone(before),
            _ => Arc::new(rights),
        }
    }

    /// Like [`rights`](Self::rights), afresh, and with the key of the rule that decided.
    ///
    /// # Errors
    ///
    /// [`Refusal`], as [`rights`](Self::rights).
    pub fn explain(&self, user: User, own: User) -> Result<(String, Rights), Refusal> {
        self.source.decide(user, own, self.settled).0
    }
}

impl Source {
    fn decide(
        &self,
        user: User,
        own: User,
        settled: Duration,
    ) -> (Result<(String, Rights), Refusal>, freshness::Witness) {
        match self {
            Self::OwnerOnly => {
                let decision = if user.uid == own.uid {
                    Ok(("owner".to_owned(), Rights::all()))
                } else {
                    Err(Refusal::NoRule)
                };
                (decision, freshness::Witness::new(settled))
            }
            Self::Cdb { content, .. } => {
                let decision = decide(user, own, |key| content.look_up(key));
                (decision, freshness::Witness::new(settled))
            }
            Self::Dir(path) => dir::decide_in(path, user, own, settled),
        }
    }
}

/// A refusal because `place` is broken.
fn broken(place: &Path, problem: impl fmt::Display) -> Refusal {
    let (place, problem) = (place.display().to_string(), problem.to_string());
    if problem.ends_with(pattern::NO_MEMORY) {
        return Refusal::NotNow { place, errno: Errno::NOMEM };
    }
    Refusal::Broken { place, problem }
}

#[cfg(test)]
mod tests;
