//! Replies on their way to one client.

use crate::limits::{REPLIES_PENDING_MAX, REPLY_BYTES_PENDING_MAX};
use crate::store::Record;
use fdholder::frame::Message;
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX};
use fdholder::{reply, Errno};
use std::collections::VecDeque;
use std::sync::Arc;

/// A reply owns the descriptors it sends.
pub(crate) type Reply<F> = Message<Arc<Record<F>>>;

/// Whether a reply begins with an errno other than EAGAIN, which says to go on.
fn is_refusal<F>(reply: &Reply<F>) -> bool {
    let status = reply.bytes().get(HEADER_LEN).copied().unwrap_or(0);
    status != 0 && i32::from(status) != Errno::AGAIN.raw_os_error()
}

/// Bytes of short replies that are sent with one call.
const TOGETHER_MAX: usize = 1024;

/// A message that is being sent, perhaps with others that carry no descriptors behind it.
#[derive(Debug)]
pub(crate) struct Departing<C> {
    bytes: Vec<u8>,
    /// What owns the descriptors.
    carriers: Vec<C>,
    sent: usize,
}

impl<C> From<Message<C>> for Departing<C> {
    fn from(message: Message<C>) -> Self {
        let (bytes, carriers) = message.into_parts();
        Self { bytes, carriers, sent: 0 }
    }
}

impl<C> Departing<C> {
    /// What is still to be sent: bytes, and the owners of what goes with the first.
    pub fn rest(&self) -> (&[u8], &[C]) {
        let carriers = if self.sent == 0 { &self.carriers[..] } else { &[] };
        (&self.bytes[self.sent..], carriers)
    }

    /// Says that so many bytes were sent, and the descriptors, which are not kept open by
    /// what is left. Returns whether that was the last of it.
    pub fn advance(&mut self, len: usize) -> bool {
        if len > 0 {
            self.carriers = Vec::new();
        }
        self.sent += len;
        self.sent >= self.len()
    }

    /// Whether another message is better sent together with this one.
    fn takes(&self, next: &Message<C>) -> bool {
        next.fds().is_empty() && next.bytes().len() + self.len() <= TOGETHER_MAX
    }

    fn append(&mut self, next: &Message<C>) {
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
    Message(Departing<Arc<Record<F>>>),
    /// The rest of a dump, made into messages as they leave: what waits is a pointer for
    /// each entry, not its bytes.
    Dump(std::vec::IntoIter<Arc<Record<F>>>),
}

/// The replies that a client has not read yet, in order.
#[derive(Debug)]
pub struct Outbox<F> {
    queue: VecDeque<Pending<F>>,
    /// Bytes of the messages in the queue.
    bytes: usize,
    /// How many replies there were, ever, that say no.
    refusals: u64,
}

impl<F> Default for Outbox<F> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), bytes: 0, refusals: 0 }
    }
}

impl<F> Outbox<F> {
    pub(crate) fn push(&mut self, reply: Reply<F>) {
        self.bytes += reply.bytes().len();
        self.refusals += u64::from(is_refusal(&reply));
        match self.queue.back_mut() {
            Some(Pending::Message(last)) if last.takes(&reply) => last.append(&reply),
            _ => self.queue.push_back(Pending::Message(reply.into())),
        }
    }

    /// Queues the entries of a dump, in messages of 253.
    pub(crate) fn push_dump(&mut self, entries: Vec<Arc<Record<F>>>) {
        if !entries.is_empty() {
            self.queue.push_back(Pending::Dump(entries.into_iter()));
        }
    }

    /// How many replies there were that say no.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Bytes that wait: of messages, and of a dump what is remembered for each entry.
    pub(crate) fn bytes(&self) -> usize {
        let dumps = self.queue.iter().map(|pending| match pending {
            Pending::Message(_) => 0,
            Pending::Dump(entries) => entries.len() * size_of::<usize>(),
        });
        self.bytes + dumps.sum::<usize>()
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
    pub fn front(&mut self) -> Option<(&[u8], &[Arc<Record<F>>])> {
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
