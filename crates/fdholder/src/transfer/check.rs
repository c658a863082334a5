//! Looking before a transfer, and after it.

use super::ends::Ends;
use super::{Route, Transfer, TransferError};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Cause, Error};
use crate::extension::OnConflict;
use crate::id::Identifier;
use crate::time::{Limit, Timestamp};
use rustix::io::Errno;
use std::collections::HashMap;

/// What a holder has: identifiers, with limits where they could be learned.
#[derive(Debug, Default)]
struct Catalogue {
    ids: HashMap<Identifier, Option<Limit>>,
    /// How many it can hold; s6's daemon does not tell.
    capacity: Option<u32>,
}

impl Catalogue {
    /// A fdholder tells limits without descriptors; s6's daemon only in a dump, if it gives
    /// one: without the right it does not, and s6 2.11's hangs up with more than 253.
    fn of(holder: &mut Client, limits: bool, deadline: Deadline) -> Result<Self, Error> {
        if holder.version().is_some() {
            let snapshot = holder.snapshot(true, deadline)?;
            let ids = snapshot.entries.into_iter().map(|entry| (entry.id, Some(entry.limit)));
            return Ok(Self { ids: ids.collect(), capacity: Some(snapshot.capacity) });
        }
        let mut ids = identifiers(holder, deadline)?.into_iter().map(|id| (id, None)).collect();
        if limits {
            match dumped(holder, deadline) {
                Ok(dumped) => {
                    ids = dumped.into_iter().map(|(id, limit)| (id, Some(limit))).collect();
                }
                Err(error) if error.cause() == Cause::TimedOut => return Err(error),
                Err(_) => {}
            }
        }
        Ok(Self { ids, capacity: None })
    }
}

/// What a holder has. Who may take a dump but not list gets it from a dump.
pub(super) fn identifiers(
    holder: &mut Client,
    deadline: Deadline,
) -> Result<Vec<Identifier>, Error> {
    match holder.list(deadline) {
        Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
            Ok(dumped(holder, deadline)?.into_iter().map(|(id, _)| id).collect())
        }
        result => result,
    }
}

/// The same with limits; the descriptors are closed as they come.
fn dumped(holder: &mut Client, deadline: Deadline) -> Result<Vec<(Identifier, Limit)>, Error> {
    let mut incoming = holder.begin_getdump(deadline)?;
    let mut found = Vec::new();
    while let Some(entries) = incoming.next_entries(deadline)? {
        found.extend(entries.into_iter().map(|entry| (entry.id, entry.limit)));
    }
    Ok(found)
}

/// What a transfer would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What would be carried, in the order of the identifiers.
    pub entries: Vec<Planned>,
    /// Which way.
    pub route: Route,
    /// Why the destination would refuse the set, if it would.
    pub refusal: Option<Errno>,
    /// How many the destination holds.
    pub held: u32,
    /// How many it can hold, if it tells.
    pub capacity: Option<u32>,
}

/// A descriptor that would be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Under which identifier.
    pub id: Identifier,
    /// Until when; `None` when s6's daemon could not be made to tell.
    pub limit: Option<Limit>,
    /// Whether the destination has something under that identifier already.
    pub conflicts: bool,
}

/// What was found when both holders were looked at after a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// What was carried, but is not in the destination.
    pub missing: Vec<Identifier>,
    /// What has another limit there.
    pub limits_differ: Vec<Identifier>,
    /// Whether limits could be looked at.
    pub limits_compared: bool,
    /// What the source holds now and was not carried, or carried and it holds no more (or,
    /// if it was to let go of them, still), or holds with another limit.
    pub source_changed: Vec<Identifier>,
}

impl Verification {
    /// Whether the destination has all that was carried.
    pub fn is_good(&self) -> bool {
        self.missing.is_empty() && self.limits_differ.is_empty()
    }
}

impl Transfer {
    /// What the transfer would do, without doing anything.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and EPERM when one of the holders may not be listed.
    pub fn plan(&self) -> Result<Plan, TransferError> {
        let mut ends = Ends::open(self, None)?;
        let source = ends.from.ask(|from, deadline| Catalogue::of(from, true, deadline))?;
        let destination = ends.to.ask(|to, deadline| Catalogue::of(to, false, deadline))?;
        let wanted = source.ids.into_iter().filter(|(id, _)| self.wants(id));
        let mut entries: Vec<_> = wanted
            .map(|(id, limit)| Planned { conflicts: destination.ids.contains_key(&id), id, limit })
            .collect();
        entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let conflicts = entries.iter().filter(|entry| entry.conflicts).count();
        let held = destination.ids.len();
        let new = entries.len() - conflicts;
        let refusal = match destination.capacity {
            _ if self.on_conflict == OnConflict::Fail && conflicts > 0 => Some(Errno::EXIST),
            Some(capacity) if held + new > capacity as usize => Some(Errno::NFILE),
            _ => {
                // s6's daemon counts what would be replaced, too. No set follows: the
                // connection ends here.
                let kept = if self.on_conflict == OnConflict::Keep { conflicts } else { 0 };
                let count = (entries.len() - kept) as u32; // At most DUMP_FDS_MAX.
                let announced =
                    ends.to.ask(|to, deadline| to.begin_setdump(count, deadline).map(drop));
                match announced.map_err(|error| (error.error.cause(), error)) {
                    Ok(()) => None,
                    Err((Cause::Denied(errno @ Errno::NFILE), _)) => Some(errno),
                    Err((_, error)) => return Err(error),
                }
            }
        };
        let route =
            if ends.from.is_fdholder() && !self.relay { Route::Direct } else { Route::Relay };
        // Each at most DUMP_FDS_MAX.
        Ok(Plan { entries, route, refusal, held: held as u32, capacity: destination.capacity })
    }

    /// Looks at both holders after a transfer, and compares them with what was carried, a
    /// [recorded](Self::recorded) report's. What has expired since is not missed.
    ///
    /// # Errors
    ///
    /// When one of the holders may not be listed, or does not answer.
    pub fn verify(&self, carried: &[(Identifier, Limit)]) -> Result<Verification, TransferError> {
        let mut ends = Ends::open(self, None)?;
        let of = |holder: &mut Client, deadline| Catalogue::of(holder, true, deadline);
        let mut source = ends.from.ask(of)?.ids;
        let destination = ends.to.ask(of)?.ids;
        let now = Timestamp::now();
        let differ = |limit: &Limit, found: Option<&Limit>| {
            found.is_some_and(|found| found.moment() != limit.moment())
        };
        let mut found = Verification {
            limits_compared: destination.values().all(Option::is_some),
            ..Verification::default()
        };
        for (id, limit) in carried {
            let here = source.remove(id);
            if limit.expired(now) {
                continue;
            }
            match destination.get(id) {
                None => found.missing.push(id.clone()),
                Some(there) if differ(limit, there.as_ref()) && !self.keeps() => {
                    found.limits_differ.push(id.clone());
                }
                Some(_) => {}
            }
            let changed = match here {
                None => !self.moving,
                Some(here) => self.moving && !self.keeps() || differ(limit, here.as_ref()),
            };
            if changed {
                found.source_changed.push(id.clone());
            }
        }
        // What the destination kept its own of may never have been carried.
        let passed_over = |id: &Identifier| self.keeps() && destination.contains_key(id);
        let new = source.into_keys().filter(|id| self.wants(id) && !passed_over(id));
        found.source_changed.extend(new);
        found.source_changed.sort_unstable();
        Ok(found)
    }

    fn keeps(&self) -> bool {
        self.on_conflict == OnConflict::Keep
    }
}
