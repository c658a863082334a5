//! What systemd has kept for this service.

use super::about::{self, About};
use crate::listen::check_inherited;
use crate::replication::roll::{try_succeed, Succession, UNKNOWN};
use crate::store::{Record, Store};
use fdholder::{Entry, Errno};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use tracing::warn;

/// What systemd has given back.
#[derive(Debug)]
pub struct Recovered {
    /// The listening socket; also one that systemd itself listens on for this service.
    pub listener: Option<OwnedFd>,
    /// Who may serve, if anybody followed the daemon before.
    pub roll: Option<OwnedFd>,
    /// What is held.
    pub store: Store<OwnedFd>,
    /// What else systemd has.
    pub past: Past,
}

/// What systemd has of a daemon before this one.
#[derive(Debug, Default)]
pub struct Past {
    /// Numbers whose descriptors it has.
    pub(crate) has: BTreeSet<u64>,
    /// Names that mean nothing any more.
    pub(crate) stale: Vec<String>,
    /// It has the listening socket.
    pub(crate) has_listener: bool,
    /// It may have things that nobody here knows of.
    pub(crate) is_known: bool,
}

impl Past {
    /// Of a daemon that was followed, or taken over from: nobody tells what it has told.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// There was none.
    pub fn none() -> Self {
        Self { is_known: true, ..Self::default() }
    }
}

/// Whether it is on us to serve: neither does the primary whose roll this is, nor anybody who
/// has followed it. `None` while that primary is there, be it that it is about to end.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn is_ours(roll: &OwnedFd) -> Result<Option<bool>, Errno> {
    let succession = try_succeed(roll, UNKNOWN)?;
    Ok(succession.map(|succession| succession == Succession::Ours))
}

/// The numbers that names have.
fn number(name: &str, kind: char) -> Option<u64> {
    name.strip_prefix(kind)?.parse().ok()
}

/// Puts together what systemd has given back, with room for so many.
pub fn recover(given: Vec<(String, OwnedFd)>, capacity: usize) -> Recovered {
    let (mut listener, mut roll) = (None, None);
    let (mut lists, mut single, mut fds) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
    let mut stale = HashSet::new();
    let mut has_listener = false;
    let mut last = 0;
    for (name, fd) in given {
        if let Some(serial) = number(&name, 'h') {
            last = last.max(serial);
            fds.insert(serial, fd);
            stale.insert(name);
        } else if let Some(serial) = number(&name, 'm') {
            last = last.max(serial);
            single.extend(about::read(&fd).map(|(_, about)| (serial, about)));
            stale.insert(name);
        } else if let Some(moment) = number(&name, 'i') {
            lists.extend(about::read(&fd).map(|list| (moment, list)));
            stale.insert(name);
        } else if name == "r" {
            roll = Some(fd);
        } else if check_inherited(&fd).is_ok() {
            has_listener |= name == "l";
            listener = Some(fd);
        } else {
            warn!("systemd gave a descriptor named {name}, which is not for this daemon");
        }
    }
    // The last list counts, and what came after it.
    let (up_to, listed) = lists.pop_last().map_or((0, Vec::new()), |(_, list)| list);
    let newer = single.into_iter().filter(|(serial, _)| *serial > up_to);
    let known = listed.into_iter().chain(newer.flat_map(|(_, about)| about));
    let store = restore(known, &fds, last.max(up_to), capacity);
    for record in store.all() {
        stale.remove(&format!("h{}", record.serial));
    }
    let has = fds.keys().copied().filter(|serial| !stale.contains(&format!("h{serial}")));
    let past = Past {
        has: has.collect(),
        stale: stale.into_iter().collect(),
        has_listener,
        is_known: true,
    };
    Recovered { listener, roll, store, past }
}

/// Holds what is known and there.
fn restore(
    known: impl Iterator<Item = About>,
    fds: &HashMap<u64, OwnedFd>,
    last: u64,
    capacity: usize,
) -> Store<OwnedFd> {
    let mut store = Store::new(capacity);
    store.skip_serials(last);
    // Of several under one identifier the one that came last counts.
    let known: BTreeMap<_, _> = known.map(|about| (about.serial, about)).collect();
    for (serial, About { home, owner, limit, id, .. }) in known {
        // Several may have one home.
        let Some(fd) = fds.get(&home).and_then(|fd| fcntl_dupfd_cloexec(fd, 0).ok()) else {
            continue;
        };
        let record = Record { entry: Entry { id, limit, fd }, owner, serial };
        if store.mirror(record).is_err() {
            warn!("systemd has kept more than there is room for: see option -n");
            break;
        }
    }
    store
}
