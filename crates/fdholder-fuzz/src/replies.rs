//! Replies: whatever a holder answers, a client reads it or refuses it; and what it reads is
//! what a holder would write.

use crate::input::Input;
use crate::ledger::{numbers, Fd, Ledger};
use crate::requests::check_id;
use fdholder::extension;
use fdholder::frame::{Decoder, Frame, Message};
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX, REPLY_PAYLOAD_MAX};
use fdholder::reply::{self, Answer};
use fdholder::{environ, Entry, Errno, Malformed, Status};
use std::collections::HashMap;

/// One reply, read as every kind of reply; or a dump, as it comes.
pub fn replies(data: &[u8]) {
    let mut input = Input::new(data);
    let ledger = Ledger::default();
    let kind = input.byte();
    if kind % 4 == 3 {
        dump(&mut input, &ledger);
        ledger.settle();
        return;
    }
    let fds = usize::from(input.byte()).min(MESSAGE_FDS_MAX);
    let fds_lost = kind & 4 != 0;
    let fds = if fds_lost { 0 } else { fds };
    let remaining = input.u16();
    let payload = input.rest();

    let frame = || Frame { payload, fds: ledger.open_many(fds), fds_lost };
    answers(frame, payload, fds_lost);
    extensions(frame, payload);
    part_of_a_dump(frame, remaining.into(), payload);
    ledger.settle();
}

fn payload_of(message: &Message<impl Sized>) -> &[u8] {
    &message.bytes()[HEADER_LEN..]
}

/// What is written for this answer is what was read.
fn same<T>(
    read: Result<Answer<T>, Malformed>,
    payload: &[u8],
    write: impl FnOnce(T) -> Message<Fd>,
) {
    let message = match read {
        Ok(Ok(value)) => write(value),
        Ok(Err(errno)) => reply::status(Err(errno)),
        Err(_) => return,
    };
    assert_eq!(payload_of(&message), payload);
}

/// Of some replies not everything is looked at: what is written for them is read in the same
/// way.
fn reads_the_same<T: PartialEq + std::fmt::Debug>(
    read: fn(&Frame<'_, Fd>) -> Result<Answer<T>, Malformed>,
    frame: &Frame<'_, Fd>,
    write: impl FnOnce(&T) -> Message<Fd>,
) {
    let Ok(Ok(value)) = read(frame) else { return };
    let message = write(&value);
    let again = Frame { payload: payload_of(&message), fds: Vec::new(), fds_lost: false };
    assert_eq!(read(&again), Ok(Ok(value)));
}

fn answers<'a>(frame: impl Fn() -> Frame<'a, Fd>, payload: &[u8], fds_lost: bool) {
    same(reply::parse_status(&frame()), payload, |()| reply::status(Ok(())));
    same(reply::parse_list(&frame()), payload, |ids| {
        ids.iter().for_each(check_id);
        reply::list(ids.iter())
    });
    reads_the_same(reply::parse_getdump_head, &frame(), |count| reply::getdump_head(*count));
    reads_the_same(reply::parse_setdump_head, &frame(), |()| reply::setdump_head(1));
    match reply::parse_retrieved(frame()) {
        Ok(Err(Errno::NFILE)) if fds_lost => assert_eq!(payload, b"\0"),
        read => same(read, payload, reply::retrieved),
    }
}

fn extensions<'a>(frame: impl Fn() -> Frame<'a, Fd>, payload: &[u8]) {
    if let Ok(Ok(version)) = extension::parse_hello(&frame()) {
        assert_eq!(payload[..5], [&[0], &version.to_be_bytes()[..]].concat());
    }
    for entries in [false, true] {
        same(extension::parse_snapshot(&frame(), entries), payload, |snapshot| {
            let listed = snapshot.entries.iter().map(|entry| (&entry.id, entry.limit));
            extension::snapshot(snapshot.count, snapshot.capacity, listed)
        });
    }
    same(extension::parse_delivered(&frame()), payload, extension::delivered);
    same(extension::parse_released(&frame()), payload, extension::released);
    same(extension::parse_taken(&frame()), payload, |taken| extension::taken(&taken));
    same(extension::parse_inspected(&frame()), payload, |all| {
        extension::inspected(all.iter().map(|one| (&one.id, one.limit, one.origin)))
    });
    reads_the_same(extension::parse_upgraded, &frame(), |outcome| {
        extension::upgraded(outcome.as_deref().map_err(String::as_str))
    });
    if let Ok(Ok(status)) = extension::parse_status(&frame()) {
        check_status(&status);
    }
}

/// A holder that says something that would end a line says it without that, and then it
/// comes as it was said.
fn check_status(status: &Status) {
    let text = status.to_string();
    assert!(text.chars().all(|letter| !letter.is_control() || matches!(letter, '\n' | '\t')));
    let Ok(tame) = text.parse::<Status>() else { panic!("it does not read {text:?}") };
    assert_eq!(tame.to_string().parse(), Ok(tame));
}

fn part_of_a_dump<'a>(frame: impl Fn() -> Frame<'a, Fd>, remaining: u32, payload: &[u8]) {
    let checked = reply::check_getdump_data(&frame(), remaining);
    let read = reply::parse_getdump_data(frame(), remaining);
    assert_eq!(checked, read.as_ref().map(drop).map_err(|error| *error));
    let Ok(entries) = read else { return };
    assert!(!entries.is_empty() && entries.len() <= remaining as usize);
    check_environment(&entries);
    let (ids, fds): (Vec<_>, Vec<_>) =
        entries.into_iter().map(|Entry { id, limit, fd }| ((id, limit), fd)).unzip();
    let before = numbers(&fds);
    let entries = ids.iter().zip(fds).map(|((id, limit), fd)| (id, *limit, fd));
    let message = reply::getdump_data(entries);
    assert_eq!(payload_of(&message), payload);
    assert_eq!(numbers(message.fds()), before);
}

/// What getdump hands on to setdump comes there.
fn check_environment(entries: &[Entry<Fd>]) {
    let dump: Vec<_> = entries
        .iter()
        .map(|entry| Entry { id: entry.id.clone(), limit: entry.limit, fd: entry.fd.number() })
        .collect();
    let variables: HashMap<_, _> = environ::variables(&dump).collect();
    let back = environ::parse(|name| variables.get(name).cloned().flatten());
    assert_eq!(back, Ok(dump));
}

/// A head, and parts until all is there, as they come in one stream.
fn dump(input: &mut Input<'_>, ledger: &Ledger) {
    let mut decoder = Decoder::new(REPLY_PAYLOAD_MAX);
    let mut remaining = None;
    let mut came = 0;
    while !input.is_empty() && remaining != Some(0) {
        let fds = usize::from(input.byte()).min(MESSAGE_FDS_MAX);
        decoder.push(input.long(), ledger.open_many(fds), false);
        // As `Client::receive`: one after the other, and what is behind the last waits.
        while remaining != Some(0) && decoder.has_frame() {
            let Ok(Some(frame)) = decoder.next() else { return };
            match remaining {
                None => match reply::parse_getdump_head(&frame) {
                    Ok(Ok(count)) => remaining = Some(count),
                    _ => return,
                },
                Some(count) => {
                    let Ok(entries) = reply::parse_getdump_data(frame, count) else { return };
                    came += entries.len() as u32; // 253 at most.
                    remaining = Some(count - entries.len() as u32);
                }
            }
            assert!(remaining.is_some_and(|remaining| came.checked_add(remaining).is_some()));
        }
    }
}
