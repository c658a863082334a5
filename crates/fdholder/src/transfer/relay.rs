//! The descriptors go through this process, a message at a time: what s6's daemon as a
//! source needs.

use super::ends::{conflict, left_behind, End, Ends};
use super::{Left, Progress, Report, Route, Side, Transfer, TransferError};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::dump::{Incoming, Outgoing, GET_DUMP};
use crate::error::{Cause, Error};
use crate::extension::{OnConflict, Taken};
use crate::frame::Message;
use crate::id::Identifier;
use crate::request::Request;
use crate::time::Limit;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Messages that a fdholder is sent before the answer to the first of them is read. s6's
/// daemon takes one.
const AHEAD_MAX: usize = 32;

pub(super) fn run(
    transfer: &Transfer,
    mut ends: Ends,
    watch: &mut dyn FnMut(Progress),
) -> Result<Report, TransferError> {
    let held = ends.settle_conflicts(transfer.on_conflict)?;
    let is_held = |id: &Identifier| held.as_ref().is_some_and(|held| held.contains(id));
    let goes = |id: &Identifier| transfer.wants(id) && !is_held(id);
    let filtered = transfer.only.is_some() || held.is_some();
    let mut announced = None;
    let mut kept = 0;
    if filtered {
        // The set is announced with its length, so what is there is looked at before.
        let ids = identifiers(&mut ends.from)?;
        kept = ids.iter().filter(|id| transfer.wants(id) && is_held(id)).count();
        // At most DUMP_FDS_MAX.
        announced = Some(ids.iter().filter(|id| goes(id)).count() as u32);
    }
    if kept > 0 && transfer.on_conflict == OnConflict::Fail {
        return Err(conflict());
    }
    let to_fdholder = ends.to.is_fdholder();
    let mut sieve = Sieve {
        goes: filtered.then_some(&goes),
        note: transfer.recorded || transfer.moving,
        noted: Vec::new(),
    };
    let (descriptors, bytes) = forward(&mut ends, announced, &mut sieve, watch)?;
    let all = |error: TransferError| TransferError { left: Left::All, ..error };
    let taken = if held.is_some() {
        Some(Taken { added: descriptors, replaced: 0, kept: Vec::new() })
    } else if to_fdholder && transfer.wants_taken() && descriptors > 0 {
        Some(ends.to.ask(Client::taken).map_err(all)?)
    } else {
        None
    };
    let Sieve { noted, .. } = sieve;
    let mut moved = None;
    if transfer.moving {
        let kept = taken.iter().flat_map(|taken| &taken.kept).copied().collect::<Vec<_>>();
        let was_taken = |at: usize| kept.binary_search(&(at as u32)).is_err();
        let ids = noted.iter().enumerate().filter(|(at, _)| was_taken(*at));
        moved = Some(delete(&mut ends.from, ids.map(|(_, (id, _))| id)).map_err(all)?);
    }
    Ok(Report {
        descriptors,
        bytes,
        elapsed: Duration::ZERO, // The caller knows.
        route: Route::Relay,
        taken,
        passed_over: kept as u32,
        moved,
        carried: transfer.recorded.then_some(noted),
    })
}

/// Hands on the messages of a dump. Returns how many descriptors, and bytes.
fn forward(
    ends: &mut Ends,
    announced: Option<u32>,
    sieve: &mut Sieve<'_>,
    watch: &mut dyn FnMut(Progress),
) -> Result<(u32, u64), TransferError> {
    let to_fdholder = ends.to.is_fdholder();
    let Ends { from, to } = ends;
    let mut incoming = from.time.spend(|deadline| from.client.begin_getdump(deadline))?;
    let total = announced.unwrap_or(incoming.remaining());
    let mut outgoing = to.time.spend(|deadline| to.client.begin_setdump(total, deadline))?;
    let mut bytes = 0;
    let mut give = |outgoing: &mut Outgoing<'_>| {
        while let Some(message) = from.time.spend(|deadline| sieve.next(&mut incoming, deadline))? {
            let count = message.fds().len() as u32; // 253 at most.
            if count == 0 {
                continue;
            }
            if count > outgoing.remaining() {
                return Err(changed_meanwhile());
            }
            // The last message is what has the destination take the set. It goes when all
            // before is in order, and nothing was said that was not asked.
            let is_last = count == outgoing.remaining();
            let ahead = if to_fdholder && !is_last { AHEAD_MAX - 1 } else { 0 };
            to.time.spend(|deadline| {
                while outgoing.unanswered() > ahead {
                    outgoing.confirm(deadline)?;
                }
                if is_last {
                    outgoing.expect_silence()?;
                }
                outgoing.send_message(&message, deadline)
            })?;
            bytes += message.bytes().len() as u64;
            watch(Progress { confirmed: outgoing.confirmed(), total });
        }
        if outgoing.remaining() > 0 {
            return Err(changed_meanwhile());
        }
        while outgoing.unanswered() > 0 {
            to.time.spend(|deadline| outgoing.confirm(deadline))?;
        }
        watch(Progress { confirmed: outgoing.confirmed(), total });
        Ok(())
    };
    let given = give(&mut outgoing);
    given.map_err(|error| left_behind(error, &outgoing, total, to_fdholder))?;
    Ok((total, bytes))
}

/// What of a dump goes on.
struct Sieve<'a> {
    /// Without it, all does.
    goes: Option<&'a dyn Fn(&Identifier) -> bool>,
    /// Whether what goes on is to be noted.
    note: bool,
    noted: Vec<(Identifier, Limit)>,
}

impl Sieve<'_> {
    /// What goes on of the next message; that may be nothing.
    fn next(
        &mut self,
        incoming: &mut Incoming<'_>,
        deadline: Deadline,
    ) -> Result<Option<Message<OwnedFd>>, Error> {
        if self.goes.is_none() && !self.note {
            return incoming.next_message(deadline);
        }
        let Some(mut entries) = incoming.next_entries(deadline)? else {
            return Ok(None);
        };
        if let Some(goes) = self.goes {
            entries.retain(|entry| goes(&entry.id));
        }
        if self.note {
            self.noted.extend(entries.iter().map(|entry| (entry.id.clone(), entry.limit)));
        }
        Ok(Some(Request::SetdumpData(entries).into_message()))
    }
}

/// What a source has. Who may take a dump but not list gets it from a dump.
fn identifiers(from: &mut End) -> Result<Vec<Identifier>, TransferError> {
    from.ask(|from, deadline| match from.list(deadline) {
        Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
            let mut incoming = from.begin_getdump(deadline)?;
            let mut ids = Vec::new();
            while let Some(entries) = incoming.next_entries(deadline)? {
                ids.extend(entries.into_iter().map(|entry| entry.id));
            }
            Ok(ids)
        }
        result => result,
    })
}

/// Deletes from a source what it has under these identifiers. Returns how many there were.
fn delete<'a>(
    from: &mut End,
    ids: impl Iterator<Item = &'a Identifier>,
) -> Result<u32, TransferError> {
    let mut deleted = 0;
    for id in ids {
        deleted += from.ask(|from, deadline| match from.delete(id, deadline) {
            Ok(()) => Ok(1),
            // It has expired, or someone else was faster.
            Err(error) if error.cause() == Cause::Denied(Errno::NOENT) => Ok(0),
            Err(error) => Err(error),
        })?;
    }
    Ok(deleted)
}

/// A dump was not what the source had said before.
fn changed_meanwhile() -> TransferError {
    TransferError::new(Side::Source, Error::new(GET_DUMP, Cause::Exchange(Errno::AGAIN)))
}
