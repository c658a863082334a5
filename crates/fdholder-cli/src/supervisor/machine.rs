//! The decisions of `run`: which generation of PROG to start, stop and kill, when, and what to say.
//!
//! Events and the time go in, actions come out; nothing here makes a system call. The states of one
//! generation:
//!
//! ```text
//!            READY=1, newline,                    the next one is ready,
//!            command, --ready-after               SIGTERM, idle
//!  Starting ------------------------> Ready ---------------------------> Stopping ---> ended
//!      |                                |                                   ^    SIGKILL after
//!      |                                +---------> ended (by itself)       |    --stop-timeout
//!      +---> ended (failed)                                                 |
//!      +--------------------------------------------------------------------+
//!            --start-timeout, SIGTERM
//! ```
//!
//! At most one generation is starting and at most one is ready. A ready one is stopped only once the
//! next one is ready, unless somebody asks for that.

mod model;

pub use model::{Action, Event, Exit, Failed, Generation, Number, Outcome, Phase, Policy, Told};

use std::time::{Duration, Instant};

/// Whether the supervisor itself goes on.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Running,
    /// Waiting until all generations have ended; then it ends like this one did.
    Stopping {
        speaker: Option<Number>,
        exit: Exit,
    },
    Ended,
}

/// The pause before a program is started again: doubled each time, up to the last.
const RESPAWN_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A program that was ready for so long starts again after the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// A program on demand that ends sooner than this has not served the client that it was started for.
const SERVED_AFTER: Duration = Duration::from_secs(1);

/// The exit code where a program did not get ready in time.
const EXIT_TIMED_OUT: u8 = 1;

/// What decides. `A` is who asks for a restart.
#[derive(Debug)]
pub struct Machine<A> {
    policy: Policy,
    mode: Mode,
    generations: Vec<Generation>,
    next: Number,
    /// Who waits for the generation that is starting, or will be once the last one has ended.
    asked: Vec<A>,
    /// The next generation starts when all others have ended.
    waits_for_end: bool,
    /// One more restart follows: who waits for it.
    follows: Option<Vec<A>>,
    has_been_ready: bool,
    /// How the ready generation ended while the next one was starting.
    lost: Option<Exit>,
    respawn_at: Option<Instant>,
    respawn_pause: Duration,
    /// No generation runs, and the next client starts one.
    is_asleep: bool,
    active_at: Option<Instant>,
}

impl<A> Machine<A> {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            mode: Mode::Running,
            generations: Vec::new(),
            next: 1,
            asked: Vec::new(),
            waits_for_end: false,
            follows: None,
            has_been_ready: false,
            lost: None,
            respawn_at: None,
            respawn_pause: RESPAWN_PAUSES.0,
            is_asleep: false,
            active_at: None,
        }
    }

    /// All generations that have not ended, oldest first.
    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    /// Whether the next client is to start the program.
    pub fn waits_for_clients(&self) -> bool {
        self.is_asleep && self.mode == Mode::Running
    }

    /// Whether a generation is ready.
    pub fn is_serving(&self) -> bool {
        self.ready().is_some()
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.mode != Mode::Running
    }

    /// The generation that speaks for the service: the ready one, or the first.
    pub fn speaker(&self) -> Option<Number> {
        match &self.mode {
            Mode::Stopping { speaker, .. } => *speaker,
            _ => self.ready().or_else(|| self.starting()),
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub fn timeout(&self) -> Option<Instant> {
        if self.mode == Mode::Ended {
            return None;
        }
        let phases = self.generations.iter().flat_map(|generation| match generation.phase {
            Phase::Starting { ready_at, deadline } => [ready_at, deadline],
            Phase::Stopping { kill_at } => [kill_at, None],
            Phase::Ready | Phase::Killed => [None, None],
        });
        phases.chain([self.respawn_at, self.idle_at()]).flatten().min()
    }

    /// Forgets askers that do not wait for the answer any more.
    pub fn forget_askers(&mut self, is_gone: impl Fn(&A) -> bool) {
        for askers in [Some(&mut self.asked), self.follows.as_mut()].into_iter().flatten() {
            askers.retain(|asker| !is_gone(asker));
        }
    }

    /// Takes an event; what is to be done is added to `actions`.
    pub fn handle(&mut self, now: Instant, event: Event<A>, actions: &mut Vec<Action<A>>) {
        match event {
            Event::Begin if self.policy.on_demand => {
                self.fall_asleep();
                // Its sockets are there: clients can come.
                actions.push(Action::Tell(Told::Ready));
            }
            Event::Begin => self.begin(now, actions),
            Event::Ready(number) => self.becomes_ready(now, number, actions),
            Event::Ended(number, exit) => self.ended(now, number, exit, actions),
            Event::Restart(asker) => self.restart(now, asker, actions),
            Event::Stop => self.stop(now, Exit::Code(0), actions),
            Event::Kill => {
                self.stop(now, Exit::Code(0), actions);
                for generation in &mut self.generations {
                    kill(generation, now, actions);
                }
            }
            Event::Extend(number, by) => self.extend(now, number, by),
            Event::Demand if self.waits_for_clients() => self.begin(now, actions),
            Event::Demand => {}
            Event::Active => self.active_at = Some(now),
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, actions: &mut Vec<Action<A>>) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(number) = self.starting() {
            let generation = self.find(number).map(|it| it.phase);
            if let Some(Phase::Starting { ready_at, deadline }) = generation {
                if is_due(ready_at) {
                    self.becomes_ready(now, number, actions);
                } else if is_due(deadline) {
                    self.timed_out(now, number, actions);
                }
            }
        }
        for generation in &mut self.generations {
            if matches!(generation.phase, Phase::Stopping { kill_at } if is_due(kill_at)) {
                kill(generation, now, actions);
            }
        }
        if is_due(self.respawn_at) {
            self.respawn_at = None;
            if self.policy.on_demand {
                self.fall_asleep();
            } else {
                self.begin(now, actions);
            }
        }
        if is_due(self.idle_at()) {
            if let Some(number) = self.ready() {
                self.begin_stop(now, number, actions);
                self.fall_asleep();
            }
        }
    }

    fn find(&mut self, number: Number) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|generation| generation.number == number)
    }

    fn starting(&self) -> Option<Number> {
        self.generations.iter().find(|it| it.is_starting()).map(|it| it.number)
    }

    fn ready(&self) -> Option<Number> {
        self.generations.iter().find(|it| it.phase == Phase::Ready).map(|it| it.number)
    }

    /// When the ready generation is stopped, if no client comes.
    pub fn idle_at(&self) -> Option<Instant> {
        let idle = self.policy.idle_stop?;
        let ready = self.generations.iter().find(|it| it.phase == Phase::Ready)?;
        let is_busy = self.starting().is_some() || self.draining() >= self.policy.draining_max;
        if is_busy || self.mode != Mode::Running {
            return None;
        }
        Some(self.active_at.map_or(ready.since, |at| at.max(ready.since)) + idle)
    }

    fn draining(&self) -> usize {
        self.generations.iter().filter(|it| it.is_ending()).count()
    }

    fn fall_asleep(&mut self) {
        self.is_asleep = true;
    }

    /// Starts the next generation, once it may run.
    fn begin(&mut self, now: Instant, actions: &mut Vec<Action<A>>) {
        self.is_asleep = false;
        self.respawn_at = None;
        self.waits_for_end = !self.policy.overlaps && !self.generations.is_empty();
        if self.waits_for_end {
            return;
        }
        let number = self.next;
        self.next += 1;
        let phase = Phase::Starting {
            ready_at: self.policy.ready_after.map(|after| now + after),
            deadline: self.policy.start_timeout.map(|timeout| now + timeout),
        };
        self.generations.push(Generation { number, phase, started: now, since: now });
        actions.push(Action::Start(number));
    }

    fn restart(&mut self, now: Instant, asker: Option<A>, actions: &mut Vec<Action<A>>) {
        let refusal = if self.mode != Mode::Running {
            Outcome::Stopping
        } else if self.starting().is_some() || self.waits_for_end {
            self.follows.get_or_insert_with(Vec::new).extend(asker);
            return;
        } else if self.is_asleep {
            Outcome::Asleep
        } else {
            self.asked.extend(asker);
            return self.replace(now, actions);
        };
        actions.push(Action::Note(refusal.clone()));
        actions.extend(asker.map(|asker| Action::Answer(asker, refusal)));
    }

    /// Starts a generation in the place of the one that is ready, if there is one.
    fn replace(&mut self, now: Instant, actions: &mut Vec<Action<A>>) {
        // Where none is ready the next one cannot wait.
        if let Some(number) = self.ready() {
            let draining = self.draining();
            if draining >= self.policy.draining_max {
                return self.conclude(&Outcome::TooMany(draining), actions);
            }
            actions.push(Action::Tell(Told::Reloading));
            if !self.policy.overlaps {
                self.begin_stop(now, number, actions);
            }
        }
        self.begin(now, actions);
    }

    fn becomes_ready(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        let Some(generation) = self.find(number).filter(|it| it.is_starting()) else { return };
        let took = now.saturating_duration_since(generation.started);
        let old = self.ready();
        if let Some(generation) = self.find(number) {
            (generation.phase, generation.since) = (Phase::Ready, now);
        }
        (self.has_been_ready, self.lost, self.active_at) = (true, None, None);
        if let Some(old) = old {
            self.begin_stop(now, old, actions);
        }
        actions.push(Action::Tell(Told::Ready));
        self.conclude(&Outcome::Ready(number, took), actions);
        self.follow(now, actions);
    }

    fn timed_out(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        let why = Failed::TimedOut(self.policy.start_timeout.unwrap_or_default());
        self.begin_stop(now, number, actions);
        self.failed(now, number, why, Exit::Code(EXIT_TIMED_OUT), actions);
    }

    fn ended(&mut self, now: Instant, number: Number, exit: Exit, actions: &mut Vec<Action<A>>) {
        let Some(at) = self.generations.iter().position(|it| it.number == number) else { return };
        let generation = self.generations.remove(at);
        if let Mode::Stopping { speaker, exit: with } = &mut self.mode {
            if *speaker == Some(number) {
                *with = exit;
            }
            return self.end_if_last(actions);
        }
        match generation.phase {
            Phase::Starting { .. } => {
                let why = Failed::Ended(exit.clone());
                self.failed(now, number, why, exit, actions);
            }
            Phase::Ready if self.starting().is_some() => self.lost = Some(exit),
            Phase::Ready => self.lost_service(now, &generation, exit, actions),
            Phase::Stopping { .. } | Phase::Killed if self.waits_for_end => {
                self.begin(now, actions);
            }
            Phase::Stopping { .. } | Phase::Killed => {}
        }
    }

    /// A generation did not get ready, and has ended or is stopping.
    fn failed(
        &mut self,
        now: Instant,
        number: Number,
        why: Failed,
        exit: Exit,
        actions: &mut Vec<Action<A>>,
    ) {
        let others_serve = self.ready().is_some();
        if others_serve && self.has_been_ready {
            // It has been reloading.
            actions.push(Action::Tell(Told::Ready));
        }
        self.conclude(&Outcome::Failed { number, why, others_serve }, actions);
        if others_serve || self.follows.is_some() {
            return self.follow(now, actions);
        }
        if self.has_been_ready && self.policy.respawn {
            return self.respawn(now);
        }
        match self.lost.take() {
            Some(lost) => {
                // Nobody will be there to do that later.
                if let Some(generation) = self.find(number) {
                    kill(generation, now, actions);
                }
                self.end_at_once(lost, actions);
            }
            None => self.stop(now, exit, actions),
        }
    }

    /// The ready generation has ended, and no other one is to be ready soon.
    fn lost_service(
        &mut self,
        now: Instant,
        generation: &Generation,
        exit: Exit,
        actions: &mut Vec<Action<A>>,
    ) {
        let lived = now.saturating_duration_since(generation.since);
        if self.policy.on_demand && exit == Exit::Code(0) {
            if lived < SERVED_AFTER {
                // The client that waits would start it again at once.
                return self.respawn(now);
            }
            // It has stopped because it had nothing to do.
            self.respawn_pause = RESPAWN_PAUSES.0;
            self.fall_asleep();
        } else if self.policy.respawn {
            if lived >= HEALTHY_AFTER {
                self.respawn_pause = RESPAWN_PAUSES.0;
            }
            self.respawn(now);
        } else {
            self.end_at_once(exit, actions);
        }
    }

    /// Nothing serves, and whoever started this process is to act. The others are stopping.
    fn end_at_once(&mut self, exit: Exit, actions: &mut Vec<Action<A>>) {
        self.mode = Mode::Ended;
        actions.push(Action::End(exit));
    }

    fn respawn(&mut self, now: Instant) {
        self.respawn_at = Some(now + self.respawn_pause);
        self.respawn_pause = (self.respawn_pause * 2).min(RESPAWN_PAUSES.1);
    }

    /// A restart has come to its end.
    fn conclude(&mut self, outcome: &Outcome, actions: &mut Vec<Action<A>>) {
        // Who is answered finds it in the log.
        actions.push(Action::Note(outcome.clone()));
        for asker in self.asked.drain(..) {
            actions.push(Action::Answer(asker, outcome.clone()));
        }
    }

    /// Begins the restart that was asked for during the last one.
    fn follow(&mut self, now: Instant, actions: &mut Vec<Action<A>>) {
        let Some(askers) = self.follows.take() else { return };
        self.asked = askers;
        self.replace(now, actions);
    }

    fn begin_stop(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        let kill_at = self.policy.stop_timeout.map(|timeout| now + timeout);
        if let Some(generation) = self.find(number).filter(|it| !it.is_ending()) {
            (generation.phase, generation.since) = (Phase::Stopping { kill_at }, now);
            actions.push(Action::Stop(number));
        }
    }

    fn stop(&mut self, now: Instant, exit: Exit, actions: &mut Vec<Action<A>>) {
        if self.mode != Mode::Running {
            return;
        }
        let speaker = self.speaker();
        self.mode = Mode::Stopping { speaker, exit };
        self.respawn_at = None;
        actions.push(Action::Tell(Told::Stopping));
        if let Some(number) = self.starting() {
            let others_serve = self.ready().is_some();
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

    fn end_if_last(&mut self, actions: &mut Vec<Action<A>>) {
        if !self.generations.is_empty() {
            return;
        }
        if let Mode::Stopping { exit, .. } = std::mem::replace(&mut self.mode, Mode::Ended) {
            actions.push(Action::End(exit));
        }
    }

    fn extend(&mut self, now: Instant, number: Number, by: Duration) {
        let Some(generation) = self.find(number) else { return };
        let (Phase::Starting { deadline: at, .. } | Phase::Stopping { kill_at: at }) =
            &mut generation.phase
        else {
            return;
        };
        *at = at.map(|at| at.max(now + by));
    }
}

fn kill<A>(generation: &mut Generation, now: Instant, actions: &mut Vec<Action<A>>) {
    if generation.phase != Phase::Killed {
        (generation.phase, generation.since) = (Phase::Killed, now);
        actions.push(Action::Kill(generation.number));
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
