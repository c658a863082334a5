//! What all threads of a test share.

use crate::support::{eventually, Family};
use fdholder::{Cause, Errno, Error, Identifier};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Threads that store and delete.
pub const CLIENTS: usize = 8;

/// The identifier of the service's listening socket.
pub const LIVE: &str = "live";

/// The holder, and how far everybody is.
pub struct World {
    pub path: PathBuf,
    pub seed: u64,
    /// Whether a connection may break: the process that serves it is killed now and then.
    pub may_break: bool,
    /// What was done to the holder, so many times.
    round: AtomicU64,
    /// The last round after which each client has found everything as it must be.
    verified: [AtomicU64; CLIENTS],
    has_ended: AtomicBool,
    service_has_ended: AtomicBool,
    has_failed: AtomicBool,
    pub counts: Counts,
}

/// What has happened.
#[derive(Default)]
pub struct Counts {
    pub operations: AtomicU64,
    pub broken: AtomicU64,
    /// How often a client has compared all that it has with what is held.
    pub comparisons: AtomicU64,
    /// Takes whose reply was read, and which were undone by a kill.
    pub came_back: AtomicU64,
    pub tcp_connections: AtomicU64,
    pub holder_connections: AtomicU64,
}

impl Counts {
    pub fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl World {
    pub fn new(family: &Family, seed: u64, may_break: bool) -> Self {
        Self {
            path: family.path.clone(),
            seed,
            may_break,
            round: AtomicU64::new(0),
            verified: Default::default(),
            has_ended: AtomicBool::new(false),
            service_has_ended: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    pub fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// Something was done to the holder; returns when every client has looked what became
    /// of what it has.
    pub fn next_round(&self) {
        let round = self.round.fetch_add(1, Ordering::SeqCst) + 1;
        eventually("every client has compared", || {
            self.go_on_or_panic();
            self.verified.iter().all(|verified| verified.load(Ordering::SeqCst) >= round)
        });
    }

    /// A client has found everything as it must be.
    pub fn has_verified(&self, client: usize, round: u64) {
        self.verified[client].store(round, Ordering::SeqCst);
    }

    /// It is over: everybody is to put things in order and end.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Nobody is to be served any more.
    pub fn end_service(&self) {
        self.service_has_ended.store(true, Ordering::SeqCst);
    }

    pub fn service_has_ended(&self) -> bool {
        self.service_has_ended.load(Ordering::SeqCst) || self.has_failed.load(Ordering::SeqCst)
    }

    /// When one thread has failed, the others do not wait for it.
    pub fn go_on_or_panic(&self) {
        if self.has_failed.load(Ordering::SeqCst) {
            // That one has said what is wrong.
            std::panic::resume_unwind(Box::new("another thread has failed"));
        }
    }

    /// Runs a thread, whose panic ends them all.
    pub fn run<T>(&self, what: impl FnOnce() -> T) -> T {
        let _guard = Guard(self);
        what()
    }

    /// Whether an operation failed because the process that served it was killed, which is
    /// all that may go wrong; and nothing may where nobody is killed.
    pub fn is_broken(&self, error: &Error) -> bool {
        let is_broken = matches!(
            error.cause(),
            Cause::BrokenOff | Cause::Exchange(Errno::PIPE | Errno::CONNRESET)
        );
        assert!(is_broken && self.may_break, "{error:?}");
        Counts::add(&self.counts.broken);
        true
    }
}

struct Guard<'a>(&'a World);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_failed.store(true, Ordering::SeqCst);
            self.0.end();
        }
    }
}

/// The client of an identifier: "t3/17" is the third's.
pub fn owner_of(id: &Identifier) -> Option<usize> {
    let text = std::str::from_utf8(id.as_bytes()).ok()?;
    let (owner, _) = text.strip_prefix('t')?.split_once('/')?;
    owner.parse().ok().filter(|owner| *owner < CLIENTS)
}

/// Busy for so long: what happens next comes at no particular moment of anything else.
pub fn spin(span: Duration) {
    let start = Instant::now();
    while start.elapsed() < span {
        std::hint::spin_loop();
    }
}
