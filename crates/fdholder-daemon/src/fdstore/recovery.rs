//! What systemd has kept for this service.

use super::about::{self, About};
use super::shelf::ROLLS;
use super::unwrap;
use crate::closing::ClientFd;
use crate::listen::check_inherited;
use crate::reading::retried;
use crate::replication::roll::{generation, has_successor, try_recover, Succession};
use crate::store::{Record, Store};
use fdholder::{Entry, Errno};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use tracing::warn;

/// What systemd has given back.
#[derive(Debug)]
pub struct Recovered {
    /// One that systemd itself listens on for this service.
    pub listener: Option<OwnedFd>,
    /// The listening sockets that were kept, and their names. Most lead nowhere any more.
    pub kept_listeners: Vec<(String, OwnedFd)>,
    /// Who may serve.
    pub roll: Option<OwnedFd>,
    /// What is held.
    pub store: Store<ClientFd>,
    /// What else systemd has.
    pub past: Past,
}

impl Recovered {
    /// Holds nothing, and has systemd forget what it has.
    pub fn drop_what_is_held(&mut self) {
        let mut empty = Store::new(self.store.capacity());
        empty.skip_serials(self.store.last_serial());
        self.store = empty;
    }
}

/// The numbers under which it has descriptors.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub direct: BTreeSet<u64>,
    pub wrapped: BTreeSet<u64>,
}

impl Names {
    /// Whether it has a number's descriptor, and whether it has it wrapped.
    pub fn with(&self, serial: u64) -> (bool, bool) {
        (self.direct.contains(&serial), self.wrapped.contains(&serial))
    }
}

/// What systemd has of a daemon before this one.
#[derive(Debug, Default)]
pub struct Past {
    pub(crate) names: Names,
    /// It has the listening socket, by this name.
    pub(crate) listener: Option<String>,
    /// The names of all that were kept.
    pub(crate) listeners: Vec<String>,
    /// That of its roll.
    pub(crate) generation: u64,
    /// It may have things that nobody here knows of.
    pub(crate) is_known: bool,
}

impl Past {
    /// Of a daemon that was followed, or taken over from: nobody tells what it has told. It
    /// may not have told that these numbers went.
    pub fn unknown(dropped: impl IntoIterator<Item = u64>) -> Self {
        let direct: BTreeSet<_> = dropped.into_iter().collect();
        let wrapped = direct.clone();
        Self { names: Names { direct, wrapped }, ..Self::default() }
    }

    /// Whether it has the listening socket, from a daemon that had it keep descriptors.
    pub fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// The listening socket that it has is not the one that is served on.
    #[must_use]
    pub fn without_listener(self) -> Self {
        Self { listener: None, ..self }
    }

    /// The one that it has by this name is.
    #[must_use]
    pub fn with_listener(self, name: String) -> Self {
        Self { listener: Some(name), ..self }
    }

    /// There was none.
    pub fn none() -> Self {
        Self { is_known: true, ..Self::default() }
    }
}

/// Whether it is on us to serve what systemd has given back: the primary whose roll this is
/// has gone, and whoever has followed it had not served yet; when it had, false. `None` while
/// one of them is there, be it that it is about to end.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn may_recover(roll: &OwnedFd) -> Result<Option<bool>, Errno> {
    let succession = try_recover(roll)?;
    Ok(succession.map(|succession| succession == Succession::Ours))
}

/// The numbers that names have.
fn number(name: &str, kind: char) -> Option<u64> {
    name.strip_prefix(kind)?.parse().ok()
}

/// Puts together what systemd has given back, with room for so many.
pub fn recover(given: Vec<(String, OwnedFd)>, capacity: usize) -> Recovered {
    let (mut listener, mut kept_listeners, mut rolls) = (None, Vec::new(), Vec::new());
    let (mut lists, mut single) = (Vec::new(), Vec::new());
    let (mut fds, mut wrapped) = (HashMap::new(), HashMap::new());
    for (name, fd) in given {
        if let Some(serial) = number(&name, 'h') {
            fds.insert(serial, fd);
        } else if let Some(serial) = number(&name, 'b') {
            wrapped.extend(unwrap(&fd).map(|fd| (serial, fd)));
        } else if number(&name, 'm').is_some() {
            single.extend(about::read(&fd).into_iter().flat_map(|written| written.all));
        } else if number(&name, 'i').is_some() {
            lists.extend(about::read(&fd));
        } else if ROLLS.contains(&&*name) {
            // A version that knows of no generation may have served in between, and left it there.
            let is_last = !has_successor(&fd);
            rolls.push((is_last, retried(|| generation(&fd)).unwrap_or(0), fd));
        // It does not tell what fails for a moment from what it is not.
        } else if (0..3).any(|_| check_inherited(&fd).is_ok()) {
            if name == "l" || number(&name, 'l').is_some() {
                kept_listeners.push((name, fd));
            } else {
                listener = Some(fd);
            }
        } else {
            warn!("systemd gave a descriptor named {name}, which is not for this daemon");
        }
    }
    // The last list counts, and what came after it.
    let list = lists.into_iter().max_by_key(|written| written.moment);
    let (up_to, listed) = list.map_or((0, Vec::new()), |written| (written.last, written.all));
    let newer = single.into_iter().filter(|about| about.origin.serial > up_to);
    let known: Vec<_> = listed.into_iter().chain(newer).collect();
    let numbers = known.iter().map(|about| about.origin.serial);
    let numbers = numbers.chain(fds.keys().copied()).chain(wrapped.keys().copied());
    let highest = numbers.max().unwrap_or(0).max(up_to);
    let names =
        Names { direct: fds.keys().copied().collect(), wrapped: wrapped.keys().copied().collect() };
    wrapped.extend(fds);
    let store = restore(known, wrapped, highest, capacity);
    // The daemon that has told of the last one was the last to serve, or is about to.
    let generation = rolls.iter().map(|(_, generation, _)| *generation).max().unwrap_or(0);
    let roll = rolls.into_iter().max_by_key(|(is_last, generation, _)| (*is_last, *generation));
    let roll = roll.map(|(_, _, roll)| roll);
    let listeners: Vec<_> = kept_listeners.iter().map(|(name, _)| name.clone()).collect();
    let listener_name = listeners.first().cloned();
    let past = Past { names, listener: listener_name, listeners, generation, is_known: true };
    Recovered { listener, kept_listeners, roll, store, past }
}

/// Holds what is known and there.
fn restore(
    known: Vec<About>,
    mut fds: HashMap<u64, OwnedFd>,
    last: u64,
    capacity: usize,
) -> Store<ClientFd> {
    let mut store = Store::new(capacity);
    store.skip_serials(last);
    // Of several under one identifier the one that came last counts.
    let known: BTreeMap<_, _> =
        known.into_iter().map(|about| (about.origin.serial, about)).collect();
    for (serial, About { origin, limit, id }) in known {
        let Some(fd) = fds.remove(&serial) else { continue };
        let fd = ClientFd::new(fd, origin.owner);
        let record = Record { entry: Entry { id, limit, fd }, origin };
        if store.mirror(record).is_err() {
            warn!("systemd has kept more than there is room for: see option -n");
            break;
        }
    }
    store
}
