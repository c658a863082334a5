//! Frames: where one message ends and the next begins, and whose descriptors are whose.
//!
//! A frame is a header (`u32` payload length, `u16` number of descriptors, both
//! big-endian), the payload, and the descriptors, which arrive with the first byte of the
//! header. A stream cuts anywhere: a frame may come byte by byte, and one read may end a
//! frame and begin the next one together with *its* descriptors. Descriptors are therefore
//! queued apart from bytes and claimed when their frame is complete.
//!
//! No I/O here, and no descriptor type: tests use numbers.

use crate::error::Malformed;
use crate::limits::{HEADER_LEN, MESSAGE_FDS_MAX};
use std::collections::VecDeque;

/// A message ready to be sent: header and payload as bytes, and its descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<F> {
    bytes: Vec<u8>,
    fds: Vec<F>,
}

impl<F> Message<F> {
    /// Makes a message of a payload, written by `fill` into the vector it is given, and
    /// descriptors.
    ///
    /// # Panics
    ///
    /// When there are more than [`MESSAGE_FDS_MAX`] descriptors or more payload than a
    /// `u32` counts: both are bugs of the caller, who cuts long content into messages.
    pub fn new(fds: Vec<F>, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        Self::with_fds(|bytes| {
            fill(bytes);
            fds
        })
    }

    /// The same where payload and descriptors come together.
    pub(crate) fn with_fds(fill: impl FnOnce(&mut Vec<u8>) -> Vec<F>) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0; HEADER_LEN]);
        let fds = fill(&mut bytes);
        assert!(fds.len() <= MESSAGE_FDS_MAX, "a message carries at most 253 descriptors");
        let payload_len = bytes.len() - HEADER_LEN;
        assert!(payload_len <= crate::limits::PAYLOAD_MAX, "a payload has at most 2^28 bytes");
        bytes[..4].copy_from_slice(&(payload_len as u32).to_be_bytes());
        bytes[4..HEADER_LEN].copy_from_slice(&(fds.len() as u16).to_be_bytes());
        Self { bytes, fds }
    }

    /// Header and payload.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The descriptors, which travel with the first byte.
    pub fn fds(&self) -> &[F] {
        &self.fds
    }

    /// Takes the message apart.
    pub fn into_parts(self) -> (Vec<u8>, Vec<F>) {
        (self.bytes, self.fds)
    }
}

/// A message that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a, F> {
    /// What came after the header.
    pub payload: &'a [u8],
    /// The descriptors that the header announced; none when they were lost.
    pub fds: Vec<F>,
    /// The frame's descriptors did not all fit into the receiving process
    /// (`MSG_CTRUNC`); those that did were closed.
    pub fds_lost: bool,
}

/// One descriptor that has arrived, or the mark of a message that lost its own.
#[derive(Debug)]
enum Arrived<F> {
    Fd(F),
    MessageLost,
}

/// Puts frames together from whatever pieces arrive.
///
/// Invariants after [`next`](Self::next) has returned `None`: the bytes held are less
/// than one frame, and so are the descriptors. What is never claimed is closed when the
/// decoder is dropped.
#[derive(Debug)]
pub struct Decoder<F> {
    /// Bytes received; those before `start` have been handed out.
    bytes: Vec<u8>,
    start: usize,
    fds: VecDeque<Arrived<F>>,
    payload_max: usize,
}

/// A header, checked.
struct Header {
    payload_len: usize,
    fds: usize,
}

/// A buffer that grew beyond this is given back once it is not needed: there may be thousands of
/// connections that nothing is asked on.
const BUFFER_KEPT: usize = 4096;

/// A buffer of more than half of this grows to this, which has room for the longest request and what
/// is read with it.
const BUFFER_OF_REQUEST: usize = 128 * 1024;

/// The same for the places of descriptors that wait.
const FDS_KEPT: usize = 16;

impl<F> Decoder<F> {
    /// A decoder that refuses frames with a longer payload than `payload_max` bytes.
    pub fn new(payload_max: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, fds: VecDeque::new(), payload_max }
    }

    /// The same for what has arrived elsewhere, without descriptors.
    pub fn resume(payload_max: usize, arrived: Vec<u8>) -> Self {
        Self { bytes: arrived, ..Self::new(payload_max) }
    }

    /// Adds what one `recvmsg` brought.
    ///
    /// `fds_lost` says that the kernel could not install all of the descriptors; those that
    /// came are dropped here, and the frame they belong to will say so.
    pub fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = F>, fds_lost: bool) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(BUFFER_KEPT);
            self.start = 0;
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let len = self.bytes.len() + bytes.len();
        if (self.bytes.capacity() + 1..=BUFFER_OF_REQUEST).contains(&len)
            && len > BUFFER_OF_REQUEST / 2
        {
            // Doubled, the longest request would take twice what it is.
            self.bytes.reserve_exact(BUFFER_OF_REQUEST - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        if fds_lost {
            // One by one: dropped together, what makes them might not be asked for them.
            fds.into_iter().for_each(drop);
            self.fds.push_back(Arrived::MessageLost);
        } else {
            self.fds.extend(fds.into_iter().map(Arrived::Fd));
        }
    }

    /// Whether a part of a frame is waiting for the rest.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// How many descriptors wait for their frame.
    pub fn fds_len(&self) -> usize {
        self.fds.len()
    }

    /// How many bytes were not handed out yet.
    pub fn unread_len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// How many bytes the frame lacks whose beginning that is, at most.
    pub fn missing_len(&self) -> usize {
        let payload_len = match self.header() {
            Ok(Some(header)) => header.payload_len,
            Ok(None) if self.is_mid_frame() => self.payload_max,
            Ok(None) | Err(_) => return 0,
        };
        (HEADER_LEN + payload_len).saturating_sub(self.unread_len())
    }

    /// What has arrived and was not handed out; `None` when descriptors came with it.
    pub fn unread_without_fds(&self) -> Option<&[u8]> {
        self.fds.is_empty().then_some(&self.bytes[self.start..])
    }

    /// Whether [`next`](Self::next) has something to say: a frame, or an error.
    pub fn has_frame(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => {
                self.bytes.len() - self.start >= HEADER_LEN + header.payload_len
                    || self.fds.len() > header.fds
            }
            Ok(None) => self.fds.len() > self.fds_max_before_header(),
            Err(_) => true,
        }
    }

    /// The next whole frame, or `None` until more has arrived.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the header announces more than is allowed, or descriptors came
    /// that no frame announces, or did not come although one does. The stream is of no
    /// use afterwards.
    // Not an iterator: a frame borrows from the decoder.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame<'_, F>>, Malformed> {
        let Some(header) = self.header()? else {
            self.give_back();
            return self.wait_for_more(self.fds_max_before_header());
        };
        let payload_start = self.start + HEADER_LEN;
        let end = payload_start + header.payload_len;
        if self.bytes.len() < end {
            self.give_back();
            return self.wait_for_more(header.fds);
        }
        let (fds, fds_lost) = self.claim(header.fds)?;
        self.start = end;
        Ok(Some(Frame { payload: &self.bytes[payload_start..end], fds, fds_lost }))
    }

    /// Keeps no more room than the part of a frame takes that waits for its rest.
    fn give_back(&mut self) {
        if self.start > 0 && self.bytes.capacity() > BUFFER_KEPT {
            self.bytes.drain(..self.start);
            self.start = 0;
            self.bytes.shrink_to(BUFFER_KEPT);
        }
        if self.fds.is_empty() && self.fds.capacity() > FDS_KEPT {
            self.fds.shrink_to(FDS_KEPT);
        }
    }

    /// How many bytes it has room for.
    #[doc(hidden)]
    pub fn buffer_len(&self) -> usize {
        self.bytes.capacity()
    }

    fn header(&self) -> Result<Option<Header>, Malformed> {
        let Some(bytes) = self.bytes[self.start..].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let payload_len = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let fds = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        if payload_len > self.payload_max {
            Err(Malformed("a message is longer than any may be"))
        } else if fds > MESSAGE_FDS_MAX {
            Err(Malformed("a message announces more than 253 descriptors"))
        } else {
            Ok(Some(Header { payload_len, fds }))
        }
    }

    /// Between frames no descriptor may be waiting; within one whose header is not whole, as
    /// many as it can announce.
    fn fds_max_before_header(&self) -> usize {
        if self.is_mid_frame() {
            MESSAGE_FDS_MAX
        } else {
            0
        }
    }

    /// Within a frame no more descriptors may be waiting than it announces: they come with its
    /// first byte, so more of them belong to nobody.
    fn wait_for_more(&self, fds_announced: usize) -> Result<Option<Frame<'_, F>>, Malformed> {
        if self.fds.len() > fds_announced {
            return Err(Malformed("descriptors came that no message announces"));
        }
        Ok(None)
    }

    fn claim(&mut self, count: usize) -> Result<(Vec<F>, bool), Malformed> {
        let mut fds = Vec::with_capacity(count);
        while fds.len() < count {
            match self.fds.pop_front() {
                Some(Arrived::Fd(fd)) => fds.push(fd),
                Some(Arrived::MessageLost) if fds.is_empty() => return Ok((fds, true)),
                Some(Arrived::MessageLost) | None => {
                    return Err(Malformed("a message came without the descriptors it announces"));
                }
            }
        }
        Ok((fds, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(payload: &[u8], fds: &[u32]) -> Message<u32> {
        Message::new(fds.to_vec(), |bytes| bytes.extend_from_slice(payload))
    }

    fn drain(decoder: &mut Decoder<u32>) -> Result<Vec<(Vec<u8>, Vec<u32>)>, Malformed> {
        let mut frames = Vec::new();
        loop {
            let has_frame = decoder.has_frame();
            let Some(frame) = decoder.next()? else {
                assert!(!has_frame);
                return Ok(frames);
            };
            assert!(has_frame && !frame.fds_lost);
            frames.push((frame.payload.to_vec(), frame.fds));
        }
    }

    #[test]
    fn longest_request_takes_no_more_than_it_is() {
        let mut decoder: Decoder<()> = Decoder::new(1 << 20);
        let mut whole = 200_000u32.to_be_bytes().to_vec();
        whole.resize(130_000, 0);
        for part in whole.chunks(30_000) {
            decoder.push(part, [], false);
        }
        assert!(decoder.bytes.capacity() <= BUFFER_OF_REQUEST, "{}", decoder.bytes.capacity());
        assert!(decoder.is_mid_frame() && !decoder.has_frame());
    }

    proptest! {
        /// However a stream is cut, the same frames come out with their own descriptors.
        #[test]
        fn cuts_do_not_matter(
            sent in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..40), proptest::collection::vec(any::<u32>(), 0..4)),
                0..8),
            cuts in proptest::collection::vec(1usize..30, 1..200),
        ) {
            let mut decoder = Decoder::new(1000);
            let mut received = Vec::new();
            // A read ends at a cut, or where the next message's descriptors begin.
            let mut stream: Vec<(u8, Vec<u32>)> = Vec::new();
            for (payload, fds) in &sent {
                let message = message(payload, fds);
                for (index, byte) in message.bytes().iter().enumerate() {
                    stream.push((*byte, if index == 0 { message.fds().to_vec() } else { Vec::new() }));
                }
            }
            let mut cuts = cuts.into_iter().cycle();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                let bytes: Vec<u8> = now.iter().map(|(byte, _)| *byte).collect();
                let fds = now.iter().flat_map(|(_, fds)| fds.clone());
                decoder.push(&bytes, fds, false);
                received.extend(drain(&mut decoder).unwrap());
                rest = later;
            }
            prop_assert_eq!(received, sent);
            prop_assert!(!decoder.is_mid_frame());
        }
    }

    #[test]
    fn a_header_that_cannot_be_valid_is_refused_at_once() {
        let mut decoder: Decoder<u32> = Decoder::new(100);
        decoder.push(&[0, 0, 0, 101, 0, 0], [], false);
        assert!(decoder.has_frame() && decoder.next().is_err());
        let mut decoder: Decoder<u32> = Decoder::new(100);
        decoder.push(&[0, 0, 0, 1, 0, 254], [], false);
        assert!(decoder.has_frame() && decoder.next().is_err());
        let mut decoder: Decoder<u32> = Decoder::new(100);
        decoder.push(&[0, 0, 0, 100, 0, 253], 0..253, false);
        assert!(!decoder.has_frame() && decoder.next().unwrap().is_none(), "the most there may be");
    }

    #[test]
    fn descriptors_nobody_announced_are_refused() {
        let mut decoder = Decoder::new(100);
        decoder.push(message(b"x", &[]).bytes(), [7], false);
        assert_eq!(decoder.next().unwrap().unwrap().payload, b"x");
        assert!(decoder.next().is_err(), "left over after the last frame");

        let mut decoder = Decoder::new(100);
        decoder.push(&message(b"xy", &[1]).bytes()[..7], [1, 2], false);
        assert!(decoder.next().is_err(), "more than the header in hand announces");

        let mut decoder = Decoder::new(100);
        decoder.push(&[0], 0..253, false);
        assert!(!decoder.has_frame() && decoder.next().unwrap().is_none());
        decoder.push(&[0], [253], false);
        assert!(decoder.has_frame());
        assert!(decoder.next().is_err(), "more than any header could announce");
    }

    /// Who waits to be served is not asked for the next frame, so what has arrived for it must
    /// say by itself that it is too much.
    #[test]
    fn descriptors_nobody_announced_are_noticed_without_asking_for_the_frame() {
        let mut decoder = Decoder::new(100);
        assert!(!decoder.has_frame());
        decoder.push(&message(b"xyz", &[1]).bytes()[..7], [1], false);
        assert!(!decoder.has_frame(), "it is not whole");
        decoder.push(b"x", [2], false);
        assert!(decoder.has_frame(), "more than the header in hand announces");

        let mut decoder = Decoder::new(100);
        decoder.push(message(b"x", &[]).bytes(), [7], false);
        decoder.next().unwrap().unwrap();
        assert!(decoder.has_frame(), "left over after the last frame");
    }

    #[test]
    fn descriptors_that_did_not_come_are_missed() {
        let mut decoder: Decoder<u32> = Decoder::new(100);
        decoder.push(message(b"x", &[1, 2]).bytes(), [1], false);
        assert!(decoder.next().is_err());
        // A second message has lost its own, and the first cannot have them.
        let mut decoder: Decoder<u32> = Decoder::new(100);
        decoder.push(message(b"x", &[1, 2]).bytes(), [1], false);
        decoder.push(&[], [], true);
        assert!(decoder.next().is_err());
    }

    #[test]
    fn a_lost_set_is_charged_to_its_own_frame() {
        let (first, second) = (message(b"a", &[1, 2]), message(b"b", &[3]));
        let mut decoder = Decoder::new(100);
        decoder.push(&first.bytes()[..3], [], true);
        decoder.push(&first.bytes()[3..], [], false);
        decoder.push(second.bytes(), [3], false);
        let frame = decoder.next().unwrap().unwrap();
        assert!(frame.fds_lost && frame.fds.is_empty() && frame.payload == b"a");
        let frame = decoder.next().unwrap().unwrap();
        assert!(!frame.fds_lost && frame.fds == [3] && frame.payload == b"b");
        assert!(decoder.next().unwrap().is_none());
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut decoder: Decoder<u32> = Decoder::new(1 << 20);
        decoder.push(message(&vec![1; 1 << 20], &[]).bytes(), [], false);
        decoder.next().unwrap().unwrap();
        decoder.push(&[0], [], false);
        assert!(decoder.buffer_len() <= BUFFER_KEPT);
    }

    /// Also when nothing comes any more, and be it that a part of a frame has.
    #[test]
    fn nothing_large_is_kept_by_who_is_idle() {
        let one = message(b"x", &[]);
        let many = one.bytes().repeat(10_000);
        let mut decoder = Decoder::new(100);
        for rest in [&b""[..], &[0, 0, 0], &message(&[7; 90], &[]).bytes()[..60]] {
            decoder.push(&many, [], false);
            decoder.push(rest, [], false);
            assert_eq!(drain(&mut decoder).unwrap().len(), 10_000);
            assert!(decoder.buffer_len() <= BUFFER_KEPT, "{}", decoder.buffer_len());
            assert_eq!(decoder.unread_len(), rest.len());
            decoder = Decoder::new(100);
        }
        // What is not kept for long is not given back each time.
        decoder.push(one.bytes(), [], false);
        drain(&mut decoder).unwrap();
        let kept = decoder.buffer_len();
        decoder.push(one.bytes(), [], false);
        drain(&mut decoder).unwrap();
        assert!(kept > 0 && decoder.buffer_len() == kept);

        let fds: Vec<u32> = (0..253).collect();
        decoder.push(message(b"x", &fds).bytes(), fds.iter().copied(), false);
        assert!(decoder.fds.capacity() >= fds.len());
        drain(&mut decoder).unwrap();
        assert!(decoder.fds.capacity() <= FDS_KEPT);
    }

    /// A frame that is long takes what it takes, and not much more.
    #[test]
    fn a_part_of_a_long_frame_takes_little_more_than_it_is() {
        let mut decoder: Decoder<u32> = Decoder::new(1 << 20);
        let before = message(&vec![1; 100_000], &[]);
        let long = message(&vec![2; 1 << 20], &[]);
        decoder.push(before.bytes(), [], false);
        decoder.push(&long.bytes()[..20_000], [], false);
        assert_eq!(drain(&mut decoder).unwrap().len(), 1);
        assert!(decoder.buffer_len() <= 20_000);
        let mut moves = 0;
        for part in long.bytes()[20_000..].chunks(4096) {
            let before = decoder.buffer_len();
            assert!(drain(&mut decoder).unwrap().is_empty());
            decoder.push(part, [], false);
            assert!(decoder.buffer_len() <= 2 * decoder.bytes.len());
            moves += usize::from(decoder.buffer_len() != before);
        }
        // It grows by halves, not by each part.
        assert!((1..10).contains(&moves), "moved {moves} times");
        assert_eq!(drain(&mut decoder).unwrap().len(), 1);
        assert!(decoder.buffer_len() <= BUFFER_KEPT);
    }

    /// A peer that always sends the next frame's beginning along never lets the buffer be empty.
    #[test]
    fn what_was_handed_out_is_not_kept() {
        let mut decoder: Decoder<u32> = Decoder::new(100);
        let message = message(b"0123456789", &[]);
        let (first, second) = message.bytes().split_at(8);
        decoder.push(first, [], false);
        for _ in 0..100 {
            decoder.push(&[second, first].concat(), [], false);
            assert_eq!(drain(&mut decoder).unwrap(), [(b"0123456789".to_vec(), vec![])]);
            assert!(decoder.bytes.len() < 3 * message.bytes().len());
        }
    }

    #[test]
    fn what_is_unread_can_be_looked_at() {
        let mut decoder = Decoder::new(100);
        assert!(!decoder.is_mid_frame());
        decoder.push(&[message(b"x", &[]).bytes(), &[0, 0]].concat(), [], false);
        assert_eq!(drain(&mut decoder).unwrap().len(), 1);
        assert!(decoder.is_mid_frame());
        assert_eq!(decoder.unread_without_fds(), Some(&[0, 0][..]));
        decoder.push(&[0], [7], false);
        assert_eq!(decoder.unread_without_fds(), None, "its descriptor is not in the bytes");
    }
}
