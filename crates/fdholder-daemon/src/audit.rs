//! Who was refused what, and who has changed what: lines for whoever watches over a holder.
//!
//! What becomes of the lines is for the subscriber of `tracing` to say; here it is decided
//! which there are. Whatever a client does can be noted: what may not become a line costs two
//! comparisons, and nothing is put into words for it.

mod rate;
#[cfg(test)]
mod tests;
mod throttle;

pub use rate::RateLimit;
pub use throttle::{Throttle, Unsaid};

use crate::credentials::Credentials;
use crate::limits::{AUDIT_IN_ALL, AUDIT_PER_USER};
use crate::store::{Change, Record, Store};
use fdholder::extension::Extension;
use fdholder::{Errno, Identifier, Request, Timestamp};
use std::fmt;
use std::time::Instant;
use tracing::field::display;
use tracing::info;

/// The target of all these lines.
pub const TARGET: &str = "fdholder::audit";

/// Whose doing something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// The user. Of what nobody does, such as expiring: the user who gave it.
    pub uid: u32,
    /// Its group, where somebody does it.
    pub gid: Option<u32>,
    /// Its process, where that can be seen from here.
    pub pid: Option<i32>,
}

impl Who {
    /// Of something that befalls what this user has given.
    pub fn owner(uid: u32) -> Self {
        Self { uid, gid: None, pid: None }
    }
}

impl From<Credentials> for Who {
    fn from(Credentials { pid, user }: Credentials) -> Self {
        Self { uid: user.uid, gid: Some(user.gid), pid }
    }
}

/// What is done, or was to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Being let in.
    Connect,
    /// Store.
    Store,
    /// Retrieve without delete.
    Retrieve,
    /// Retrieve with delete.
    Take,
    /// Delete.
    Delete,
    /// List.
    List,
    /// Get a dump.
    Getdump,
    /// Give a set.
    Setdump,
    /// Remember all that is held, for a transfer.
    Snapshot,
    /// Send what was remembered to another holder.
    Deliver,
    /// Hold no longer what has been transferred.
    Release,
    /// Ask what is held, and where it comes from.
    Inspect,
    /// Ask how the holder is.
    Status,
    /// Follow, to serve next.
    Follow,
    /// Have the daemon become another program.
    Upgrade,
    /// Hold what a configuration wants.
    Configure,
    /// The limit has passed.
    Expire,
    /// The peer of something that goes with it has gone.
    HangUp,
    /// Send a datagram to a door. What it changes is told by the next two.
    Notify,
    /// Store through a door.
    NotifyStore,
    /// Remove through a door.
    NotifyRemove,
    /// Say through a door how a service is.
    NotifyStatus,
}

impl<F> From<&Request<F>> for Operation {
    fn from(request: &Request<F>) -> Self {
        match request {
            Request::Store(_) => Self::Store,
            Request::Delete(_) => Self::Delete,
            Request::Retrieve { delete: false, .. } => Self::Retrieve,
            Request::Retrieve { delete: true, .. } => Self::Take,
            Request::List => Self::List,
            Request::Getdump => Self::Getdump,
            Request::Setdump(_) | Request::SetdumpData(_) => Self::Setdump,
            Request::Extension(extension) => match extension {
                Extension::Snapshot { .. } => Self::Snapshot,
                Extension::Deliver { .. } => Self::Deliver,
                Extension::Release { .. } => Self::Release,
                Extension::OnConflict(_) => Self::Setdump,
                Extension::Follow { .. } => Self::Follow,
                Extension::Upgrade => Self::Upgrade,
                Extension::Inspect => Self::Inspect,
                Extension::Hello(_)
                | Extension::Status
                | Extension::Taken
                | Extension::Why
                | Extension::MayStore { .. }
                | Extension::Await { .. }
                | Extension::Unknown => Self::Status,
            },
        }
    }
}

impl Operation {
    /// As it stands in a line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Store => "store",
            Self::Retrieve => "retrieve",
            Self::Take => "take",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Getdump => "getdump",
            Self::Setdump => "setdump",
            Self::Snapshot => "snapshot",
            Self::Deliver => "deliver",
            Self::Release => "release",
            Self::Inspect => "inspect",
            Self::Status => "status",
            Self::Follow => "follow",
            Self::Upgrade => "upgrade",
            Self::Configure => "configure",
            Self::Expire => "expire",
            Self::HangUp => "hang_up",
            Self::Notify => "notify",
            Self::NotifyStore => "notify_store",
            Self::NotifyRemove => "notify_remove",
            Self::NotifyStatus => "notify_status",
        }
    }

    /// Whether it only reads: then only that it was refused is told.
    fn only_reads(self) -> bool {
        matches!(
            self,
            Self::Connect
                | Self::Retrieve
                | Self::List
                | Self::Getdump
                | Self::Snapshot
                | Self::Deliver
                | Self::Inspect
                | Self::Status
        )
    }
}

/// What came of it.
#[derive(Clone, Copy)]
pub enum Verdict<'a> {
    /// It is done.
    Done,
    /// It is refused with this error.
    Denied(Errno),
    /// The same, and why: which limit was met, for instance.
    DeniedAs(Errno, &'a dyn fmt::Display),
    /// It is refused, and no error is sent to anybody.
    TurnedAway(&'a dyn fmt::Display),
}

impl From<Result<(), Errno>> for Verdict<'_> {
    fn from(answer: Result<(), Errno>) -> Self {
        answer.map_or_else(Self::Denied, |()| Self::Done)
    }
}

/// Something to note.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Who.
    pub who: Who,
    /// What.
    pub operation: Operation,
    /// With which descriptor, if with one.
    pub id: Option<&'a Identifier>,
    /// To what end.
    pub verdict: Verdict<'a>,
}

/// Notes what is to be noted, if that is wanted.
#[derive(Debug, Default)]
pub struct Auditor {
    limit: Option<RateLimit>,
}

impl Auditor {
    /// One that notes, or does not.
    pub fn new(is_on: bool) -> Self {
        let mut auditor = Self::default();
        auditor.set(is_on);
        auditor
    }

    /// Begins to note, or ends.
    pub fn set(&mut self, is_on: bool) {
        if is_on != self.is_on() {
            self.limit = is_on.then(|| RateLimit::new(AUDIT_PER_USER, AUDIT_IN_ALL));
        }
    }

    /// Whether anything is noted.
    pub fn is_on(&self) -> bool {
        self.limit.is_some()
    }

    /// Notes something, unless it changed nothing and was not refused, or its user has been
    /// told of too often. By and by it is told how much was left out.
    pub fn note(&mut self, event: &Event<'_>, now: Instant) {
        let Some(limit) = &mut self.limit else { return };
        if event.operation.only_reads() && matches!(event.verdict, Verdict::Done) {
            return;
        }
        if let Some(left_out) = limit.admit(Some(event.who.uid), now) {
            tell(event, left_out);
        }
    }

    /// Notes what nobody has done, but that it expired: each is its owner's.
    pub fn expired<F>(&mut self, changes: &[Change<F>], at: Instant) {
        if !self.is_on() {
            return;
        }
        for change in changes {
            if let Change::Released(record) = change {
                self.note_expiry(record, at);
            }
        }
    }

    fn note_expiry<F>(&mut self, record: &Record<F>, at: Instant) {
        self.done(Who::owner(record.origin.owner), Operation::Expire, &record.id, at);
    }

    fn done(&mut self, who: Who, operation: Operation, id: &Identifier, at: Instant) {
        self.note(&Event { who, operation, id: Some(id), verdict: Verdict::Done }, at);
    }

    /// Notes what an operation has changed, and what had expired when it was carried out:
    /// `now` is when it was, by the store's clock.
    pub fn changed<F>(
        &mut self,
        who: Who,
        operation: Operation,
        changes: &[Change<F>],
        store: &Store<F>,
        now: Timestamp,
        at: Instant,
    ) {
        if !self.is_on() {
            return;
        }
        let (came, went) = match operation {
            Operation::Notify => (Operation::NotifyStore, Operation::NotifyRemove),
            other => (other, other),
        };
        for change in changes {
            match change {
                Change::Held(record) => self.done(who, came, &record.id, at),
                Change::HeldAll { slots, .. } => {
                    let held = slots.iter().filter_map(|&slot| store.at(slot));
                    held.for_each(|record| self.done(who, came, &record.id, at));
                }
                // Whatever was done, it was gone at once.
                Change::Released(record) if record.limit.expired(now) => {
                    self.note_expiry(record, at);
                }
                Change::Released(record) => self.done(who, went, &record.id, at),
            }
        }
    }

    /// When [`tend`](Self::tend) has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.limit.as_ref().and_then(RateLimit::due)
    }

    /// Tells what was left out of those who have been quiet since.
    pub fn tend(&mut self, now: Instant) {
        let Some(limit) = &mut self.limit else { return };
        for (uid, left_out) in limit.owed(now) {
            info!(target: TARGET, uid, left_out);
        }
    }
}

fn tell(event: &Event<'_>, left_out: u64) {
    let Event { who: Who { uid, gid, pid }, operation, id, verdict } = *event;
    let op = operation.as_str();
    let id = id.map(display);
    let (result, reason) = match verdict {
        Verdict::Done => ("ok".to_owned(), None),
        Verdict::Denied(errno) => (name(errno), None),
        Verdict::DeniedAs(errno, reason) => (name(errno), Some(display(reason))),
        Verdict::TurnedAway(reason) => ("refused".to_owned(), Some(display(reason))),
    };
    let result = result.as_str();
    let left_out = Some(left_out).filter(|&count| count > 0);
    info!(target: TARGET, uid, gid, pid, op, id, result, reason, left_out);
}

/// `EPERM`, as it stands in manual pages.
fn name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}
