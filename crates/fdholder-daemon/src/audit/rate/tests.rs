//! How many lines pass, whose, and what is told of the others.

use super::*;
use crate::limits::{AUDIT_IN_ALL, AUDIT_PER_USER, WARNINGS_IN_ALL, WARNINGS_PER_USER};
use proptest::prelude::*;

/// A line, or several at once: how long after the one before, whose, how many.
fn traffic() -> impl Strategy<Value = Vec<(u64, Option<u32>, u32)>> {
    let gap = prop_oneof![Just(0), 0..2_000_000u64, 0..20_000_000_000u64];
    let user = prop_oneof![Just(None), (0..4u32).prop_map(Some), (0..1000u32).prop_map(Some)];
    proptest::collection::vec((gap, user, 1..400u32), 1..60)
}

/// No window of time has more than there may be.
fn assert_within(rate: Rate, passed: &[Duration]) {
    for (first, from) in passed.iter().enumerate() {
        for (count, to) in passed[first..].iter().enumerate() {
            let refilled = to.saturating_sub(*from).as_nanos() / rate.interval.as_nanos();
            assert!((count as u128) < u128::from(rate.burst) + refilled, "{count} {refilled}");
        }
    }
}

proptest! {
    #[test]
    fn there_are_never_more_than_there_may_be(traffic in traffic()) {
        let each = Rate { burst: 20, interval: Duration::from_millis(50) };
        let all = Rate { burst: 50, interval: Duration::from_millis(5) };
        let mut limit = RateLimit::new(each, all);
        let start = Instant::now();
        let (mut now, mut came, mut told) = (start, 0, 0);
        let mut passed: BTreeMap<Option<u32>, Vec<Duration>> = BTreeMap::new();
        let mut in_all = Vec::new();
        for (gap, user, count) in traffic {
            now += Duration::from_nanos(gap);
            for (user, left_out) in limit.owed(now) {
                told += left_out;
                passed.entry(user).or_default().push(now - start);
                in_all.push(now - start);
            }
            for _ in 0..count {
                came += 1;
                if let Some(left_out) = limit.admit(user, now) {
                    told += left_out + 1;
                    passed.entry(user).or_default().push(now - start);
                    in_all.push(now - start);
                }
            }
        }
        assert_within(all, &in_all);
        for passed in passed.values() {
            assert_within(each, passed);
        }
        // Nothing is forgotten: in the end all are told of.
        while let Some(due) = limit.due() {
            now = now.max(due);
            told += limit.owed(now).into_iter().map(|(_, left_out)| left_out).sum::<u64>();
        }
        prop_assert_eq!(told, came);
    }

    /// Whatever another does, be it as nobody in particular.
    #[test]
    fn who_is_quiet_is_always_told_of(
        traffic in traffic(),
        other in prop_oneof![Just(None), Just(Some(5))],
    ) {
        let mut limit = RateLimit::new(AUDIT_PER_USER, AUDIT_IN_ALL);
        let (mut now, quiet) = (Instant::now(), Some(6));
        for (gap, _, count) in traffic {
            now += Duration::from_nanos(gap);
            for _ in 0..count * 10 {
                limit.admit(other, now);
            }
            now += AUDIT_PER_USER.interval;
            prop_assert_eq!(limit.admit(quiet, now), Some(0));
        }
    }
}

/// Users without end take no more room, and lose nothing that is counted.
#[test]
fn many_users_share_what_is_left() {
    let once = Rate { burst: 1, interval: Duration::from_secs(1) };
    let all = Rate { burst: 10_000, interval: Duration::from_nanos(1) };
    let mut limit = RateLimit::new(once, all);
    let start = Instant::now();
    let users = RATED_USERS_MAX as u32;
    assert!((0..users).all(|uid| limit.admit(Some(uid), start).is_some()));
    // One of all the others, and those who were first are known still.
    let others = (users..10 * users).filter(|&uid| limit.admit(Some(uid), start).is_some());
    assert_eq!(others.count(), 1);
    assert!((0..users).all(|uid| limit.admit(Some(uid), start).is_none()));
    assert!(limit.users.len() <= RATED_USERS_MAX + 1);
    // Those who are quiet make room for others.
    let later = start + once.span();
    assert_eq!(limit.admit(Some(10 * users), later), Some(0));
    assert!(limit.users.contains_key(&Some(10 * users)));
    let owed: u64 = limit.owed(later + once.span()).iter().map(|(_, left_out)| left_out).sum();
    assert_eq!(owed, u64::from(users + 9 * users - 1));
}

/// A user who floods leaves to others most of what there may be.
#[test]
fn limits_suit_each_other() {
    for (each, all) in [(AUDIT_PER_USER, AUDIT_IN_ALL), (WARNINGS_PER_USER, WARNINGS_IN_ALL)] {
        assert!(each.burst * 4 <= all.burst && each.interval >= all.interval * 4);
    }
    // journald's defaults, 10,000 in 30 s.
    let seconds = Duration::from_secs(30);
    let refilled = seconds.as_nanos() / AUDIT_IN_ALL.interval.as_nanos();
    assert!(u128::from(AUDIT_IN_ALL.burst) + refilled < 9_000);
}
