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
pub(crate) mod names;
pub(crate) mod status_file;

pub use message::Message;
pub use names::{fd_name, is_reserved, run_id, run_of, service_of, status_id};

use crate::access::Rights;
use crate::audit::Operation;
use crate::shares::Claimant;
use crate::store::{Change, Record, Store};
use fdholder::reply::Answer;
use fdholder::{Entry, Errno, Identifier, Limit, Tenure, Timestamp};
use std::sync::Arc;

/// Who has sent a datagram.
#[derive(Debug)]
pub struct Sender<'a> {
    /// The user, and how much it may have held.
    pub claimant: Claimant,
    /// What the rules grant.
    pub rights: &'a Rights,
}

/// What came of a datagram.
#[derive(Debug)]
pub struct Heeded<F> {
    /// What it changed.
    pub changes: Vec<Change<F>>,
    /// What was refused, in order; of several descriptors, or several that were to be removed,
    /// the first.
    pub refused: Vec<Refused>,
    /// Descriptors that are not held. Whoever waits until one of them is closed (BARRIER=1) is
    /// to wait until the changes are told.
    pub left: Vec<F>,
    /// How many descriptors were compared, or identifiers looked up.
    pub work: usize,
}

/// Something that was refused.
#[derive(Debug)]
pub struct Refused {
    /// What it was.
    pub operation: Operation,
    /// With which descriptor; `None` if what was said is no identifier.
    pub id: Option<Identifier>,
    /// To read behind "unable to ".
    pub what: String,
    /// Why.
    pub errno: Errno,
}

impl<F> Heeded<F> {
    fn refuse(
        &mut self,
        operation: Operation,
        id: Option<Identifier>,
        what: impl FnOnce() -> String,
        errno: Errno,
    ) {
        if self.refused.iter().all(|refused| refused.operation != operation) {
            self.refused.push(Refused { operation, id, what: what(), errno });
        }
    }
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
    let mut heeded = Heeded { changes: Vec::new(), refused: Vec::new(), left: Vec::new(), work: 1 };
    if message.removes {
        if let Some(name) = message.name.as_deref() {
            remove(service, name, sender, store, now, &mut heeded);
        }
    }
    let name = message.name.as_deref().unwrap_or("stored");
    let mut ids = Ids { service, name, next: 1 };
    let what = || format!("store under {}/{name}", service.escape_ascii());
    if !message.stores || fds.is_empty() {
        heeded.left = fds;
        return heeded;
    }
    // Nothing is compared for who may not store.
    let first = ids.candidate();
    let may_store = |id| sender.rights.may_store(id).then_some(()).ok_or(Errno::PERM);
    if let Err(errno) = first.as_ref().map_err(|errno| *errno).and_then(may_store) {
        heeded.refuse(Operation::NotifyStore, first.ok(), what, errno);
        heeded.left = fds;
        return heeded;
    }
    let tenure = Tenure::from(now);
    let tenure = if message.polls { tenure.with_peer() } else { tenure };
    let mut held: Vec<_> = in_service(store, service, now).map(Arc::clone).collect();
    for fd in fds {
        heeded.work += held.len();
        if held.iter().any(|record| is_same(&record.fd, &fd)) {
            heeded.left.push(fd);
            continue;
        }
        let id = match ids.free(store, &mut heeded.work, now) {
            Ok(id) if sender.rights.may_store(&id) => id,
            denied => {
                let errno = denied.as_ref().err().copied().unwrap_or(Errno::PERM);
                heeded.refuse(Operation::NotifyStore, denied.ok(), what, errno);
                heeded.left.push(fd);
                continue;
            }
        };
        let entry = Entry { id: id.clone(), limit: Limit::never(), fd };
        let mut outcome = store.store_for(entry, &sender.claimant, tenure, now);
        heeded.changes.append(&mut outcome.changes);
        match outcome.answer {
            Ok(()) => held.extend(store.find_held(&id).map(Arc::clone)),
            Err(errno) => heeded.refuse(Operation::NotifyStore, Some(id), what, errno),
        }
    }
    heeded
}

/// What is held for a service, but for its door and status.
fn in_service<'a, F>(
    store: &'a Store<F>,
    service: &'a [u8],
    now: Timestamp,
) -> impl Iterator<Item = &'a Arc<Record<F>>> {
    let is_held = move |record: &&Arc<Record<F>>| !record.limit.expired(now);
    store.iter().filter(is_held).filter(move |record| fd_name(service, &record.id).is_some())
}

/// `SERVICE/NAME`, `SERVICE/NAME:2`, and so on.
struct Ids<'a> {
    service: &'a [u8],
    name: &'a str,
    next: usize,
}

impl Ids<'_> {
    fn candidate(&self) -> Answer<Identifier> {
        let suffix = if self.next == 1 { String::new() } else { format!(":{}", self.next) };
        let id = [self.service, b"/", self.name.as_bytes(), suffix.as_bytes()].concat();
        let id = Identifier::new(id).map_err(|_| Errno::NAMETOOLONG)?;
        if is_reserved(&id) {
            return Err(Errno::INVAL);
        }
        Ok(id)
    }

    /// The next under which nothing is held.
    fn free<F>(
        &mut self,
        store: &Store<F>,
        work: &mut usize,
        now: Timestamp,
    ) -> Answer<Identifier> {
        loop {
            let id = self.candidate()?;
            if store.find_held(&id).is_none_or(|record| record.limit.expired(now)) {
                return Ok(id);
            }
            self.next += 1;
            *work += 1;
        }
    }
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
    let named = in_service(store, service, now)
        .filter(|record| fd_name(service, &record.id) == Some(name.as_bytes()));
    let ids: Vec<_> = named.map(|record| record.id.clone()).collect();
    heeded.work += store.len();
    for id in ids {
        let answer = if sender.rights.may_store(&id) {
            let mut outcome = store.delete(&id, now);
            heeded.changes.append(&mut outcome.changes);
            outcome.answer
        } else {
            Err(Errno::PERM)
        };
        if let Err(errno) = answer {
            let what = format!("remove {id}");
            heeded.refuse(Operation::NotifyRemove, Some(id), || what, errno);
        }
    }
}

#[cfg(test)]
mod tests;
