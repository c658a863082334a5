//! The source sends the descriptors to the destination; this process only conducts.
//!
//! It speaks setdump with the destination, over a connection that it has made and that is
//! judged by its rights, and has the source put the messages with the descriptors into
//! that connection. What the destination answers comes here.

use super::ends::{left_behind, Allowance, Conflicts, Ends};
use super::{Progress, Report, Route, Side, Transfer, TransferError};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::dump::{Outgoing, GET_DUMP, SET_DUMP};
use crate::error::{Cause, Error};
use crate::extension::{self, Extension, Snapshot};
use crate::limits::MESSAGE_FDS_MAX;
use crate::request::Request;
use crate::runs::Runs;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Descriptors that a fdholder is sent before the answers to their messages are read. So
/// many answers, 128, fit into a socket.
const AHEAD_FDS_MAX: u32 = 128 * MESSAGE_FDS_MAX as u32;

/// For so long it is just waited until the source has done its part. Then the destination
/// is listened to as well.
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// At least so often it is looked whose time it is.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What is known before anything goes.
pub(super) struct Prepared {
    conflicts: Conflicts,
    /// Of the source.
    pub snapshot: Snapshot,
    /// What of it was chosen.
    pub chosen: Runs,
    /// What of that goes.
    pub runs: Runs,
}

/// Asks everything that could be refused before the set is announced; with `entries` also what
/// there is, not only how much.
pub(super) fn prepare(
    transfer: &Transfer,
    ends: &mut Ends,
    entries: bool,
) -> Result<Prepared, TransferError> {
    let conflicts = ends.settle_conflicts(transfer)?;
    ends.check_look(transfer)?;
    let snapshot = match ends.snapshot.take() {
        Some(snapshot) => snapshot,
        None => ends.from.ask(|from, deadline| from.snapshot(entries, deadline))?,
    };
    let id = |at: &u32| &snapshot.entries[*at as usize].id; // Only if there are entries.
    let mut chosen = Runs::all(snapshot.count);
    if entries {
        chosen = Runs::of(chosen.positions().filter(|at| transfer.wants(id(at))));
    }
    let mut runs = chosen.clone();
    if conflicts.are_settled_here() {
        runs = Runs::of(runs.positions().filter(|at| !conflicts.pass_over(id(at))));
    }
    conflicts.check(chosen.len() - runs.len())?;
    if transfer.moving {
        ends.from.ask(|from, deadline| from.release(runs.clone(), true, deadline))?;
    }
    Ok(Prepared { conflicts, snapshot, chosen, runs })
}

pub(super) fn run(
    transfer: &Transfer,
    ends: &mut Ends,
    watch: &mut dyn FnMut(Progress),
) -> Result<Report, TransferError> {
    let Prepared { conflicts, snapshot, chosen, runs } =
        prepare(transfer, ends, transfer.needs_entries())?;
    let passed_over = chosen.len() - runs.len();
    if runs.len() == 0 {
        // Otherwise the source says so when it is asked to send.
        ends.check_dump()?;
    }
    let bytes = send(ends, runs.clone(), watch)?;
    let taken = ends.taken(transfer, &conflicts, runs.len())?;
    let mut moved = None;
    if transfer.moving {
        let kept = taken.as_ref().map_or(&[][..], |taken| &taken.kept);
        let was_taken = |at: u32| kept.binary_search(&at).is_err();
        let released = (0..).zip(runs.clone().positions()).filter(|(at, _)| was_taken(*at));
        let released = Runs::of(released.map(|(_, position)| position));
        let release = |from: &mut Client, deadline| from.release(released, false, deadline);
        moved = Some(ends.from.ask(release).map_err(TransferError::after_all)?);
    }
    let of = |at: u32| &snapshot.entries[at as usize];
    let carried = || runs.clone().positions().map(of).map(|entry| (entry.id.clone(), entry.limit));
    Ok(Report {
        descriptors: runs.len(),
        bytes,
        elapsed: Duration::ZERO, // The caller knows.
        route: Route::Direct,
        taken,
        passed_over,
        moved,
        carried: transfer.recorded.then(|| carried().collect()),
    })
}

/// Gives the destination a set of these, sent by the source. Returns the bytes of the
/// messages.
fn send(
    ends: &mut Ends,
    mut runs: Runs,
    watch: &mut dyn FnMut(Progress),
) -> Result<u64, TransferError> {
    let total = runs.len();
    let to_fdholder = ends.to.is_fdholder();
    let ahead = if to_fdholder { AHEAD_FDS_MAX } else { MESSAGE_FDS_MAX as u32 };
    let Ends { from, to, .. } = ends;
    let time = &mut to.time;
    let mut outgoing = time.spend(|deadline| to.client.begin_setdump(total, deadline))?;
    let mut bytes = 0;
    let mut give = |outgoing: &mut Outgoing<'_>| {
        while runs.len() > 0 {
            // The last message is what has the destination take the set. It goes when all
            // before is in order, and nothing was said that was not asked.
            let before_last = (runs.len() - 1) / MESSAGE_FDS_MAX as u32 * MESSAGE_FDS_MAX as u32;
            let wanted = if before_last == 0 { runs.len() } else { before_last.min(ahead) };
            outgoing
                .expect_silence()
                .map_err(|error| TransferError::new(Side::Destination, error))?;
            let part = runs.take(wanted);
            bytes += deliver(&mut from.client, &mut from.time, outgoing, time, part)?;
            while outgoing.unanswered() > 0 {
                time.spend(|deadline| outgoing.confirm(deadline))?;
            }
            watch(Progress { confirmed: outgoing.confirmed(), total });
        }
        Ok(())
    };
    let given = give(&mut outgoing);
    given.map_err(|error| left_behind(error, &outgoing, total, to_fdholder))?;
    Ok(bytes)
}

/// Has the source send a part of the set.
fn deliver(
    from: &mut Client,
    from_time: &mut Allowance,
    outgoing: &mut Outgoing<'_>,
    to_time: &mut Allowance,
    runs: Vec<Range<u32>>,
) -> Result<u64, TransferError> {
    let source = |cause| TransferError::new(Side::Source, Error::new(GET_DUMP, cause));
    let count = runs.iter().map(|run| run.end - run.start).sum();
    from_time.spend(|deadline| {
        let request = Request::Extension(Extension::Deliver { runs, to: outgoing.socket() });
        from.send_request(request, deadline).map_err(|cause| Error::new(GET_DUMP, cause))
    })?;
    outgoing
        .is_sent_elsewhere(count)
        .map_err(|error| TransferError::new(Side::Destination, error))?;
    let mut wait = FIRST_WAIT;
    from_time.renew();
    to_time.renew();
    loop {
        // Without a wait: that is below, where it is seen whose time it is.
        match from.receive(Deadline::after(Duration::ZERO)) {
            Ok(frame) => {
                let answer =
                    extension::parse_delivered(&frame).map_err(|bad| source(bad.into()))?;
                from.in_step = true;
                return match answer {
                    Ok(bytes) => Ok(bytes),
                    // It has not begun.
                    Err(errno @ (Errno::PERM | Errno::INVAL | Errno::BUSY | Errno::NFILE)) => {
                        outgoing.was_not_sent();
                        Err(source(Cause::Denied(errno)))
                    }
                    Err(errno) => {
                        let error = outgoing.undeliverable(Cause::Exchange(errno));
                        Err(TransferError::new(Side::Destination, error))
                    }
                };
            }
            Err(Cause::TimedOut) => {}
            Err(cause) => return Err(source(cause)),
        }
        // While the destination has no room for more, it is the one to be waited for.
        let (side, doing, time) = if outgoing.has_room() {
            (Side::Source, GET_DUMP, &mut *from_time)
        } else {
            (Side::Destination, SET_DUMP, &mut *to_time)
        };
        let start = Instant::now();
        let span = time.left().map_or(LONGEST_WAIT, |left| left.min(LONGEST_WAIT));
        let first = std::mem::take(&mut wait);
        let heard = wait_for_either(from, outgoing, span, first)
            .map_err(|errno| source(Cause::Exchange(errno)))?;
        time.charge(start.elapsed());
        match heard {
            Some(Side::Destination) => to_time.spend(|_| outgoing.hear())?,
            None if time.left() == Some(Duration::ZERO) => {
                return Err(TransferError::new(side, Error::new(doing, Cause::TimedOut)));
            }
            Some(Side::Source) | None => {}
        }
    }
}

/// Waits until the source has something to say, or the destination (but not during the
/// `first` wait), or no time is left.
fn wait_for_either(
    from: &Client,
    outgoing: &Outgoing<'_>,
    span: Duration,
    first: Duration,
) -> Result<Option<Side>, Errno> {
    let mut sockets = [
        PollFd::from_borrowed_fd(from.socket(), PollFlags::IN),
        PollFd::from_borrowed_fd(outgoing.socket(), PollFlags::IN),
    ];
    let (sockets, span) = if first.is_zero() {
        (&mut sockets[..], span)
    } else {
        (&mut sockets[..1], span.min(first))
    };
    // Shorter than any timespec.
    let span = Timespec::try_from(span).map_err(|_| Errno::INVAL)?;
    match poll(sockets, Some(&span)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let spoke = sockets.iter().position(|socket| !socket.revents().is_empty());
    Ok(spoke.map(|at| if at == 0 { Side::Source } else { Side::Destination }))
}
