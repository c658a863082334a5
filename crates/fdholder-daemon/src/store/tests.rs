//! The store against a plain map.

use super::*;
use crate::limits::EXPIRED_AT_ONCE;
use crate::shares::Quotas;
use fdholder::extension::{OnConflict, Taken};
use fdholder::{Limit, Tenure};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Seconds on a clock of the test's own; 0 is never.
fn limit(secs: u8) -> Limit {
    match secs {
        0 => Limit::never_from(at(0)),
        secs => Limit::at(at(secs)),
    }
}

fn at(secs: u8) -> Timestamp {
    Timestamp::new((1 << 62) + 1000 + u64::from(secs), 0).unwrap()
}

fn id(number: u8) -> Identifier {
    Identifier::new([b'a' + number % 8]).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Store(u8, u8),
    Delete(u8),
    Retrieve(u8, bool),
    Dump,
    Setdump(OnConflict, Vec<(u8, u8)>),
    /// Remembers what is held, for a later release.
    Snapshot,
    /// Releases some of what was remembered.
    Release(u8),
    /// Releases some of what has expired.
    Expire(u8),
    Wait(u8),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (any::<u8>(), 0u8..60).prop_map(|(id, limit)| Op::Store(id, limit)),
        any::<u8>().prop_map(Op::Delete),
        any::<(u8, bool)>().prop_map(|(id, delete)| Op::Retrieve(id, delete)),
        Just(Op::Dump),
        (
            proptest::sample::select(vec![OnConflict::Replace, OnConflict::Keep, OnConflict::Fail]),
            proptest::collection::vec((any::<u8>(), 0u8..60), 0..8)
        )
            .prop_map(|(on_conflict, set)| Op::Setdump(on_conflict, set)),
        Just(Op::Snapshot),
        any::<u8>().prop_map(Op::Release),
        (0u8..3).prop_map(Op::Expire),
        (0u8..4).prop_map(Op::Wait),
    ]
}

const CAPACITY: usize = 5;

/// The same rules over a plain map.
#[derive(Default)]
struct Model {
    held: BTreeMap<Identifier, (Limit, u32)>,
    remembered: Vec<(Identifier, u32)>,
}

impl Model {
    fn expire(&mut self, now: Timestamp) {
        self.held.retain(|_, (limit, _)| !limit.expired(now));
    }

    fn apply(&mut self, op: &Op, fd: u32, now: Timestamp) -> Answer<Vec<u32>> {
        self.expire(now);
        let answer = match op {
            Op::Store(..) if self.held.len() >= CAPACITY => Err(Errno::NFILE),
            Op::Store(number, _) if self.held.contains_key(&id(*number)) => Err(Errno::BUSY),
            Op::Store(number, secs) => {
                self.held.insert(id(*number), (limit(*secs), fd));
                Ok(vec![])
            }
            Op::Delete(number) => {
                self.held.remove(&id(*number)).map(|_| vec![]).ok_or(Errno::NOENT)
            }
            Op::Retrieve(number, delete) => match self.held.get(&id(*number)).copied() {
                None => Err(Errno::NOENT),
                Some((_, fd)) => {
                    if *delete {
                        self.held.remove(&id(*number));
                    }
                    Ok(vec![fd])
                }
            },
            Op::Dump => Ok(self.held.values().map(|(_, fd)| *fd).collect()),
            Op::Setdump(on_conflict, set) => self.setdump(*on_conflict, set, fd),
            Op::Snapshot => {
                let held = self.held.iter().map(|(id, (_, fd))| (id.clone(), *fd));
                self.remembered = held.collect();
                Ok(vec![])
            }
            Op::Release(mask) => {
                for (_, (id, fd)) in chosen(*mask, &self.remembered) {
                    if self.held.get(id).is_some_and(|(_, held)| held == fd) {
                        self.held.remove(id);
                    }
                }
                Ok(vec![])
            }
            Op::Expire(_) | Op::Wait(_) => Ok(vec![]),
        };
        self.expire(now);
        answer
    }

    fn setdump(&mut self, on_conflict: OnConflict, set: &[(u8, u8)], fd: u32) -> Answer<Vec<u32>> {
        let mut after = self.held.clone();
        let (mut added, mut replaced, mut kept) = (0, 0, vec![]);
        for (index, (number, secs)) in set.iter().enumerate() {
            let id = id(*number);
            match on_conflict {
                OnConflict::Fail if self.held.contains_key(&id) => return Err(Errno::EXIST),
                OnConflict::Keep if self.held.contains_key(&id) => kept.push(index as u32),
                _ => match after.insert(id, (limit(*secs), fd + index as u32)) {
                    Some(_) => replaced += 1,
                    None => added += 1,
                },
            }
        }
        if after.len() > CAPACITY {
            return Err(Errno::NFILE);
        }
        self.held = after;
        Ok([vec![added, replaced], kept].concat())
    }
}

/// Those of a list whose bits are set.
fn chosen<T>(mask: u8, list: &[T]) -> impl Iterator<Item = (usize, &T)> {
    list.iter().enumerate().filter(move |(index, _)| mask >> (index % 8) & 1 == 1)
}

fn apply(
    store: &mut Store<u32>,
    remembered: &mut Vec<Arc<Record<u32>>>,
    op: &Op,
    fd: u32,
    now: Timestamp,
) -> (Answer<Vec<u32>>, Vec<Change<u32>>) {
    let entry = |number, secs, fd| Entry { id: id(number), limit: limit(secs), fd };
    match op {
        Op::Store(number, secs) => {
            let done = store.store(entry(*number, *secs, fd), 7, now);
            (done.answer.map(|()| vec![]), done.changes)
        }
        Op::Delete(number) => {
            let done = store.delete(&id(*number), now);
            (done.answer.map(|()| vec![]), done.changes)
        }
        Op::Retrieve(number, delete) => {
            let id = id(*number);
            let answer = if *delete { store.lend(&id, now) } else { store.retrieve(&id, now) };
            let taken = answer.iter().filter(|_| *delete);
            let changes = store.release(taken);
            (answer.map(|entry| vec![entry.fd]), changes)
        }
        Op::Dump => {
            let mut entries = store.dump(now);
            entries.sort_by(|a, b| a.id.cmp(&b.id));
            (Ok(entries.iter().map(|entry| entry.fd).collect()), vec![])
        }
        Op::Setdump(on_conflict, set) => {
            let stage = |(index, (number, secs)): (usize, &(u8, u8))| {
                store.stage(entry(*number, *secs, fd + index as u32), 7, Tenure::from_bits(0))
            };
            let set = set.iter().enumerate().map(stage).collect();
            let done = store.setdump(set, *on_conflict, 7, now);
            let counts = |taken: Taken| [vec![taken.added, taken.replaced], taken.kept].concat();
            (done.answer.map(counts), done.changes)
        }
        Op::Snapshot => {
            let mut entries = store.dump(now);
            entries.sort_by(|a, b| a.id.cmp(&b.id));
            *remembered = entries;
            (Ok(vec![]), vec![])
        }
        Op::Release(mask) => {
            let entries = chosen(*mask, remembered).map(|(_, entry)| entry);
            (Ok(vec![]), store.release(entries))
        }
        Op::Expire(most) => (Ok(vec![]), store.expire(now, usize::from(*most))),
        Op::Wait(_) => unreachable!("it is no call"),
    }
}

proptest! {
    /// The store answers as the map does, as if all that has expired were gone at once, and its
    /// changes rebuild what it holds.
    #[test]
    fn it_behaves_like_a_plain_map(ops in proptest::collection::vec(any_op(), 0..120)) {
        let (mut store, mut model) = (Store::new(CAPACITY), Model::default());
        let (mut mirror, mut remembered) = (BTreeMap::new(), Vec::new());
        let mut secs = 1;
        for (index, op) in ops.iter().enumerate() {
            if let Op::Wait(span) = op {
                // Nobody tells the store: whatever is asked next must notice.
                secs = u8::min(secs + span, 100);
                continue;
            }
            let (now, fd) = (at(secs), index as u32 * 100);
            let (answer, changes) = apply(&mut store, &mut remembered, op, fd, now);
            let cleared = store.expire(now, 0);
            let changes = cleared.into_iter().chain(changes);
            prop_assert_eq!(answer, model.apply(op, fd, now), "{:?}", op);
            for change in changes {
                match change {
                    Change::Held(entry) => {
                        prop_assert!(mirror.insert(entry.id.clone(), entry.fd).is_none());
                    }
                    Change::HeldAll { slots, .. } => {
                        for entry in slots.into_iter().filter_map(|slot| store.at(slot)) {
                            mirror.insert(entry.id.clone(), entry.fd);
                        }
                    }
                    Change::Released(entry) => {
                        // One of a set that had expired before is not known here; what it
                        // replaced is.
                        mirror.remove(&entry.id);
                    }
                }
            }
            store.check();
            let held: BTreeMap<_, _> = store.iter().map(|it| (it.id.clone(), it.fd)).collect();
            prop_assert_eq!(&mirror, &held);
            prop_assert_eq!(store.count(now), model.held.len());
            let next = store.iter().filter_map(|it| it.limit.moment()).min();
            prop_assert_eq!(store.next_expiry(), next);
        }
        store.expire(at(secs), usize::MAX);
        model.expire(at(secs));
        let held: BTreeMap<_, _> = store.iter().map(|it| (it.id.clone(), (it.limit, it.fd))).collect();
        prop_assert_eq!(held, model.held);
    }
}

#[test]
fn a_set_that_only_replaces_needs_no_room() {
    let mut store = Store::new(2);
    for number in 0..2 {
        store.store(Entry { id: id(number), limit: limit(0), fd: number }, 7, at(1));
    }
    let entry = |number: u8| Entry { id: id(number), limit: limit(0), fd: number + 10 };
    let set = (0..2).map(|number| store.stage(entry(number), 7, Tenure::from_bits(0)));
    let taken = Taken { replaced: 2, ..Taken::default() };
    let set = set.collect();
    assert_eq!(store.setdump(set, OnConflict::Replace, 7, at(1)).answer, Ok(taken));
    assert_eq!(store.retrieve(&id(0), at(1)).unwrap().fd, 10);
}

#[test]
fn a_reply_keeps_what_it_sends() {
    let mut store = Store::new(2);
    store.store(Entry { id: id(0), limit: limit(0), fd: 1 }, 7, at(1));
    let first = store.retrieve(&id(0), at(1)).unwrap();
    assert_eq!(store.delete(&id(0), at(1)).answer, Ok(()));
    store.store(Entry { id: id(0), limit: limit(0), fd: 2 }, 7, at(1));
    assert_eq!(first.fd, 1);
    assert_eq!(store.retrieve(&id(0), at(1)).unwrap().fd, 2);
}

/// 200,000 stores under one limit: n log n takes well under a second, n squared hours.
#[test]
fn equal_limits_cost_nothing_extra() {
    let mut store = Store::new(200_000);
    for number in 0..200_000u32 {
        let id = Identifier::new(number.to_string()).unwrap();
        store.store(Entry { id, limit: limit(9), fd: number }, 7, at(1));
    }
    assert_eq!(store.len(), 200_000);
    let parts = std::iter::from_fn(|| Some(store.expire(at(9), usize::MAX).len()));
    assert_eq!(parts.take_while(|count| *count > 0).sum::<usize>(), 200_000);
}

fn hold(store: &mut Store<u32>, number: u8, secs: u8, fd: u32) -> Answer<()> {
    store.store(Entry { id: id(number), limit: limit(secs), fd }, 7, at(1)).answer
}

/// Nobody sees what is lent, but it is there.
#[test]
fn what_is_lent_is_hidden_until_it_is_given_back() {
    let mut store = Store::new(2);
    assert!(store.is_empty() && store.lend(&id(0), at(1)).is_err());
    hold(&mut store, 0, 0, 1).unwrap();
    hold(&mut store, 1, 0, 2).unwrap();
    let loan = store.lend(&id(0), at(1)).unwrap();
    let fds = |entries: Vec<Arc<Record<u32>>>| entries.iter().map(|it| it.fd).collect::<Vec<_>>();
    assert_eq!(fds(store.dump(at(1))), [2]);
    assert_eq!(fds(store.all()), [1, 2]);
    assert!(store.iter().map(|it| it.fd).eq([1, 2]) && !store.is_empty());
    assert_eq!(store.find_held(&id(0)).map(|it| it.fd), Some(1));
    assert_eq!(store.retrieve(&id(0), at(1)).err(), Some(Errno::NOENT));
    assert_eq!(store.delete(&id(0), at(1)).answer, Err(Errno::NOENT));
    store.give_back(&loan);
    assert_eq!(store.retrieve(&id(0), at(1)).unwrap().fd, 1);
    // Once a set has replaced it, nothing of it is left to give back.
    let loan = store.lend(&id(0), at(1)).unwrap();
    let entry = Entry { id: id(0), limit: limit(0), fd: 3 };
    let set = vec![store.stage(entry, 7, Tenure::from_bits(0))];
    store.setdump(set, OnConflict::Replace, 7, at(1)).answer.unwrap();
    let second = store.lend(&id(0), at(1)).unwrap();
    store.give_back(&loan);
    assert_eq!(fds(store.dump(at(1))), [2]);
    assert!(store.holds(&second) && !store.holds(&loan));
    store.check();
}

#[test]
fn what_expires_is_counted() {
    let mut store = Store::new(5);
    hold(&mut store, 0, 9, 1).unwrap();
    hold(&mut store, 1, 9, 2).unwrap();
    hold(&mut store, 2, 10, 3).unwrap();
    let mut expire = |secs, most| (store.expire(at(secs), most).len(), store.expired());
    assert_eq!(expire(8, 9), (0, 0));
    assert_eq!(expire(9, 9), (2, 2));
    assert_eq!(expire(10, 9), (1, 3));
    // Also what somebody has taken meanwhile.
    hold(&mut store, 3, 12, 4).unwrap();
    let loan = store.lend(&id(3), at(11)).unwrap();
    assert_eq!((store.expire(at(12), 0).len(), store.expired()), (0, 3));
    assert_eq!((store.release(std::iter::once(&loan)).len(), store.expired()), (1, 4));
}

/// However many have expired, nobody waits for more than some of them to be released, and they are
/// in nobody's way.
#[test]
fn what_has_expired_is_released_by_and_by() {
    let mut store = Store::new(4);
    for number in 0..4 {
        hold(&mut store, number, if number == 3 { 0 } else { 9 - number }, number.into()).unwrap();
    }
    let gone = |changes: Vec<Change<u32>>| {
        let fd = |change: &Change<u32>| match change {
            Change::Released(record) => record.fd,
            other => panic!("{other:?}"),
        };
        changes.iter().map(fd).collect::<Vec<_>>()
    };
    assert_eq!(gone(store.expire(at(9), 1)), [2], "the first first");
    assert_eq!((store.len(), store.count(at(9)), store.next_expiry()), (3, 1, Some(at(8))));
    assert_eq!(store.retrieve(&id(0), at(9)).err(), Some(Errno::NOENT));
    assert_eq!(store.lend(&id(0), at(9)).err(), Some(Errno::NOENT));
    assert_eq!(store.delete(&id(0), at(9)).answer, Err(Errno::NOENT));
    assert!(store.dump(at(9)).iter().map(|it| it.fd).eq([3]));
    let [two, three, four] = [0, 4, 5].map(|number| {
        let entry = Entry { id: id(number), limit: limit(0), fd: 10 + u32::from(number) };
        store.store(entry, 7, at(9))
    });
    assert_eq!([two.answer, three.answer, four.answer], [Ok(()); 3]);
    assert_eq!(store.expired(), 3);
    assert_eq!(hold(&mut store, 6, 0, 6), Err(Errno::NFILE));
    let seen = store.dump(at(9)).iter().map(|it| it.fd).collect::<BTreeSet<_>>();
    assert!(seen.into_iter().eq([3, 10, 14, 15]));
    store.check();
}

/// What has expired and is in a user's way goes, the user's own first; but not if that does not help.
#[test]
fn no_more_is_released_than_is_in_the_way() {
    let mut store = Store::new(10);
    let quotas = Quotas { fds: Some(2), ..Quotas::default() };
    let user = |uid| Claimant { uid, is_trusted: false, quotas };
    let give = |store: &mut Store<u32>, number, secs, uid, now| {
        let entry = Entry { id: id(number), limit: limit(secs), fd: number.into() };
        store.store(entry, &user(uid), at(now)).answer
    };
    for (number, secs, uid) in [(0, 0, 1), (1, 0, 1), (2, 5, 2), (3, 6, 2), (4, 7, 3), (5, 0, 3)] {
        give(&mut store, number, secs, uid, 1).unwrap();
    }
    assert_eq!(give(&mut store, 6, 0, 1, 9), Err(Errno::NFILE));
    assert_eq!((store.len(), store.count(at(9)), store.id_bytes(at(9))), (6, 3, 3));
    assert!(!store.has_cleared_the_way());
    give(&mut store, 6, 0, 3, 9).unwrap();
    assert!(store.has_cleared_the_way() && store.find_held(&id(4)).is_none());
    assert_eq!((store.len(), store.held_by(2)), (6, 2));
    // A set that replaces what there is needs no room; one that does not has some made.
    let mut set = |numbers: [u8; 2], uid| {
        let entry =
            |number: u8| Entry { id: id(number), limit: limit(0), fd: 10 + u32::from(number) };
        let set = numbers.map(|number| store.stage(entry(number), uid, Tenure::from_bits(0)));
        let done = store.setdump(set.into(), OnConflict::Replace, &user(uid), at(9));
        (done.answer.map(|taken| (taken.added, taken.replaced)), store.held_by(2))
    };
    assert_eq!(set([0, 1], 1), (Ok((0, 2)), 2));
    assert_eq!(set([0, 7], 1), (Err(Errno::NFILE), 2));
    assert_eq!(set([0, 5], 1), (Err(Errno::NFILE), 2), "what was another's counts");
    assert_eq!(set([4, 7], 2), (Ok((2, 0)), 2));
    store.make_places(4, at(9));
    assert_eq!(store.len(), 6, "there are four");
    store.check();
}

#[test]
fn places_are_made_by_what_has_expired_alone() {
    let mut store = Store::new(4);
    for (number, secs) in [(0, 5), (1, 6), (2, 0), (3, 7)] {
        hold(&mut store, number, secs, 1).unwrap();
    }
    let mut make = |count| {
        store.make_places(count, at(6));
        store.len()
    };
    assert_eq!([make(0), make(1), make(1), make(4)], [4, 3, 3, 2]);
    assert_eq!(store.expire(at(6), 0).len(), 2, "it is told of");
}

/// Others' count, too; and none goes when all of them are not enough.
#[test]
fn room_is_made_if_that_is_enough() {
    let mut store = Store::new(3);
    for (number, secs) in [(0, 0), (1, 5), (2, 5)] {
        let entry = Entry { id: id(number), limit: limit(secs), fd: 1 };
        store.store(entry, 8, at(1)).answer.unwrap();
    }
    let mut set = |numbers: &[u8]| {
        let entry = |number: u8| Entry { id: id(number), limit: limit(0), fd: 2 };
        let stage = |number: &u8| store.stage(entry(*number), 7, Tenure::from_bits(0));
        let set = numbers.iter().map(stage).collect();
        let answer = store.setdump(set, OnConflict::Replace, 7, at(6)).answer.map(drop);
        (answer, store.has_cleared_the_way(), store.len())
    };
    assert_eq!(set(&[3, 4, 5]), (Err(Errno::NFILE), false, 3));
    assert_eq!(set(&[3, 4]), (Ok(()), true, 3));
}

/// It stands before nothing that has expired by and by, and so keeps nobody waiting.
#[test]
fn what_has_expired_when_it_is_given_goes_at_once() {
    let mut store = Store::new(4);
    let entry = |number, secs| Entry { id: id(number), limit: limit(secs), fd: u32::from(number) };
    let changes = store.store(entry(0, 5), 7, at(5)).changes;
    assert!(matches!(&changes[..], [Change::Held(_), Change::Released(_)]));
    let set = [entry(1, 4), entry(2, 0), entry(1, 3)];
    let set = set.map(|entry| store.stage(entry, 7, Tenure::from_bits(0)));
    let changes = store.setdump(set.into(), OnConflict::Replace, 7, at(5)).changes;
    assert!(matches!(&changes[..], [Change::HeldAll { .. }, Change::Released(_)]));
    assert_eq!(store.len(), 1);
}

/// Whatever has expired stays so when the clock is set back, be it not released yet.
#[test]
fn what_has_expired_does_not_come_back() {
    let mut store = Store::new(4);
    for number in 0..3 {
        hold(&mut store, number, 5 + 3 * number, number.into()).unwrap();
    }
    assert_eq!([store.expire(at(9), 0).len(), store.expire(at(9), 0).len()], [0, 0]);
    let hidden = store.lend(&id(1), at(9)).err();
    assert_eq!(hidden, Some(Errno::NOENT));
    assert_eq!(store.expire(at(2), 0).len(), 2, "all at once, before anybody asks");
    assert!(store.dump(at(2)).iter().map(|it| it.fd).eq([2]));
    // What is given then has all its time.
    hold(&mut store, 1, 8, 7).unwrap();
    assert_eq!(store.expire(at(2), 9).len(), 0);
    assert_eq!(store.expire(at(8), 9).len(), 1);
}

/// However many have expired they are told of in parts; when the clock is set back nothing of them is
/// seen again before the last of them is.
#[test]
fn thousands_that_have_expired_are_told_of_in_parts() {
    let count = 2 * EXPIRED_AT_ONCE + 1;
    for set_to in [9, 2] {
        let mut store = Store::new(count);
        for number in 0..count {
            let id = Identifier::new(number.to_string()).unwrap();
            store.store(Entry { id, limit: limit(5), fd: 1 }, 7, at(1)).answer.unwrap();
        }
        assert!(store.expire(at(9), 0).is_empty() && store.dump(at(9)).is_empty());
        let parts = std::iter::from_fn(|| Some(store.expire(at(set_to), usize::MAX).len()));
        let parts: Vec<_> = parts.take_while(|len| *len > 0).collect();
        assert_eq!(parts, [EXPIRED_AT_ONCE, EXPIRED_AT_ONCE, 1]);
        assert!(store.is_empty() && store.expired() == count as u64);
    }
}

/// No number is given twice, neither here nor by a daemon before or after this one.
#[test]
fn numbers_only_grow() {
    let mut store = Store::new(2);
    assert_eq!(store.last_serial(), 0);
    hold(&mut store, 0, 0, 1).unwrap();
    assert_eq!(store.find_held(&id(0)).unwrap().origin.serial, 1);
    assert_eq!(store.last_serial(), 1);
    store.skip_serials(10);
    assert_eq!(store.last_serial(), 11);
    let mut mirror = |serial| {
        let entry = Entry { id: id(0), limit: limit(1), fd: 5 };
        let origin = Origin { owner: 7, tenure: Tenure::from_bits(0), serial };
        store.mirror(Record { entry, origin }).unwrap();
        store.last_serial()
    };
    assert_eq!([mirror(5), mirror(11), mirror(12), mirror(50), mirror(12)], [11, 11, 12, 50, 50]);
}

/// Whether something has expired is for the primary to say.
#[test]
fn a_mirror_does_as_it_is_told() {
    let mut store = Store::new(1);
    let mut mirror = |number, fd: u32| {
        let entry = Entry { id: id(number), limit: limit(1), fd };
        let origin = Origin { owner: 7, tenure: Tenure::from_bits(0), serial: fd.into() };
        store.mirror(Record { entry, origin }).map(|gone| gone.map(|it| it.fd))
    };
    assert_eq!(mirror(0, 1), Ok(None));
    assert_eq!(mirror(0, 2), Ok(Some(1)));
    assert_eq!(mirror(1, 3), Err(Errno::NFILE));
    assert_eq!(store.forget(&id(1)).map(|it| it.fd), None);
    assert_eq!(store.forget(&id(0)).map(|it| it.fd), Some(2));
    assert!(store.is_empty());
}

#[test]
fn the_capacity_has_a_bound() {
    let store: Store<u32> = Store::new(crate::limits::FDS_MAX + 1);
    assert_eq!(store.capacity(), crate::limits::FDS_MAX);
    let store: Store<u32> = Store::new(3);
    assert!(store.could_hold(3) && !store.could_hold(4));
}

/// What the daemon must look after is told when it comes and when it goes, and nothing else.
#[test]
fn what_needs_care_is_told() {
    let mut store = Store::new(5);
    let plain = Tenure::from_bits(0);
    let hold = |store: &mut Store<u32>, number, tenure| {
        let entry = Entry { id: id(number), limit: limit(0), fd: 0 };
        let set = vec![store.stage(entry, 7, tenure)];
        store.setdump(set, OnConflict::Replace, 7, at(1)).answer.unwrap();
        store.take_touched().len()
    };
    assert_eq!(hold(&mut store, 0, plain), 0);
    assert_eq!(hold(&mut store, 1, plain.with_peer()), 1);
    assert_eq!(store.take_touched().len(), 0, "it is told once");
    assert_eq!(hold(&mut store, 0, plain.with_peer()), 1);
    assert_eq!(hold(&mut store, 1, plain), 1, "what went had to be looked after");
    store.delete(&id(1), at(1)).answer.unwrap();
    assert_eq!(store.take_touched().len(), 0);
    store.delete(&id(0), at(1)).answer.unwrap();
    assert_eq!(store.take_touched().len(), 1);
}
