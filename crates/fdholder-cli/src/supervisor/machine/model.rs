//! What goes into the machine of `run`, and what comes out.

use std::time::{Duration, Instant};

/// The number of a generation, from 1.
pub type Number = u64;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A program that lives for so long is ready; `None` where it tells that by itself.
    pub ready_after: Option<Duration>,
    /// How long a program may take to get ready.
    pub start_timeout: Option<Duration>,
    /// How long a program may take to stop.
    pub stop_timeout: Option<Duration>,
    /// How many stopping generations there may be when another one is asked for.
    pub draining_max: usize,
    /// Whether to start a program again that was ready and ended by itself.
    pub respawn: bool,
    /// Whether the next generation starts beside the last one, or only after that has ended.
    pub overlaps: bool,
    /// Whether to start only when a client waits.
    pub on_demand: bool,
    /// How long a program may have no clients before it is stopped until the next one comes.
    pub idle_stop: Option<Duration>,
}

/// How a program has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    Code(u8),
    Signal(i32),
    /// It never ran: why.
    NotStarted {
        code: u8,
        why: String,
    },
}

/// Why a generation did not get ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    Ended(Exit),
    TimedOut(Duration),
    /// Everything is being stopped.
    Stopped,
}

/// What came of a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The generation is ready, after so long.
    Ready(Number, Duration),
    /// The generation failed; whether another one still serves.
    Failed { number: Number, why: Failed, others_serve: bool },
    /// Nothing was started, as so many generations are still stopping.
    TooMany(usize),
    /// Nothing was started, as everything is being stopped.
    Stopping,
    /// Nothing runs; the next client starts the program.
    Asleep,
}

/// What happens. `A` is who asks for a restart and waits for the outcome.
#[derive(Debug)]
pub enum Event<A> {
    /// The supervisor has started.
    Begin,
    /// A process has become PROG.
    Executed(Number),
    /// A generation is ready.
    Ready(Number),
    /// PROG has died; what it has said before may still come.
    Died(Number),
    /// A generation has ended, and its last words are known. Processes that it has started may be
    /// left in its process group.
    Ended { number: Number, exit: Exit, leaves_others: bool },
    /// No process of an ended generation is left.
    Gone(Number),
    /// The sockets of a service on demand are there.
    Listening,
    /// Somebody asks for the next generation.
    Restart(Option<A>),
    /// Everything is to stop.
    Stop,
    /// Everything is to end at once.
    Kill,
    /// A generation asks for more time to start or stop.
    Extend(Number, Duration),
    /// A client waits and no generation runs.
    Demand,
    /// Clients were seen.
    Active,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<A> {
    Start(Number),
    /// Send the stop signal: to PROG, or to what it has left.
    Stop(Number),
    /// Kill PROG and all that it has started.
    Kill(Number),
    Answer(A, Outcome),
    /// The outcome of a start or restart, for the log and the counters.
    Note(Outcome),
    /// Tell the service manager.
    Tell(Told),
    /// This supervisor ends, as its program did.
    End(Exit),
}

/// What the service manager is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Ready,
    Reloading,
    Stopping,
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting {
        ready_at: Option<Instant>,
        deadline: Option<Instant>,
    },
    Ready,
    Stopping {
        kill_at: Option<Instant>,
    },
    /// It has been killed, and has not ended yet.
    Killed,
}

/// What of a generation lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The process that becomes PROG.
    Preparing,
    Prog,
    /// Nothing; how it has ended is not known yet.
    Dead,
    /// Only processes that PROG has started.
    Orphans,
}

/// One run of PROG.
#[derive(Debug, Clone, Copy)]
pub struct Generation {
    pub number: Number,
    pub phase: Phase,
    pub life: Life,
    pub was_ready: bool,
    /// When it was started.
    pub started: Instant,
    /// When its phase began.
    pub since: Instant,
}

impl Generation {
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. } | Phase::Killed)
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Ready && self.life != Life::Dead
    }
}
