//! The two holders of a transfer, and the time each may take.

use super::{Left, Side, Transfer, TransferError};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::dump::{Outgoing, GET_DUMP, SET_DUMP};
use crate::error::{Cause, Error};
use crate::extension::{OnConflict, Snapshot};
use crate::id::Identifier;
use crate::negotiated::Negotiation;
use rustix::io::Errno;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// The time one side may take. It runs only while that side is waited for, so that a slow
/// source is not blamed on the destination.
#[derive(Debug)]
pub(super) struct Allowance {
    side: Side,
    left: Option<Duration>,
}

impl Allowance {
    fn new(side: Side, left: Option<Duration>) -> Self {
        Self { side, left }
    }

    pub fn spend<T>(
        &mut self,
        operation: impl FnOnce(Deadline) -> Result<T, Error>,
    ) -> Result<T, TransferError> {
        let start = Instant::now();
        let deadline = self.left.map_or(Deadline::NEVER, Deadline::after);
        let result = operation(deadline);
        self.charge(start.elapsed());
        result.map_err(|error| TransferError::new(self.side, error))
    }

    /// What is left; `None` is no end.
    pub fn left(&self) -> Option<Duration> {
        self.left
    }

    pub fn charge(&mut self, span: Duration) {
        self.left = self.left.map(|left| left.saturating_sub(span));
    }
}

/// One of the holders.
#[derive(Debug)]
pub(super) struct End {
    pub client: Client,
    pub time: Allowance,
}

impl End {
    pub fn is_fdholder(&self) -> bool {
        self.client.version().is_some()
    }

    /// Asks something.
    pub fn ask<T>(
        &mut self,
        operation: impl FnOnce(&mut Client, Deadline) -> Result<T, Error>,
    ) -> Result<T, TransferError> {
        self.time.spend(|deadline| operation(&mut self.client, deadline))
    }
}

/// Says of an error, that came before much was asked, what would have been.
fn reword(side: Side, path: &Path, error: &Error) -> Error {
    let (which, what) = match side {
        Side::Source => ("source", GET_DUMP),
        Side::Destination => ("destination", SET_DUMP),
    };
    match error.cause() {
        Cause::Connect(errno) => {
            let doing = format!("connect to a {which} fd-holder daemon at {}", path.display());
            Error::new(doing, Cause::Connect(errno))
        }
        cause => Error::new(what, cause),
    }
}

/// Both.
#[derive(Debug)]
pub(super) struct Ends {
    pub from: End,
    pub to: End,
    /// Of a source that is a fdholder, if it was asked for.
    pub snapshot: Option<Snapshot>,
}

impl Ends {
    /// Connects to both and asks both what they speak, which takes them both at once; the
    /// source perhaps for a snapshot as well, with or without entries.
    pub fn open(transfer: &Transfer, snapshot: Option<bool>) -> Result<Self, TransferError> {
        let mut from_time = Allowance::new(Side::Source, transfer.timeout_from);
        let mut to_time = Allowance::new(Side::Destination, transfer.timeout_to);
        let (from, to) = (&transfer.from, &transfer.to);
        let begin = |path, side, snapshot| {
            move |deadline| {
                Client::begin_negotiation(path, snapshot, deadline)
                    .map_err(|error| reword(side, path, &error))
            }
        };
        let end = |path, side, negotiation: Negotiation| {
            move |deadline| negotiation.end(deadline).map_err(|error| reword(side, path, &error))
        };
        let asked_from = from_time.spend(begin(from, Side::Source, snapshot))?;
        let asked_to = to_time.spend(begin(to, Side::Destination, None))?;
        let (from_client, snapshot) = from_time.spend(end(from, Side::Source, asked_from))?;
        let (to_client, _) = to_time.spend(end(to, Side::Destination, asked_to))?;
        Ok(Self {
            from: End { client: from_client, time: from_time },
            to: End { client: to_client, time: to_time },
            snapshot,
        })
    }

    /// Has the destination deal with conflicts as wanted. One that cannot decide that (s6's
    /// always replaces) is asked what it holds, for us to decide.
    pub fn settle_conflicts(
        &mut self,
        on_conflict: OnConflict,
    ) -> Result<Option<HashSet<Identifier>>, TransferError> {
        if on_conflict == OnConflict::Replace {
            return Ok(None);
        }
        if self.to.is_fdholder() {
            self.to.ask(|to, deadline| to.on_conflict(on_conflict, deadline))?;
            return Ok(None);
        }
        let held = self.to.ask(Client::list)?;
        Ok(Some(held.into_iter().collect()))
    }
}

/// A conflict that was to fail, in the words of a fdholder that finds it.
pub(super) fn conflict() -> TransferError {
    TransferError::new(Side::Destination, Error::new(SET_DUMP, Cause::Denied(Errno::EXIST)))
}

/// Says of an error, that came while a set was given, what of it is in the destination.
pub(super) fn left_behind(
    mut error: TransferError,
    outgoing: &Outgoing<'_>,
    total: u32,
    to_fdholder: bool,
) -> TransferError {
    let all_sent = outgoing.remaining() == 0 && outgoing.unanswered() > 0;
    let least = outgoing.confirmed();
    let most = least + outgoing.unconfirmed();
    error.left = match to_fdholder {
        true if all_sent => Left::AllOrNothing,
        true => Left::Nothing,
        false if most == 0 => Left::Nothing,
        false => Left::Part { least, most, of: total },
    };
    error
}
