//! What may be answered, with numbers for descriptors.

use super::*;
use crate::replication::Replica;
use crate::store::Outcome;
use fdholder::extension::OnConflict;
use fdholder::frame::Decoder;
use fdholder::link::{Fed, Heard, LINK_PAYLOAD_MAX};
use fdholder::{Entry, Limit, Tenure, Timestamp};

fn entry(number: u32) -> Entry<u32> {
    let id = Identifier::new(number.to_string()).unwrap();
    Entry { id, limit: Limit::never(), fd: number }
}

/// A set is held; returns what its answer waits for.
fn hold_set(
    mirrors: &mut Mirrors<u32>,
    store: &mut Store<u32>,
    ids: std::ops::Range<u32>,
) -> Ticket {
    hold_set_of(mirrors, store, ids, 7)
}

fn hold_set_of(
    mirrors: &mut Mirrors<u32>,
    store: &mut Store<u32>,
    ids: std::ops::Range<u32>,
    owner: u32,
) -> Ticket {
    let tenure = Tenure::from_bits(0);
    let staged = ids.map(|number| store.stage(entry(number), owner, tenure)).collect();
    let Outcome { answer, changes } =
        store.setdump(staged, OnConflict::Replace, owner, Timestamp::now());
    answer.unwrap();
    mirrors.record(&changes, store);
    mirrors.ticket()
}

/// Sends a follower one message.
fn send_one(mirrors: &mut Mirrors<u32>, key: usize) -> bool {
    let mirror = mirrors.get_mut(key).unwrap();
    let Some(len) = mirror.front().map(|(bytes, _)| bytes.len()) else { return false };
    mirror.advance(len);
    true
}

/// Brings a follower all that there is for it.
fn follow(mirrors: &mut Mirrors<u32>, key: usize, replica: &mut Replica<u32>) {
    let mut decoder = Decoder::new(LINK_PAYLOAD_MAX);
    let mirror = mirrors.get_mut(key).unwrap();
    while let Some((bytes, carriers)) = mirror.front() {
        let len = bytes.len();
        decoder.push(bytes, carriers.iter().map(|carrier| *carrier.fd()), false);
        mirror.advance(len);
        while let Some(frame) = decoder.next().unwrap() {
            let told = replica.hear(Fed::parse(frame).unwrap()).unwrap();
            if let Some(heard) = told.answer {
                mirror.hear(&heard);
            }
        }
    }
}

fn held(store: &Store<u32>) -> Vec<(Identifier, u64, u32)> {
    let all = store.iter().map(|record| (record.id.clone(), record.origin.serial, record.fd));
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

/// First the copy, then what changed meanwhile, and what changes later; at last the clients.
#[test]
fn a_follower_gets_everything() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    hold_set(&mut mirrors, &mut store, 0..300);
    let key = mirrors.add(&store);
    let mut replica = Replica::new(1000);
    for ids in [290..310, 5..6, 305..315] {
        hold_set(&mut mirrors, &mut store, ids.clone());
        let changes = store.delete(&entry(ids.start).id, Timestamp::now()).changes;
        mirrors.record(&changes, &store);
        follow(&mut mirrors, key, &mut replica);
        assert_eq!(held(replica.store()), held(&store));
        assert!(replica.is_synced() && mirrors.get_mut(key).unwrap().has_everything());
        assert!(mirrors.has_passed(mirrors.ticket()) && !mirrors.is_behind(key));
    }
    let client = HandedClient {
        socket: Arc::new(77),
        is_fdholder: true,
        awaits_upgrade: false,
        on_conflict: OnConflict::Fail,
        taken: None,
        unread: vec![1, 2],
    };
    mirrors.get_mut(key).unwrap().hand_over(&client);
    follow(&mut mirrors, key, &mut replica);
    assert!(!replica.is_ours());
    mirrors.get_mut(key).unwrap().is_yours();
    follow(&mut mirrors, key, &mut replica);
    assert!(replica.is_ours());
    assert_eq!(replica.into_parts().1, [client]);
}

/// A follower that has got half of a set holds nothing of the message yet, neither of that
/// set nor of what came before: no answer may depend on it.
#[test]
fn what_shares_a_message_with_half_a_set_waits() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    let key = mirrors.add(&store);
    while send_one(&mut mirrors, key) {}
    let first = hold_set(&mut mirrors, &mut store, 0..100);
    let second = hold_set(&mut mirrors, &mut store, 100..400);
    assert!(send_one(&mut mirrors, key), "the first and half of the second");
    assert!(!mirrors.has_passed(first));
    assert!(send_one(&mut mirrors, key), "the rest");
    assert!(mirrors.has_passed(first) && mirrors.has_passed(second));
    assert!(!send_one(&mut mirrors, key));
}

/// Deletes something; returns what its answer waits for.
fn delete(mirrors: &mut Mirrors<u32>, store: &mut Store<u32>, number: u32) -> Releases {
    let changes = store.delete(&entry(number).id, Timestamp::now()).changes;
    mirrors.record(&changes, store);
    mirrors.released(&changes)
}

fn say(mirrors: &mut Mirrors<u32>, key: usize, heard: &Heard) {
    assert!(mirrors.get_mut(key).unwrap().hear(heard));
}

/// It has carried out everything.
fn say_up_to_now(mirrors: &mut Mirrors<u32>, key: usize) {
    let now = mirrors.ticket().recorded();
    say(mirrors, key, &Heard::UpTo(now));
}

/// Everything but the answer to a delete leaves as soon as it was sent; that waits until it has
/// been carried out.
#[test]
fn what_closes_waits_until_it_is_carried_out() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    let key = mirrors.add(&store);
    assert!(mirrors.is_behind(key), "it has not been told that this is all");
    assert!(mirrors.get_mut(key).unwrap().front().is_some());
    assert!(mirrors.is_behind(key), "that is on its way");
    while send_one(&mut mirrors, key) {}
    assert!(!mirrors.is_behind(key));
    let held = hold_set(&mut mirrors, &mut store, 0..2);
    let releases = delete(&mut mirrors, &mut store, 0);
    let now = mirrors.ticket();
    assert_eq!((held.recorded(), now.recorded()), (2, 3));
    assert!(!mirrors.has_passed(held) && !mirrors.has_passed(now));
    // What it has not been sent it cannot have carried out.
    say(&mut mirrors, key, &Heard::UpTo(3));
    while send_one(&mut mirrors, key) {}
    assert!(mirrors.has_passed(held) && mirrors.has_passed(now));
    assert!(mirrors.is_carried_out(held) && !mirrors.is_carried_out(now));
    assert!(mirrors.is_behind(key));
    say(&mut mirrors, key, &Heard::UpTo(2));
    assert!(!mirrors.is_carried_out(now) && !mirrors.have_closed(&releases));
    // Later ones do not matter to it.
    let later = delete(&mut mirrors, &mut store, 1);
    while send_one(&mut mirrors, key) {}
    say(&mut mirrors, key, &Heard::UpTo(3));
    say(&mut mirrors, key, &Heard::UpTo(2));
    assert!(mirrors.is_carried_out(now) && mirrors.have_closed(&releases));
    assert!(!mirrors.have_closed(&later) && mirrors.is_behind(key));
    // What replaces something waits for nobody.
    let staged = vec![store.stage(entry(2), 7, Tenure::from_bits(0))];
    let changes = store.setdump(staged, OnConflict::Replace, 7, Timestamp::now()).changes;
    assert!(mirrors.released(&changes).is_empty());
    assert!(mirrors.have_closed(&Releases::default()));
}

/// However much of others' a follower has not closed: each answer waits for what its own request
/// has released, and nothing else does. Nor does it hang.
#[test]
fn what_is_not_closed_keeps_only_its_own_answer_waiting() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    let many = CLOSING_PER_USER_MAX as u32 + 10;
    let key = mirrors.add(&store);
    hold_set_of(&mut mirrors, &mut store, 0..many, 8);
    hold_set(&mut mirrors, &mut store, many..many + 1);
    let dropped = |store: &Store<u32>, number: u32| {
        Dropped::from(store.find_held(&entry(number).id).unwrap().origin)
    };
    let lingering: Vec<_> = (0..many).map(|number| dropped(&store, number)).collect();
    let own = dropped(&store, many);
    let long: Vec<_> = (0..many).map(|it| delete(&mut mirrors, &mut store, it)).collect();
    let short = delete(&mut mirrors, &mut store, many);
    while send_one(&mut mirrors, key) {}
    say(&mut mirrors, key, &Heard::Closing(lingering.clone()));
    say(&mut mirrors, key, &Heard::Closing(vec![own]));
    say_up_to_now(&mut mirrors, key);
    assert!(!mirrors.is_behind(key) && mirrors.is_carried_out(mirrors.ticket()));
    assert_eq!(mirrors.closing(), many as usize + 1);
    assert_eq!((mirrors.closing_of(7), mirrors.closing_of(8)), (1, CLOSING_PER_USER_MAX));
    assert!(!mirrors.have_closed(&short));
    say(&mut mirrors, key, &Heard::Closed(vec![own]));
    assert!(mirrors.have_closed(&short) && !long.iter().any(|long| mirrors.have_closed(long)));
    say(&mut mirrors, key, &Heard::Closed(lingering));
    assert!(long.iter().all(|long| mirrors.have_closed(long)));
    assert_eq!((mirrors.closing(), mirrors.closing_of(8)), (0, 0));
}

/// Each of several followers, also one that has not got everything yet: that may be a part of its
/// copy. But not one that has gone.
#[test]
fn every_follower_has_to_close_it() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    hold_set(&mut mirrors, &mut store, 0..2);
    let (first, second) = (mirrors.add(&store), mirrors.add(&store));
    while send_one(&mut mirrors, first) {}
    let releases = delete(&mut mirrors, &mut store, 0);
    assert!(mirrors.get_mut(second).unwrap().front().is_some(), "its copy has it");
    while send_one(&mut mirrors, first) {}
    say_up_to_now(&mut mirrors, first);
    assert!(mirrors.has_passed(mirrors.ticket()) && !mirrors.have_closed(&releases));
    while send_one(&mut mirrors, second) {}
    say_up_to_now(&mut mirrors, second);
    assert!(mirrors.have_closed(&releases));
    let releases = delete(&mut mirrors, &mut store, 1);
    while send_one(&mut mirrors, first) || send_one(&mut mirrors, second) {}
    say_up_to_now(&mut mirrors, first);
    assert!(!mirrors.have_closed(&releases));
    mirrors.remove(second);
    assert!(mirrors.have_closed(&releases));
    // With systemd nothing is closed; what it was told is waited for like all that is sent.
    let shelf = mirrors.add_shelf();
    hold_set(&mut mirrors, &mut store, 0..1);
    let releases = delete(&mut mirrors, &mut store, 0);
    while send_one(&mut mirrors, first) {}
    say_up_to_now(&mut mirrors, first);
    assert!(mirrors.have_closed(&releases) && !mirrors.has_passed(mirrors.ticket()));
    mirrors.remove(shelf);
    for heard in [Heard::Synced, Heard::TakeOver, Heard::Commit, Heard::Stop] {
        assert!(!mirrors.get_mut(first).unwrap().hear(&heard), "it is about something else");
    }
}

#[test]
fn who_changes_things_faster_than_they_are_copied_waits() {
    let most = MIRROR_BACKLOG_MAX as u32;
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(MIRROR_BACKLOG_MAX + 1));
    let key = mirrors.add(&store);
    let first = hold_set(&mut mirrors, &mut store, 0..most);
    assert!(mirrors.has_passed(first));
    let second = hold_set(&mut mirrors, &mut store, most..most + 1);
    assert!(!mirrors.has_passed(second));
    assert!(!mirrors.remove(key), "it had no whole copy");
    assert!(mirrors.has_passed(second) && !mirrors.is_behind(key));
}

/// What gives way within a set is told last, by its number, and once.
#[test]
fn a_shelf_is_told_item_by_item() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    hold_set(&mut mirrors, &mut store, 0..1);
    let old = store.find_held(&entry(0).id).unwrap().origin.serial;
    let key = mirrors.add_shelf();
    assert!(!mirrors.is_behind(key));
    let ticket = hold_set(&mut mirrors, &mut store, 0..2);
    assert!(mirrors.is_behind(key) && !mirrors.has_passed(ticket));
    let mirror = mirrors.get_mut(key).unwrap();
    let items: Vec<_> = std::iter::from_fn(|| mirror.pop()).collect();
    let told = items.iter().map(|(number, goes_on, item)| match item {
        Item::Held(record) => (*number, *goes_on, Some(record.fd)),
        Item::Replaced(serial) if *serial == old => (*number, *goes_on, None),
        other => panic!("{other:?}"),
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [(1, true, Some(0)), (2, false, Some(1)), (3, false, None)]
    );
    mirror.is_told(2);
    assert!(mirrors.is_behind(key) && !mirrors.has_passed(ticket));
    mirrors.get_mut(key).unwrap().is_told(3);
    mirrors.get_mut(key).unwrap().is_told(1);
    assert!(mirrors.has_passed(ticket) && !mirrors.is_behind(key));
    assert!(mirrors.remove(key), "it had everything");
    assert!(!mirrors.remove(key));
}

/// Without followers there is nothing to tell, and no answer waits.
#[test]
fn nothing_is_recorded_for_nobody() {
    let (mut mirrors, mut store) = (Mirrors::default(), Store::new(1000));
    let ticket = hold_set(&mut mirrors, &mut store, 0..2);
    assert!(ticket == Ticket::default() && mirrors.has_passed(ticket));
    assert!(mirrors.get_mut(0).is_none());
}
