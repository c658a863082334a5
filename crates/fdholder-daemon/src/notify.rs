//! The front door for programs that were written for systemd: what they send to
//! `NOTIFY_SOCKET` (`sd_notify(3)`) is carried out here.
//!
//! A Unix socket for datagrams that is held under `NAME/.notify` is the *door* of the service
//! NAME: the daemon reads from it. What the service stores is held under `NAME/FDNAME`, what
//! comes second under the same name under `NAME/FDNAME:2`, and so on: an FDNAME has no colon.
//! What it says of itself is in `NAME/.status`, a file in memory. As all of that is held like
//! anything else, it outlives this process in the same ways.
//!
//! Each datagram is judged by who has sent it, as the kernel tells, and the rules for that
//! user: storing and removing takes the right to store under that very identifier.

mod message;
pub(crate) mod status_file;

pub use message::Message;

use crate::access::Rights;
use crate::store::{Change, Store};
use fdholder::reply::Answer;
use fdholder::{Entry, Errno, Identifier, Limit, Tenure, Timestamp};

/// What the identifier of a door ends in.
const DOOR: &[u8] = b"/.notify";

/// What that of what a service says of itself ends in.
const STATUS: &[u8] = b"/.status";

/// The service whose door is held under an identifier, if it is one.
pub fn service_of(id: &Identifier) -> Option<&[u8]> {
    id.as_bytes().strip_suffix(DOOR).filter(|name| !name.is_empty())
}

/// Under which what a service says of itself is held; `None` when its name is too long.
pub fn status_id(service: &[u8]) -> Option<Identifier> {
    Identifier::new([service, STATUS].concat()).ok()
}

/// Who has sent a datagram.
#[derive(Debug)]
pub struct Sender<'a> {
    /// The user.
    pub uid: u32,
    /// What the rules grant.
    pub rights: &'a Rights,
}

/// What came of a datagram.
#[derive(Debug)]
pub struct Heeded<F> {
    /// What it changed.
    pub changes: Vec<Change<F>>,
    /// What was refused first, and why.
    pub refused: Option<(String, Errno)>,
}

/// Stores and removes what a datagram asks for. `is_same` says whether two descriptors are one
/// open file: one that is held for the service already is not held twice, as with systemd.
pub fn heed<F>(
    service: &[u8],
    message: &Message,
    fds: Vec<F>,
    sender: &Sender<'_>,
    is_same: impl Fn(&F, &F) -> bool,
    store: &mut Store<F>,
    now: Timestamp,
) -> Heeded<F> {
    let mut heeded = Heeded { changes: store.expire(now), refused: None };
    if message.removes {
        if let Some(name) = message.name.as_deref() {
            remove(service, name, sender, store, now, &mut heeded);
        }
    }
    // Descriptors that come with anything else, as with BARRIER=1, are closed.
    if message.stores {
        let name = message.name.as_deref().unwrap_or("stored");
        for fd in fds {
            let held = in_service(store, service).any(|record| is_same(&record.fd, &fd));
            if held {
                continue;
            }
            let answer = put(service, name, fd, message.polls, sender, store, now, &mut heeded);
            if let Err(errno) = answer {
                let what = format!("store under {}/{name}", service.escape_ascii());
                heeded.refused.get_or_insert((what, errno));
            }
        }
    }
    heeded
}

/// What is held for a service, but for its door and status.
fn in_service<'a, F>(
    store: &'a Store<F>,
    service: &'a [u8],
) -> impl Iterator<Item = &'a std::sync::Arc<crate::store::Record<F>>> {
    store.iter().filter(move |record| fd_name(service, &record.id).is_some())
}

/// The FDNAME of something that is held for a service.
pub fn fd_name<'a>(service: &[u8], id: &'a Identifier) -> Option<&'a [u8]> {
    let name = id.as_bytes().strip_prefix(service)?.strip_prefix(b"/")?;
    if DOOR.ends_with(name) || STATUS.ends_with(name) {
        return None;
    }
    let end = name.iter().rposition(|&byte| byte == b':').unwrap_or(name.len());
    Some(&name[..end])
}

#[allow(clippy::too_many_arguments)] // All of them are what one descriptor needs.
fn put<F>(
    service: &[u8],
    name: &str,
    fd: F,
    polls: bool,
    sender: &Sender<'_>,
    store: &mut Store<F>,
    now: Timestamp,
    heeded: &mut Heeded<F>,
) -> Answer<()> {
    let id = free_id(service, name, store)?;
    if !sender.rights.may_store(&id) {
        return Err(Errno::PERM);
    }
    let tenure = Tenure::from(now);
    let tenure = if polls { tenure.with_peer() } else { tenure };
    let entry = Entry { id, limit: Limit::never(), fd };
    let mut outcome = store.store_for(entry, sender.uid, tenure, now);
    heeded.changes.append(&mut outcome.changes);
    outcome.answer
}

/// `SERVICE/NAME`, or with the first number behind it under which nothing is held.
fn free_id<F>(service: &[u8], name: &str, store: &Store<F>) -> Answer<Identifier> {
    for number in 1..=store.capacity() + 1 {
        let suffix = if number == 1 { String::new() } else { format!(":{number}") };
        let id = [service, b"/", name.as_bytes(), suffix.as_bytes()].concat();
        let id = Identifier::new(id).map_err(|_| Errno::NAMETOOLONG)?;
        if fd_name(service, &id).is_none() {
            return Err(Errno::INVAL);
        }
        if store.find_held(&id).is_none() {
            return Ok(id);
        }
    }
    Err(Errno::NFILE)
}

/// All that is held under one FDNAME.
fn remove<F>(
    service: &[u8],
    name: &str,
    sender: &Sender<'_>,
    store: &mut Store<F>,
    now: Timestamp,
    heeded: &mut Heeded<F>,
) {
    let named = in_service(store, service)
        .filter(|record| fd_name(service, &record.id) == Some(name.as_bytes()));
    let ids: Vec<_> = named.map(|record| record.id.clone()).collect();
    for id in ids {
        let answer = if sender.rights.may_store(&id) {
            let mut outcome = store.delete(&id, now);
            heeded.changes.append(&mut outcome.changes);
            outcome.answer
        } else {
            Err(Errno::PERM)
        };
        if let Err(errno) = answer {
            heeded.refused.get_or_insert((format!("remove {id}"), errno));
        }
    }
}

#[cfg(test)]
mod tests;
