//! Replies on their way to one client.

use crate::limits::{REPLIES_PENDING_MAX, REPLY_BYTES_PENDING_MAX};
use fdholder::frame::Message;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::{reply, Entry};
use std::collections::VecDeque;
use std::sync::Arc;

/// A reply owns the descriptors it sends.
pub(crate) type Reply<F> = Message<Arc<Entry<F>>>;

/// Bytes of short replies that are sent with one call.
const TOGETHER_MAX: usize = 1024;

/// A message that is being sent, perhaps with others that carry no descriptors behind it.
#[derive(Debug)]
pub(crate) struct Departing<F> {
    bytes: Vec<u8>,
    entries: Vec<Arc<Entry<F>>>,
    sent: usize,
}

impl<F> From<Reply<F>> for Departing<F> {
    fn from(message: Reply<F>) -> Self {
        let (bytes, entries) = message.into_parts();
        Self { bytes, entries, sent: 0 }
    }
}

impl<F> Departing<F> {
    /// What is still to be sent: bytes, and the entries whose descriptors go with the first.
    pub fn rest(&self) -> (&[u8], &[Arc<Entry<F>>]) {
        let entries = if self.sent == 0 { &self.entries[..] } else { &[] };
        (&self.bytes[self.sent..], entries)
    }

    /// Says that so many bytes were sent, and the descriptors. Returns whether that was
    /// the last of it.
    pub fn advance(&mut self, len: usize) -> bool {
        self.sent += len;
        self.sent >= self.len()
    }

    /// Whether another message is better sent together with this one.
    fn takes(&self, next: &Reply<F>) -> bool {
        next.fds().is_empty() && next.bytes().len() + self.len() <= TOGETHER_MAX
    }

    fn append(&mut self, next: &Reply<F>) {
        self.bytes.extend_from_slice(next.bytes());
    }

    /// Bytes of it all.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// A part of the replies that wait.
#[derive(Debug)]
enum Pending<F> {
    Message(Departing<F>),
    /// The rest of a dump, made into messages as they leave: what waits is a pointer for
    /// each entry, not its bytes.
    Dump(std::vec::IntoIter<Arc<Entry<F>>>),
}

/// The replies that a client has not read yet, in order.
#[derive(Debug)]
pub struct Outbox<F> {
    queue: VecDeque<Pending<F>>,
    /// Bytes of the messages in the queue.
    bytes: usize,
}

impl<F> Default for Outbox<F> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), bytes: 0 }
    }
}

impl<F> Outbox<F> {
    pub(crate) fn push(&mut self, reply: Reply<F>) {
        self.bytes += reply.bytes().len();
        match self.queue.back_mut() {
            Some(Pending::Message(last)) if last.takes(&reply) => last.append(&reply),
            _ => self.queue.push_back(Pending::Message(reply.into())),
        }
    }

    /// Queues the entries of a dump, in messages of 253.
    pub(crate) fn push_dump(&mut self, entries: Vec<Arc<Entry<F>>>) {
        if !entries.is_empty() {
            self.queue.push_back(Pending::Dump(entries.into_iter()));
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether so much waits that the client should read before it asks for more. A dump
    /// counts as one reply: its messages are made as they leave.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= REPLIES_PENDING_MAX || self.bytes >= REPLY_BYTES_PENDING_MAX
    }

    /// What to send next: bytes, and the entries whose descriptors go with the first.
    pub fn front(&mut self) -> Option<(&[u8], &[Arc<Entry<F>>])> {
        if let Some(Pending::Dump(entries)) = self.queue.front_mut() {
            let part: Vec<_> = entries.by_ref().take(MESSAGE_FDS_MAX).collect();
            let done = entries.len() == 0;
            let message = reply::getdump_data(
                part.iter().map(|entry| (&entry.id, entry.limit, Arc::clone(entry))),
            );
            if done {
                self.queue.pop_front();
            }
            self.bytes += message.bytes().len();
            self.queue.push_front(Pending::Message(message.into()));
        }
        match self.queue.front() {
            Some(Pending::Message(message)) => Some(message.rest()),
            _ => None,
        }
    }

    /// Says that `len` bytes of [`front`](Self::front) were sent, and its descriptors.
    pub fn advance(&mut self, len: usize) {
        if let Some(Pending::Message(message)) = self.queue.front_mut() {
            if message.advance(len) {
                self.bytes -= message.len();
                self.queue.pop_front();
            }
        }
    }
}
