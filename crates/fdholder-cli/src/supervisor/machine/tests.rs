use super::driven::{code, policy, Driven, SECOND};
use super::*;
use std::collections::BTreeSet;

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
    it.executed(1);
    it.pass(SECOND);
    assert_eq!((it.serving.len(), &it.told[..]), (1, &[Told::Ready][..]));
    it.restart();
    it.executed(2);
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
    assert!(it.alive.keys().eq(&[1]));
    it.ends(1, code(0));
    assert!(it.alive.keys().eq(&[2]));
}

#[test]
fn failed_start_on_demand_ends_run_although_another_generation_drains() {
    let demand =
        Policy { on_demand: true, idle_stop: Some(SECOND), stop_timeout: None, ..policy() };
    let mut it = Driven::new(demand);
    it.handle(Event::Demand);
    it.ready(1);
    it.pass(SECOND);
    assert!(it.stops(1));
    it.handle(Event::Demand);
    it.ends(2, code(3));
    assert_eq!(it.end, Some(code(3)), "the supervisor is to act");
    assert!(!it.last.contains(&Action::Kill(1)), "it has a client");
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
    it.extend(1, 10 * SECOND);
    it.pass(9 * SECOND);
    it.ready(1);
    it.handle(Event::Stop);
    it.extend(1, 40 * SECOND);
    it.pass(39 * SECOND);
    assert!(it.alive.contains_key(&1) && !it.last.contains(&Action::Kill(1)));
    it.handle(Event::Kill);
    assert!(it.last.contains(&Action::Kill(1)));
}

#[test]
fn process_that_is_not_the_program_yet_gets_no_readier() {
    let mut it = Driven::new(Policy { ready_after: Some(SECOND), ..policy() });
    it.ready(1);
    it.restart();
    it.pass(30 * SECOND);
    assert!(it.serving.contains(&1) && !it.stops(1));
    it.executed(2);
    it.pass(SECOND / 2);
    assert!(it.serving.contains(&1));
    it.pass(SECOND / 2);
    assert!(it.serving.contains(&2) && it.stops(1));
}

#[test]
fn dead_program_takes_no_place() {
    let mut it = Driven::new(Policy { ready_after: Some(SECOND), ..policy() });
    it.ready(1);
    let asker = it.restart();
    it.executed(2);
    it.pass(SECOND * 9 / 10);
    it.dies(2);
    // Its last words are waited for, and it has said that it is ready.
    it.pass(SECOND);
    it.ready(2);
    assert_eq!(it.serving, BTreeSet::from([1]));
    it.ends(2, code(3));
    let why = Failed::Ended(code(3));
    assert_eq!(it.answers[&asker], Outcome::Failed { number: 2, why, others_serve: true });
    // Where nothing serves, what it has said counts.
    let mut it = Driven::new(policy());
    it.dies(1);
    it.ready(1);
    it.ends(1, code(7));
    assert_eq!((it.told, it.end), (vec![Told::Ready], Some(code(7))));
}

#[test]
fn dead_generation_does_not_serve_on() {
    let mut it = Driven::new(policy());
    it.ready(1);
    let asker = it.restart();
    it.dies(1);
    it.ends(2, code(3));
    let why = Failed::Ended(code(3));
    assert_eq!(it.answers[&asker], Outcome::Failed { number: 2, why, others_serve: false });
    it.ends(1, code(4));
    assert_eq!(it.end, Some(code(4)));
}

#[test]
fn what_a_failed_generation_leaves_is_stopped_and_killed() {
    let mut it = Driven::new(policy());
    it.ready(1);
    it.restart();
    it.ends_and_leaves(2, code(1), true);
    assert!(it.stops(2) && it.serving.contains(&1));
    it.pass(30 * SECOND);
    assert!(it.last.contains(&Action::Kill(2)));
    it.gone(2);
    // Run ends after them.
    it.restart();
    it.ends_and_leaves(3, code(1), true);
    it.handle(Event::Stop);
    it.ends(1, code(0));
    assert_eq!(it.end, None);
    it.gone(3);
    assert_eq!(it.end, Some(code(0)));
    // Nobody would kill them later.
    let mut it = Driven::new(policy());
    it.ready(1);
    it.ends_and_leaves(1, Exit::Signal(11), true);
    assert!(it.last.contains(&Action::Kill(1)) && it.end == Some(Exit::Signal(11)));
    // One that goes by itself, in order, may leave what it likes.
    let mut it = Driven::new(policy());
    it.ready(1);
    it.ends_and_leaves(1, code(0), true);
    assert_eq!(it.end, Some(code(0)));
}

#[test]
fn without_overlap_next_generation_starts_when_nothing_is_left() {
    let mut it = Driven::new(Policy { overlaps: false, ..policy() });
    it.ready(1);
    it.restart();
    it.ends_and_leaves(1, code(0), true);
    assert!(it.stops(1) && it.alive.keys().eq(&[1]));
    it.gone(1);
    assert!(it.alive.keys().eq(&[2]));
}

#[test]
fn service_on_demand_that_ends_during_a_failing_restart_sleeps() {
    let mut it = Driven::new(Policy { on_demand: true, ..policy() });
    it.handle(Event::Demand);
    it.ready(1);
    it.pass(5 * SECOND);
    it.restart();
    it.ends(1, code(0));
    it.ends(2, code(3));
    assert!(it.end.is_none() && it.machine.waits_for_clients());
}

#[test]
fn every_restart_is_told_and_over() {
    use Told::{Ready, Reloading};
    // Asleep, also before the sockets are there.
    let mut it = Driven { told: Vec::new(), ..Driven::new(policy()) };
    it.machine = Machine::new(Policy { on_demand: true, ..policy() });
    it.alive.clear();
    it.handle(Event::Begin);
    it.restart();
    assert_eq!(it.told, []);
    it.handle(Event::Listening);
    it.handle(Event::Listening);
    assert_eq!(it.told, [Ready]);
    it.restart();
    assert_eq!(it.told, [Ready, Reloading, Ready]);
    // Too many drain.
    let mut it = Driven::new(Policy { draining_max: 1, ..policy() });
    it.ready(1);
    it.restart();
    it.ready(2);
    it.restart();
    assert_eq!(it.told, [Ready, Reloading, Ready, Reloading, Ready]);
    // In the pause before the next start.
    let mut it = Driven::new(Policy { respawn: true, ..policy() });
    it.ready(1);
    it.ends(1, code(1));
    it.restart();
    it.ready(2);
    assert_eq!(it.told, [Ready, Reloading, Ready]);
}
