//! Lines on stderr, written by a thread once that was begun: a process whose stderr nobody reads goes
//! on.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Lines that wait at most. More are counted, and lost.
const WAITING_MAX: usize = 256;

/// How long to wait for the thread where stderr has room: what was said is then written before anything
/// else is done.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long the end of the process waits until all is written.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    has_changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<String>,
    lost: usize,
    /// The thread is writing one.
    is_writing: bool,
    /// It was waited for in vain, and nobody waits until it has written all.
    is_stuck: bool,
}

impl Waiting {
    fn push(&mut self, line: String) {
        if self.lines.len() < WAITING_MAX {
            self.lines.push_back(line);
        } else {
            self.lost += 1;
        }
    }

    /// The next to write.
    fn take(&mut self) -> Option<String> {
        let line = self.lines.pop_front();
        self.is_writing = line.is_some();
        line.map(|line| match std::mem::take(&mut self.lost) {
            0 => line,
            lost => format!("fdholder: warning: {lost} lines were lost: stderr was full\n{line}"),
        })
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all is written, if that does not take longer.
    fn wait(&self, state: MutexGuard<'_, Waiting>, patience: Duration) {
        let waits = |state: &mut Waiting| state.is_writing || !state.lines.is_empty();
        let waited = self.has_changed.wait_timeout_while(state, patience, waits);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_stuck = timeout.timed_out();
    }

    fn write_all(&self) {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.take() {
                drop(state);
                write(&line);
                state = self.lock();
            } else {
                state.is_stuck = false;
                self.has_changed.notify_all();
                state = self.has_changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// From now on a thread writes.
///
/// # Errors
///
/// When it cannot be started.
pub fn begin() -> io::Result<()> {
    let queue = QUEUE.get_or_init(Queue::default);
    std::thread::Builder::new().name("lines".to_owned()).spawn(|| queue.write_all()).map(drop)
}

/// Writes a line, by one system call, so that it is not mixed with others.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    match QUEUE.get() {
        Some(queue) => {
            let mut state = queue.lock();
            state.push(line);
            queue.has_changed.notify_all();
            if !state.is_stuck {
                queue.wait(state, PATIENCE);
            }
        }
        None => write(&line),
    }
}

/// Waits until all is written, but not for long.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.wait(queue.lock(), LAST_PATIENCE);
    }
}

fn write(line: &str) {
    // Who cannot be told need not know.
    let _ = io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_room_are_counted() {
        let mut waiting = Waiting::default();
        for number in 0..WAITING_MAX + 3 {
            waiting.push(number.to_string());
        }
        assert_eq!(waiting.take().unwrap().lines().last(), Some("0"));
        waiting.push("last".to_owned());
        let lines: Vec<_> = std::iter::from_fn(|| waiting.take()).collect();
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (WAITING_MAX, "last"));
        assert!(!waiting.is_writing);
    }
}
