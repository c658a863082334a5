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

/// The errno that a reply begins with, but for EAGAIN, which says to go on.
fn refusal<F>(reply: &Reply<F>) -> Option<Errno> {
    let status = reply.bytes().get(HEADER_LEN).copied().filter(|status| *status != 0)?;
    let errno = Errno::from_raw_os_error(status.into());
    (errno != Errno::AGAIN).then_some(errno)
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
    /// The last of them.
    last_refusal: Option<Errno>,
}

impl<F> Default for Outbox<F> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), bytes: 0, refusals: 0, last_refusal: None }
    }
}

impl<F> Outbox<F> {
    pub(crate) fn push(&mut self, reply: Reply<F>) {
        self.bytes += reply.bytes().len();
        if let Some(errno) = refusal(&reply) {
            self.refusals += 1;
            self.last_refusal = Some(errno);
        }
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

    /// What the last of them said.
    pub(crate) fn last_refusal(&self) -> Option<Errno> {
        self.last_refusal
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

    /// How many parts wait, and how many bytes. For tests and fuzzers.
    #[doc(hidden)]
    pub fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::{Entry, Identifier, Limit, Origin, Tenure};

    fn record(number: u32) -> Arc<Record<u32>> {
        let id = Identifier::new(number.to_string()).unwrap();
        let entry = Entry { id, limit: Limit::never(), fd: number };
        let origin = Origin { owner: 7, tenure: Tenure::from_bits(0), serial: number.into() };
        Arc::new(Record { entry, origin })
    }

    /// A reply that is so long, header included.
    fn reply_of(len: usize) -> Reply<u32> {
        Message::new(Vec::new(), |bytes| bytes.resize(len, 0)) // The header is there already.
    }

    fn front(outbox: &mut Outbox<u32>) -> Option<(usize, Vec<u32>)> {
        let (bytes, entries) = outbox.front()?;
        Some((bytes.len(), entries.iter().map(|entry| entry.fd).collect()))
    }

    #[test]
    fn short_replies_leave_together() {
        let mut outbox = Outbox::default();
        assert!(outbox.is_empty() && front(&mut outbox).is_none());
        outbox.push(reply_of(TOGETHER_MAX - 7));
        outbox.push(reply_of(7));
        outbox.push(reply_of(7));
        assert_eq!(outbox.waiting(), (2, TOGETHER_MAX + 7));
        assert_eq!(front(&mut outbox), Some((TOGETHER_MAX, vec![])));
        outbox.advance(TOGETHER_MAX);
        assert_eq!(front(&mut outbox), Some((7, vec![])));
        outbox.advance(6);
        assert_eq!(front(&mut outbox), Some((1, vec![])));
        assert!(!outbox.is_empty());
        outbox.advance(1);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn refusals_are_counted_and_the_last_one_is_known() {
        let mut outbox: Outbox<u32> = Outbox::default();
        outbox.push(reply::status(Ok(())));
        assert_eq!((outbox.refusals(), outbox.last_refusal()), (0, None));
        outbox.push(reply::status(Err(Errno::BUSY)));
        outbox.push(reply::status(Err(Errno::NOENT)));
        outbox.push(reply::status(Ok(())));
        assert_eq!((outbox.refusals(), outbox.last_refusal()), (2, Some(Errno::NOENT)));
    }

    #[test]
    fn descriptors_leave_once_and_with_their_own_reply() {
        let mut outbox = Outbox::default();
        outbox.push(reply_of(8));
        let one = record(1);
        outbox.push(reply::retrieved(Arc::clone(&one)));
        outbox.push(reply_of(9));
        assert_eq!(front(&mut outbox), Some((8, vec![])));
        outbox.advance(8);
        outbox.advance(0);
        assert_eq!(front(&mut outbox), Some((16, vec![1])));
        assert_eq!(Arc::strong_count(&one), 2);
        outbox.advance(1);
        assert_eq!(Arc::strong_count(&one), 1, "what is left does not keep it open");
        assert_eq!(front(&mut outbox), Some((15, vec![])));
        outbox.advance(15);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn a_dump_is_made_as_it_leaves() {
        let mut outbox = Outbox::default();
        outbox.push_dump(Vec::new());
        assert!(outbox.is_empty());
        outbox.push_dump((0..254).map(record).collect());
        outbox.push(reply_of(7));
        let mut all = Vec::new();
        while let Some((len, fds)) = front(&mut outbox) {
            all.push(fds);
            outbox.advance(len);
        }
        assert_eq!(all, [(0..253).collect(), vec![253], vec![]]);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn with_so_many_or_so_long_replies_it_is_full() {
        let mut outbox = Outbox::default();
        for number in 0..REPLIES_PENDING_MAX {
            assert!(!outbox.is_full());
            outbox.push(reply::retrieved(record(number as u32)));
        }
        assert!(outbox.is_full());
        let mut outbox = Outbox::default();
        outbox.push(reply_of(REPLY_BYTES_PENDING_MAX - 8));
        outbox.push(reply_of(7));
        assert!(!outbox.is_full());
        outbox.push(reply_of(7));
        assert!(outbox.is_full());
    }

    #[test]
    fn what_says_no_is_counted() {
        let mut outbox: Outbox<u32> = Outbox::default();
        for answer in [Ok(()), Err(Errno::NOENT), Err(Errno::AGAIN), Err(Errno::PERM)] {
            outbox.push(reply::status(answer));
        }
        assert_eq!(outbox.refusals(), 2);
    }
}
