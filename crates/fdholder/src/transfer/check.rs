//! Looking before a transfer, and after it.

use super::ends::Ends;
use super::{direct, relay, Route, Side, Transfer, TransferError};
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
    /// How many the destination holds, if this user may know that.
    pub held: Option<u32>,
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
    /// Whether the destination has something under that identifier already, if this user may know
    /// that.
    pub conflicts: Option<bool>,
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
    /// What the transfer would do, without doing anything: everything is asked that the transfer
    /// asks before it carries something, in the same order.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), for what would be refused by rules above all.
    pub fn plan(&self) -> Result<Plan, TransferError> {
        let mut ends = Ends::open(self, None)?;
        self.plan_between(&mut ends).map_err(|error| ends.first_to_refuse(error))
    }

    fn plan_between(&self, ends: &mut Ends) -> Result<Plan, TransferError> {
        let route = self.route(ends);
        let (mut chosen, passed_over) = match route {
            Route::Direct => self.chosen_directly(ends)?,
            Route::Relay => self.chosen_by_dump(ends)?,
        };
        let destination = match ends.to.ask(|to, deadline| Catalogue::of(to, false, deadline)) {
            Err(error) if is_refused(&error) => None,
            result => Some(result?),
        };
        chosen.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let ids = destination.as_ref().map(|destination| &destination.ids);
        let planned = |(id, limit)| Planned {
            conflicts: ids.map(|ids| ids.contains_key(&id)),
            id,
            limit: Some(limit),
        };
        let count = chosen.len() as u32 - passed_over; // At most DUMP_FDS_MAX.
        let entries: Vec<_> = chosen.into_iter().map(planned).collect();
        // No set follows: the connection ends here.
        let announced = ends.to.ask(|to, deadline| to.begin_setdump(count, deadline).map(drop));
        let refusal = match announced.map_err(|error| (error.error.cause(), error)) {
            Ok(()) => self.refusal_of_set(&entries, destination.as_ref()),
            Err((Cause::Denied(errno), _)) if errno != Errno::PERM => Some(errno),
            Err((_, error)) => return Err(error),
        };
        let held = ids.map(|ids| ids.len() as u32); // At most DUMP_FDS_MAX.
        let capacity = destination.and_then(|destination| destination.capacity);
        Ok(Plan { entries, route, refusal, held, capacity })
    }

    /// What a fdholder says of what it has, and whether it would send it; and how many of that would
    /// be passed over.
    fn chosen_directly(&self, ends: &mut Ends) -> Result<(Chosen, u32), TransferError> {
        let direct::Prepared { snapshot, chosen, runs, .. } = direct::prepare(self, ends, true)?;
        ends.check_dump()?;
        let passed_over = chosen.len() - runs.len();
        let entry = |at: u32| &snapshot.entries[at as usize];
        let chosen = chosen.positions().map(|at| (entry(at).id.clone(), entry(at).limit));
        Ok((chosen.collect(), passed_over))
    }

    /// What a dump has that would go through this process.
    fn chosen_by_dump(&self, ends: &mut Ends) -> Result<(Chosen, u32), TransferError> {
        let relay::Prepared { conflicts, .. } = relay::prepare(self, ends)?;
        let mut chosen = ends.from.ask(dumped)?;
        chosen.retain(|(id, _)| self.wants(id));
        let passed_over = chosen.iter().filter(|(id, _)| conflicts.pass_over(id)).count() as u32;
        Ok((chosen, passed_over))
    }

    /// Why a fdholder would refuse a set that it lets this user give: what it would hold then is not
    /// what it may. s6's daemon has said so already.
    fn refusal_of_set(
        &self,
        entries: &[Planned],
        destination: Option<&Catalogue>,
    ) -> Option<Errno> {
        let Catalogue { ids, capacity: Some(capacity) } = destination? else { return None };
        let conflicts = entries.iter().filter(|entry| entry.conflicts == Some(true)).count();
        if self.on_conflict == OnConflict::Fail && conflicts > 0 {
            return Some(Errno::EXIST);
        }
        let is_full = ids.len() + entries.len() - conflicts > *capacity as usize;
        is_full.then_some(Errno::NFILE)
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

/// Identifiers with limits.
type Chosen = Vec<(Identifier, Limit)>;

/// Whether the destination does not let this user do that.
fn is_refused(TransferError { side, error, .. }: &TransferError) -> bool {
    *side == Side::Destination && matches!(error.cause(), Cause::Denied(_))
}
