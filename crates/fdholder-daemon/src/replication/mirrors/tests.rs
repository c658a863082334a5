//! What may be answered, with numbers for descriptors.

use super::*;
use crate::store::Outcome;
use fdholder::extension::OnConflict;
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
    let staged = ids.map(|number| store.stage(entry(number), 7, Tenure::from_bits(0))).collect();
    let Outcome { answer, changes } =
        store.setdump(staged, OnConflict::Replace, 7, Timestamp::now());
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
