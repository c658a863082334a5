//! Random sequences of what can happen.

use super::driven::{code, Driven, SECOND};
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Deed {
    Execute(prop::sample::Index),
    Ready(prop::sample::Index),
    Die(prop::sample::Index),
    End(prop::sample::Index, u8, bool),
    Gone(prop::sample::Index),
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
        8 => any::<prop::sample::Index>().prop_map(Deed::Execute),
        2 => any::<prop::sample::Index>().prop_map(Deed::Die),
        4 => (any::<prop::sample::Index>(), 0u8..4, any::<bool>())
            .prop_map(|(which, code, leaves)| Deed::End(which, code, leaves)),
        4 => any::<prop::sample::Index>().prop_map(Deed::Gone),
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
            // One whose process is in such a state.
            let pick = |which: &prop::sample::Index, it: &Driven, lives: &[Life]| {
                let all = it.alive.iter().filter(|(_, real)| lives.contains(&real.life));
                let all: Vec<_> = all.map(|(number, _)| *number).collect();
                (!all.is_empty()).then(|| *which.get(&all))
            };
            let served = !it.serving.is_empty();
            let mut may_stop = false;
            match &deed {
                Deed::Execute(which) => {
                    if let Some(number) = pick(which, &it, &[Life::Preparing]) {
                        it.executed(number);
                    }
                }
                Deed::Ready(which) => {
                    if let Some(number) = pick(which, &it, &[Life::Prog, Life::Dead]) {
                        it.ready(number);
                    }
                }
                Deed::Die(which) => {
                    if let Some(number) = pick(which, &it, &[Life::Preparing, Life::Prog]) {
                        may_stop |= it.serving.contains(&number);
                        it.dies(number);
                    }
                }
                Deed::End(which, with, leaves) => {
                    let lives = [Life::Preparing, Life::Prog, Life::Dead];
                    if let Some(number) = pick(which, &it, &lives) {
                        may_stop |= it.serving.contains(&number);
                        it.ends_and_leaves(number, exit(*with), *leaves);
                    }
                }
                Deed::Gone(which) => {
                    if let Some(number) = pick(which, &it, &[Life::Orphans]) {
                        it.gone(number);
                    }
                }
                Deed::Restart => drop(it.restart()),
                Deed::Extend(which) => {
                    let lives = [Life::Preparing, Life::Prog, Life::Dead, Life::Orphans];
                    if let Some(number) = pick(which, &it, &lives) {
                        it.extend(number, SECOND);
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
            // Without overlap a restart begins with the end of the last one.
            let restarts = it.last.contains(&Action::Tell(Told::Reloading));
            may_stop |= !policy.overlaps && restarts;
            prop_assert!(!served || may_stop || !it.serving.is_empty(), "{deed:?}: nothing serves");
        }
        // Everything comes to its end.
        if it.end.is_none() {
            it.handle(Event::Kill);
        }
        while it.end.is_none() {
            let (number, real) = it.alive.first_key_value().expect("it waits for nothing");
            match (*number, real.life) {
                (number, Life::Orphans) => it.gone(number),
                (number, _) => it.ends_and_leaves(number, code(0), number % 2 == 0),
            }
        }
        prop_assert_eq!(it.answers.len(), it.asked as usize);
    }
}

/// How a generation may end.
fn exit(which: u8) -> Exit {
    match which {
        2 => Exit::Signal(15),
        3 => Exit::NotStarted { code: 126, why: "no such file".to_owned() },
        other => code(other),
    }
}
