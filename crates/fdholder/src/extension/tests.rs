use super::*;
use crate::frame::Decoder;
use crate::limits::{HEADER_LEN, REPLY_PAYLOAD_MAX, REQUEST_PAYLOAD_MAX};
use crate::reply::status;
use crate::request::tests::any_entry;
use crate::request::{Parsed, Request};
use crate::Tenure;
use proptest::prelude::*;
use rustix::io::Errno;

fn any_runs() -> impl Strategy<Value = Vec<Range<u32>>> {
    let run = (0u32..=1 << 24, 1u32..=1 << 24).prop_map(|(start, len)| start..start + len);
    proptest::collection::vec(run, 0..20)
}

fn any_extension() -> impl Strategy<Value = Extension<u32>> {
    prop_oneof![
        any::<u32>().prop_map(Extension::Hello),
        any::<bool>().prop_map(|entries| Extension::Snapshot { entries }),
        (any_runs(), any::<u32>()).prop_map(|(runs, to)| Extension::Deliver { runs, to }),
        (any_runs(), any::<bool>())
            .prop_map(|(runs, only_ask)| Extension::Release { runs, only_ask }),
        Just(Extension::OnConflict(OnConflict::Replace)),
        Just(Extension::OnConflict(OnConflict::Keep)),
        Just(Extension::OnConflict(OnConflict::Fail)),
        Just(Extension::Taken),
        any::<u32>().prop_map(|capacity| Extension::Follow { capacity }),
        Just(Extension::Upgrade),
        Just(Extension::Inspect),
        Just(Extension::Status),
        Just(Extension::Why),
        (any::<u32>(), any::<u32>(), any_id()).prop_map(|(uid, gid, id)| Extension::MayStore {
            uid,
            gid,
            id
        }),
        (any_id(), any::<bool>()).prop_map(|(id, is_prefix)| Extension::Await { id, is_prefix }),
    ]
}

fn any_id() -> impl Strategy<Value = Identifier> {
    any_entry().prop_map(|entry| entry.id)
}

fn parse_request(payload: &[u8], fds: &[u32]) -> Result<Parsed<u32>, Malformed> {
    Request::parse(Frame { payload, fds: fds.to_vec(), fds_lost: false })
}

proptest! {
    #[test]
    fn every_extension_comes_back_as_it_was(extension in any_extension(), cut in 1usize..8) {
        let (bytes, fds) = Request::Extension(extension.clone()).into_message().into_parts();
        let payload = &bytes[HEADER_LEN..];
        prop_assert_eq!(
            parse_request(payload, &fds),
            Ok(Parsed::Request(Request::Extension(extension)))
        );
        let longer = [payload, b"\0"].concat();
        prop_assert!(parse_request(&longer, &fds).is_err());
        let shorter = &payload[..payload.len().saturating_sub(cut)];
        // Without its number it is none; a run fewer is a run fewer.
        prop_assert!(parse_request(shorter, &fds) != parse_request(payload, &fds));
        let one_more = [&fds[..], &[7]].concat();
        prop_assert!(parse_request(payload, &one_more).is_err());
    }

    #[test]
    fn what_a_later_version_asks_is_unknown(
        number in number::LAST + 1..=u8::MAX,
        body in proptest::collection::vec(any::<u8>(), 0..50),
        fds in 0u32..3,
    ) {
        let payload = [&[COMMAND, number], &body[..]].concat();
        let fds: Vec<_> = (0..fds).collect();
        let unknown = Parsed::Request(Request::Extension(Extension::Unknown));
        prop_assert_eq!(parse_request(&payload, &fds), Ok(unknown));
    }

    #[test]
    fn snapshots_round_trip(entries in proptest::collection::vec(any_entry(), 0..50)) {
        let listed: Vec<_> = entries
            .into_iter()
            .map(|Entry { id, limit, .. }| Entry { id, limit, fd: () })
            .collect();
        let count = listed.len() as u32;
        let of = listed.iter().map(|entry| (&entry.id, entry.limit));
        let message: Message<u32> = snapshot(count, 77, of);
        let mut decoder = Decoder::new(REPLY_PAYLOAD_MAX);
        let (bytes, fds) = message.into_parts();
        decoder.push(&bytes, fds, false);
        let read = parse_snapshot(&decoder.next().unwrap().unwrap(), true).unwrap();
        prop_assert_eq!(read, Ok(Snapshot { count, capacity: 77, entries: listed }));
    }

    #[test]
    fn noise_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..60), fds in 0u32..2) {
        let frame = || Frame { payload: &payload, fds: (0..fds).collect::<Vec<u32>>(), fds_lost: false };
        let _ = parse_request(&[b"+", &payload[..]].concat(), &frame().fds);
        let _ = parse_hello(&frame());
        let _ = parse_snapshot(&frame(), true);
        let _ = parse_delivered(&frame());
        let _ = parse_released(&frame());
        let _ = parse_taken(&frame());
        let _ = parse_upgraded(&frame());
        let _ = parse_inspected(&frame());
        let _ = parse_status(&frame());
    }
}

#[test]
fn answers_come_back_as_they_were() {
    fn through<T>(message: Message<u32>, read: impl FnOnce(Frame<'_, u32>) -> T) -> T {
        let (bytes, _) = message.into_parts();
        read(Frame { payload: &bytes[HEADER_LEN..], fds: vec![], fds_lost: false })
    }
    assert_eq!(through(hello(), |frame| parse_hello(&frame)), Ok(Ok(VERSION)));
    let long = u64::from(u32::MAX) + 7;
    assert_eq!(through(delivered(long), |frame| parse_delivered(&frame)), Ok(Ok(long)));
    assert_eq!(through(released(9), |frame| parse_released(&frame)), Ok(Ok(9)));
    let outcome = Taken { added: 1, replaced: 2, kept: vec![3, 4] };
    assert_eq!(through(taken(&outcome), |frame| parse_taken(&frame)), Ok(Ok(outcome)));
    for outcome in [Ok("1.2"), Err("it does not start")] {
        let read = through(upgraded(outcome), |frame| parse_upgraded(&frame));
        assert_eq!(read, Ok(Ok(outcome.map(str::to_owned).map_err(str::to_owned))));
    }
    let one = Inspected {
        id: Identifier::new("web").unwrap(),
        limit: Limit::never(),
        origin: Origin { owner: 7, tenure: Tenure::from_bits(8), serial: 9 },
    };
    let two = Inspected { id: Identifier::new("db").unwrap(), ..one.clone() };
    let all = vec![one, two];
    let entries = all.iter().map(|it| (&it.id, it.limit, it.origin));
    assert_eq!(through(inspected(entries), |frame| parse_inspected(&frame)), Ok(Ok(all.clone())));
    let how = Status { pid: 5, ..Status::default() };
    assert_eq!(through(told_status(&how), |frame| parse_status(&frame)), Ok(Ok(how)));
    let refusal = || status(Err(Errno::OPNOTSUPP));
    assert_eq!(through(refusal(), |frame| parse_hello(&frame)), Ok(Err(Errno::OPNOTSUPP)));
}

#[test]
fn each_is_read_as_what_it_is() {
    let read = |payload| match parse_request(payload, &[]) {
        Ok(Parsed::Request(Request::Extension(extension))) => extension,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(b"+\0\0\0\x01\x02"), Extension::Hello(258));
    assert_eq!(read(b"+\x01\x01"), Extension::Snapshot { entries: true });
    assert_eq!(read(b"+\x03\x01"), Extension::Release { runs: vec![], only_ask: true });
    assert_eq!(read(b"+\x04\x01"), Extension::OnConflict(OnConflict::Keep));
    assert_eq!(read(b"+\x05"), Extension::Taken);
    assert_eq!(read(b"+\x06\0\0\x01\x02"), Extension::Follow { capacity: 258 });
    assert_eq!(read(b"+\x07"), Extension::Upgrade);
    assert_eq!(read(b"+\x08"), Extension::Inspect);
    assert_eq!(read(b"+\x09"), Extension::Status);
}

#[test]
fn only_a_delivery_has_a_descriptor_to_lose() {
    let lost = |extension: Extension<u32>| {
        let (bytes, _) = extension.into_message().into_parts();
        Request::<u32>::parse(Frame { payload: &bytes[HEADER_LEN..], fds: vec![], fds_lost: true })
    };
    assert_eq!(lost(Extension::Deliver { runs: vec![2..5, 7..8], to: 9 }), Ok(Parsed::FdsLost));
    assert!(lost(Extension::Taken).is_err());
}

#[test]
fn a_run_is_neither_empty_nor_too_long() {
    let release = |start: u32, len: u32| {
        let payload = [&b"+\x03\0"[..], &start.to_be_bytes(), &len.to_be_bytes()].concat();
        parse_request(&payload, &[])
    };
    let range = u32::MAX - 1..u32::MAX;
    let last = Extension::Release { runs: vec![range], only_ask: false };
    assert_eq!(release(u32::MAX - 1, 1), Ok(Parsed::Request(Request::Extension(last))));
    assert!(release(u32::MAX - 1, 2).is_err());
    assert!(release(5, 0).is_err());
}

#[test]
fn a_snapshot_is_of_what_can_be_open() {
    let read = |count, entries| {
        let (bytes, _) = snapshot::<u32>(count, 5, std::iter::empty()).into_parts();
        let payload = &bytes[HEADER_LEN..];
        parse_snapshot(&Frame::<u32> { payload, fds: vec![], fds_lost: false }, entries)
    };
    let most = Snapshot { count: DUMP_FDS_MAX, capacity: 5, entries: vec![] };
    assert_eq!(read(DUMP_FDS_MAX, false), Ok(Ok(most)));
    assert!(read(DUMP_FDS_MAX + 1, false).is_err());
    assert!(read(1, true).is_err(), "one that is not told");
}

#[test]
fn a_later_hello_may_say_more() {
    let frame: Frame<'_, u32> =
        Frame { payload: b"\0\0\0\0\x09and more", fds: vec![], fds_lost: false };
    assert_eq!(parse_hello(&frame), Ok(Ok(9)));
}

#[test]
fn the_bytes_are_those_of_the_page() {
    let bytes = |extension: Extension<u32>| extension.into_message().into_parts().0;
    assert_eq!(bytes(Extension::Hello(1)), b"\0\0\0\x06\0\0+\0\0\0\0\x01");
    assert_eq!(bytes(Extension::Snapshot { entries: true }), b"\0\0\0\x03\0\0+\x01\x01");
    assert_eq!(
        bytes(Extension::Deliver { runs: vec![2..5, 7..8], to: 9 }),
        b"\0\0\0\x12\0\x01+\x02\0\0\0\x02\0\0\0\x03\0\0\0\x07\0\0\0\x01"
    );
    assert_eq!(
        bytes(Extension::Release { runs: vec![], only_ask: true }),
        b"\0\0\0\x03\0\0+\x03\x01"
    );
    let on_conflict = [OnConflict::Replace, OnConflict::Keep, OnConflict::Fail];
    assert_eq!(on_conflict.map(OnConflict::to_byte), [0, 1, 2]);
    assert_eq!(on_conflict.map(|it| OnConflict::from_byte(it.to_byte())), on_conflict.map(Ok));
    assert!(OnConflict::from_byte(3).is_err());
    assert_eq!(bytes(Extension::OnConflict(OnConflict::Fail)), b"\0\0\0\x03\0\0+\x04\x02");
    assert_eq!(bytes(Extension::Taken), b"\0\0\0\x02\0\0+\x05");
    assert_eq!(bytes(Extension::Follow { capacity: 258 }), b"\0\0\0\x06\0\0+\x06\0\0\x01\x02");
    assert_eq!(bytes(Extension::Upgrade), b"\0\0\0\x02\0\0+\x07");
    assert_eq!(bytes(Extension::Inspect), b"\0\0\0\x02\0\0+\x08");
    assert_eq!(bytes(Extension::Status), b"\0\0\0\x02\0\0+\x09");
    let longest = Extension::Deliver { runs: vec![0..1; RUNS_MAX], to: 0 };
    assert!(bytes(longest).len() - HEADER_LEN <= REQUEST_PAYLOAD_MAX);
}
