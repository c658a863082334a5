//! A machine with what surrounds it: processes that live and die, and clients that ask and are told.

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

/// What is known of a generation without asking the machine.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    pub life: Life,
    executed: Option<Instant>,
    was_ready: bool,
    /// It was told to stop; when it is to be killed.
    is_told: bool,
    kill_at: Option<Instant>,
    is_killed: bool,
}

/// A machine, and what its driver would know.
pub struct Driven {
    pub machine: Machine<u32>,
    pub now: Instant,
    /// All that have not ended, and those that have left processes.
    pub alive: BTreeMap<Number, Real>,
    /// Ready, alive, and not told to stop.
    pub serving: BTreeSet<Number>,
    pub asked: u32,
    pub answers: BTreeMap<u32, Outcome>,
    pub told: Vec<Told>,
    pub end: Option<Exit>,
    pub last: Vec<Action<u32>>,
}

impl Driven {
    pub fn new(policy: Policy) -> Self {
        let is_on_demand = policy.on_demand;
        let mut driven = Self {
            machine: Machine::new(policy),
            now: Instant::now(),
            alive: BTreeMap::new(),
            serving: BTreeSet::new(),
            asked: 0,
            answers: BTreeMap::new(),
            told: Vec::new(),
            end: None,
            last: Vec::new(),
        };
        driven.handle(Event::Begin);
        if is_on_demand {
            driven.handle(Event::Listening);
        }
        driven
    }

    pub fn handle(&mut self, event: Event<u32>) {
        let mut actions = Vec::new();
        self.machine.handle(self.now, event, &mut actions);
        self.carry_out(actions);
    }

    pub fn restart(&mut self) -> u32 {
        self.asked += 1;
        let goes_on = self.machine.is_stopping() || self.machine.starting().is_some();
        let follows = goes_on || self.machine.waits_for_end;
        let is_new = self.told.contains(&Told::Ready) && !self.is_reloading() && !follows;
        self.handle(Event::Restart(Some(self.asked)));
        let tells = self.last.contains(&Action::Tell(Told::Reloading));
        assert_eq!(tells, is_new, "{:?}", self.last);
        self.asked
    }

    pub fn executed(&mut self, number: Number) {
        let real = self.alive.get_mut(&number).unwrap();
        assert_eq!(real.life, Life::Preparing);
        (real.life, real.executed) = (Life::Prog, Some(self.now));
        self.handle(Event::Executed(number));
    }

    /// Says that it is ready, perhaps before its death.
    pub fn ready(&mut self, number: Number) {
        if self.alive[&number].life == Life::Preparing {
            self.executed(number);
        }
        let is_dead = self.alive[&number].life == Life::Dead;
        let others = self.serving.iter().any(|it| *it != number);
        self.handle(Event::Ready(number));
        let is_ready = self.last.iter().any(|it| is_ready(it, number));
        assert!(!is_ready || !others || !is_dead, "{number} is dead, and others serve");
    }

    pub fn dies(&mut self, number: Number) {
        let real = self.alive.get_mut(&number).unwrap();
        assert!(matches!(real.life, Life::Preparing | Life::Prog));
        (real.life, real.kill_at) = (Life::Dead, None);
        self.serving.remove(&number);
        self.handle(Event::Died(number));
    }

    pub fn ends(&mut self, number: Number, exit: Exit) {
        self.ends_and_leaves(number, exit, false);
    }

    /// What it has started may still live.
    pub fn ends_and_leaves(&mut self, number: Number, exit: Exit, leaves_others: bool) {
        if self.alive[&number].life != Life::Dead {
            self.dies(number);
        }
        let real = self.alive.get_mut(&number).unwrap();
        // Also one that was to stop when it had died.
        let is_to_stop =
            self.machine.generations.iter().any(|it| it.number == number && it.is_ending());
        let goes_by_itself = real.was_ready && !is_to_stop && exit == Exit::Code(0);
        if leaves_others && !goes_by_itself {
            (real.life, real.is_told, real.is_killed) = (Life::Orphans, false, false);
        } else {
            self.alive.remove(&number);
        }
        self.handle(Event::Ended { number, exit, leaves_others });
        let real = self.alive.get(&number);
        assert!(real.is_none_or(|it| it.is_told || it.is_killed), "{number} leaves processes");
    }

    pub fn gone(&mut self, number: Number) {
        assert_eq!(self.alive.remove(&number).map(|real| real.life), Some(Life::Orphans));
        self.handle(Event::Gone(number));
    }

    pub fn extend(&mut self, number: Number, by: Duration) {
        let real = self.alive.get_mut(&number).unwrap();
        real.kill_at = real.kill_at.map(|at| at.max(self.now + by));
        self.handle(Event::Extend(number, by));
    }

    /// Lets time pass, with a tick whenever one is due.
    pub fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.machine.timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let mut actions = Vec::new();
            self.machine.tick(self.now, &mut actions);
            let after = self.machine.policy.ready_after.unwrap_or(Duration::MAX);
            for (number, real) in &self.alive {
                let lived = real.executed.map(|at| self.now - at);
                let may = real.life == Life::Prog && lived.is_some_and(|lived| lived >= after);
                assert!(
                    may || !actions.iter().any(|it| is_ready(it, *number)),
                    "{number}: {real:?}"
                );
            }
            self.carry_out(actions);
            assert!(self.machine.timeout().is_none_or(|at| at > self.now), "it would spin");
        }
        self.now = until;
        for (number, real) in self.alive.iter().filter(|_| self.end.is_none()) {
            let is_due = real.kill_at.is_some_and(|at| at <= until);
            assert!(!is_due || real.is_killed, "{number} is to be killed: {real:?}");
        }
    }

    pub fn carry_out(&mut self, actions: Vec<Action<u32>>) {
        for action in &actions {
            assert_eq!(self.end, None, "nothing comes after the end: {actions:?}");
            match action {
                Action::Start(number) => self.start(*number),
                Action::Stop(number) => {
                    let kill_at = self.machine.policy.stop_timeout.map(|after| self.now + after);
                    let real = self.lives(*number);
                    assert!(!real.is_told && !real.is_killed, "{number} is told twice");
                    (real.is_told, real.kill_at) = (true, kill_at);
                    self.serving.remove(number);
                }
                Action::Kill(number) => {
                    let real = self.lives(*number);
                    assert!(!real.is_killed, "{number} is killed twice");
                    (real.is_told, real.is_killed) = (true, true);
                    self.serving.remove(number);
                }
                Action::Answer(asker, outcome) => {
                    self.see(outcome);
                    let before = self.answers.insert(*asker, outcome.clone());
                    assert_eq!(before, None, "{asker} is answered twice");
                }
                Action::Tell(told) => self.tell(*told),
                Action::End(exit) => self.end = Some(exit.clone()),
                Action::Note(outcome) => self.see(outcome),
            }
        }
        for generation in self.machine.generations() {
            if generation.is_serving() {
                self.serving.insert(generation.number);
            }
        }
        self.last = actions;
        self.check();
    }

    fn start(&mut self, number: Number) {
        let Policy { overlaps, draining_max, .. } = self.machine.policy;
        assert!(overlaps || self.alive.is_empty(), "{number} runs beside another");
        let draining = self.alive.values().filter(|real| real.is_told).count();
        assert!(self.serving.is_empty() || draining < draining_max, "{draining} drain");
        let real = Real {
            life: Life::Preparing,
            executed: None,
            was_ready: false,
            is_told: false,
            kill_at: None,
            is_killed: false,
        };
        assert!(self.alive.insert(number, real).is_none(), "{number} again");
    }

    /// One that a signal reaches.
    fn lives(&mut self, number: Number) -> &mut Real {
        let real = self.alive.get_mut(&number).expect("it has not ended");
        assert_ne!(real.life, Life::Dead, "{number} is dead");
        real
    }

    fn see(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ready(number, _) => {
                if let Some(real) = self.alive.get_mut(number) {
                    real.was_ready = true;
                }
            }
            Outcome::Failed { number, others_serve, .. } => {
                let others = self.serving.iter().any(|it| it != number);
                assert_eq!(*others_serve, others, "{outcome:?}: {:?}", self.serving);
            }
            Outcome::TooMany(_) | Outcome::Stopping | Outcome::Asleep => {}
        }
    }

    fn is_reloading(&self) -> bool {
        self.told.last() == Some(&Told::Reloading)
    }

    fn tell(&mut self, told: Told) {
        assert_ne!(self.told.last(), Some(&Told::Stopping), "{told:?} after the last");
        let is_pair = told != Told::Reloading || self.told.last() == Some(&Told::Ready);
        assert!(is_pair, "{told:?} after {:?}", self.told);
        self.told.push(told);
    }

    fn check(&self) {
        let all = self.machine.generations();
        let count = |is: fn(&Generation) -> bool| all.iter().filter(|it| is(it)).count();
        let are_ready = count(|it| it.phase == Phase::Ready);
        assert!(count(Generation::is_starting) <= 1, "two are starting: {all:?}");
        assert!(are_ready <= 1, "two are ready: {all:?}");
        let known: Vec<_> = all.iter().map(|it| (it.number, it.life)).collect();
        let real: Vec<_> = self.alive.iter().map(|(number, real)| (*number, real.life)).collect();
        assert_eq!(known, real, "a generation is forgotten");
        let machine = &self.machine;
        let will_start = count(Generation::is_starting) > 0
            || machine.respawn_at.is_some()
            || machine.waits_for_end;
        let goes_on = will_start || machine.waits_for_clients() || are_ready > 0;
        assert!(goes_on || machine.is_stopping(), "nothing will ever serve: {machine:?}");
        let may_end = will_start || (are_ready > 0 && !machine.is_serving());
        assert!(
            !self.is_reloading() || may_end || machine.is_stopping(),
            "it is over: {machine:?}"
        );
        if self.end.is_some() && !self.told.contains(&Told::Stopping) {
            for (number, real) in &self.alive {
                let is_cared_for =
                    real.life == Life::Dead || (real.is_killed || (real.is_told && real.was_ready));
                assert!(is_cared_for, "{number} is left alone: {real:?}");
                assert!(real.is_killed || real.life != Life::Orphans, "{number}: {real:?}");
            }
            let Policy { respawn, on_demand, .. } = machine.policy;
            assert!(!(respawn || on_demand && self.end == Some(Exit::Code(0))), "it goes on");
        } else if self.end.is_some() {
            assert!(self.alive.is_empty(), "it ends before these: {:?}", self.alive);
        }
    }

    pub fn stops(&self, number: Number) -> bool {
        self.last.contains(&Action::Stop(number))
    }
}

fn is_ready(action: &Action<u32>, number: Number) -> bool {
    matches!(action, Action::Note(Outcome::Ready(it, _)) if *it == number)
}

pub fn code(code: u8) -> Exit {
    Exit::Code(code)
}
