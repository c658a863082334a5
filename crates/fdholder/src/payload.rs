//! What payloads are made of: reading and writing numbers, time stamps, identifiers and
//! entries.

use crate::error::Malformed;
use crate::frame::Message;
use crate::id::Identifier;
use crate::limits::{MESSAGE_FDS_MAX, TIMESTAMP_LEN};
use crate::time::{Limit, Timestamp};
use std::borrow::Borrow;

/// A descriptor with what it is held under and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<F> {
    /// Its name in the holder.
    pub id: Identifier,
    /// When it expires.
    pub limit: Limit,
    /// The descriptor.
    pub fd: F,
}

/// A message whose payload goes on with entries.
pub(crate) fn entries_message<F, I: Borrow<Identifier>>(
    payload: &[u8],
    entries: impl Iterator<Item = (I, Limit, F)>,
) -> Message<F> {
    let mut fds = Vec::with_capacity(MESSAGE_FDS_MAX);
    Message::with_fds(|bytes| {
        // Room for identifiers as most people have them.
        bytes.reserve(payload.len() + MESSAGE_FDS_MAX * 40);
        bytes.extend_from_slice(payload);
        for (id, limit, fd) in entries {
            put_limit_and_id(bytes, limit, id.borrow());
            fds.push(fd);
        }
        fds
    })
}

pub(crate) fn put_limit_and_id(bytes: &mut Vec<u8>, limit: Limit, id: &Identifier) {
    bytes.extend_from_slice(&limit.timestamp().to_wire());
    put_id(bytes, id);
}

pub(crate) fn put_id(bytes: &mut Vec<u8>, id: &Identifier) {
    let id = id.as_bytes();
    bytes.push(id.len() as u8); // An identifier has at most 255 bytes.
    bytes.extend_from_slice(id);
    bytes.push(0);
}

/// Reads a payload from front to back; every step checks what it takes.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (head, tail) =
            self.0.split_first_chunk().ok_or(Malformed("a message ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| *byte)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().copied().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().copied().map(u64::from_be_bytes)
    }

    pub fn limit(&mut self) -> Result<Limit, Malformed> {
        Timestamp::from_wire(self.take::<TIMESTAMP_LEN>()?)
            .map(Limit::at)
            .map_err(|_| Malformed("a time stamp with a second or more of nanoseconds"))
    }

    fn id_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.byte()?);
        let (id, tail) =
            self.0.split_at_checked(len).ok_or(Malformed("an identifier ends too early"))?;
        self.0 = tail.strip_prefix(b"\0").ok_or(Malformed("an identifier without its NUL"))?;
        Identifier::check(id).map_err(|_| Malformed("an identifier is empty or holds a NUL"))?;
        Ok(id)
    }

    pub fn id(&mut self) -> Result<Identifier, Malformed> {
        self.id_bytes().map(Identifier::from_checked)
    }

    /// As many entries as there are descriptors, and nothing behind them.
    pub fn entries<F>(&mut self, fds: Vec<F>) -> Result<Vec<Entry<F>>, Malformed> {
        // Not more than the payload can have, whatever it claims.
        let mut entries = Vec::with_capacity(fds.len().min(self.0.len() / TIMESTAMP_LEN));
        for fd in fds {
            entries.push(Entry { limit: self.limit()?, id: self.id()?, fd });
        }
        self.end()?;
        Ok(entries)
    }

    /// Checks what [`entries`](Self::entries) would read, without making it.
    pub fn check_entries(&mut self, count: usize) -> Result<(), Malformed> {
        for _ in 0..count {
            self.limit()?;
            self.id_bytes()?;
        }
        self.end()
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("a message is longer than its content"))
        }
    }
}
