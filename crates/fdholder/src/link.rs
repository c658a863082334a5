//! What a holder says to a process that follows it, and hears from it: to bytes and back.
//!
//! A connection becomes a link when [`Extension::Follow`](crate::extension::Extension::Follow)
//! is accepted. Then neither side asks any more: the holder, as primary, sends [`Fed`], the
//! follower [`Heard`], both in frames. The layout is in `docs/protocol.md`, "Following".

use crate::error::Malformed;
use crate::extension::{OnConflict, Taken};
use crate::frame::{Frame, Message};
use crate::id::Identifier;
use crate::limits::{DUMP_ENTRY_LEN_MAX, MESSAGE_FDS_MAX};
use crate::origin::{Origin, ORIGIN_LEN};
use crate::payload::{put_id, put_limit_and_id, Entry, Reader};
use crate::time::Limit;

/// Bytes that one change takes at most: what an entry takes, its kind, owner and number.
const CHANGE_LEN_MAX: usize = 1 + ORIGIN_LEN + DUMP_ENTRY_LEN_MAX;

/// Payload bytes of a message on a link at most: a full message of changes takes 76,000, and
/// a client may have sent the largest request and more behind it.
pub const LINK_PAYLOAD_MAX: usize = 256 * 1024;

/// Payload bytes of a client that is handed over at most: a request of which all but a byte has come,
/// and no less than 15,000 numbers of what gave way to others in its last set.
const CLIENT_LEN_MAX: usize = 128 * 1024 - 64;

/// How many of what it has dropped a follower tells of in one message at most: what it says is
/// no longer than a request.
pub const DROPPED_MAX: usize = 4096;

const _: () = assert!(MESSAGE_FDS_MAX * CHANGE_LEN_MAX + 16 <= LINK_PAYLOAD_MAX);

/// The first byte of what a primary sends.
mod fed {
    pub const HEAD: u8 = 0;
    pub const CHANGES: u8 = 1;
    pub const SYNCED: u8 = 2;
    pub const CLIENT: u8 = 3;
    pub const YOURS: u8 = 4;
    pub const LISTENER: u8 = 5;
}

/// The first byte of what a follower sends.
mod heard {
    pub const UP_TO: u8 = 0;
    pub const TAKE_OVER: u8 = 1;
    pub const COMMIT: u8 = 2;
    pub const STOP: u8 = 3;
    pub const SYNCED: u8 = 4;
    pub const CLOSING: u8 = 5;
    pub const CLOSED: u8 = 6;
}

/// The first byte of a change.
mod change {
    pub const HELD: u8 = 0;
    pub const RELEASED: u8 = 1;
}

/// What a follower is told when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its place on the roll of followers.
    pub number: u32,
    /// The primary's process, by its own count.
    pub pid: u32,
    /// How many descriptors are held.
    pub count: u32,
    /// How many can be.
    pub capacity: u32,
}

/// The place that a primary has taken and does not serve in yet. It is its predecessor's again if the
/// primary ends before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending<F> {
    /// The predecessor's roll of followers.
    pub roll: F,
    /// The primary's place on that.
    pub number: u32,
}

/// A change of what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirrored<F> {
    /// This is held, in the place of what its identifier had.
    Held {
        /// What.
        entry: Entry<F>,
        /// Where it comes from.
        origin: Origin,
    },
    /// Nothing is held under this identifier any more.
    Released(Identifier),
}

/// A client whose connection goes from one daemon to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedClient<F> {
    /// Its connection.
    pub socket: F,
    /// It has said hello.
    pub is_fdholder: bool,
    /// It waits to hear what came of an upgrade.
    pub awaits_upgrade: bool,
    /// What is to become of conflicts in its sets.
    pub on_conflict: OnConflict,
    /// What came of the last one, if that was taken.
    pub taken: Option<Taken>,
    /// The beginning of a request, without descriptors.
    pub unread: Vec<u8>,
}

/// Whether a client can be handed over of whose last set so many gave way to others, and of which so
/// many bytes are not read yet.
pub fn fits(kept: usize, unread_len: usize) -> bool {
    kept * size_of::<u32>() + unread_len <= CLIENT_LEN_MAX
}

impl<S> HandedClient<S> {
    /// The same client with its connection in another form.
    pub fn map<T>(self, into: impl FnOnce(S) -> Option<T>) -> Option<HandedClient<T>> {
        let Self { socket, is_fdholder, awaits_upgrade, on_conflict, taken, unread } = self;
        let socket = into(socket)?;
        Some(HandedClient { socket, is_fdholder, awaits_upgrade, on_conflict, taken, unread })
    }
}

/// From a primary to a follower.
#[derive(Debug, PartialEq, Eq)]
pub enum Fed<F> {
    /// The first: who speaks, the listening socket, and the roll of followers.
    Head {
        /// Who speaks.
        head: Head,
        /// Where clients come in.
        listener: F,
        /// See [`Head::number`].
        roll: F,
        /// Only for a standby that the primary has started.
        pending: Option<Pending<F>>,
    },
    /// Changes, in order.
    Changes {
        /// How far the follower is with them, by the primary's count.
        up_to: u64,
        /// They belong together with the next ones: all of them happen, or none.
        goes_on: bool,
        /// What has changed.
        changes: Vec<Mirrored<F>>,
    },
    /// Now the follower has what the primary has.
    Synced,
    /// A client that the follower is to serve.
    Client(HandedClient<F>),
    /// That was all. Whoever says [`Heard::Commit`] now has it: to serve, if it has asked for
    /// that, or to keep for the next program, if it was started for one.
    Yours,
    /// Clients come in here from now on, and by the sockets before: the socket's file was made again.
    Listener(F),
}

/// What a follower holds no longer, as a change has told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// Who gave it.
    pub owner: u32,
    /// Its number.
    pub serial: u64,
}

impl From<Origin> for Dropped {
    fn from(Origin { owner, serial, .. }: Origin) -> Self {
        Self { owner, serial }
    }
}

/// From a follower to its primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It has carried out everything up to here. What that has had it drop is closed, unless
    /// it has said before that it is [not](Self::Closing).
    UpTo(u64),
    /// It has dropped these, at most [`DROPPED_MAX`], and they are not closed yet. Only for
    /// those who know of it, see [`CLOSES_VERSION`](crate::extension::CLOSES_VERSION).
    Closing(Vec<Dropped>),
    /// These are closed now.
    Closed(Vec<Dropped>),
    /// It has everything.
    Synced,
    /// It wants to serve.
    TakeOver,
    /// It serves from now on.
    Commit,
    /// It was asked to stop, and passes that on.
    Stop,
}

/// Encodes the first message of a link.
pub fn head<F>(head: Head, listener: F, roll: F, pending: Option<Pending<F>>) -> Message<F> {
    let (number, pending) = match pending {
        Some(Pending { roll, number }) => (Some(number), Some(roll)),
        None => (None, None),
    };
    let fds = [listener, roll].into_iter().chain(pending).collect();
    Message::new(fds, |bytes| {
        // As the reply to the request that it is: not refused.
        bytes.extend_from_slice(&[0, fed::HEAD]);
        let numbers = [head.number, head.pid, head.count, head.capacity];
        for number in numbers.into_iter().chain(number) {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
    })
}

/// A message of changes that is being made.
#[derive(Debug)]
pub struct Changes<F> {
    bytes: Vec<u8>,
    fds: Vec<F>,
    /// How many there are.
    count: usize,
}

impl<F> Default for Changes<F> {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(64), fds: Vec::new(), count: 0 }
    }
}

impl<F> Changes<F> {
    /// Whether no more fit: each takes its place in a follower, be it with a descriptor or without.
    pub fn is_full(&self) -> bool {
        self.count >= MESSAGE_FDS_MAX
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds what is held.
    pub fn held(&mut self, id: &Identifier, limit: Limit, origin: Origin, fd: F) {
        self.count += 1;
        self.bytes.push(change::HELD);
        origin.put(&mut self.bytes);
        put_limit_and_id(&mut self.bytes, limit, id);
        self.fds.push(fd);
    }

    /// Adds what is not held any more.
    pub fn released(&mut self, id: &Identifier) {
        self.count += 1;
        self.bytes.push(change::RELEASED);
        put_id(&mut self.bytes, id);
    }

    /// The message, after which the follower has carried out everything up to `up_to`.
    pub fn into_message(self, up_to: u64, goes_on: bool) -> Message<F> {
        Message::new(self.fds, |bytes| {
            bytes.reserve(self.bytes.len() + 16);
            bytes.push(fed::CHANGES);
            bytes.extend_from_slice(&up_to.to_be_bytes());
            bytes.push(u8::from(goes_on));
            bytes.extend_from_slice(&self.bytes);
        })
    }
}

/// Encodes [`Fed::Synced`].
pub fn synced<F>() -> Message<F> {
    Message::new(Vec::new(), |bytes| bytes.push(fed::SYNCED))
}

/// Encodes [`Fed::Yours`].
pub fn yours<F>() -> Message<F> {
    Message::new(Vec::new(), |bytes| bytes.push(fed::YOURS))
}

/// Encodes [`Fed::Listener`].
pub fn listener<F>(listener: F) -> Message<F> {
    Message::new(vec![listener], |bytes| bytes.push(fed::LISTENER))
}

/// Encodes [`Fed::Client`], with its connection in the form in which that is sent.
pub fn client<S, F>(client: &HandedClient<S>, socket: F) -> Message<F> {
    Message::new(vec![socket], |bytes| {
        let kept = client.taken.as_ref().map_or(0, |taken| taken.kept.len());
        bytes.reserve_exact(32 + kept * size_of::<u32>() + client.unread.len());
        let on_conflict = client.on_conflict.to_byte();
        let flags = u8::from(client.is_fdholder)
            | u8::from(client.awaits_upgrade) << 1
            | u8::from(client.taken.is_some()) << 2;
        bytes.extend_from_slice(&[fed::CLIENT, flags, on_conflict]);
        if let Some(taken) = &client.taken {
            bytes.extend_from_slice(&(taken.numbers().count() as u32).to_be_bytes()); // It fits.
            bytes.extend(taken.numbers().flat_map(u32::to_be_bytes));
        }
        bytes.extend_from_slice(&client.unread);
    })
}

impl<F> Fed<F> {
    /// Reads what a primary has sent.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is nothing of the kind, or its descriptors did not fit into
    /// this process.
    pub fn parse(frame: Frame<'_, F>) -> Result<Self, Malformed> {
        let Frame { payload, fds, fds_lost } = frame;
        if fds_lost {
            return Err(Malformed("this process has no room for the descriptors"));
        }
        let mut reader = Reader(payload);
        let mut fds = fds.into_iter();
        let fed = match reader.byte()? {
            fed::HEAD if reader.byte()? == fed::HEAD => {
                let (listener, roll) = (fds.next(), fds.next());
                let head = Head {
                    number: reader.u32()?,
                    pid: reader.u32()?,
                    count: reader.u32()?,
                    capacity: reader.u32()?,
                };
                let (Some(listener), Some(roll)) = (listener, roll) else {
                    return Err(Malformed("a link without its descriptors"));
                };
                let pending = match fds.next() {
                    Some(roll) => Some(Pending { roll, number: reader.u32()? }),
                    None => None,
                };
                Self::Head { head, listener, roll, pending }
            }
            fed::CHANGES => {
                let (up_to, goes_on) = (reader.u64()?, reader.byte()? != 0);
                let mut changes = Vec::with_capacity(fds.len());
                while !reader.0.is_empty() {
                    changes.push(match reader.byte()? {
                        change::HELD => {
                            let origin = Origin::read(&mut reader)?;
                            let (limit, id) = (reader.limit()?, reader.id()?);
                            let fd =
                                fds.next().ok_or(Malformed("a change lacks its descriptor"))?;
                            Mirrored::Held { entry: Entry { id, limit, fd }, origin }
                        }
                        change::RELEASED => Mirrored::Released(reader.id()?),
                        _ => return Err(Malformed("an unknown change")),
                    });
                }
                Self::Changes { up_to, goes_on, changes }
            }
            fed::SYNCED => Self::Synced,
            fed::CLIENT => {
                let flags = reader.byte()?;
                let (is_fdholder, awaits_upgrade) = (flags & 1 != 0, flags & 2 != 0);
                let on_conflict = OnConflict::from_byte(reader.byte()?)?;
                let taken = if flags & 4 == 0 { None } else { Some(read_taken(&mut reader)?) };
                let socket = fds.next().ok_or(Malformed("a client without its connection"))?;
                let unread = std::mem::take(&mut reader.0).to_vec();
                Self::Client(HandedClient {
                    socket,
                    is_fdholder,
                    awaits_upgrade,
                    on_conflict,
                    taken,
                    unread,
                })
            }
            fed::YOURS => Self::Yours,
            fed::LISTENER => {
                Self::Listener(fds.next().ok_or(Malformed("a listener without its descriptor"))?)
            }
            _ => return Err(Malformed("an unknown message of a primary")),
        };
        reader.end()?;
        if fds.next().is_some() {
            return Err(Malformed("descriptors came that belong to nothing"));
        }
        Ok(fed)
    }
}

fn read_taken(reader: &mut Reader<'_>) -> Result<Taken, Malformed> {
    let len = reader.u32()? as usize * size_of::<u32>();
    let (taken, rest) = reader.0.split_at_checked(len).ok_or(Malformed::INCOMPLETE)?;
    reader.0 = rest;
    Taken::read(&mut Reader(taken))
}

fn put_dropped(bytes: &mut Vec<u8>, kind: u8, dropped: &[Dropped]) {
    bytes.push(kind);
    for Dropped { owner, serial } in dropped {
        bytes.extend_from_slice(&owner.to_be_bytes());
        bytes.extend_from_slice(&serial.to_be_bytes());
    }
}

fn read_dropped(reader: &mut Reader<'_>) -> Result<Vec<Dropped>, Malformed> {
    let mut dropped = Vec::new();
    while !reader.0.is_empty() {
        dropped.push(Dropped { owner: reader.u32()?, serial: reader.u64()? });
    }
    Ok(dropped)
}

impl Heard {
    /// Encodes it.
    pub fn into_message<F>(self) -> Message<F> {
        Message::new(Vec::new(), |bytes| match self {
            Self::UpTo(up_to) => {
                bytes.push(heard::UP_TO);
                bytes.extend_from_slice(&up_to.to_be_bytes());
            }
            Self::Closing(dropped) => put_dropped(bytes, heard::CLOSING, &dropped),
            Self::Closed(dropped) => put_dropped(bytes, heard::CLOSED, &dropped),
            Self::Synced => bytes.push(heard::SYNCED),
            Self::TakeOver => bytes.push(heard::TAKE_OVER),
            Self::Commit => bytes.push(heard::COMMIT),
            Self::Stop => bytes.push(heard::STOP),
        })
    }

    /// Reads what a follower has sent.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is nothing of the kind.
    pub fn parse<F>(frame: &Frame<'_, F>) -> Result<Self, Malformed> {
        crate::reply::without_fds(frame)?;
        let mut reader = Reader(frame.payload);
        let said = match reader.byte()? {
            heard::UP_TO => Self::UpTo(reader.u64()?),
            heard::CLOSING => Self::Closing(read_dropped(&mut reader)?),
            heard::CLOSED => Self::Closed(read_dropped(&mut reader)?),
            heard::SYNCED => Self::Synced,
            heard::TAKE_OVER => Self::TakeOver,
            heard::COMMIT => Self::Commit,
            heard::STOP => Self::Stop,
            _ => return Err(Malformed("an unknown message of a follower")),
        };
        reader.end()?;
        Ok(said)
    }
}

#[cfg(test)]
mod tests;
