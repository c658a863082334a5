use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        ready_after: None,
        start_timeout: Some(60 * SECOND),
        stop_timeout: Some(30 * SECOND),
        draining_max: 3,
        respawn: false,
        overlaps: true,
        on_demand: false,
        idle_stop: None,
    }
}

/// A machine, and what its driver would know.
struct Driven {
    machine: Machine<u32>,
    now: Instant,
    alive: BTreeSet<Number>,
    /// Ready, and not told to stop.
    serving: BTreeSet<Number>,
    asked: u32,
    answers: BTreeMap<u32, Outcome>,
    told: Vec<Told>,
    end: Option<Exit>,
    last: Vec<Action<u32>>,
}

impl Driven {
    fn new(policy: Policy) -> Self {
        let mut driven = Self {
            machine: Machine::new(policy),
            now: Instant::now(),
            alive: BTreeSet::new(),
            serving: BTreeSet::new(),
            asked: 0,
            answers: BTreeMap::new(),
            told: Vec::new(),
            end: None,
            last: Vec::new(),
        };
        driven.handle(Event::Begin);
        driven
    }

    fn handle(&mut self, event: Event<u32>) {
        let mut actions = Vec::new();
        self.machine.handle(self.now, event, &mut actions);
        self.carry_out(actions);
    }

    fn restart(&mut self) -> u32 {
        self.asked += 1;
        self.handle(Event::Restart(Some(self.asked)));
        self.asked
    }

    fn ready(&mut self, number: Number) {
        self.handle(Event::Ready(number));
    }

    fn ends(&mut self, number: Number, exit: Exit) {
        assert!(self.alive.remove(&number));
        self.serving.remove(&number);
        self.handle(Event::Ended(number, exit));
    }

    /// Lets time pass, with a tick whenever one is due.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.machine.timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let mut actions = Vec::new();
            self.machine.tick(self.now, &mut actions);
            self.carry_out(actions);
            assert!(self.machine.timeout().is_none_or(|at| at > self.now), "it would spin");
        }
        self.now = until;
    }

    fn carry_out(&mut self, actions: Vec<Action<u32>>) {
        for action in &actions {
            assert_eq!(self.end, None, "nothing comes after the end: {actions:?}");
            match action {
                Action::Start(number) => assert!(self.alive.insert(*number), "{number} again"),
                Action::Stop(number) | Action::Kill(number) => {
                    assert!(self.alive.contains(number), "{number} has ended");
                    self.serving.remove(number);
                }
                Action::Answer(asker, outcome) => {
                    let before = self.answers.insert(*asker, outcome.clone());
                    assert_eq!(before, None, "{asker} is answered twice");
                }
                Action::Tell(told) => self.told.push(*told),
                Action::End(exit) => self.end = Some(exit.clone()),
                Action::Note(_) => {}
            }
        }
        for generation in self.machine.generations() {
            if generation.phase == Phase::Ready {
                self.serving.insert(generation.number);
            }
        }
        self.last = actions;
        self.check();
    }

    fn check(&self) {
        let all = self.machine.generations();
        let count = |is: fn(&Generation) -> bool| all.iter().filter(|it| is(it)).count();
        assert!(count(Generation::is_starting) <= 1, "two are starting: {all:?}");
        assert!(count(|it| it.phase == Phase::Ready) <= 1, "two are ready: {all:?}");
        let known: BTreeSet<_> = all.iter().map(|it| it.number).collect();
        assert_eq!(known, self.alive, "a generation is forgotten");
    }

    fn stops(&self, number: Number) -> bool {
        self.last.contains(&Action::Stop(number))
    }
}

fn code(code: u8) -> Exit {
    Exit::Code(code)
}

#[test]
fn old_generation_is_stopped_when_next_is_ready() {
    let mut it = Driven::new(policy());
    it.ready(1);
    let asker = it.restart();
    assert!(it.last.contains(&Action::Start(2)) && it.serving.contains(&1));
    it.pass(3 * SECOND);
    it.ready(2);
    assert!(it.stops(1));
    assert_eq!(it.answers[&asker], Outcome::Ready(2, 3 * SECOND));
    assert_eq!(it.told, [Told::Ready, Told::Reloading, Told::Ready]);
    it.pass(29 * SECOND);
    assert!(it.serving.contains(&2) && it.last.iter().all(|it| *it != Action::Kill(1)));
    it.pass(SECOND);
    assert!(it.last.contains(&Action::Kill(1)));
    it.ends(1, Exit::Signal(9));
    assert_eq!((it.end, it.serving.len()), (None, 1));
}

#[test]
fn failed_start_leaves_old_generation_alone() {
    for timed_out in [false, true] {
        let mut it = Driven::new(policy());
        it.ready(1);
        let asker = it.restart();
        let why = if timed_out {
            it.pass(60 * SECOND);
            assert!(it.stops(2));
            Failed::TimedOut(60 * SECOND)
        } else {
            it.ends(2, code(3));
            Failed::Ended(code(3))
        };
        assert_eq!(it.answers[&asker], Outcome::Failed { number: 2, why, others_serve: true });
        assert_eq!(it.told, [Told::Ready, Told::Reloading, Told::Ready]);
        assert!(it.serving.contains(&1) && it.end.is_none());
        let again = it.restart();
        it.ready(3);
        assert!(matches!(it.answers[&again], Outcome::Ready(3, _)));
    }
}

#[test]
fn restarts_asked_for_during_one_are_one_more() {
    let mut it = Driven::new(policy());
    it.ready(1);
    let first = it.restart();
    let others = [it.restart(), it.restart(), it.restart()];
    it.ready(2);
    assert!(matches!(it.answers[&first], Outcome::Ready(2, _)));
    assert!(it.last.contains(&Action::Start(3)) && it.answers.len() == 1);
    it.ready(3);
    assert!(others.iter().all(|asker| matches!(it.answers[asker], Outcome::Ready(3, _))));
    it.ends(2, code(0));
    assert_eq!(it.machine.next, 4);
}

#[test]
fn program_that_lives_long_enough_is_ready() {
    let mut it = Driven::new(Policy { ready_after: Some(SECOND), ..policy() });
    it.pass(SECOND);
    assert_eq!((it.serving.len(), &it.told[..]), (1, &[Told::Ready][..]));
    it.restart();
    it.pass(SECOND / 2);
    it.ends(2, code(1));
    assert!(it.serving.contains(&1));
}

#[test]
fn supervisor_ends_as_its_program_did() {
    let mut it = Driven::new(policy());
    it.ends(1, code(7));
    assert_eq!(it.end, Some(code(7)));
    let mut it = Driven::new(policy());
    it.ready(1);
    it.ends(1, Exit::Signal(11));
    assert_eq!(it.end, Some(Exit::Signal(11)));
    let mut it = Driven::new(policy());
    it.pass(60 * SECOND);
    it.ends(1, Exit::Signal(15));
    assert_eq!(it.end, Some(code(1)), "it did not get ready in time");
    let mut it = Driven::new(policy());
    it.ready(1);
    it.handle(Event::Stop);
    assert!(it.stops(1) && it.told.contains(&Told::Stopping));
    it.ends(1, code(5));
    assert_eq!(it.end, Some(code(5)));
}

#[test]
fn all_generations_are_stopped_before_the_end() {
    let mut it = Driven::new(policy());
    it.ready(1);
    it.restart();
    it.ready(2);
    let asker = it.restart();
    let another = it.restart();
    it.handle(Event::Stop);
    assert!(it.stops(2) && it.stops(3) && !it.stops(1), "it was told before");
    let why = Failed::Stopped;
    assert_eq!(it.answers[&asker], Outcome::Failed { number: 3, why, others_serve: true });
    assert_eq!(it.answers[&another], Outcome::Stopping);
    it.ends(3, code(9));
    it.ends(2, code(0));
    assert_eq!(it.end, None);
    it.pass(30 * SECOND);
    it.ends(1, Exit::Signal(9));
    assert_eq!(it.end, Some(code(0)), "that of the one that was ready");
}

#[test]
fn ready_generation_that_ends_during_a_restart_is_replaced_by_the_next() {
    let mut it = Driven::new(policy());
    it.ready(1);
    it.restart();
    it.ends(1, code(4));
    assert_eq!(it.end, None);
    it.ready(2);
    assert!(it.serving.contains(&2));
    it.restart();
    it.ends(2, code(4));
    it.ends(3, code(5));
    assert_eq!(it.end, Some(code(4)));
}

#[test]
fn respawn_pauses_grow_and_shrink() {
    let mut it = Driven::new(Policy { respawn: true, ..policy() });
    it.ready(1);
    let mut pauses = Vec::new();
    for number in 1..12 {
        it.ends(number, code(1));
        assert_eq!(it.end, None);
        let from = it.now;
        pauses.push(it.machine.timeout().unwrap() - from);
        it.pass(*pauses.last().unwrap());
        it.ready(number + 1);
    }
    assert_eq!(pauses[..3], [100, 200, 400].map(Duration::from_millis));
    assert_eq!(pauses[10], 30 * SECOND);
    it.pass(10 * SECOND);
    it.ends(12, code(1));
    assert_eq!(it.machine.timeout().unwrap() - it.now, Duration::from_millis(100));
    // One that never got ready is tried again as well, once another was.
    it.pass(SECOND);
    it.ends(13, code(1));
    assert!(it.end.is_none() && it.machine.timeout().is_some());
}

#[test]
fn without_overlap_next_generation_starts_when_the_last_has_ended() {
    let mut it = Driven::new(Policy { overlaps: false, ..policy() });
    it.ready(1);
    let first = it.restart();
    assert!(it.stops(1) && it.alive.len() == 1);
    let second = it.restart();
    it.ends(1, code(0));
    assert!(it.last.contains(&Action::Start(2)));
    it.ready(2);
    assert!(it.answers.contains_key(&first) && it.stops(2));
    it.ends(2, code(0));
    it.ready(3);
    assert!(matches!(it.answers[&second], Outcome::Ready(3, _)));
}

#[test]
fn program_on_demand_starts_for_clients_and_stops_without() {
    let idle_stop = Some(5 * SECOND);
    let mut it = Driven::new(Policy { on_demand: true, idle_stop, ..policy() });
    assert!(it.alive.is_empty() && it.machine.waits_for_clients() && it.told == [Told::Ready]);
    let asker = it.restart();
    assert_eq!(it.answers[&asker], Outcome::Asleep);
    it.handle(Event::Demand);
    it.ready(1);
    assert!(!it.machine.waits_for_clients());
    it.pass(4 * SECOND);
    it.handle(Event::Active);
    it.pass(4 * SECOND);
    assert!(it.serving.contains(&1));
    it.pass(SECOND);
    assert!(it.stops(1) && it.machine.waits_for_clients());
    it.handle(Event::Demand);
    assert!(it.last.contains(&Action::Start(2)));
    it.ends(1, code(0));
    it.ready(2);
    it.ends(2, code(0));
    assert!(it.end.is_none() && it.machine.waits_for_clients(), "it had nothing to do");
}

#[test]
fn generations_that_drain_have_a_limit() {
    let mut it = Driven::new(Policy { stop_timeout: None, ..policy() });
    it.ready(1);
    for number in 2..5 {
        it.restart();
        it.ready(number);
    }
    let asker = it.restart();
    assert_eq!(it.answers[&asker], Outcome::TooMany(3));
    assert!(it.serving.contains(&4));
    it.ends(2, code(0));
    it.restart();
    assert!(it.last.contains(&Action::Start(5)));
}

#[test]
fn program_may_ask_for_more_time() {
    let mut it = Driven::new(policy());
    it.pass(59 * SECOND);
    it.handle(Event::Extend(1, 10 * SECOND));
    it.pass(9 * SECOND);
    it.ready(1);
    it.handle(Event::Stop);
    it.handle(Event::Extend(1, 40 * SECOND));
    it.pass(39 * SECOND);
    assert!(it.alive.contains(&1) && !it.last.contains(&Action::Kill(1)));
    it.handle(Event::Kill);
    assert!(it.last.contains(&Action::Kill(1)));
}

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
