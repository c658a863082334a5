use super::*;
use std::collections::{BTreeMap, BTreeSet};

pub const SECOND: Duration = Duration::from_secs(1);

pub fn policy() -> Policy {
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
pub struct Driven {
    pub machine: Machine<u32>,
    pub now: Instant,
    pub alive: BTreeSet<Number>,
    /// Ready, and not told to stop.
    pub serving: BTreeSet<Number>,
    pub asked: u32,
    pub answers: BTreeMap<u32, Outcome>,
    pub told: Vec<Told>,
    pub end: Option<Exit>,
    pub last: Vec<Action<u32>>,
}

impl Driven {
    pub fn new(policy: Policy) -> Self {
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

    pub fn handle(&mut self, event: Event<u32>) {
        let mut actions = Vec::new();
        self.machine.handle(self.now, event, &mut actions);
        self.carry_out(actions);
    }

    pub fn restart(&mut self) -> u32 {
        self.asked += 1;
        self.handle(Event::Restart(Some(self.asked)));
        self.asked
    }

    pub fn ready(&mut self, number: Number) {
        self.handle(Event::Ready(number));
    }

    pub fn ends(&mut self, number: Number, exit: Exit) {
        assert!(self.alive.remove(&number));
        self.serving.remove(&number);
        self.handle(Event::Ended(number, exit));
    }

    /// Lets time pass, with a tick whenever one is due.
    pub fn pass(&mut self, span: Duration) {
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

    pub fn carry_out(&mut self, actions: Vec<Action<u32>>) {
        for action in &actions {
            assert_eq!(self.end, None, "nothing comes after the end: {actions:?}");
            match action {
                Action::Start(number) => {
                    let overlaps = self.machine.policy.overlaps;
                    assert!(overlaps || self.alive.is_empty(), "{number} runs beside another");
                    assert!(self.alive.insert(*number), "{number} again");
                }
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

    pub fn check(&self) {
        let all = self.machine.generations();
        let count = |is: fn(&Generation) -> bool| all.iter().filter(|it| is(it)).count();
        assert!(count(Generation::is_starting) <= 1, "two are starting: {all:?}");
        assert!(count(|it| it.phase == Phase::Ready) <= 1, "two are ready: {all:?}");
        let known: BTreeSet<_> = all.iter().map(|it| it.number).collect();
        assert_eq!(known, self.alive, "a generation is forgotten");
        let machine = &self.machine;
        let goes_on = count(|it| !it.is_ending()) > 0
            || machine.waits_for_clients()
            || machine.respawn_at.is_some()
            || machine.waits_for_end;
        assert!(goes_on || machine.is_stopping(), "nothing will ever serve: {machine:?}");
    }

    pub fn stops(&self, number: Number) -> bool {
        self.last.contains(&Action::Stop(number))
    }
}

pub fn code(code: u8) -> Exit {
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
    it.pass(SECOND);
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
fn service_that_is_lost_is_started_however_many_drain() {
    let mut it = Driven::new(Policy { draining_max: 1, ..policy() });
    it.ready(1);
    it.restart();
    let follows = it.restart();
    it.ends(1, code(1));
    it.pass(60 * SECOND);
    // Generation 2 has been told to stop, and drains.
    assert!(it.stops(2) && it.last.contains(&Action::Start(3)), "{:?}", it.last);
    it.ready(3);
    assert!(matches!(it.answers[&follows], Outcome::Ready(3, _)));
}

#[test]
fn service_on_demand_drains_within_the_limit() {
    let demand = Policy { on_demand: true, idle_stop: Some(SECOND), draining_max: 1, ..policy() };
    let mut it = Driven::new(Policy { stop_timeout: None, ..demand.clone() });
    for number in 1..3 {
        it.handle(Event::Demand);
        it.ready(number);
        it.pass(2 * SECOND);
    }
    assert_eq!(it.serving, BTreeSet::from([2]), "it stays until the first one has ended");
    it.ends(1, code(0));
    it.pass(2 * SECOND);
    assert!(it.serving.is_empty());
    // One that cannot run twice starts when the last one has ended.
    let mut it = Driven::new(Policy { overlaps: false, ..demand });
    it.handle(Event::Demand);
    it.ready(1);
    it.pass(2 * SECOND);
    it.handle(Event::Demand);
    assert_eq!(it.alive, BTreeSet::from([1]));
    it.ends(1, code(0));
    assert_eq!(it.alive, BTreeSet::from([2]));
}

#[test]
fn program_on_demand_that_ends_at_once_starts_after_a_pause() {
    let mut it = Driven::new(Policy { on_demand: true, ..policy() });
    it.handle(Event::Demand);
    it.ready(1);
    it.ends(1, code(0));
    assert!(!it.machine.waits_for_clients(), "it would start and end without a pause");
    it.pass(SECOND);
    assert!(it.machine.waits_for_clients());
    it.handle(Event::Demand);
    it.ready(2);
    it.pass(5 * SECOND);
    it.ends(2, code(0));
    assert!(it.machine.waits_for_clients());
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
