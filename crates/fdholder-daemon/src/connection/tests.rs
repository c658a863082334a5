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

/// There may be thousands on which nothing is asked any more.
#[test]
fn who_is_idle_keeps_no_large_buffer() {
    let (mut connection, mut store) = (connection(), holding(1));
    let (list, _) = Request::<u32>::List.into_message().into_parts();
    connection.receive(&list.repeat(9000), [], false);
    assert!(connection.decoder.buffer_len() > 60_000);
    while step(&mut connection, &mut store).is_some() {
        reply(&mut connection);
    }
    assert!(connection.decoder.buffer_len() <= 4096, "{}", connection.decoder.buffer_len());
}

/// A client that waits for its turn cannot fill the daemon with descriptors: of those that
/// no request has announced one message's worth is read, and no more.
#[test]
fn who_waits_sends_no_more_descriptors_than_announced() {
    let (mut client, mut store) = (connection(), holding(1));
    answer(&mut client, &mut store, Request::Retrieve { id: entry(0).id, delete: true });
    assert!(client.is_borrowing(), "nothing else is done for it now");
    client.receive(b"\0\0\0\x40\0\x01S", [1], false);
    assert!(client.wants_input(), "the rest of it may come");
    client.receive(b"x", 0..253, false);
    assert!(!client.wants_input());
    assert_eq!(step(&mut client, &mut store), None);
    client.settle(true, &mut store);
    assert!(client.step(&mut store, &Ledger::ample(), now()).is_err());
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
    (client, ()) = Connection::resume(client.standing.clone(), client.hand_over(()).unwrap());
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
        let changes = client.settle(taken, &mut store);
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
        client.settle(taken, &mut store);
        assert_eq!(store.retrieve(&one(), now()).unwrap().fd, 99);
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

/// A client with limits of its own.
fn limited(quotas: Quotas) -> Connection<u32> {
    let rights = Some(Arc::new(Rights { quotas, ..Rights::all() }));
    Connection::new(Standing { uid: 7, is_own: false, rights })
}

fn text(payload: &[u8]) -> &str {
    std::str::from_utf8(&payload[1..]).unwrap()
}

const ENFILE: [u8; 1] = [Errno::NFILE.raw_os_error() as u8];
const EDQUOT: [u8; 1] = [Errno::DQUOT.raw_os_error() as u8];
const EPERM: [u8; 1] = [Errno::PERM.raw_os_error() as u8];

#[test]
fn a_limit_on_what_is_held_has_a_name() {
    let mut store = Store::new(20);
    let mut client = limited(Quotas { fds: Some(2), ..Quotas::default() });
    assert_eq!(answer(&mut client, &mut store, extension(Extension::Why)), [0]);
    for number in 0..2 {
        assert_eq!(answer(&mut client, &mut store, Request::Store(entry(number))), [0]);
    }
    assert_eq!(answer(&mut client, &mut store, Request::Store(entry(2))), ENFILE);
    let why = answer(&mut client, &mut store, extension(Extension::Why));
    assert!(text(&why).contains("2 descriptors held at most (FDHOLDER_MAXFDS)"), "{why:?}");
    // A set counts, but for what it replaces of its own.
    let set = |numbers: Range<u32>| Request::SetdumpData(numbers.map(entry).collect());
    assert_eq!(answer(&mut client, &mut store, Request::Setdump(3))[0], 0);
    assert_eq!(answer(&mut client, &mut store, set(0..3)), ENFILE);
    assert_eq!(answer(&mut client, &mut store, Request::Setdump(2))[0], 0);
    assert_eq!(answer(&mut client, &mut store, set(0..2)), [0]);
    // What is deleted makes room.
    let first = || Identifier::new("0").unwrap();
    assert_eq!(answer(&mut client, &mut store, Request::Delete(first())), [0]);
    assert_eq!(answer(&mut client, &mut store, Request::Store(entry(9))), [0]);
    assert_eq!(store.held_by(7), 2);
    // And others have room all the while.
    let mut other = limited(Quotas::default());
    assert_eq!(answer(&mut other, &mut store, Request::Store(entry(30))), [0]);
    store.check();
}

#[test]
fn a_user_without_a_rule_has_its_share_and_root_the_rest() {
    let mut store = Store::new(10);
    let mut client = limited(Quotas::default());
    for number in 0..5 {
        assert_eq!(answer(&mut client, &mut store, Request::Store(entry(number))), [0]);
    }
    assert_eq!(answer(&mut client, &mut store, Request::Store(entry(5))), ENFILE);
    let why = answer(&mut client, &mut store, extension(Extension::Why));
    assert!(text(&why).contains("has its share"), "{why:?}");
    // Root may have the rest, and is told that it is full.
    let rights = Some(Arc::new(Rights::all()));
    let mut root = Connection::new(Standing { uid: 0, is_own: false, rights });
    for number in 10..15 {
        assert_eq!(answer(&mut root, &mut store, Request::Store(entry(number))), [0]);
    }
    assert_eq!(answer(&mut root, &mut store, Request::Store(entry(15))), ENFILE);
    let why = answer(&mut root, &mut store, extension(Extension::Why));
    assert!(text(&why).contains("full: it holds 10 at most (-n)"), "{why:?}");
}

/// Neither many users, each with its share, nor one with a rule, leave root without a place.
#[test]
fn root_always_gets_the_places_that_are_reserved() {
    let quotas = [Quotas { fds: Some(1000), ..Quotas::default() }, Quotas::default()];
    for (capacity, reserved) in [(2, 1), (10, 1), (200, 3), (1000, 15), (5000, 16)] {
        for quotas in quotas {
            let mut store = Store::new(capacity);
            store.reserve();
            for uid in 1..200 {
                let owner = Claimant { uid, is_trusted: false, quotas };
                let mut number = 1000 * uid;
                while store.store(entry(number), &owner, now()).answer.is_ok() {
                    number += 1;
                }
            }
            assert_eq!(store.len(), capacity - reserved);
            let rights = Some(Arc::new(Rights { quotas, ..Rights::all() }));
            let mut user = Connection::new(Standing { uid: 7, is_own: false, rights });
            assert_eq!(answer(&mut user, &mut store, Request::Store(entry(1))), ENFILE);
            let why = answer(&mut user, &mut store, extension(Extension::Why));
            assert!(text(&why).contains(&format!("the last {reserved} for root")), "{why:?}");
            // It may still replace what is its own.
            let own = store.iter().find(|record| record.origin.owner == 7).cloned();
            if let Some(own) = own {
                let again = Entry { id: own.id.clone(), limit: own.limit, fd: 1 };
                answer(&mut user, &mut store, Request::Setdump(1));
                assert_eq!(answer(&mut user, &mut store, Request::SetdumpData(vec![again])), [0]);
            }
            for number in 0..reserved as u32 {
                store.store(entry(number), 0, now()).answer.unwrap();
            }
            assert_eq!(store.store(entry(999), 0, now()).answer, Err(Errno::NFILE));
            store.check();
        }
    }
}

#[test]
fn long_answers_count_before_they_are_made() {
    let mut store = holding(100);
    let quotas = Quotas { bytes: Some(100), ..Quotas::default() };
    let mut client = limited(quotas);
    let ask_for = |extension| Request::Extension(extension);
    for request in [
        Request::List,
        Request::Getdump,
        ask_for(Extension::Inspect),
        ask_for(Extension::Snapshot { entries: true }),
        ask_for(Extension::Snapshot { entries: false }),
    ] {
        assert_eq!(answer(&mut client, &mut store, request.clone()), EDQUOT, "{request:?}");
        let why = answer(&mut client, &mut store, extension(Extension::Why));
        assert!(text(&why).contains("100 bytes unread at most (FDHOLDER_MAXBYTES)"), "{why:?}");
    }
    assert_eq!(client.charges(), Amounts::of(Resource::Connections, 1));
    assert_eq!(answer(&mut limited(Quotas::default()), &mut store, Request::List)[0], 0);
}

/// What a client has is what the ledger charges it for.
#[test]
fn everything_that_waits_is_charged() {
    let mut store = holding(600);
    let mut client = connection();
    let get = |client: &Connection<u32>, resource| client.charges().get(resource);
    // Half a message, with its descriptors: there may come as many as with any. And all of it.
    let (bytes, fds) = Request::SetdumpData(vec![entry(1), entry(2)]).into_message().into_parts();
    client.receive(&bytes[..10], fds, false);
    assert!(client.has_fds_of_a_part());
    assert_eq!(get(&client, Resource::Arriving), MESSAGE_FDS_MAX);
    assert_eq!(get(&client, Resource::Bytes), 10);
    client.receive(&bytes[10..], [], false);
    assert!(!client.has_fds_of_a_part());
    assert_eq!(get(&client, Resource::Arriving), 2);
    // A set that is announced, whether it has come or not.
    let mut client = connection();
    assert_eq!(answer(&mut client, &mut store, Request::Setdump(500))[0], 0);
    assert_eq!(get(&client, Resource::Arriving), 500);
    ask(&mut client, Request::SetdumpData((0..200).map(entry).collect()));
    step(&mut client, &mut store);
    assert_eq!(get(&client, Resource::Arriving), 500);
    assert!(get(&client, Resource::Bytes) >= 200 * MEMORY_PER_FD);
    // A dump, and a snapshot.
    let mut client = connection();
    ask(&mut client, Request::Getdump);
    step(&mut client, &mut store);
    assert!(get(&client, Resource::Bytes) >= 600 * size_of::<usize>());
    let mut client = connection();
    answer(&mut client, &mut store, extension(Extension::Snapshot { entries: false }));
    assert!(get(&client, Resource::Bytes) >= 600 * size_of::<usize>());
    // A loan.
    let mut client = connection();
    let id = Identifier::new("5").unwrap();
    answer(&mut client, &mut store, Request::Retrieve { id, delete: true });
    assert_eq!(get(&client, Resource::Loans), 1);
}

#[test]
fn sets_and_loans_wait_for_room() {
    let mut store = holding(600);
    let mut client = connection();
    let one = |client: &mut Connection<u32>, store: &mut Store<u32>, ledger: &Ledger, asked| {
        ask(client, asked);
        client.step(store, ledger, now()).unwrap();
        reply(client)
    };
    // All that can be held is, and of 600 more that may be on their way one user has half.
    let mut full = Store::new(600);
    for number in 0..600 {
        full.store(entry(number), 0, now()).answer.unwrap();
    }
    let ledger = Ledger::new(Amounts::of(Resource::Arriving, 600), Amounts::default());
    assert_eq!(one(&mut client, &mut full, &ledger, Request::Setdump(301)), ENFILE);
    assert_eq!(one(&mut client, &mut full, &ledger, Request::Setdump(300))[0], 0);
    // What can be held and is not has room for them as well.
    let mut client = connection();
    assert_eq!(one(&mut client, &mut store, &ledger, Request::Setdump(301))[0], 0);
    let take = |name: &str| Request::Retrieve { id: Identifier::new(name).unwrap(), delete: true };
    let mut client = connection();
    let ledger = Ledger::new(Amounts::of(Resource::Loans, 0), Amounts::default());
    assert_eq!(one(&mut client, &mut store, &ledger, take("5")), EDQUOT);
    assert!(store.find_held(&Identifier::new("5").unwrap()).is_some());
}

/// The answer to a delete leaves when its descriptor is closed, and nothing is done before.
#[test]
fn a_delete_waits_until_it_is_closed() {
    let mut store = holding(3);
    for (is_closed, status) in [(true, 0), (false, Errno::INPROGRESS.raw_os_error() as u8)] {
        let mut client = connection();
        let id = Identifier::new(if is_closed { "0" } else { "1" }).unwrap();
        ask(&mut client, Request::Delete(id));
        ask(&mut client, Request::List);
        client.step(&mut store, &Ledger::ample(), now()).unwrap();
        assert!(client.awaits_close() && client.is_busy() && client.outbox().is_empty());
        assert!(client.hand_over(()).is_none());
        let waits = client.step(&mut store, &Ledger::ample(), now()).unwrap();
        assert!(matches!(waits, Step::Wait));
        client.has_closed(is_closed);
        assert_eq!(reply(&mut client), [status]);
        // It is said once.
        client.has_closed(true);
        assert!(client.outbox().is_empty());
    }
}

/// Who may not know what is held does not learn it by way of conflicts.
#[test]
fn conflicts_are_for_who_may_list() {
    let mut store = holding(1);
    let blind = Rights { list: false, getdump: false, ..Rights::all() };
    let mut client =
        Connection::new(Standing { uid: 7, is_own: false, rights: Some(Arc::new(blind)) });
    for (way, expected) in
        [(OnConflict::Replace, [0]), (OnConflict::Keep, EPERM), (OnConflict::Fail, EPERM)]
    {
        let asked = extension(Extension::OnConflict(way));
        assert_eq!(answer(&mut client, &mut store, asked), expected, "{way:?}");
    }
}

fn wait_for(name: &str, is_prefix: bool) -> Request<u32> {
    let id = Identifier::new(name).unwrap();
    Request::Extension(Extension::Await { id, is_prefix })
}

#[test]
fn wait_for_an_id_is_answered_once_it_is_held_and_not_before() {
    for (name, is_prefix, others, comes) in [
        ("7", false, "70", "7"),
        ("web", true, "we", "web/1"),
        ("web", true, "web/.notify", "web"),
        ("web", true, "web/.status", "webs"),
    ] {
        let mut store = holding(0);
        store.set_awaited(true);
        let mut client = connection();
        ask(&mut client, wait_for(name, is_prefix));
        step(&mut client, &mut store);
        // It is in the middle of nothing, and what it asks behind that waits.
        assert!(client.awaits().is_some() && !client.is_busy() && client.outbox().is_empty());
        ask(&mut client, Request::List);
        assert!(step(&mut client, &mut store).is_none());
        let charges = client.charges();
        assert_eq!(charges.get(Resource::Connections), 0, "it takes nobody's connection");
        assert_eq!(charges.get(Resource::Waiting), 1);
        let mut give = |store: &mut Store<u32>, name: &str| {
            let entry = Entry { id: Identifier::new(name).unwrap(), ..entry(1) };
            store.store(entry, 0, now()).answer.unwrap();
            let appeared = store.take_appeared();
            assert_eq!(appeared, [Identifier::new(name).unwrap()]);
            client.has_appeared(store, now())
        };
        assert!(!give(&mut store, others), "{name} {others}");
        assert!(give(&mut store, comes), "{name} {comes}");
        assert_eq!(reply(&mut client), [0]);
        assert_eq!(
            client.charges().get(Resource::Connections),
            0,
            "nor when all are answered at once"
        );
        assert_eq!(client.charges().get(Resource::Waiting), 1);
        step(&mut client, &mut store).expect("what it has asked then is carried out");
        // What is held already is not waited for.
        let mut next = connection();
        assert_eq!(answer(&mut next, &mut store, wait_for(name, is_prefix)), [0]);
    }
}

#[test]
fn wait_for_what_a_client_may_not_know_is_refused() {
    let rights = |list: bool| {
        let retrieve =
            crate::access::Ids::Matching(crate::access::pattern::Pattern::new(b"^a").unwrap());
        Some(Arc::new(Rights { retrieve, list, ..Rights::default() }))
    };
    for (list, name, is_prefix, may) in [
        (false, "a", false, true),
        (false, "b", false, false),
        (false, "a", true, false),
        (true, "b", true, true),
        (true, "b", false, false),
    ] {
        let mut store = holding(1);
        let standing = Standing { uid: 7, is_own: false, rights: rights(list) };
        let mut client = Connection::new(standing);
        ask(&mut client, wait_for(name, is_prefix));
        step(&mut client, &mut store);
        assert_eq!(client.awaits().is_some(), may, "{list} {name} {is_prefix}");
        if !may {
            assert_eq!(reply(&mut client), EPERM);
        }
    }
}

#[test]
fn waiters_beyond_a_users_share_are_refused_and_told_why() {
    let mut store = holding(0);
    let sizes = Amounts::of(Resource::Waiting, 4);
    let mut ledger = Ledger::new(sizes, Amounts::default());
    let mut clients: Vec<_> = (0..3).map(|_| connection()).collect();
    for client in &mut clients {
        ask(client, wait_for("a", false));
        client.step(&mut store, &ledger, now()).unwrap();
        ledger.recharge(7, &mut Amounts::default(), client.charges());
    }
    assert!(clients[1].awaits().is_some() && clients[2].awaits().is_none());
    assert_eq!(reply(&mut clients[2]), EDQUOT);
    let why = answer(&mut clients[2], &mut store, extension(Extension::Why));
    assert!(text(&why).contains("too many clients wait"), "{why:?}");
}

/// A daemon that goes on with it does not know what this one knows.
#[test]
fn waiter_that_is_handed_over_asks_again() {
    let mut store = holding(0);
    let mut client = connection();
    ask(&mut client, wait_for("7", false));
    ask(&mut client, Request::List);
    step(&mut client, &mut store);
    let handed = client.hand_over(()).unwrap();
    let standing = Standing { uid: 7, is_own: false, rights: Some(Arc::new(Rights::all())) };
    let (mut client, ()) = Connection::resume(standing, handed);
    step(&mut client, &mut store);
    assert!(client.awaits().is_some());
    store.store(entry(7), 7, now()).answer.unwrap();
    assert!(client.has_appeared(&store, now()));
    assert_eq!(reply(&mut client), [0]);
    step(&mut client, &mut store);
    assert_eq!(reply(&mut client)[5..], *b"7\0");
}

/// What was lent comes back, too.
#[test]
fn waiter_is_told_of_what_a_client_has_not_taken() {
    let mut store = holding(1);
    store.set_awaited(true);
    let mut borrower = connection();
    let id = Identifier::new("0").unwrap();
    answer(&mut borrower, &mut store, Request::Retrieve { id: id.clone(), delete: true });
    let mut client = connection();
    ask(&mut client, wait_for("0", false));
    step(&mut client, &mut store);
    assert!(client.awaits().is_some());
    borrower.settle(false, &mut store);
    assert_eq!(store.take_appeared(), [id]);
    assert!(client.has_appeared(&store, now()));
}

/// What others may do only root and the daemon's own user may know.
#[test]
fn rights_of_others_are_for_root_and_the_daemons_user() {
    let asked = || {
        let id = Identifier::new("a").unwrap();
        extension(Extension::MayStore { uid: 5, gid: 6, id })
    };
    for (uid, is_own, may_ask) in [(7, false, false), (0, false, true), (7, true, true)] {
        let mut store = holding(0);
        let rights = Some(Arc::new(Rights::all()));
        let mut client = Connection::new(Standing { uid, is_own, rights });
        ask(&mut client, asked());
        step(&mut client, &mut store);
        if may_ask {
            let user = User { uid: 5, gid: 6 };
            let question = Question::MayStore(user, Identifier::new("a").unwrap());
            assert_eq!(client.question(), Some(&question));
            client.answer(&Ok(Answered::MayStore(true)));
            assert_eq!(reply(&mut client), [0, 1]);
        } else {
            assert_eq!(reply(&mut client), EPERM);
        }
    }
}
