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
//!
//! Between the death of PROG (`Died`) and its end (`Ended`) its last words may come. What it leaves in
//! its process group is told to stop as well, unless it was ready and has exited with 0 by itself.

mod model;
mod stopping;
mod telling;

pub use model::{Action, Event, Exit, Failed, Generation, Life, Number, Outcome};
pub use model::{Phase, Policy, Told};

use std::time::{Duration, Instant};
use stopping::kill;

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
    /// For how long the ready generation served that ended while the next one was starting, and how.
    lost: Option<(Duration, Exit)>,
    respawn_at: Option<Instant>,
    respawn_pause: Duration,
    /// No generation runs, and the next client starts one.
    is_asleep: bool,
    active_at: Option<Instant>,
    /// What the service manager was told last.
    last_told: Option<Told>,
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
            last_told: None,
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

    /// Whether a generation is ready and lives.
    pub fn is_serving(&self) -> bool {
        self.serving().is_some()
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
            _ if self.mode == Mode::Ended => {}
            Event::Begin if self.policy.on_demand => self.fall_asleep(actions),
            Event::Begin => self.begin(now, actions),
            Event::Listening if self.is_announced() => {}
            Event::Listening => self.tell(Told::Ready, actions),
            Event::Executed(number) => self.executed(now, number),
            Event::Ready(number) => self.becomes_ready(now, number, actions),
            Event::Died(number) => self.died(number),
            Event::Ended { number, exit, leaves_others } => {
                self.ended(now, number, exit, leaves_others, actions);
            }
            Event::Gone(number) => self.gone(now, number, actions),
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
                self.fall_asleep(actions);
            } else {
                self.begin(now, actions);
            }
        }
        if is_due(self.idle_at()) {
            if let Some(number) = self.ready() {
                self.begin_stop(now, number, actions);
                self.fall_asleep(actions);
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

    fn serving(&self) -> Option<Number> {
        self.generations.iter().find(|it| it.is_serving()).map(|it| it.number)
    }

    /// When the ready generation is stopped, if no client comes.
    pub fn idle_at(&self) -> Option<Instant> {
        let idle = self.policy.idle_stop?;
        let ready = self.generations.iter().find(|it| it.is_serving())?;
        let is_busy = self.starting().is_some() || self.draining() >= self.policy.draining_max;
        if is_busy || self.mode != Mode::Running {
            return None;
        }
        Some(self.active_at.map_or(ready.since, |at| at.max(ready.since)) + idle)
    }

    fn draining(&self) -> usize {
        self.generations.iter().filter(|it| it.is_ending()).count()
    }

    fn fall_asleep(&mut self, actions: &mut Vec<Action<A>>) {
        self.is_asleep = true;
        self.finish_reloading(actions);
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
        let deadline = self.policy.start_timeout.map(|timeout| now + timeout);
        self.generations.push(Generation {
            number,
            phase: Phase::Starting { ready_at: None, deadline },
            life: Life::Preparing,
            was_ready: false,
            started: now,
            since: now,
        });
        actions.push(Action::Start(number));
    }

    /// From now on it can get ready by living.
    fn executed(&mut self, now: Instant, number: Number) {
        let after = self.policy.ready_after;
        let preparing = self.find(number).filter(|it| it.life == Life::Preparing);
        let Some(generation) = preparing else { return };
        generation.life = Life::Prog;
        if let Phase::Starting { ready_at, .. } = &mut generation.phase {
            *ready_at = after.map(|after| now + after);
        }
    }

    fn restart(&mut self, now: Instant, asker: Option<A>, actions: &mut Vec<Action<A>>) {
        if self.mode != Mode::Running {
            actions.push(Action::Note(Outcome::Stopping));
            actions.extend(asker.map(|asker| Action::Answer(asker, Outcome::Stopping)));
        } else if self.starting().is_some() || self.waits_for_end {
            self.follows.get_or_insert_with(Vec::new).extend(asker);
        } else {
            self.asked.extend(asker);
            self.replace(now, actions);
        }
    }

    /// Starts a generation in the place of the one that is ready, if there is one.
    fn replace(&mut self, now: Instant, actions: &mut Vec<Action<A>>) {
        // systemd waits for both after each SIGHUP, whatever that does.
        self.tell_reloading(actions);
        if self.is_asleep {
            self.conclude(&Outcome::Asleep, actions);
            return self.finish_reloading(actions);
        }
        let draining = self.draining();
        // Where none is ready the next one cannot wait.
        if self.is_serving() && draining >= self.policy.draining_max {
            self.conclude(&Outcome::TooMany(draining), actions);
            return self.finish_reloading(actions);
        }
        if let Some(number) = self.ready().filter(|_| !self.policy.overlaps) {
            self.begin_stop(now, number, actions);
        }
        self.begin(now, actions);
    }

    fn becomes_ready(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        let old = self.ready();
        let Some(generation) = self.find(number).filter(|it| it.is_starting()) else { return };
        if generation.life == Life::Dead && old.is_some() {
            // It cannot take the place of another one.
            return;
        }
        let took = now.saturating_duration_since(generation.started);
        (generation.phase, generation.since) = (Phase::Ready, now);
        generation.was_ready = true;
        (self.has_been_ready, self.lost, self.active_at) = (true, None, None);
        if let Some(old) = old {
            self.begin_stop(now, old, actions);
        }
        self.tell(Told::Ready, actions);
        self.conclude(&Outcome::Ready(number, took), actions);
        self.follow(now, actions);
    }

    fn timed_out(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        let why = Failed::TimedOut(self.policy.start_timeout.unwrap_or_default());
        self.begin_stop(now, number, actions);
        self.failed(now, number, why, Exit::Code(EXIT_TIMED_OUT), actions);
    }

    fn died(&mut self, number: Number) {
        let Some(generation) = self.find(number) else { return };
        generation.life = Life::Dead;
        match &mut generation.phase {
            Phase::Starting { ready_at, deadline } => (*ready_at, *deadline) = (None, None),
            Phase::Stopping { kill_at } => *kill_at = None,
            Phase::Ready | Phase::Killed => {}
        }
    }

    fn ended(
        &mut self,
        now: Instant,
        number: Number,
        exit: Exit,
        leaves_others: bool,
        actions: &mut Vec<Action<A>>,
    ) {
        let mut all = self.generations.iter();
        let at = all.position(|it| it.number == number && it.life != Life::Orphans);
        let Some(at) = at else { return };
        let generation = self.generations[at];
        // One that goes in order may leave what it likes.
        let goes_by_itself = generation.phase == Phase::Ready && exit == Exit::Code(0);
        if leaves_others && !goes_by_itself {
            self.stop_orphans(now, at, actions);
        } else {
            self.generations.remove(at);
        }
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
            Phase::Ready => {
                let lived = now.saturating_duration_since(generation.since);
                if self.starting().is_some() {
                    self.lost = Some((lived, exit));
                } else {
                    self.lost_service(now, lived, exit, actions);
                }
            }
            Phase::Stopping { .. } | Phase::Killed if self.waits_for_end => {
                self.begin(now, actions);
            }
            Phase::Stopping { .. } | Phase::Killed => {}
        }
    }

    fn gone(&mut self, now: Instant, number: Number, actions: &mut Vec<Action<A>>) {
        self.generations.retain(|it| it.number != number || it.life != Life::Orphans);
        if self.is_stopping() {
            self.end_if_last(actions);
        } else if self.waits_for_end {
            self.begin(now, actions);
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
        let others_serve = self.is_serving();
        if others_serve {
            self.finish_reloading(actions);
        }
        self.conclude(&Outcome::Failed { number, why, others_serve }, actions);
        if others_serve || self.follows.is_some() {
            return self.follow(now, actions);
        }
        if self.ready().is_some() {
            // It has died as well: its end decides.
            return;
        }
        match self.lost.take() {
            Some((lived, lost)) => self.lost_service(now, lived, lost, actions),
            None if self.has_been_ready && self.policy.respawn => self.respawn(now),
            // Those that still stop have clients, and may take as long as they like.
            None if self.generations.iter().any(|it| it.was_ready) => {
                self.end_at_once(now, exit, actions);
            }
            None => self.stop(now, exit, actions),
        }
    }

    /// The ready generation has ended, and no other one is to be ready soon.
    fn lost_service(
        &mut self,
        now: Instant,
        lived: Duration,
        exit: Exit,
        actions: &mut Vec<Action<A>>,
    ) {
        if self.policy.on_demand && exit == Exit::Code(0) {
            if lived < SERVED_AFTER {
                // The client that waits would start it again at once.
                return self.respawn(now);
            }
            // It has stopped because it had nothing to do.
            self.respawn_pause = RESPAWN_PAUSES.0;
            self.fall_asleep(actions);
        } else if self.policy.respawn {
            if lived >= HEALTHY_AFTER {
                self.respawn_pause = RESPAWN_PAUSES.0;
            }
            self.respawn(now);
        } else {
            self.end_at_once(now, exit, actions);
        }
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
}

#[cfg(test)]
mod driven;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
