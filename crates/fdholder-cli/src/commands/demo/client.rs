//! The client of the demo: connects and connects, and remembers how it went.

use super::PATIENCE;
use crate::failure::{exit, Failure};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How the connections went.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    /// Answered.
    pub made: u32,
    /// Not answered: refused, reset, or silent.
    pub refused: u32,
    /// The longest time from one answer to the next.
    pub longest_gap: Duration,
}

/// The client, at work in a thread.
pub struct Connecting {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    made: AtomicU32,
    stop: AtomicBool,
    result: Mutex<Connections>,
}

impl Connecting {
    pub fn start(address: String) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.connect_to(&address)
        });
        Self { shared, thread }
    }

    pub fn made(&self) -> u32 {
        self.shared.made.load(Ordering::Relaxed)
    }

    /// Waits until so many connections have been answered.
    pub fn wait_for(&self, count: u32) -> Result<(), Failure> {
        let start = Instant::now();
        while self.made() < count {
            if start.elapsed() > PATIENCE || self.thread.is_finished() {
                return Err(Failure::new(exit::SYSTEM, "the server does not answer"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub fn stop(self) -> Connections {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A panic of the client shows in its counts.
        let _ = self.thread.join();
        self.shared.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn connect_to(&self, address: &str) {
        let mut result = Connections::default();
        let mut last = None;
        while !self.stop.load(Ordering::Relaxed) {
            if ask(address).is_ok() {
                result.made += 1;
                self.made.store(result.made, Ordering::Relaxed);
                let now = Instant::now();
                let gap = last.map_or(Duration::ZERO, |last| now - last);
                result.longest_gap = result.longest_gap.max(gap);
                last = Some(now);
            } else {
                result.refused += 1;
            }
        }
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
    }
}

/// One connection and its answer.
fn ask(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == b"hello\n" {
        Ok(())
    } else {
        Err(std::io::Error::other("no answer"))
    }
}
