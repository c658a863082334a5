//! The descriptors go through this process, a message at a time: what s6's daemon as a
//! source needs.

use super::check::identifiers;
use super::ends::{left_behind, Conflicts, End, Ends};
use super::{Progress, Report, Route, Side, Transfer, TransferError};
use crate::deadline::Deadline;
use crate::dump::{Incoming, Outgoing, GET_DUMP};
use crate::error::{Cause, Error};
use crate::frame::Message;
use crate::id::Identifier;
use crate::request::{Entry, Request};
use crate::runs::Runs;
use crate::time::Limit;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Messages that a fdholder is sent before the answer to the first of them is read. s6's
/// daemon takes one.
const AHEAD_MAX: usize = 32;

/// What is known before anything goes.
pub(super) struct Prepared {
    pub conflicts: Conflicts,
    /// How many go, if that is not all there is.
    announced: Option<u32>,
    passed_over: u32,
    release: Release,
}

/// Asks everything that could be refused before the dump is asked for.
pub(super) fn prepare(transfer: &Transfer, ends: &mut Ends) -> Result<Prepared, TransferError> {
    let conflicts = ends.settle_conflicts(transfer)?;
    ends.check_look(transfer)?;
    let filtered = transfer.only.is_some() || conflicts.are_settled_here();
    let mut announced = None;
    let mut passed_over = 0;
    if filtered {
        // The set is announced with its length, so what is there is looked at before.
        let mut ids = ends.from.ask(identifiers)?;
        ids.retain(|id| transfer.wants(id));
        // Both at most DUMP_FDS_MAX.
        passed_over = ids.iter().filter(|id| conflicts.pass_over(id)).count() as u32;
        announced = Some(ids.len() as u32 - passed_over);
    }
    conflicts.check(passed_over)?;
    let release =
        Release::prepare(transfer, ends, &|id| transfer.wants(id) && !conflicts.pass_over(id))?;
    Ok(Prepared { conflicts, announced, passed_over, release })
}

pub(super) fn run(
    transfer: &Transfer,
    ends: &mut Ends,
    watch: &mut dyn FnMut(Progress),
) -> Result<Report, TransferError> {
    let Prepared { conflicts, announced, passed_over, release } = prepare(transfer, ends)?;
    let goes = |id: &Identifier| transfer.wants(id) && !conflicts.pass_over(id);
    let mut sieve = Sieve {
        goes: announced.is_some().then_some(&goes),
        note: transfer.recorded || transfer.moving,
        noted: Vec::new(),
    };
    let (descriptors, bytes) = forward(ends, announced, &mut sieve, watch)?;
    let taken = ends.taken(transfer, &conflicts, descriptors)?;
    let Sieve { noted, .. } = sieve;
    let mut moved = None;
    if transfer.moving {
        let kept = taken.iter().flat_map(|taken| &taken.kept).copied().collect::<Vec<_>>();
        let was_taken = |at: usize| kept.binary_search(&(at as u32)).is_err();
        let ids = noted.iter().enumerate().filter(|(at, _)| was_taken(*at));
        let released = release.carry_out(&mut ends.from, ids.map(|(_, (id, _))| id));
        moved = Some(released.map_err(TransferError::after_all)?);
    }
    Ok(Report {
        descriptors,
        bytes,
        elapsed: Duration::ZERO, // The caller knows.
        route: Route::Relay,
        taken,
        passed_over,
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
    let Ends { from, to, .. } = ends;
    let mut incoming = from.time.spend(|deadline| from.client.begin_getdump(deadline))?;
    let total = announced.unwrap_or(incoming.remaining());
    let mut outgoing = to.time.spend(|deadline| to.client.begin_setdump(total, deadline))?;
    let mut bytes = 0;
    let mut give = |outgoing: &mut Outgoing<'_>| {
        // What completes the set is held back until the dump has ended: if a part of it was
        // chosen, more than was seen before may come.
        let mut last: Option<Message<OwnedFd>> = None;
        while let Some(message) = from.time.spend(|deadline| sieve.next(&mut incoming, deadline))? {
            let count = message.fds().len() as u32; // 253 at most.
            if count == 0 {
                continue;
            }
            if last.is_some() || count > outgoing.remaining() {
                return Err(changed_meanwhile());
            }
            if count == outgoing.remaining() {
                last = Some(message);
                continue;
            }
            let ahead = if to_fdholder { AHEAD_MAX - 1 } else { 0 };
            to.time.spend(|deadline| {
                while outgoing.unanswered() > ahead {
                    outgoing.confirm(deadline)?;
                }
                outgoing.send_message(&message, deadline)
            })?;
            bytes += message.bytes().len() as u64;
            watch(Progress { confirmed: outgoing.confirmed(), total });
        }
        let Some(last) = last else {
            return if total == 0 { Ok(()) } else { Err(changed_meanwhile()) };
        };
        // The last message is what has the destination take the set. It goes when all
        // before is in order, and nothing was said that was not asked.
        to.time.spend(|deadline| {
            while outgoing.unanswered() > 0 {
                outgoing.confirm(deadline)?;
            }
            outgoing.expect_silence()?;
            outgoing.send_message(&last, deadline)?;
            outgoing.confirm(deadline)
        })?;
        bytes += last.bytes().len() as u64;
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

/// How a source is made to let go of what was carried.
enum Release {
    /// Not at all.
    Nothing,
    /// A fdholder lets go of what it held before the dump, where it still does: so that is
    /// what it has sent. These are the positions in its snapshot.
    OfSnapshot(HashMap<Identifier, u32>),
    /// s6's daemon deletes whatever it has under an identifier.
    ById,
}

impl Release {
    /// Refuses at once what would be refused in the end.
    fn prepare(
        transfer: &Transfer,
        ends: &mut Ends,
        goes: &dyn Fn(&Identifier) -> bool,
    ) -> Result<Self, TransferError> {
        if !transfer.moving {
            return Ok(Self::Nothing);
        }
        if !ends.from.is_fdholder() {
            if is_same_socket(&transfer.from, &transfer.to) {
                let cause = Cause::Denied(Errno::INVAL);
                let error = Error::new("move what a holder has into itself", cause);
                return Err(TransferError::new(Side::Source, error));
            }
            let mut ids = ends.from.ask(identifiers)?;
            ids.retain(goes);
            for id in &ids {
                ends.from.ask(|from, deadline| from.may_delete(id, deadline))?;
            }
            return Ok(Self::ById);
        }
        let snapshot = ends.from.ask(|from, deadline| from.snapshot(true, deadline))?;
        let goes = |(entry, _): &(Entry<()>, u32)| goes(&entry.id);
        let positions: Vec<_> = snapshot.entries.into_iter().zip(0..).filter(goes).collect();
        let runs = Runs::of(positions.iter().map(|(_, at)| *at));
        ends.from.ask(|from, deadline| from.release(runs, true, deadline))?;
        Ok(Self::OfSnapshot(positions.into_iter().map(|(entry, at)| (entry.id, at)).collect()))
    }

    /// Returns how many the source had.
    fn carry_out<'a>(
        self,
        from: &mut End,
        ids: impl Iterator<Item = &'a Identifier>,
    ) -> Result<u32, TransferError> {
        match self {
            Self::Nothing => Ok(0),
            Self::OfSnapshot(positions) => {
                let mut runs: Vec<_> = ids.filter_map(|id| positions.get(id).copied()).collect();
                runs.sort_unstable();
                let runs = Runs::of(runs.into_iter());
                from.ask(|from, deadline| from.release(runs, false, deadline))
            }
            Self::ById => {
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
        }
    }
}

/// Whether two paths are of one socket.
fn is_same_socket(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// A dump was not what the source had said before.
fn changed_meanwhile() -> TransferError {
    TransferError::new(Side::Source, Error::new(GET_DUMP, Cause::Exchange(Errno::AGAIN)))
}
