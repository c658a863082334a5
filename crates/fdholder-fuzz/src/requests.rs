//! Requests: what is read can be written, and is the same when it is read again.

use crate::input::Input;
use crate::ledger::{numbers, Fd, Ledger};
use fdholder::extension::Extension;
use fdholder::frame::{Decoder, Frame, Message};
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX, PAYLOAD_MAX, RUNS_MAX};
use fdholder::request::Parsed;
use fdholder::{reply, Entry, Identifier, Limit, Request, Timestamp};

/// How many descriptors came, whether they were lost, where to cut, and a payload.
pub fn requests(data: &[u8]) {
    let mut input = Input::new(data);
    let fds = usize::from(input.byte()).min(MESSAGE_FDS_MAX);
    let fds_lost = input.bit();
    let fds = if fds_lost { 0 } else { fds };
    let cut = input.u16();
    let payload = input.rest();

    let ledger = Ledger::default();
    let parse = |payload| Request::parse(Frame { payload, fds: ledger.open_many(fds), fds_lost });
    match parse(payload) {
        Err(_) => assert_eq!(ledger.open_count(), 0, "what is refused is closed"),
        Ok(Parsed::FdsLost) => {
            assert!(fds_lost);
            assert!(matches!(payload, [b'S' | b'.', ..] | [b'+', 2, ..]), "{payload:?}");
        }
        Ok(Parsed::Request(request)) => {
            assert_eq!(ledger.open_count(), held_by(&request));
            let is_open_ended = matches!(request, Request::Extension(_));
            check_values(&request);
            check_round_trip(request, payload);
            if !is_open_ended {
                let shorter = &payload[..usize::from(cut) % payload.len()];
                assert!(parse(shorter).is_err(), "it is one although it is cut short");
                let longer = [payload, b"\0"].concat();
                assert!(parse(&longer).is_err(), "it is one although it is too long");
            }
        }
    }
    ledger.settle();
}

fn held_by(request: &Request<Fd>) -> usize {
    match request {
        Request::Store(_) | Request::Extension(Extension::Deliver { .. }) => 1,
        Request::SetdumpData(entries) => entries.len(),
        _ => 0,
    }
}

fn check_round_trip(request: Request<Fd>, payload: &[u8]) {
    if let Request::Extension(Extension::Deliver { runs, .. } | Extension::Release { runs, .. }) =
        &request
    {
        // Nobody writes more, but a daemon reads what fits.
        if runs.len() > RUNS_MAX {
            return;
        }
    }
    let in_a_dump = match &request {
        Request::SetdumpData(entries) => {
            let message: Message<()> =
                reply::getdump_data(entries.iter().map(|entry| (&entry.id, entry.limit, ())));
            Some(message)
        }
        _ => None,
    };
    let (bytes, fds) = request.into_message().into_parts();
    assert_eq!(bytes[HEADER_LEN..], canonical(payload));
    if let Some(message) = in_a_dump {
        assert_eq!(bytes[HEADER_LEN + 1..], message.bytes()[HEADER_LEN..]);
    }
    let numbers_before = numbers(&fds);
    let mut decoder = Decoder::new(PAYLOAD_MAX);
    decoder.push(&bytes, fds, false);
    let again = match decoder.next() {
        Ok(Some(frame)) => Request::parse(frame),
        other => panic!("written as what is no message: {other:?}"),
    };
    let Ok(Parsed::Request(again)) = again else { panic!("written as what is no request") };
    let (bytes_again, fds) = again.into_message().into_parts();
    assert_eq!((bytes_again, numbers(&fds)), (bytes, numbers_before));
}

/// A payload as we write it: what is not 0 is true, and one unknown extension is as unknown
/// as another.
fn canonical(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    match payload[..] {
        [b'R', ref mut delete, ..] => *delete = u8::from(*delete != 0),
        [b'+', 1 | 3 | 12, ref mut flag, ..] => *flag = u8::from(*flag != 0),
        [b'+', 13..=u8::MAX, ..] => payload = vec![b'+', u8::MAX],
        _ => {}
    }
    payload
}

fn check_values(request: &Request<Fd>) {
    match request {
        Request::Store(Entry { id, limit, .. }) => check_entry(id, *limit),
        Request::Delete(id) | Request::Retrieve { id, .. } => check_id(id),
        Request::SetdumpData(entries) => {
            for Entry { id, limit, .. } in entries {
                check_entry(id, *limit);
            }
        }
        _ => {}
    }
}

fn check_entry(id: &Identifier, limit: Limit) {
    check_id(id);
    let stamp = limit.timestamp();
    assert_eq!(stamp.to_string().parse(), Ok(stamp));
    assert_eq!(Timestamp::from_wire(&stamp.to_wire()), Ok(stamp));
}

/// It can be shown on a terminal, and read back from there.
pub(crate) fn check_id(id: &Identifier) {
    let quoted = id.to_string();
    assert!(quoted.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    assert_eq!(Identifier::from_quoted(&quoted).as_ref(), Ok(id));
}
