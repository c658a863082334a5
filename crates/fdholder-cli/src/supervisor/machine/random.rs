//! Random sequences of what can happen.

use super::tests::{code, Driven, SECOND};
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Deed {
    Ready(prop::sample::Index),
    End(prop::sample::Index, u8),
    Restart,
    Extend(prop::sample::Index),
    Demand,
    Active,
    Pass(u64),
    Stop,
    Kill,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        8 => any::<prop::sample::Index>().prop_map(Deed::Ready),
        4 => (any::<prop::sample::Index>(), 0u8..3).prop_map(|(which, code)| Deed::End(which, code)),
        6 => Just(Deed::Restart),
        1 => any::<prop::sample::Index>().prop_map(Deed::Extend),
        2 => Just(Deed::Demand),
        1 => Just(Deed::Active),
        6 => (0u64..70_000).prop_map(Deed::Pass),
        1 => Just(Deed::Stop),
        1 => Just(Deed::Kill),
    ];
    proptest::collection::vec(deed, 0..60)
}

fn policies() -> impl Strategy<Value = Policy> {
    let span = |most: u64| proptest::option::of((1..most).prop_map(Duration::from_millis));
    let spans = (span(2000), span(60_000), span(30_000), span(5000));
    (spans, any::<(bool, bool, bool)>(), 1usize..4).prop_map(
        |((ready_after, start_timeout, stop_timeout, idle), (respawn, overlaps, demand), most)| {
            Policy {
                ready_after,
                start_timeout,
                stop_timeout,
                draining_max: most,
                respawn,
                overlaps,
                on_demand: demand,
                idle_stop: idle.filter(|_| demand),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A ready generation serves if one ever became ready and was not asked to stop; two are never
    /// starting; none is forgotten; and everybody who asks is answered once.
    #[test]
    fn ready_generation_serves_whatever_happens(policy in policies(), deeds in deeds()) {
        let mut it = Driven::new(policy.clone());
        for deed in deeds {
            if it.end.is_some() {
                break;
            }
            let pick = |which: &prop::sample::Index, it: &Driven| {
                let all: Vec<_> = it.alive.iter().copied().collect();
                (!all.is_empty()).then(|| *which.get(&all))
            };
            let served = !it.serving.is_empty();
            let mut may_stop = !policy.overlaps;
            match &deed {
                Deed::Ready(which) => {
                    if let Some(number) = pick(which, &it) {
                        it.ready(number);
                    }
                }
                Deed::End(which, with) => {
                    if let Some(number) = pick(which, &it) {
                        may_stop |= it.serving.contains(&number);
                        it.ends(number, code(*with));
                    }
                }
                Deed::Restart => drop(it.restart()),
                Deed::Extend(which) => {
                    if let Some(number) = pick(which, &it) {
                        it.handle(Event::Extend(number, SECOND));
                    }
                }
                Deed::Demand => it.handle(Event::Demand),
                Deed::Active => it.handle(Event::Active),
                Deed::Pass(millis) => {
                    it.pass(Duration::from_millis(*millis));
                    may_stop |= policy.idle_stop.is_some();
                }
                Deed::Stop => {
                    it.handle(Event::Stop);
                    may_stop = true;
                }
                Deed::Kill => {
                    it.handle(Event::Kill);
                    may_stop = true;
                }
            }
            prop_assert!(!served || may_stop || !it.serving.is_empty(), "{deed:?}: nothing serves");
        }
        // Everything comes to its end.
        if it.end.is_none() {
            it.handle(Event::Kill);
        }
        while it.end.is_none() {
            let number = *it.alive.iter().next().expect("it waits for nothing");
            it.ends(number, code(0));
        }
        prop_assert_eq!(it.answers.len(), it.asked as usize);
    }
}
