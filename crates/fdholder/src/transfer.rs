//! Carrying the content of one holder into another.

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Cause, Error};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Which holder of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that is read.
    Source,
    /// The one that is written.
    Destination,
}

/// A transfer that failed, and on which side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferError {
    /// The holder that refused, or with which the exchange broke.
    pub side: Side,
    /// What it said, or how it broke.
    pub error: Error,
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for TransferError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What a transfer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many descriptors the destination has confirmed.
    pub descriptors: u32,
    /// Payload bytes that carried them.
    pub bytes: u64,
    /// From the first connection to the last answer.
    pub elapsed: Duration,
}

/// The time one side may take. It runs only while that side is waited for, so that a slow
/// source is not blamed on the destination.
struct Allowance(Option<Duration>);

impl Allowance {
    fn spend<T>(&mut self, operation: impl FnOnce(Deadline) -> T) -> T {
        let Some(left) = self.0 else {
            return operation(Deadline::NEVER);
        };
        let start = Instant::now();
        let value = operation(Deadline::after(left));
        self.0 = Some(left.saturating_sub(start.elapsed()));
        value
    }
}

/// A transfer between two holders: everything the source has is added to the destination,
/// which keeps what else it holds; under an identifier that both have, the source's wins.
///
/// Messages are handed on as they come, one in hand at a time, so the client needs room
/// for 253 descriptors whatever their number. The source keeps all it has. A fdholder
/// destination takes the whole set or nothing.
#[derive(Debug, Clone)]
pub struct Transfer {
    from: PathBuf,
    to: PathBuf,
    timeout_from: Option<Duration>,
    timeout_to: Option<Duration>,
}

impl Transfer {
    /// A transfer from the holder at one path to the holder at another, without time
    /// limits.
    pub fn new(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Self {
        Self {
            from: from.as_ref().to_owned(),
            to: to.as_ref().to_owned(),
            timeout_from: None,
            timeout_to: None,
        }
    }

    /// How long the source and the destination may take, each counted while it is waited
    /// for; `None` is for ever.
    #[must_use]
    pub fn timeouts(mut self, from: Option<Duration>, to: Option<Duration>) -> Self {
        self.timeout_from = from;
        self.timeout_to = to;
        self
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// [`TransferError`] names the side: the source refused the dump, the destination
    /// refused the set, could not be reached, did not answer in time …
    pub fn run(&self) -> Result<Report, TransferError> {
        let start = Instant::now();
        let (mut from_time, mut to_time) =
            (Allowance(self.timeout_from), Allowance(self.timeout_to));
        let source = |error| TransferError { side: Side::Source, error };
        let destination = |error| TransferError { side: Side::Destination, error };

        let mut from =
            from_time.spend(|deadline| connect(&self.from, "source", deadline)).map_err(source)?;
        let mut incoming =
            from_time.spend(|deadline| from.begin_getdump(deadline)).map_err(source)?;
        let mut to = to_time
            .spend(|deadline| connect(&self.to, "destination", deadline))
            .map_err(destination)?;
        let descriptors = incoming.remaining();
        let mut outgoing = to_time
            .spend(|deadline| to.begin_setdump(descriptors, deadline))
            .map_err(destination)?;
        let mut bytes = 0;
        // The destination answers one message before it is sent the next, as s6's has room
        // for the descriptors of one only. While it works on one, this side closes that
        // one's descriptors and takes the next from the source.
        let mut unconfirmed = false;
        while let Some(message) =
            from_time.spend(|deadline| incoming.next_message(deadline)).map_err(source)?
        {
            to_time
                .spend(|deadline| {
                    if unconfirmed {
                        outgoing.confirm(deadline)?;
                    }
                    outgoing.send_message(&message, deadline)
                })
                .map_err(destination)?;
            unconfirmed = true;
            bytes += message.bytes().len() as u64;
        }
        if unconfirmed {
            to_time.spend(|deadline| outgoing.confirm(deadline)).map_err(destination)?;
        }
        Ok(Report { descriptors, bytes, elapsed: start.elapsed() })
    }
}

fn connect(path: &Path, which: &str, deadline: Deadline) -> Result<Client, Error> {
    Client::connect(path, deadline).map_err(|error| {
        let doing = format!("connect to a {which} fd-holder daemon at {}", path.display());
        Error::new(doing, Cause::Connect(error.errno()))
    })
}
