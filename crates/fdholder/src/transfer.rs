//! Carrying the content of one holder into another.

mod check;
mod direct;
mod ends;
mod relay;

pub use check::{Plan, Planned, Verification};

use crate::error::{Cause, Error};
use crate::extension::{OnConflict, Taken};
use crate::id::Identifier;
use crate::time::Limit;
use ends::Ends;
use rustix::io::Errno;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which holder of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that is read.
    Source,
    /// The one that is written.
    Destination,
}

/// What a transfer that failed has left in the destination. The source holds what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// None of it.
    Nothing,
    /// A part of it. Only s6's daemon takes that.
    Part {
        /// So many descriptors at least: it has confirmed them.
        least: u32,
        /// So many at most: it was sent them.
        most: u32,
        /// Of so many.
        of: u32,
    },
    /// All of it or nothing: the answer to its last message did not come.
    AllOrNothing,
    /// All of it; what failed came afterwards.
    All,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("the destination has taken nothing"),
            Self::Part { least, most, of } if least == most => {
                write!(f, "the destination, which is s6's, has taken {least} of {of}")
            }
            Self::Part { least, most, of } => {
                write!(f, "the destination, which is s6's, has taken {least} to {most} of {of}")
            }
            Self::AllOrNothing => {
                f.write_str("whether the destination has taken all or nothing it did not say")
            }
            Self::All => f.write_str("the destination has taken all"),
        }
    }
}

/// A transfer that failed, and on which side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferError {
    /// The holder that refused, or with which the exchange broke.
    pub side: Side,
    /// What it said, or how it broke.
    pub error: Error,
    /// What of it is in the destination.
    pub left: Left,
}

impl TransferError {
    fn new(side: Side, error: Error) -> Self {
        Self { side, error, left: Left::Nothing }
    }

    /// The same when the set has been taken already.
    fn after_all(self) -> Self {
        Self { left: Left::All, ..self }
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.left)
    }
}

impl std::error::Error for TransferError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Which way the descriptors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// From the source to the destination.
    Direct,
    /// Through this process.
    Relay,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        })
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Descriptors that the destination has confirmed.
    pub confirmed: u32,
    /// Of so many.
    pub total: u32,
}

/// What a transfer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many descriptors the destination was given, and has confirmed.
    pub descriptors: u32,
    /// Bytes of the messages that carried them.
    pub bytes: u64,
    /// From the first connection to the last answer.
    pub elapsed: Duration,
    /// Which way they went.
    pub route: Route,
    /// What became of them there, if it was [asked](Transfer::detailed) and the
    /// destination can tell: s6's cannot.
    pub taken: Option<Taken>,
    /// How many were not given to the destination, which is s6's and holds their
    /// identifiers already. A fdholder is given all, and tells in `taken`.
    pub passed_over: u32,
    /// How many the source was made to let go of.
    pub moved: Option<u32>,
    /// What was carried, if it was [asked](Transfer::recorded).
    pub carried: Option<Vec<(Identifier, Limit)>>,
}

/// A transfer between two holders: what the source has is added to the destination,
/// which keeps what else it holds; under an identifier that both have, the source's wins.
///
/// A fdholder as source sends the descriptors to the destination itself. From s6's daemon
/// messages are handed on as they come, so that this process needs room for 253
/// descriptors whatever their number. What is carried is what the source held at one
/// instant, and the source keeps it. A fdholder as destination takes the whole set or
/// nothing.
// Independent switches, each with a method that says what it is.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone)]
pub struct Transfer {
    from: PathBuf,
    to: PathBuf,
    timeout_from: Option<Duration>,
    timeout_to: Option<Duration>,
    patience: Option<Duration>,
    only: Option<Filter>,
    on_conflict: OnConflict,
    moving: bool,
    relay: bool,
    detailed: bool,
    recorded: bool,
}

#[derive(Clone)]
struct Filter(Arc<dyn Fn(&Identifier) -> bool + Send + Sync>);

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}

/// How often a transfer begins anew when the source has changed between the look at what
/// it has and the dump. A fdholder gives both at one instant.
const ATTEMPTS: u32 = 5;

impl Transfer {
    /// A transfer from the holder at one path to the holder at another, without time
    /// limits.
    pub fn new(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Self {
        Self {
            from: from.as_ref().to_owned(),
            to: to.as_ref().to_owned(),
            timeout_from: None,
            timeout_to: None,
            patience: None,
            only: None,
            on_conflict: OnConflict::Replace,
            moving: false,
            relay: false,
            detailed: false,
            recorded: false,
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

    /// How long either may take for each answer, in the place of [timeouts](Self::timeouts): a
    /// transfer that goes on has no end, and a holder that has stopped is given up.
    #[must_use]
    pub fn patience(mut self, each: Duration) -> Self {
        self.patience = Some(each);
        self
    }

    /// Carries only what is held under identifiers of which `only` says yes.
    #[must_use]
    pub fn only(mut self, only: impl Fn(&Identifier) -> bool + Send + Sync + 'static) -> Self {
        self.only = Some(Filter(Arc::new(only)));
        self
    }

    /// What becomes of identifiers that both have. A fdholder decides at the moment it
    /// takes the set; what s6's daemon holds is looked at before.
    #[must_use]
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.on_conflict = on_conflict;
        self
    }

    /// Has the source let go of what the destination has confirmed, once it has confirmed
    /// all. A fdholder lets go of the very descriptors it has sent; s6's daemon of what it
    /// holds under the same identifiers by then. Those of which the destination
    /// [kept](OnConflict::Keep) its own stay.
    #[must_use]
    pub fn moving(mut self, moving: bool) -> Self {
        self.moving = moving;
        self
    }

    /// Carries the descriptors through this process even if the source could send them.
    #[must_use]
    pub fn relay(mut self, relay: bool) -> Self {
        self.relay = relay;
        self
    }

    /// Asks the destination what became of the descriptors.
    #[must_use]
    pub fn detailed(mut self, detailed: bool) -> Self {
        self.detailed = detailed;
        self
    }

    /// Notes what is carried, for [`verify`](Self::verify).
    #[must_use]
    pub fn recorded(mut self, recorded: bool) -> Self {
        self.recorded = recorded;
        self
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// [`TransferError`] names the side: the source refused the dump, the destination
    /// refused the set, could not be reached, did not answer in time … EEXIST from the
    /// destination is a conflict that was to [fail](OnConflict::Fail); EAGAIN from the
    /// source says that it changes faster than it can be read.
    pub fn run(&self) -> Result<Report, TransferError> {
        self.run_watched(&mut |_| {})
    }

    /// Does it, and tells now and then how far it is.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_watched(&self, watch: &mut dyn FnMut(Progress)) -> Result<Report, TransferError> {
        let start = Instant::now();
        let (mut attempts, mut route) = (1, None);
        let mut report = loop {
            let direct = !self.relay && route.is_none();
            let mut ends = Ends::open(self, direct.then(|| self.needs_entries()))?;
            let by = route.unwrap_or(self.route(&ends));
            let result = match by {
                Route::Direct => direct::run(self, &mut ends, watch),
                Route::Relay => relay::run(self, &mut ends, watch),
            };
            match result.map_err(|error| ends.first_to_refuse(error)) {
                Err(error) if changed_meanwhile(&error) && attempts < ATTEMPTS => attempts += 1,
                Err(error) if is_busy(&error) && by == Route::Direct => route = Some(Route::Relay),
                result => break result?,
            }
        };
        report.elapsed = start.elapsed();
        Ok(report)
    }

    fn route(&self, ends: &Ends) -> Route {
        if ends.from.is_fdholder() && !self.relay {
            Route::Direct
        } else {
            Route::Relay
        }
    }

    /// Whether it takes to know what there is, not only how much.
    fn needs_entries(&self) -> bool {
        self.only.is_some() || self.recorded || self.on_conflict != OnConflict::Replace
    }

    /// Whether the destination must say what became of the set.
    fn wants_taken(&self) -> bool {
        self.detailed || self.moving && self.on_conflict == OnConflict::Keep
    }

    fn wants(&self, id: &Identifier) -> bool {
        self.only.as_ref().is_none_or(|Filter(only)| only(id))
    }
}

/// Whether a fdholder was the destination, so that nothing has happened yet, and the
/// source was not what it had said.
fn changed_meanwhile(TransferError { side, error, left }: &TransferError) -> bool {
    *side == Side::Source
        && *left == Left::Nothing
        && error.cause() == Cause::Exchange(Errno::AGAIN)
}

/// Whether the source has nobody to send it, and nothing has happened yet.
fn is_busy(TransferError { side, error, left }: &TransferError) -> bool {
    let has_nothing_to_send_with =
        matches!(error.cause(), Cause::Denied(Errno::BUSY | Errno::NFILE));
    *side == Side::Source && *left == Left::Nothing && has_nothing_to_send_with
}
