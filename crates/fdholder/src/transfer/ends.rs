//! The two holders of a transfer, and the time each may take.

use super::check::identifiers;
use super::{Left, Side, Transfer, TransferError};
use crate::client::Client;
use crate::deadline::Deadline;
use crate::dump::{Outgoing, GET_DUMP, SET_DUMP};
use crate::error::{Cause, Error};
use crate::extension::{OnConflict, Snapshot, Taken};
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
    /// For each answer as much, in the place of something for the whole.
    each: Option<Duration>,
}

impl Allowance {
    fn new(side: Side, left: Option<Duration>, each: Option<Duration>) -> Self {
        Self { side, left, each }
    }

    /// Another answer begins to be waited for.
    pub fn renew(&mut self) {
        self.left = self.each.or(self.left);
    }

    pub fn spend<T>(
        &mut self,
        operation: impl FnOnce(Deadline) -> Result<T, Error>,
    ) -> Result<T, TransferError> {
        self.renew();
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
        let each = transfer.patience;
        let mut from_time = Allowance::new(Side::Source, transfer.timeout_from, each);
        let mut to_time = Allowance::new(Side::Destination, transfer.timeout_to, each);
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
    pub fn settle_conflicts(&mut self, transfer: &Transfer) -> Result<Conflicts, TransferError> {
        let on_conflict = transfer.on_conflict;
        let mut held = None;
        if on_conflict != OnConflict::Replace {
            if self.to.is_fdholder() {
                self.to.ask(|to, deadline| to.on_conflict(on_conflict, deadline))?;
            } else {
                held = Some(self.to.ask(identifiers)?.into_iter().collect());
            }
        }
        Ok(Conflicts { held, fail: on_conflict == OnConflict::Fail })
    }

    /// Fails if a holder refuses what the transfer needs and would only ask in the end, or not at
    /// all when nothing goes: a dump of the source. A fdholder that is asked to send none of what it
    /// holds says whether it would; of s6's daemon the connection is of no more use after that.
    pub fn check_dump(&mut self) -> Result<(), TransferError> {
        let Self { from, to, .. } = self;
        let is_fdholder = from.is_fdholder();
        from.ask(|from, deadline| {
            if is_fdholder {
                from.may_deliver(to.client.socket(), deadline)
            } else {
                from.begin_getdump(deadline).map(drop)
            }
        })
    }

    /// Fails if the destination may not be looked at, which verifying takes.
    pub fn check_look(&mut self, transfer: &Transfer) -> Result<(), TransferError> {
        if !transfer.recorded {
            return Ok(());
        }
        if self.to.is_fdholder() {
            self.to.ask(Client::may_look)
        } else {
            self.to.ask(identifiers).map(drop)
        }
    }

    /// Of two holders that refuse the source is named, as by s6's program: whether the destination
    /// has refused first depends on what goes.
    pub fn first_to_refuse(&mut self, error: TransferError) -> TransferError {
        // Who is not let in at all is hung up on.
        let is_refusal = |error: &TransferError| {
            matches!(error.error.cause(), Cause::Denied(_) | Cause::Exchange(Errno::PIPE))
        };
        if error.side == Side::Source || error.left != Left::Nothing || !is_refusal(&error) {
            return error;
        }
        self.check_dump().err().filter(is_refusal).unwrap_or(error)
    }

    /// What became of a set that the destination has confirmed, as far as that is known.
    pub fn taken(
        &mut self,
        transfer: &Transfer,
        conflicts: &Conflicts,
        descriptors: u32,
    ) -> Result<Option<Taken>, TransferError> {
        if conflicts.are_settled_here() {
            return Ok(Some(Taken { added: descriptors, ..Taken::default() }));
        }
        if !self.to.is_fdholder() || !transfer.wants_taken() || descriptors == 0 {
            return Ok(None);
        }
        self.to.ask(Client::taken).map(Some).map_err(TransferError::after_all)
    }
}

/// What the destination holds, if conflicts with it are settled here.
#[derive(Debug)]
pub(super) struct Conflicts {
    held: Option<HashSet<Identifier>>,
    fail: bool,
}

impl Conflicts {
    pub fn are_settled_here(&self) -> bool {
        self.held.is_some()
    }

    /// Whether an identifier is not to be given to the destination.
    pub fn pass_over(&self, id: &Identifier) -> bool {
        self.held.as_ref().is_some_and(|held| held.contains(id))
    }

    /// Refuses, in the words of a fdholder that finds a conflict, if there were so many and
    /// there should be none.
    pub fn check(&self, passed_over: u32) -> Result<(), TransferError> {
        if passed_over == 0 || !self.fail {
            return Ok(());
        }
        let error = Error::new(SET_DUMP, Cause::Denied(Errno::EXIST));
        Err(TransferError::new(Side::Destination, error))
    }
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
