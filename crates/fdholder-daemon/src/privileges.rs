//! Giving up privileges, for good, and taking what resources there are.

use rustix::io::Errno;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid, Gid, Uid};

/// What to become. `None` leaves that part as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Become {
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The supplementary groups.
    pub groups: Option<Vec<u32>>,
}

/// Becomes another user, groups first, as the right to change them goes with the user.
///
/// The kernel does this for one thread; it must be called before there is a second.
///
/// # Errors
///
/// What could not be changed, to read behind "unable to", and why.
pub fn drop_to(wanted: &Become) -> Result<(), (&'static str, Errno)> {
    if let Some(groups) = &wanted.groups {
        let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups).map_err(|errno| ("set the supplementary groups", errno))?;
    }
    if let Some(gid) = wanted.gid {
        set_thread_gid(Gid::from_raw(gid)).map_err(|errno| ("set the group", errno))?;
    }
    if let Some(uid) = wanted.uid {
        set_thread_uid(Uid::from_raw(uid)).map_err(|errno| ("set the user", errno))?;
    }
    Ok(())
}

/// Raises the soft limit on open files to the hard one, and returns it.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err()
    {
        return current.unwrap_or(u64::MAX);
    }
    maximum.unwrap_or(u64::MAX)
}
