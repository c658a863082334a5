//! Replies: what a holder answers, to bytes and back.
//!
//! A reply does not say which request it answers: replies come in order, and the reader
//! knows what it asked.

use crate::error::Malformed;
use crate::frame::{Frame, Message};
use crate::id::Identifier;
use crate::limits::{messages_for, DUMP_FDS_MAX, PAYLOAD_MAX};
use crate::payload::{entries_message, Entry, Reader};
use crate::time::Limit;
use rustix::io::Errno;

/// What a holder answered: the thing asked for, or the errno of its refusal.
pub type Answer<T> = Result<T, Errno>;

/// Encodes a status: done, or refused with an errno.
pub fn status<F>(answer: Answer<()>) -> Message<F> {
    Message::new(Vec::new(), |bytes| bytes.push(status_byte(answer)))
}

fn status_byte(answer: Answer<()>) -> u8 {
    match answer {
        Ok(()) => 0,
        // Linux errno values that a holder answers with are below 256; EIO stands for any
        // other, as 0 would say that all went well.
        Err(errno) => u8::try_from(errno.raw_os_error()).unwrap_or(5).max(1),
    }
}

/// Encodes the reply to a retrieve that succeeded.
pub fn retrieved<F>(fd: F) -> Message<F> {
    Message::new(vec![fd], |bytes| bytes.push(0))
}

/// Encodes a list; EMSGSIZE when it is longer than a message may be.
pub fn list<'a, F>(ids: impl ExactSizeIterator<Item = &'a Identifier>) -> Message<F> {
    let mut payload = vec![0];
    payload.extend_from_slice(&(ids.len() as u32).to_be_bytes());
    for id in ids {
        payload.extend_from_slice(id.as_bytes());
        payload.push(0);
    }
    bounded(payload, PAYLOAD_MAX)
}

/// A reply with this payload; EMSGSIZE when that is longer than `len_max`.
pub(crate) fn bounded<F>(mut payload: Vec<u8>, len_max: usize) -> Message<F> {
    if payload.len() > len_max {
        return status(Err(Errno::MSGSIZE));
    }
    Message::new(Vec::new(), |bytes| bytes.append(&mut payload))
}

/// Encodes the head of a getdump: `count` descriptors follow, in messages of 253.
pub fn getdump_head<F>(count: u32) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        bytes.push(0);
        bytes.extend_from_slice(&messages_for(count).to_be_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
    })
}

/// Encodes one message of a getdump; the caller gives at most 253 entries.
pub fn getdump_data<'a, F>(
    entries: impl Iterator<Item = (&'a Identifier, Limit, F)>,
) -> Message<F> {
    entries_message(&[], entries)
}

/// Encodes the answer to an announced setdump of `count` descriptors.
pub fn setdump_head<F>(count: u32) -> Message<F> {
    Message::new(Vec::new(), |bytes| {
        bytes.push(0);
        bytes.extend_from_slice(&messages_for(count).to_be_bytes());
    })
}

/// Splits off the status byte; `Err` inside when it is an errno.
pub(crate) fn answer<'a, F>(frame: &Frame<'a, F>) -> Result<Answer<&'a [u8]>, Malformed> {
    match frame.payload.split_first() {
        None => Err(Malformed("an empty reply")),
        Some((0, body)) => Ok(Ok(body)),
        Some((&errno, [])) if frame.fds.is_empty() && !frame.fds_lost => {
            Ok(Err(Errno::from_raw_os_error(i32::from(errno))))
        }
        Some(_) => Err(Malformed("a refusal with something behind it")),
    }
}

pub(crate) fn without_fds<F>(frame: &Frame<'_, F>) -> Result<(), Malformed> {
    if frame.fds.is_empty() && !frame.fds_lost {
        Ok(())
    } else {
        Err(Malformed("descriptors came with a reply that has none"))
    }
}

/// Reads a status.
///
/// # Errors
///
/// [`Malformed`] when the frame is anything else; likewise in the functions below.
pub fn parse_status<F>(frame: &Frame<'_, F>) -> Result<Answer<()>, Malformed> {
    without_fds(frame)?;
    match answer(frame)? {
        Ok([]) => Ok(Ok(())),
        Ok(_) => Err(Malformed("a reply is longer than its content")),
        Err(errno) => Ok(Err(errno)),
    }
}

/// Reads the reply to a retrieve. ENFILE when the descriptor came but did not fit into
/// this process.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such reply.
pub fn parse_retrieved<F>(mut frame: Frame<'_, F>) -> Result<Answer<F>, Malformed> {
    match answer(&frame)? {
        Err(errno) => Ok(Err(errno)),
        Ok([]) if frame.fds_lost => Ok(Err(Errno::NFILE)),
        Ok([]) if frame.fds.len() == 1 => {
            frame.fds.pop().map(Ok).ok_or(Malformed("a reply without its descriptor"))
        }
        Ok(_) => Err(Malformed("a reply that is not one descriptor")),
    }
}

/// Reads a list.
///
/// # Errors
///
/// [`Malformed`] when the frame is no list.
pub fn parse_list<F>(frame: &Frame<'_, F>) -> Result<Answer<Vec<Identifier>>, Malformed> {
    without_fds(frame)?;
    let mut reader = match answer(frame)? {
        Ok(body) => Reader(body),
        Err(errno) => return Ok(Err(errno)),
    };
    let count = reader.u32()? as usize;
    let ids = match reader.0.strip_suffix(b"\0") {
        Some(ids) => ids
            .split(|&byte| byte == 0)
            .map(Identifier::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Malformed("a list with an identifier that is none"))?,
        None if reader.0.is_empty() => Vec::new(),
        None => return Err(Malformed("a list that does not end")),
    };
    if ids.len() == count {
        Ok(Ok(ids))
    } else {
        Err(Malformed("a list whose count is not its length"))
    }
}

/// Reads the head of a getdump: how many descriptors follow.
///
/// The number of messages is not looked at: s6 before skalibs 2.14 computes it with 255,
/// and counting descriptors is enough.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such head.
pub fn parse_getdump_head<F>(frame: &Frame<'_, F>) -> Result<Answer<u32>, Malformed> {
    without_fds(frame)?;
    let mut reader = match answer(frame)? {
        Ok(body) => Reader(body),
        Err(errno) => return Ok(Err(errno)),
    };
    let (_messages, count) = (reader.u32()?, reader.u32()?);
    reader.end()?;
    if count > DUMP_FDS_MAX {
        return Err(Malformed("a dump of more descriptors than can be open"));
    }
    Ok(Ok(count))
}

/// Checks one message of a getdump of which `remaining` descriptors are still to come.
///
/// # Errors
///
/// [`Malformed`] when it brings none, too many, or not what its payload says.
pub fn check_getdump_data<F>(frame: &Frame<'_, F>, remaining: u32) -> Result<(), Malformed> {
    if frame.fds.is_empty() {
        return Err(Malformed("a part of a dump without a descriptor"));
    }
    if frame.fds.len() > remaining as usize {
        return Err(Malformed("more descriptors in a dump than it announced"));
    }
    Reader(frame.payload).check_entries(frame.fds.len())
}

/// Reads one message of a getdump of which `remaining` descriptors are still to come.
///
/// # Errors
///
/// As [`check_getdump_data`]; the descriptors are closed.
pub fn parse_getdump_data<F>(
    frame: Frame<'_, F>,
    remaining: u32,
) -> Result<Vec<Entry<F>>, Malformed> {
    check_getdump_data(&frame, remaining)?;
    Reader(frame.payload).entries(frame.fds)
}

/// Reads the answer to an announced setdump. How many messages the holder expects is not
/// looked at: holders count descriptors.
///
/// # Errors
///
/// [`Malformed`] when the frame is no such answer.
pub fn parse_setdump_head<F>(frame: &Frame<'_, F>) -> Result<Answer<()>, Malformed> {
    without_fds(frame)?;
    let mut reader = match answer(frame)? {
        Ok(body) => Reader(body),
        Err(errno) => return Ok(Err(errno)),
    };
    reader.u32()?;
    reader.end()?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Decoder;
    use crate::limits::{HEADER_LEN, REPLY_PAYLOAD_MAX};
    use crate::request::tests::any_entry;
    use crate::request::{setdump_data, setdump_data_from_getdump};
    use proptest::prelude::*;

    /// Sends a message through a decoder and reads it with `read`.
    fn through<T>(message: Message<u32>, read: impl FnOnce(Frame<'_, u32>) -> T) -> T {
        let (bytes, fds) = message.into_parts();
        let mut decoder = Decoder::new(REPLY_PAYLOAD_MAX);
        decoder.push(&bytes, fds, false);
        let value = read(decoder.next().unwrap().unwrap());
        value
    }

    #[test]
    fn statuses_round_trip() {
        for answer in [Ok(()), Err(Errno::PERM), Err(Errno::TIMEDOUT)] {
            assert_eq!(through(status(answer), |frame| parse_status(&frame)), Ok(answer));
        }
        assert_eq!(through(retrieved(7), parse_retrieved), Ok(Ok(7)));
        assert_eq!(through(status(Err(Errno::NOENT)), parse_retrieved), Ok(Err(Errno::NOENT)));
        assert!(through(status(Ok(())), parse_retrieved).is_err());
        assert!(through(retrieved(7), |frame| parse_status(&frame)).is_err());
        let unknown = status(Err(Errno::from_raw_os_error(256)));
        assert_eq!(through(unknown, |frame| parse_status(&frame)), Ok(Err(Errno::IO)));
        assert!(matches!(through(setdump_head(3), |frame| parse_setdump_head(&frame)), Ok(Ok(()))));
    }

    #[test]
    fn what_is_too_long_for_a_message_is_refused() {
        let is_refused = |len| bounded::<u32>(vec![0; len], 9) == status(Err(Errno::MSGSIZE));
        assert!(!is_refused(9) && is_refused(10));
    }

    #[test]
    fn a_refusal_is_a_byte_and_nothing_else() {
        let parse = |payload, fds: &[u32], fds_lost| {
            parse_retrieved(Frame { payload, fds: fds.to_vec(), fds_lost })
        };
        assert_eq!(parse(b"\x02", &[], false), Ok(Err(Errno::NOENT)));
        assert!(parse(b"\x02x", &[], false).is_err());
        assert!(parse(b"\x02", &[1], false).is_err());
        assert!(parse(b"\x02", &[], true).is_err());
        assert!(parse(b"\0x", &[1], false).is_err());
        assert!(parse(b"\0", &[1, 2], false).is_err());
        let lost: Frame<'_, u32> = Frame { payload: b"\0", fds: vec![], fds_lost: true };
        assert!(parse_status(&lost).is_err(), "a status has no descriptors to lose");
    }

    #[test]
    fn dump_heads_count_in_253s() {
        for (count, messages) in [(0, 0), (1, 1), (253, 1), (254, 2), (19_000, 76)] {
            let head = getdump_head::<u32>(count);
            assert_eq!(head.bytes()[HEADER_LEN + 1..HEADER_LEN + 5], u32::to_be_bytes(messages));
            assert_eq!(through(head, |frame| parse_getdump_head(&frame)), Ok(Ok(count)));
        }
        let most = getdump_head::<u32>(DUMP_FDS_MAX);
        assert_eq!(through(most, |frame| parse_getdump_head(&frame)), Ok(Ok(DUMP_FDS_MAX)));
        let lie = getdump_head::<u32>(DUMP_FDS_MAX + 1);
        assert!(through(lie, |frame| parse_getdump_head(&frame)).is_err());
    }

    #[test]
    fn a_descriptor_that_did_not_fit_is_enfile() {
        let frame: Frame<'_, u32> = Frame { payload: b"\0", fds: vec![], fds_lost: true };
        assert_eq!(parse_retrieved(frame), Ok(Err(Errno::NFILE)));
    }

    #[test]
    fn parts_of_dumps_that_lie_are_refused() {
        let frame = |payload, fds: &[u32]| Frame { payload, fds: fds.to_vec(), fds_lost: false };
        let two = b"\x40\0\0\0\0\0\0\0\0\0\0\0\x01a\0".repeat(2);
        assert!(check_getdump_data(&frame(&two, &[1, 2]), 2).is_ok());
        for (payload, fds, remaining) in [
            (&two[..], &[1, 2][..], 1),
            (&two, &[1], 2),
            (&two, &[1, 2, 3], 3),
            (&two[1..], &[1, 2], 2),
            (b"", &[], 2),
        ] {
            assert!(check_getdump_data(&frame(payload, fds), remaining).is_err());
            assert!(parse_getdump_data(frame(payload, fds), remaining).is_err());
        }
    }

    #[test]
    fn lists_that_lie_are_refused() {
        for payload in [
            &b"\0\0\0\0\x01"[..],
            b"\0\0\0\0\x01a",
            b"\0\0\0\0\0a",
            b"\0\0\0\0\x02a\0",
            b"\0\0\0\0\x01\0",
            b"\0\0\0\0\0a\0",
            b"\0\0\0",
            b"\x01\0",
            b"",
        ] {
            let frame: Frame<'_, u32> = Frame { payload, fds: vec![], fds_lost: false };
            assert!(parse_list(&frame).is_err(), "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn lists_and_dumps_round_trip(entries in proptest::collection::vec(any_entry(), 1..=253)) {
            let ids: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
            let listed = through(list(ids.iter()), |frame| parse_list(&frame)).unwrap().unwrap();
            prop_assert_eq!(listed, ids);
            let data = || getdump_data(entries.iter().map(|e| (&e.id, e.limit, e.fd)));
            let count = entries.len() as u32;
            let dumped = through(data(), |frame| parse_getdump_data(frame, count)).unwrap();
            prop_assert_eq!(&dumped, &entries);
            prop_assert!(through(data(), |frame| parse_getdump_data(frame, count - 1)).is_err());
            let given = through(data(), |frame| setdump_data_from_getdump(frame.payload, frame.fds));
            let made = setdump_data(entries.iter().map(|e| (&e.id, e.limit, e.fd)));
            prop_assert_eq!(given, made);
        }

        #[test]
        fn noise_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..300), fds in 0u32..4) {
            let frame = || Frame { payload: &payload, fds: (0..fds).collect(), fds_lost: false };
            let _ = parse_status(&frame());
            let _ = parse_retrieved(frame());
            let _ = parse_list(&frame());
            let _ = parse_getdump_head(&frame());
            let _ = parse_getdump_data(frame(), 3);
            let _ = parse_setdump_head(&frame());
        }
    }
}
