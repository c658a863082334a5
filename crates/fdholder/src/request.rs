//! Requests: what a client asks, to bytes and back.
//!
//! The layout of each is in `docs/protocol.md`, "Requests and replies".

use crate::error::Malformed;
use crate::extension::{self, Extension};
use crate::frame::{Frame, Message};
use crate::id::Identifier;
pub use crate::payload::Entry;
use crate::payload::{entries_message, put_id, put_limit_and_id, Reader};
use crate::time::Limit;

/// The first payload byte of each request; that of extensions is theirs.
mod opcode {
    pub const STORE: u8 = b'S';
    pub const DELETE: u8 = b'D';
    pub const RETRIEVE: u8 = b'R';
    pub const LIST: u8 = b'L';
    pub const GETDUMP: u8 = b'?';
    pub const SETDUMP: u8 = b'!';
    pub const SETDUMP_DATA: u8 = b'.';
}

/// What a client asks of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<F> {
    /// Hold this descriptor.
    Store(Entry<F>),
    /// Close what is held under this identifier.
    Delete(Identifier),
    /// Hand out a copy of what is held under `id`, and with `delete` stop holding it.
    Retrieve {
        /// Which descriptor.
        id: Identifier,
        /// Stop holding it.
        delete: bool,
    },
    /// Name all that is held.
    List,
    /// Hand out copies of everything.
    Getdump,
    /// A set of this many descriptors follows, as [`SetdumpData`](Self::SetdumpData).
    Setdump(u32),
    /// A part of the announced set, at most [`MESSAGE_FDS_MAX`](crate::limits::MESSAGE_FDS_MAX) entries.
    SetdumpData(Vec<Entry<F>>),
    /// What only a fdholder understands.
    Extension(Extension<F>),
}

/// What came of reading a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<F> {
    /// A request that can be carried out.
    Request(Request<F>),
    /// A request whose descriptors the receiver had no room for: ENFILE is the answer.
    FdsLost,
}

impl<F> Request<F> {
    /// Reads a request from a frame.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it is none. Its descriptors are closed, as the frame is
    /// consumed.
    pub fn parse(frame: Frame<'_, F>) -> Result<Parsed<F>, Malformed> {
        let Frame { payload, mut fds, fds_lost } = frame;
        let (&command, body) = payload.split_first().ok_or(Malformed("an empty request"))?;
        if command == extension::COMMAND {
            let extension = Extension::parse(body, fds, fds_lost)?;
            return Ok(
                extension.map_or(Parsed::FdsLost, |known| Parsed::Request(Self::Extension(known)))
            );
        }
        if fds_lost {
            return match command {
                opcode::STORE | opcode::SETDUMP_DATA => Ok(Parsed::FdsLost),
                _ => Err(Malformed("descriptors came with a request that takes none")),
            };
        }
        if !matches!(command, opcode::STORE | opcode::SETDUMP_DATA) && !fds.is_empty() {
            return Err(Malformed("descriptors came with a request that takes none"));
        }
        let mut reader = Reader(body);
        let request = match command {
            opcode::STORE => {
                let (limit, id) = (reader.limit()?, reader.id()?);
                match (fds.pop(), fds.is_empty()) {
                    (Some(fd), true) => Self::Store(Entry { id, limit, fd }),
                    _ => return Err(Malformed("a store takes exactly one descriptor")),
                }
            }
            opcode::DELETE => Self::Delete(reader.id()?),
            opcode::RETRIEVE => {
                let delete = reader.byte()? != 0;
                Self::Retrieve { id: reader.id()?, delete }
            }
            opcode::LIST => Self::List,
            opcode::GETDUMP => Self::Getdump,
            opcode::SETDUMP => Self::Setdump(reader.u32()?),
            opcode::SETDUMP_DATA => {
                let entries = reader.entries(fds)?;
                if entries.is_empty() {
                    return Err(Malformed("a part of a set without a descriptor"));
                }
                Self::SetdumpData(entries)
            }
            _ => return Err(Malformed("an unknown request")),
        };
        reader.end()?;
        Ok(Parsed::Request(request))
    }

    /// Writes the request as a message.
    ///
    /// # Panics
    ///
    /// When [`SetdumpData`](Self::SetdumpData) has more than [`MESSAGE_FDS_MAX`](crate::limits::MESSAGE_FDS_MAX) entries.
    pub fn into_message(self) -> Message<F> {
        let simple = |command: u8| Message::new(Vec::new(), |bytes| bytes.push(command));
        match self {
            Self::Store(Entry { id, limit, fd }) => Message::new(vec![fd], |bytes| {
                bytes.push(opcode::STORE);
                put_limit_and_id(bytes, limit, &id);
            }),
            Self::Delete(id) => Message::new(Vec::new(), |bytes| {
                bytes.push(opcode::DELETE);
                put_id(bytes, &id);
            }),
            Self::Retrieve { id, delete } => Message::new(Vec::new(), |bytes| {
                bytes.extend_from_slice(&[opcode::RETRIEVE, u8::from(delete)]);
                put_id(bytes, &id);
            }),
            Self::List => simple(opcode::LIST),
            Self::Getdump => simple(opcode::GETDUMP),
            Self::Setdump(count) => Message::new(Vec::new(), |bytes| {
                bytes.push(opcode::SETDUMP);
                bytes.extend_from_slice(&count.to_be_bytes());
            }),
            Self::SetdumpData(entries) => entries_message(
                &[opcode::SETDUMP_DATA],
                entries.into_iter().map(|Entry { id, limit, fd }| (id, limit, fd)),
            ),
            Self::Extension(extension) => extension.into_message(),
        }
    }
}

/// A message of setdump data made of entries that the caller keeps; at most 253.
pub fn setdump_data<'a, F>(
    entries: impl Iterator<Item = (&'a Identifier, Limit, F)>,
) -> Message<F> {
    entries_message(&[opcode::SETDUMP_DATA], entries)
}

/// A message of setdump data made from the payload of a getdump message, which has the
/// same layout but for the command byte in front.
pub(crate) fn setdump_data_from_getdump<F>(payload: &[u8], fds: Vec<F>) -> Message<F> {
    Message::new(fds, |bytes| {
        bytes.reserve_exact(1 + payload.len());
        bytes.push(opcode::SETDUMP_DATA);
        bytes.extend_from_slice(payload);
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::Decoder;
    use crate::limits::{MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
    use crate::time::Timestamp;
    use proptest::prelude::*;

    fn any_id() -> impl Strategy<Value = Identifier> {
        proptest::collection::vec(1u8..=255, 1..=255).prop_map(|id| Identifier::new(id).unwrap())
    }

    pub fn any_entry() -> impl Strategy<Value = Entry<u32>> {
        (any_id(), any::<u64>(), 0u32..1_000_000_000, any::<u32>()).prop_map(
            |(id, label, nanos, fd)| {
                let limit = Limit::at(Timestamp::new(label, nanos).unwrap());
                Entry { id, limit, fd }
            },
        )
    }

    fn any_request() -> impl Strategy<Value = Request<u32>> {
        prop_oneof![
            any_entry().prop_map(Request::Store),
            any_id().prop_map(Request::Delete),
            (any_id(), any::<bool>()).prop_map(|(id, delete)| Request::Retrieve { id, delete }),
            Just(Request::List),
            Just(Request::Getdump),
            any::<u32>().prop_map(Request::Setdump),
            proptest::collection::vec(any_entry(), 1..=MESSAGE_FDS_MAX)
                .prop_map(Request::SetdumpData),
        ]
    }

    fn parse(payload: &[u8], fds: &[u32]) -> Result<Parsed<u32>, Malformed> {
        Request::parse(Frame { payload, fds: fds.to_vec(), fds_lost: false })
    }

    proptest! {
        #[test]
        fn every_request_comes_back_as_it_was(request in any_request()) {
            let (bytes, fds) = request.clone().into_message().into_parts();
            let mut decoder = Decoder::new(REQUEST_PAYLOAD_MAX);
            decoder.push(&bytes, fds, false);
            let parsed = Request::parse(decoder.next().unwrap().unwrap()).unwrap();
            prop_assert_eq!(parsed, Parsed::Request(request));
        }

        /// A request with a byte too many or too few is no request.
        #[test]
        fn lengths_are_exact(request in any_request(), cut in 1usize..20) {
            let (bytes, fds) = request.into_message().into_parts();
            let payload = &bytes[crate::limits::HEADER_LEN..];
            let longer = [payload, b"\0"].concat();
            prop_assert!(parse(&longer, &fds).is_err());
            prop_assert!(parse(&payload[..payload.len().saturating_sub(cut)], &fds).is_err());
        }

        #[test]
        fn noise_is_refused_or_read_but_never_panics(
            payload in proptest::collection::vec(any::<u8>(), 0..300), fds in 0u32..4
        ) {
            let fds: Vec<u32> = (0..fds).collect();
            let _ = parse(&payload, &fds);
            let _ = Reader(&payload).check_entries(fds.len());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let id = Identifier::new("ab").unwrap();
        let limit = Limit::at(Timestamp::new(0x0102_0304_0506_0708, 9).unwrap());
        let bytes = |request: Request<u32>| request.into_message().into_parts().0;
        assert_eq!(
            bytes(Request::Store(Entry { id: id.clone(), limit, fd: 1 })),
            b"\0\0\0\x11\0\x01S\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09\x02ab\0"
        );
        assert_eq!(bytes(Request::Delete(id.clone())), b"\0\0\0\x05\0\0D\x02ab\0");
        assert_eq!(bytes(Request::Retrieve { id, delete: true }), b"\0\0\0\x06\0\0R\x01\x02ab\0");
        assert_eq!(bytes(Request::List), b"\0\0\0\x01\0\0L");
        assert_eq!(bytes(Request::Getdump), b"\0\0\0\x01\0\0?");
        assert_eq!(bytes(Request::Setdump(258)), b"\0\0\0\x05\0\0!\0\0\x01\x02");
    }

    #[test]
    fn each_is_read_as_what_it_is() {
        let id = Identifier::new("ab").unwrap();
        let read = |payload| parse(payload, &[]);
        let is = |request| Ok(Parsed::Request(request));
        assert_eq!(read(b"D\x02ab\0"), is(Request::Delete(id.clone())));
        let retrieve = |delete| is(Request::Retrieve { id: id.clone(), delete });
        assert_eq!(read(b"R\0\x02ab\0"), retrieve(false));
        assert_eq!(read(b"R\x01\x02ab\0"), retrieve(true));
        assert_eq!(read(b"L"), is(Request::List));
        assert_eq!(read(b"?"), is(Request::Getdump));
        assert_eq!(read(b"!\0\0\x01\x02"), is(Request::Setdump(258)));
        assert!(read(b"").is_err() && read(b"Q").is_err());
    }

    #[test]
    fn no_request_is_longer_than_the_longest() {
        let id = Identifier::new([b'a'; 255]).unwrap();
        let entry = |fd| Entry { id: id.clone(), limit: Limit::never(), fd };
        let entries = (0..MESSAGE_FDS_MAX as u32).map(entry).collect();
        let (bytes, _) = Request::SetdumpData(entries).into_message().into_parts();
        assert_eq!(bytes.len() - crate::limits::HEADER_LEN, REQUEST_PAYLOAD_MAX);
    }

    #[test]
    fn what_is_no_stamp_or_identifier_is_refused() {
        let store = |nanos: u32, id: &[u8]| {
            let label = b"S\x40\0\0\0\0\0\0\0";
            parse(&[&label[..], &nanos.to_be_bytes(), id].concat(), &[1])
        };
        assert!(store(999_999_999, b"\x01a\0").is_ok());
        assert!(store(1_000_000_000, b"\x01a\0").is_err());
        assert!(store(0, b"\0\0").is_err());
        assert!(store(0, b"\x03a\0b\0").is_err());
        assert!(store(0, b"\x01ab").is_err());
    }

    #[test]
    fn descriptors_must_fit_the_request() {
        let store = b"S\x40\0\0\0\0\0\0\0\0\0\0\0\x01a\0";
        assert!(parse(store, &[1]).is_ok());
        assert!(parse(store, &[]).is_err());
        assert!(parse(store, &[1, 2]).is_err());
        assert!(parse(b"L", &[1]).is_err());
        assert!(parse(b".", &[]).is_err());
        let lost = |payload| Request::<u32>::parse(Frame { payload, fds: vec![], fds_lost: true });
        assert_eq!(lost(store), Ok(Parsed::FdsLost));
        assert!(lost(b"L").is_err());
    }
}
