//! What fdholder says beyond s6's protocol: requests behind the command `+`, and their
//! replies, to bytes and back.
//!
//! An s6 daemon hangs up on them, so they are only said to a holder that has answered
//! [`Extension::Hello`]. A fdholder that does not know one answers EOPNOTSUPP. The layout
//! of each, and what came with which version, is in `docs/protocol.md`, "Extensions".

use crate::error::Malformed;
use crate::frame::{Frame, Message};
use crate::id::Identifier;
use crate::limits::{DUMP_FDS_MAX, PAYLOAD_MAX, RUNS_MAX};
use crate::origin::Origin;
use crate::payload::{put_id, put_limit_and_id, Entry, Reader};
use crate::reply::{answer, bounded, without_fds, Answer};
use crate::status::Status;
use crate::time::Limit;
use std::ops::Range;

/// The version of the extensions that this library speaks. Each version has all that the
/// ones before it had.
pub const VERSION: u32 = 6;

/// The first version of a holder that can be followed by this one: what is told of a change
/// has been the same since.
pub const FOLLOW_VERSION: u32 = 3;

/// The first version of a holder that understands a follower which tells what it has not closed
/// yet.
pub const CLOSES_VERSION: u32 = 5;

/// The first payload byte of an extension.
pub(crate) const COMMAND: u8 = b'+';

/// The byte behind it.
mod number {
    pub const HELLO: u8 = 0;
    pub const SNAPSHOT: u8 = 1;
    pub const DELIVER: u8 = 2;
    pub const RELEASE: u8 = 3;
    pub const ON_CONFLICT: u8 = 4;
    pub const TAKEN: u8 = 5;
    pub const FOLLOW: u8 = 6;
    pub const UPGRADE: u8 = 7;
    pub const INSPECT: u8 = 8;
    pub const STATUS: u8 = 9;
    pub const WHY: u8 = 10;
    pub const MAY_STORE: u8 = 11;
    pub const AWAIT: u8 = 12;
    pub const LAST: u8 = AWAIT;
}

/// A request that only fdholder understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension<F> {
    /// "I speak this version; which do you?" Who says it has a receiver that takes
    /// whatever messages arrive together.
    Hello(u32),
    /// Remember, for this connection, all that is held now; tell how much that is, and
    /// with `entries` also the identifiers and limits.
    Snapshot {
        /// Tell what, not only how much.
        entries: bool,
    },
    /// Send these descriptors of the snapshot, as the data messages of a set, to another
    /// holder: `to` is a connection with it, on which the set was announced.
    Deliver {
        /// Positions in the snapshot.
        runs: Vec<Range<u32>>,
        /// A connected Unix stream socket.
        to: F,
    },
    /// Stop holding these of the snapshot, where they are still what is held.
    Release {
        /// Positions in the snapshot.
        runs: Vec<Range<u32>>,
        /// Only say whether it is allowed, and how many there would be.
        only_ask: bool,
    },
    /// What becomes of identifiers that a set, given on this connection, shares with what
    /// is held.
    OnConflict(OnConflict),
    /// What came of the set that was given last on this connection.
    Taken,
    /// Make this connection a [link](crate::link): from now on tell me of every change. For
    /// a daemon of the same user, which can take over.
    Follow {
        /// How many descriptors it could hold.
        capacity: u32,
    },
    /// Become the program that is now where this one was started from. For whoever runs as
    /// the same user.
    Upgrade,
    /// Tell what is held, and where each comes from.
    Inspect,
    /// Tell how the holder is: see [`Status`].
    Status,
    /// Tell of what there was too little when ENFILE or EDQUOT was answered last on this
    /// connection, and which limit that was.
    Why,
    /// Tell whether the rules let a user store under an identifier. For root and the holder's
    /// own user.
    MayStore {
        /// The user.
        uid: u32,
        /// Its group, as rules may be by group.
        gid: u32,
        /// Under which.
        id: Identifier,
    },
    /// Answer once something is held under an identifier, or under one that begins so.
    Await {
        /// Which, or how it begins.
        id: Identifier,
        /// Any that begins so.
        is_prefix: bool,
    },
    /// One of a later version.
    Unknown,
}

/// What to do when a set has an identifier under which something is held already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// The set's descriptor replaces the one held, as the protocol says.
    #[default]
    Replace,
    /// The one held stays, the set's is dropped.
    Keep,
    /// The whole set is refused with EEXIST.
    Fail,
}

impl OnConflict {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Replace => 0,
            Self::Keep => 1,
            Self::Fail => 2,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Replace),
            1 => Ok(Self::Keep),
            2 => Ok(Self::Fail),
            _ => Err(Malformed("an unknown way to deal with conflicts")),
        }
    }
}

/// What came of a set: which of its descriptors were new, replaced others, or gave way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many came under identifiers that were not held.
    pub added: u32,
    /// How many took the place of others.
    pub replaced: u32,
    /// Which were dropped in favour of what was held: their positions in the set,
    /// ascending.
    pub kept: Vec<u32>,
}

impl Taken {
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        [self.added, self.replaced].into_iter().chain(self.kept.iter().copied())
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut taken = Self { added: reader.u32()?, replaced: reader.u32()?, kept: Vec::new() };
        while !reader.0.is_empty() {
            taken.kept.push(reader.u32()?);
        }
        Ok(taken)
    }
}

/// What a holder says of what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How many descriptors are held.
    pub count: u32,
    /// How many can be.
    pub capacity: u32,
    /// What is held, if it was asked for; the positions in a snapshot are those in here.
    pub entries: Vec<Entry<()>>,
}

/// What a holder says of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Under which it is held.
    pub id: Identifier,
    /// Until when.
    pub limit: Limit,
    /// Where it comes from.
    pub origin: Origin,
}

impl<F> Extension<F> {
    /// Reads what stands behind the command; `None` when the receiver had no room for its
    /// descriptor.
    pub(crate) fn parse(
        body: &[u8],
        mut fds: Vec<F>,
        fds_lost: bool,
    ) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader(body);
        let number = reader.byte()?;
        if number > number::LAST {
            return Ok(Some(Self::Unknown));
        }
        let to = fds.pop();
        if !fds.is_empty() || (number != number::DELIVER && (to.is_some() || fds_lost)) {
            return Err(Malformed("descriptors came with a request that takes none"));
        }
        let extension = match number {
            number::HELLO => Self::Hello(reader.u32()?),
            number::SNAPSHOT => Self::Snapshot { entries: reader.byte()? != 0 },
            number::DELIVER if fds_lost => return Ok(None),
            number::DELIVER => {
                let to = to.ok_or(Malformed("a delivery takes exactly one descriptor"))?;
                Self::Deliver { runs: runs(&mut reader)?, to }
            }
            number::RELEASE => {
                let only_ask = reader.byte()? != 0;
                Self::Release { runs: runs(&mut reader)?, only_ask }
            }
            number::ON_CONFLICT => Self::OnConflict(OnConflict::from_byte(reader.byte()?)?),
            number::TAKEN => Self::Taken,
            number::FOLLOW => Self::Follow { capacity: reader.u32()? },
            number::UPGRADE => Self::Upgrade,
            number::INSPECT => Self::Inspect,
            number::WHY => Self::Why,
            number::MAY_STORE => {
                Self::MayStore { uid: reader.u32()?, gid: reader.u32()?, id: reader.id()? }
            }
            number::AWAIT => Self::Await { is_prefix: reader.byte()? != 0, id: reader.id()? },
            _ => Self::Status,
        };
        reader.end()?;
        Ok(Some(extension))
    }

    pub(crate) fn into_message(self) -> Message<F> {
        let mut fds = Vec::new();
        let mut payload = vec![COMMAND];
        match self {
            Self::Hello(version) => {
                payload.push(number::HELLO);
                payload.extend_from_slice(&version.to_be_bytes());
            }
            Self::Snapshot { entries } => {
                payload.extend_from_slice(&[number::SNAPSHOT, u8::from(entries)]);
            }
            Self::Deliver { runs, to } => {
                payload.push(number::DELIVER);
                put_runs(&mut payload, &runs);
                fds.push(to);
            }
            Self::Release { runs, only_ask } => {
                payload.extend_from_slice(&[number::RELEASE, u8::from(only_ask)]);
                put_runs(&mut payload, &runs);
            }
            Self::OnConflict(on_conflict) => {
                payload.extend_from_slice(&[number::ON_CONFLICT, on_conflict.to_byte()]);
            }
            Self::Taken => payload.push(number::TAKEN),
            Self::Follow { capacity } => {
                payload.push(number::FOLLOW);
                payload.extend_from_slice(&capacity.to_be_bytes());
            }
            Self::Upgrade => payload.push(number::UPGRADE),
            Self::Inspect => payload.push(number::INSPECT),
            Self::Status => payload.push(number::STATUS),
            Self::Why => payload.push(number::WHY),
            Self::MayStore { uid, gid, id } => {
                payload.push(number::MAY_STORE);
                payload.extend_from_slice(&uid.to_be_bytes());
                payload.extend_from_slice(&gid.to_be_bytes());
                put_id(&mut payload, &id);
            }
            Self::Await { id, is_prefix } => {
                payload.extend_from_slice(&[number::AWAIT, u8::from(is_prefix)]);
                put_id(&mut payload, &id);
            }
            Self::Unknown => payload.push(u8::MAX),
        }
        Message::new(fds, |bytes| bytes.append(&mut payload))
    }
}

/// Positions in a snapshot, to the end of the payload: of each run where it starts and how
/// long it is.
fn runs(reader: &mut Reader<'_>) -> Result<Vec<Range<u32>>, Malformed> {
    let mut runs = Vec::with_capacity(reader.0.len() / 8);
    while !reader.0.is_empty() {
        let (start, len) = (reader.u32()?, reader.u32()?);
        let end = start.checked_add(len).filter(|_| len > 0);
        runs.push(start..end.ok_or(Malformed("a run of positions that is empty or too long"))?);
    }
    Ok(runs)
}

fn put_runs(payload: &mut Vec<u8>, runs: &[Range<u32>]) {
    debug_assert!(runs.len() <= RUNS_MAX, "more than a request may have");
    for run in runs {
        payload.extend_from_slice(&run.start.to_be_bytes());
        payload.extend_from_slice(&(run.end - run.start).to_be_bytes());
    }
}

/// Encodes the answer to a hello.
pub fn hello<F>() -> Message<F> {
    numbers([VERSION])
}

/// Encodes the answer to a snapshot; EMSGSIZE when it is longer than a message may be.
pub fn snapshot<'a, F>(
    count: u32,
    capacity: u32,
    entries: impl Iterator<Item = (&'a Identifier, Limit)>,
) -> Message<F> {
    let mut payload = vec![0];
    payload.extend_from_slice(&count.to_be_bytes());
    payload.extend_from_slice(&capacity.to_be_bytes());
    for (id, limit) in entries {
        put_limit_and_id(&mut payload, limit, id);
    }
    bounded(payload, PAYLOAD_MAX)
}

/// Encodes the answer to a delivery: how many payload bytes it was.
pub fn delivered<F>(bytes: u64) -> Message<F> {
    Message::new(Vec::new(), |payload| {
        payload.push(0);
        payload.extend_from_slice(&bytes.to_be_bytes());
    })
}

/// Encodes the answer to a release.
pub fn released<F>(count: u32) -> Message<F> {
    numbers([count])
}

/// Encodes what came of a set.
pub fn taken<F>(taken: &Taken) -> Message<F> {
    numbers(taken.numbers())
}

/// Encodes what came of an upgrade: the version that answers, or why there was none.
pub fn upgraded<F>(outcome: Result<&str, &str>) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        let (Ok(text) | Err(text)) = outcome;
        bytes.extend_from_slice(&[0, u8::from(outcome.is_err())]);
        bytes.extend_from_slice(text.as_bytes());
    })
}

/// Encodes the answer to [`Extension::Inspect`]; EMSGSIZE when it is longer than a message
/// may be.
pub fn inspected<'a, F>(
    entries: impl Iterator<Item = (&'a Identifier, Limit, Origin)>,
) -> Message<F> {
    let mut payload = vec![0];
    for (id, limit, origin) in entries {
        put_limit_and_id(&mut payload, limit, id);
        origin.put(&mut payload);
    }
    bounded(payload, PAYLOAD_MAX)
}

/// Encodes how a holder is.
pub fn told_status<F>(status: &Status) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        bytes.push(0);
        bytes.extend_from_slice(status.to_string().as_bytes());
    })
}

/// Encodes why there was too little of something; empty when there was not.
pub fn told_why<F>(why: &str) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        bytes.push(0);
        bytes.extend_from_slice(why.as_bytes());
    })
}

/// Encodes whether a user may store.
pub fn told_may_store<F>(may: bool) -> Message<F> {
    Message::new(Vec::new(), |bytes| bytes.extend_from_slice(&[0, u8::from(may)]))
}

fn numbers<F>(numbers: impl IntoIterator<Item = u32>) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        bytes.push(0);
        bytes.extend(numbers.into_iter().flat_map(u32::to_be_bytes));
    })
}

/// Reads a reply without descriptors: a refusal, or what `read` makes of the rest.
fn parse<'a, F, T>(
    frame: &Frame<'a, F>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Answer<T>, Malformed> {
    without_fds(frame)?;
    match answer(frame)? {
        Ok(body) => read(&mut Reader(body)).map(Ok),
        Err(errno) => Ok(Err(errno)),
    }
}

/// Reads the answer to a hello: the version that the holder speaks. A later one may say
/// more, which is not for us.
///
/// # Errors
///
/// [`Malformed`] when the frame is anything else; likewise in the functions below.
pub fn parse_hello<F>(frame: &Frame<'_, F>) -> Result<Answer<u32>, Malformed> {
    parse(frame, Reader::u32)
}

/// Reads the answer to a snapshot that was taken with or without `entries`.
///
/// # Errors
///
/// [`Malformed`] when the frame is none.
pub fn parse_snapshot<F>(
    frame: &Frame<'_, F>,
    entries: bool,
) -> Result<Answer<Snapshot>, Malformed> {
    parse(frame, |reader| {
        let (count, capacity) = (reader.u32()?, reader.u32()?);
        if count > DUMP_FDS_MAX {
            return Err(Malformed("a snapshot of more descriptors than can be open"));
        }
        let listed = if entries { count as usize } else { 0 };
        Ok(Snapshot { count, capacity, entries: reader.entries(vec![(); listed])? })
    })
}

/// Reads the answer to a delivery: payload bytes.
///
/// # Errors
///
/// [`Malformed`] when the frame is none.
pub fn parse_delivered<F>(frame: &Frame<'_, F>) -> Result<Answer<u64>, Malformed> {
    parse(frame, |reader| {
        let bytes = reader.u64()?;
        reader.end()?;
        Ok(bytes)
    })
}

/// Reads the answer to a release: how many.
///
/// # Errors
///
/// [`Malformed`] when the frame is none.
pub fn parse_released<F>(frame: &Frame<'_, F>) -> Result<Answer<u32>, Malformed> {
    parse(frame, |reader| {
        let count = reader.u32()?;
        reader.end()?;
        Ok(count)
    })
}

/// Reads what came of a set.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_taken<F>(frame: &Frame<'_, F>) -> Result<Answer<Taken>, Malformed> {
    parse(frame, Taken::read)
}

/// Reads what came of an upgrade.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_upgraded<F>(
    frame: &Frame<'_, F>,
) -> Result<Answer<Result<String, String>>, Malformed> {
    parse(frame, |reader| {
        let has_failed = reader.byte()? != 0;
        let text = String::from_utf8_lossy(reader.0).into_owned();
        Ok(if has_failed { Err(text) } else { Ok(text) })
    })
}

/// Reads the answer to [`Extension::Inspect`].
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_inspected<F>(frame: &Frame<'_, F>) -> Result<Answer<Vec<Inspected>>, Malformed> {
    parse(frame, |reader| {
        let mut all = Vec::new();
        while !reader.0.is_empty() {
            let (limit, id) = (reader.limit()?, reader.id()?);
            all.push(Inspected { id, limit, origin: Origin::read(reader)? });
        }
        Ok(all)
    })
}

/// Reads how a holder is.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_status<F>(frame: &Frame<'_, F>) -> Result<Answer<Status>, Malformed> {
    parse(frame, |reader| {
        let text = std::str::from_utf8(reader.0).map_err(|_| Malformed("a status in no text"))?;
        text.parse()
    })
}

/// Reads why there was too little of something.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_why<F>(frame: &Frame<'_, F>) -> Result<Answer<String>, Malformed> {
    parse(frame, |reader| Ok(String::from_utf8_lossy(reader.0).into_owned()))
}

/// Reads whether a user may store.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_may_store<F>(frame: &Frame<'_, F>) -> Result<Answer<bool>, Malformed> {
    parse(frame, |reader| {
        let may = reader.byte()? != 0;
        reader.end()?;
        Ok(may)
    })
}

#[cfg(test)]
mod tests;
