//! Giving up privileges, for good, and taking what resources there are.

use nix::unistd::{self, getgroups, getresgid, getresuid, setfsgid, setfsuid};
use rustix::io::Errno;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use rustix::thread::{
    capabilities, set_capabilities, set_no_new_privs, set_thread_gid, set_thread_groups,
    set_thread_uid, CapabilitySet, CapabilitySets, Gid, Uid,
};
use std::fmt;

/// What to become. `None` leaves that part as it is; but whoever becomes an ordinary user
/// leaves the supplementary groups of the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Become {
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The supplementary groups.
    pub groups: Option<Vec<u32>>,
}

/// Why privileges were not given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropError {
    /// This could not be done.
    System(&'static str, Errno),
    /// Everything was done, and yet there is something left.
    Left(String),
}

impl fmt::Display for DropError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(doing, errno) => {
                write!(f, "unable to {doing}: {}", fdholder::strerror(*errno))
            }
            Self::Left(what) => write!(f, "privileges were not given up for good: {what}"),
        }
    }
}

impl std::error::Error for DropError {}

fn unable<E: Into<std::io::Error>>(doing: &'static str) -> impl Fn(E) -> DropError {
    move |error| {
        DropError::System(doing, Errno::from_io_error(&error.into()).unwrap_or(Errno::INVAL))
    }
}

/// Becomes another user, groups first, as the right to change them goes with the user; and
/// makes sure that there is no way back.
///
/// The kernel does this for one thread; it must be called before there is a second.
///
/// # Errors
///
/// [`DropError`]; then this process must not serve anybody.
pub fn drop_to(wanted: &Become) -> Result<(), DropError> {
    if *wanted == Become::default() {
        return Ok(());
    }
    let user = wanted.uid.filter(|&uid| uid != 0);
    let before = Identity::of_this_process()?;
    let is_another = user.is_some_and(|uid| before.uids != [uid; 4]);
    let groups = match &wanted.groups {
        // Those of the user before would be a way to what is theirs. Where there are none, a
        // user namespace may forbid to say so.
        None if is_another && !before.groups.is_empty() => Some(&[][..]),
        groups => groups.as_deref(),
    };
    if let Some(groups) = groups {
        let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups).map_err(unable("set the supplementary groups"))?;
    }
    if let Some(gid) = wanted.gid {
        set_thread_gid(Gid::from_raw(gid)).map_err(unable("set the group"))?;
    }
    if let Some(uid) = wanted.uid {
        set_thread_uid(Uid::from_raw(uid)).map_err(unable("set the user"))?;
    }
    if user.is_some() && Identity::of_this_process()?.has_capabilities {
        // Those that a user other than root had, and those of root where it was asked for
        // (PR_SET_KEEPCAPS, securebits). The ambient ones go with them.
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).map_err(unable("give up capabilities"))?;
    }
    let groups = groups.map_or_else(|| before.groups.clone(), <[u32]>::to_vec);
    let now = Identity::of_this_process()?;
    now.check(wanted, user.is_some(), groups).map_err(DropError::Left)?;
    if user.is_some() {
        // Whatever the numbers say, this is what they are about.
        if set_thread_uid(Uid::ROOT).is_ok() {
            return Err(DropError::Left("it can become root again".to_owned()));
        }
        if !now.gids.contains(&0) && set_thread_gid(Gid::ROOT).is_ok() {
            return Err(DropError::Left("it can take on root's group again".to_owned()));
        }
    }
    Ok(())
}

/// Has this process gain no privileges by executing a program, nor any that it starts or
/// becomes: no program of a client's choice is ever executed, but then it does not matter.
///
/// # Errors
///
/// Those of prctl(2).
pub fn gain_none() -> Result<(), DropError> {
    set_no_new_privs(true).map_err(unable("renounce new privileges"))
}

/// By what the kernel knows this process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    /// Real, effective, saved, and that of the file system.
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
    /// Effective, permitted or inheritable; none of the ambient ones is not also permitted.
    has_capabilities: bool,
}

impl Identity {
    fn of_this_process() -> Result<Self, DropError> {
        let see = "see who this process is";
        let users = getresuid().map_err(unable(see))?;
        let groups = getresgid().map_err(unable(see))?;
        // What is nobody's number changes nothing, and the answer is the one in force.
        let fs = (setfsuid(u32::MAX.into()), setfsgid(u32::MAX.into()));
        let CapabilitySets { effective, permitted, inheritable } =
            capabilities(None).map_err(unable(see))?;
        Ok(Self {
            uids: [users.real, users.effective, users.saved, fs.0].map(unistd::Uid::as_raw),
            gids: [groups.real, groups.effective, groups.saved, fs.1].map(unistd::Gid::as_raw),
            groups: getgroups()
                .map_err(unable(see))?
                .into_iter()
                .map(unistd::Gid::as_raw)
                .collect(),
            has_capabilities: !(effective | permitted | inheritable).is_empty(),
        })
    }

    /// Whether that is what was wanted, and nothing is left of what was before.
    fn check(&self, wanted: &Become, is_user: bool, groups: Vec<u32>) -> Result<(), String> {
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let of = "(real, effective, saved, file system)";
        if wanted.uid.is_some_and(|uid| self.uids != [uid; 4]) {
            return Err(format!("its users are {} {of}", list(&self.uids)));
        }
        let effective = self.gids[1];
        let is_settled = is_user || wanted.gid.is_some();
        if is_settled && self.gids != [wanted.gid.unwrap_or(effective); 4] {
            return Err(format!("its groups are {} {of}", list(&self.gids)));
        }
        let sorted = |mut groups: Vec<u32>| {
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        if sorted(self.groups.clone()) != sorted(groups) {
            return Err(format!("its supplementary groups are {}", list(&self.groups)));
        }
        if is_user && self.has_capabilities {
            return Err("it has capabilities".to_owned());
        }
        Ok(())
    }
}

/// Raises the soft limit on open files to the hard one, and returns it.
pub fn raise_open_files() -> u64 {
    raise(Resource::Nofile)
}

/// Raises the soft limit on the size of files as far as the hard one allows, and returns what it
/// is then: it counts for files in memory, too.
pub fn raise_file_size() -> u64 {
    raise(Resource::Fsize)
}

fn raise(resource: Resource) -> u64 {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current != maximum && setrlimit(resource, Rlimit { current: maximum, maximum }).is_err() {
        return current.unwrap_or(u64::MAX);
    }
    maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done is tried by the tests with several users; here, what is found when it was
    /// not done.
    #[test]
    fn whatever_is_left_is_found() {
        let wanted = Become { uid: Some(5), gid: Some(6), groups: None };
        let good =
            Identity { uids: [5; 4], gids: [6; 4], groups: Vec::new(), has_capabilities: false };
        assert_eq!(good.check(&wanted, true, Vec::new()), Ok(()));
        for place in 0..4 {
            let mut uids = good.clone();
            uids.uids[place] = 0;
            assert!(uids.check(&wanted, true, Vec::new()).unwrap_err().contains("its users are"));
            let mut gids = good.clone();
            gids.gids[place] = 0;
            assert!(gids.check(&wanted, true, Vec::new()).unwrap_err().contains("its groups are"));
            // Nor when it was not to be changed.
            let stays = Become { gid: None, ..wanted.clone() };
            assert!(gids.check(&stays, true, Vec::new()).is_err());
        }
        let groups = Identity { groups: vec![0, 7], ..good.clone() };
        assert!(groups.check(&wanted, true, Vec::new()).unwrap_err().contains("supplementary"));
        assert_eq!(groups.check(&wanted, true, vec![7, 0, 0]), Ok(()));
        assert!(good.check(&wanted, true, vec![7]).is_err());
        let capable = Identity { has_capabilities: true, ..good };
        assert!(capable.check(&wanted, true, Vec::new()).unwrap_err().contains("capabilities"));
        // Of root they are what it is about.
        assert_eq!(capable.check(&wanted, false, Vec::new()), Ok(()));
    }

    /// Whoever is asked to become who it is stays so, groups and all.
    #[test]
    fn who_one_is_may_be_said() {
        let own = Identity::of_this_process().unwrap();
        let stay = Become { uid: Some(own.uids[1]), gid: Some(own.gids[1]), groups: None };
        if own.uids[1] == 0 {
            drop_to(&stay).unwrap();
        }
        drop_to(&Become::default()).unwrap();
        assert_eq!(Identity::of_this_process().unwrap(), own);
    }
}
