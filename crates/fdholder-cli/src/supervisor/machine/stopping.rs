//! Stopping generations, and everything.

use super::{Action, Exit, Failed, Generation, Life, Machine, Mode, Number, Outcome, Phase, Told};
use std::time::{Duration, Instant};

impl<A> Machine<A> {
    pub(super) fn begin_stop(
        &mut self,
        now: Instant,
        number: Number,
        actions: &mut Vec<Action<A>>,
    ) {
        let kill_at = self.policy.stop_timeout.map(|timeout| now + timeout);
        let Some(generation) = self.find(number).filter(|it| !it.is_ending()) else { return };
        let is_dead = generation.life == Life::Dead;
        let kill_at = kill_at.filter(|_| !is_dead);
        (generation.phase, generation.since) = (Phase::Stopping { kill_at }, now);
        if !is_dead {
            actions.push(Action::Stop(number));
        }
    }

    /// PROG has ended, and processes are left that have its sockets.
    pub(super) fn stop_orphans(&mut self, now: Instant, at: usize, actions: &mut Vec<Action<A>>) {
        let kill_at = self.policy.stop_timeout.map(|timeout| now + timeout);
        let generation = &mut self.generations[at];
        generation.life = Life::Orphans;
        if generation.phase == Phase::Killed {
            actions.push(Action::Kill(generation.number));
        } else {
            (generation.phase, generation.since) = (Phase::Stopping { kill_at }, now);
            actions.push(Action::Stop(generation.number));
        }
    }

    /// Nothing serves, and the service manager is to act. The others are stopping; nobody
    /// will kill them later.
    pub(super) fn end_at_once(&mut self, now: Instant, exit: Exit, actions: &mut Vec<Action<A>>) {
        self.mode = Mode::Ended;
        for generation in &mut self.generations {
            if generation.life == Life::Orphans || !generation.was_ready {
                kill(generation, now, actions);
            }
        }
        actions.push(Action::End(exit));
    }

    pub(super) fn stop(&mut self, now: Instant, exit: Exit, actions: &mut Vec<Action<A>>) {
        if self.mode != Mode::Running {
            return;
        }
        let speaker = self.speaker();
        self.mode = Mode::Stopping { speaker, exit };
        self.respawn_at = None;
        self.tell(Told::Stopping, actions);
        if let Some(number) = self.starting() {
            let others_serve = self.is_serving();
            let why = Failed::Stopped;
            self.conclude(&Outcome::Failed { number, why, others_serve }, actions);
        }
        let waiting = self.follows.take().into_iter().flatten();
        for asker in waiting.chain(std::mem::take(&mut self.asked)) {
            actions.push(Action::Answer(asker, Outcome::Stopping));
        }
        let all: Vec<_> = self.generations.iter().map(|generation| generation.number).collect();
        for number in all {
            self.begin_stop(now, number, actions);
        }
        self.end_if_last(actions);
    }

    pub(super) fn end_if_last(&mut self, actions: &mut Vec<Action<A>>) {
        if !self.generations.is_empty() {
            return;
        }
        if let Mode::Stopping { exit, .. } = std::mem::replace(&mut self.mode, Mode::Ended) {
            actions.push(Action::End(exit));
        }
    }

    pub(super) fn extend(&mut self, now: Instant, number: Number, by: Duration) {
        let Some(generation) = self.find(number) else { return };
        let (Phase::Starting { deadline: at, .. } | Phase::Stopping { kill_at: at }) =
            &mut generation.phase
        else {
            return;
        };
        *at = at.map(|at| at.max(now + by));
    }
}

pub(super) fn kill<A>(generation: &mut Generation, now: Instant, actions: &mut Vec<Action<A>>) {
    if generation.phase != Phase::Killed {
        (generation.phase, generation.since) = (Phase::Killed, now);
        if generation.life != Life::Dead {
            actions.push(Action::Kill(generation.number));
        }
    }
}
