//! A client by itself, with numbers for descriptors.

// A delivery of one run is nothing strange, and errno values are small.
#![allow(clippy::single_range_in_vec_init, clippy::cast_sign_loss)]

use super::*;
use fdholder::{Identifier, Limit};

fn connection() -> Connection<u32> {
    let rights = Some(Arc::new(Rights::all()));
    Connection::new(Standing { uid: 7, is_own: false, rights })
}

fn now() -> Timestamp {
    Timestamp::new((1 << 62) + 1000, 0).unwrap()
}

fn entry(number: u32) -> Entry<u32> {
    let id = Identifier::new(number.to_string()).unwrap();
    Entry { id, limit: Limit::never_from(now()), fd: number }
}

fn holding(count: u32) -> Store<u32> {
    let mut store = Store::new(20_000);
    for number in 0..count {
        assert_eq!(store.store(entry(number), 7, now()).answer, Ok(()));
    }
    store
}

fn ask(connection: &mut Connection<u32>, request: Request<u32>) {
    let (bytes, fds) = request.into_message().into_parts();
    connection.receive(&bytes, fds, false);
}

/// Carries out one request; returns its cost.
fn step(connection: &mut Connection<u32>, store: &mut Store<u32>) -> Option<usize> {
    match connection.step(store, &Ledger::ample(), now()).unwrap() {
        Step::Did { cost, .. } => {
            connection.has_closed(true);
            Some(cost)
        }
        Step::Wait => None,
    }
}

/// The payload of the only reply that waits.
fn reply(connection: &mut Connection<u32>) -> Vec<u8> {
    let (bytes, _) = connection.outbox().front().unwrap();
    let bytes = bytes.to_vec();
    connection.outbox().advance(bytes.len());
    assert!(connection.outbox().is_empty());
    bytes[fdholder::limits::HEADER_LEN..].to_vec()
}

fn answer(
    connection: &mut Connection<u32>,
    store: &mut Store<u32>,
    asked: Request<u32>,
) -> Vec<u8> {
    ask(connection, asked);
    assert!(step(connection, store).is_some());
    reply(connection)
}

fn extension(extension: Extension<u32>) -> Request<u32> {
    Request::Extension(extension)
}

#[test]
fn nothing_else_is_done_during_a_delivery() {
    let (mut client, mut store) = (connection(), holding(3));
    answer(&mut client, &mut store, extension(Extension::Snapshot { entries: false }));
    ask(&mut client, extension(Extension::Deliver { runs: vec![0..1, 2..3], to: 77 }));
    assert!(step(&mut client, &mut store).is_some());
    assert!(client.is_delivering() && client.is_busy() && client.wants_input());
    assert!(!client.is_timed(), "a delivery has a time of its own");
    ask(&mut client, Request::List);
    assert_eq!(step(&mut client, &mut store), None);
    assert!(!client.wants_input(), "one request waits already");
    let delivery = client.take_delivery().unwrap();
    assert_eq!((*delivery.to(), delivery.len()), (77, 2));
    assert!(client.take_delivery().is_none() && client.is_delivering());
    assert_eq!(step(&mut client, &mut store), None);
    client.delivery_ended(Ok(99));
    assert_eq!(reply(&mut client), b"\0\0\0\0\0\0\0\0\x63");
    assert!(step(&mut client, &mut store).is_some());
    assert_eq!(reply(&mut client)[..5], *b"\0\0\0\0\x03");
}

/// What has arrived is carried out before more is read, however little that is in a turn.
#[test]
fn no_more_is_read_than_is_carried_out() {
    let (mut client, mut store) = (connection(), holding(0));
    for _ in 0..3 {
        ask(&mut client, Request::Delete(Identifier::new("x").unwrap()));
    }
    for _ in 0..3 {
        assert!(!client.wants_input());
        assert!(step(&mut client, &mut store).is_some());
    }
    assert!(client.wants_input());
}

#[test]
fn what_takes_long_costs_much() {
    let (mut client, mut store) = (connection(), holding(10_000));
    let mut cost = |request| {
        ask(&mut client, request);
        let cost = step(&mut client, &mut store).unwrap();
        while let Some((bytes, _)) = client.outbox().front() {
            let len = bytes.len();
            client.outbox().advance(len);
        }
        cost
    };
    assert_eq!(cost(Request::Delete(Identifier::new("x").unwrap())), 1);
    assert_eq!(cost(extension(Extension::Snapshot { entries: false })), 40);
    assert_eq!(cost(Request::List), 40);
    let ask = extension(Extension::Release { runs: vec![0..4096], only_ask: true });
    assert_eq!(cost(ask), 17);
}

#[test]
fn a_release_has_its_limit() {
    let (mut client, mut store) = (connection(), holding(5000));
    answer(&mut client, &mut store, extension(Extension::Snapshot { entries: false }));
    let mut release = |end: u32| {
        let request = Extension::Release { runs: vec![0..10, 10..end], only_ask: false };
        answer(&mut client, &mut store, extension(request))
    };
    assert_eq!(release(4097), [Errno::INVAL.raw_os_error() as u8]);
    assert_eq!(release(4096), b"\0\0\0\x10\0");
    assert_eq!(store.len(), 904);
}

#[test]
fn what_came_of_a_set_is_of_the_last_one() {
    let (mut client, mut store) = (connection(), holding(3));
    let taken = || extension(Extension::Taken);
    let nodata = [Errno::NODATA.raw_os_error() as u8];
    assert_eq!(answer(&mut client, &mut store, taken()), nodata);
    answer(&mut client, &mut store, extension(Extension::OnConflict(OnConflict::Keep)));
    answer(&mut client, &mut store, Request::Setdump(2));
    let done = answer(&mut client, &mut store, Request::SetdumpData(vec![entry(9), entry(1)]));
    assert_eq!(done, b"\0");
    // One was added, none replaced, the second of the set kept out.
    let kept = b"\0\0\0\0\x01\0\0\0\0\0\0\0\x01";
    assert_eq!(answer(&mut client, &mut store, taken()), kept);
    // The next daemon can tell as well.
    client = Connection::resume(client.standing.clone(), &client.hand_over(()).unwrap());
    assert_eq!(answer(&mut client, &mut store, taken()), kept);
    answer(&mut client, &mut store, extension(Extension::OnConflict(OnConflict::Fail)));
    answer(&mut client, &mut store, Request::Setdump(1));
    let refused = answer(&mut client, &mut store, Request::SetdumpData(vec![entry(1)]));
    assert_eq!(refused, [Errno::EXIST.raw_os_error() as u8]);
    assert_eq!(answer(&mut client, &mut store, taken()), nodata);
}

/// What a snapshot keeps open is not kept for ever by a client that does nothing.
#[test]
fn a_snapshot_is_timed() {
    let (mut client, mut store) = (connection(), holding(1));
    assert!(!client.is_timed());
    answer(&mut client, &mut store, extension(Extension::Snapshot { entries: false }));
    assert!(client.is_timed() && !client.is_busy());
}

/// What a client is to have alone is seen by nobody, and comes back if it does not take it.
#[test]
fn a_loan_is_hidden_until_it_is_settled() {
    for taken in [false, true] {
        let (mut client, mut other, mut store) = (connection(), connection(), holding(2));
        let one = || Identifier::new("1").unwrap();
        let retrieve = |delete| Request::Retrieve { id: one(), delete };
        assert_eq!(answer(&mut client, &mut store, retrieve(true)), b"\0");
        assert!(client.is_borrowing() && client.is_busy());
        let noent = [Errno::NOENT.raw_os_error() as u8];
        assert_eq!(answer(&mut other, &mut store, retrieve(false)), noent);
        assert_eq!(answer(&mut other, &mut store, retrieve(true)), noent);
        assert_eq!(answer(&mut other, &mut store, Request::Delete(one())), noent);
        assert_eq!(answer(&mut other, &mut store, Request::List), b"\0\0\0\0\x010\0");
        let busy = [Errno::BUSY.raw_os_error() as u8];
        assert_eq!(answer(&mut other, &mut store, Request::Store(entry(1))), busy);
        let changes = client.settle(taken, &mut store, now());
        assert_eq!((changes.len(), store.len()), if taken { (1, 1) } else { (0, 2) });
        assert!(!client.is_borrowing());
        let then = answer(&mut other, &mut store, retrieve(false));
        assert_eq!(then[..], if taken { noent } else { [0] });
    }
}

/// What has taken the place of a loan stays, whatever becomes of the loan.
#[test]
fn a_loan_that_was_replaced_is_over() {
    for taken in [false, true] {
        let (mut client, mut other, mut store) = (connection(), connection(), holding(2));
        let one = || Identifier::new("1").unwrap();
        let retrieve = Request::Retrieve { id: one(), delete: true };
        answer(&mut client, &mut store, retrieve);
        answer(&mut other, &mut store, Request::Setdump(1));
        let new = Entry { fd: 99, ..entry(1) };
        assert_eq!(answer(&mut other, &mut store, Request::SetdumpData(vec![new])), b"\0");
        client.settle(taken, &mut store, now());
        assert_eq!(store.retrieve(&one(), now()).answer.unwrap().fd, 99);
        store.check();
    }
}

/// A daemon asks to follow together with its hello: the answer to that comes first, although
/// it may have to wait.
#[test]
fn who_follows_is_answered_first_what_it_asked_before() {
    let standing = Standing { uid: 7, is_own: true, rights: Some(Arc::new(Rights::all())) };
    let (mut client, mut store) = (Connection::new(standing), holding(0));
    ask(&mut client, extension(Extension::Hello(extension::VERSION)));
    ask(&mut client, extension(Extension::Follow { capacity: 9 }));
    assert!(step(&mut client, &mut store).is_some());
    assert!(step(&mut client, &mut store).is_some());
    assert_eq!(client.take_follower(), None);
    reply(&mut client);
    assert_eq!(client.take_follower(), Some(9));
}
