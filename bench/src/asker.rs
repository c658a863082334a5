//! A client that asks all the time, to see for how long it is not answered.

use crate::Result;
use fdholder::{Client, Deadline, Identifier};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Over one connection, which goes with whoever serves.
    Steady,
    /// Over a new connection each time.
    Anew,
}

/// A client that waits for longer is not served any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client that asks until it is told to stop: it retrieves one descriptor, again and
/// again, the next time as soon as it was answered.
#[derive(Debug)]
pub struct Asker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::result::Result<Vec<Instant>, String>>,
}

impl Asker {
    /// Starts one, and waits until it was answered for the first time.
    pub fn start(path: &Path, id: &Identifier, manner: Manner) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, id, stopped) = (path.to_owned(), id.clone(), Arc::clone(&stop));
        let (answered, first_answer) = channel();
        let thread = std::thread::spawn(move || ask(&path, &id, manner, &stopped, &answered));
        // It is dropped, too, when there is no answer; that is told at the end.
        let _ = first_answer.recv();
        Self { stop, thread }
    }

    /// Stops it: when it was answered, or what it was told instead.
    pub fn end(self) -> Result<std::result::Result<Answers, String>> {
        self.stop.store(true, Ordering::Relaxed);
        let asked = self.thread.join().map_err(|_| "a client panicked")?;
        Ok(asked.map(Answers))
    }
}

fn ask(
    path: &PathBuf,
    id: &Identifier,
    manner: Manner,
    stop: &AtomicBool,
    answered: &Sender<()>,
) -> std::result::Result<Vec<Instant>, String> {
    // Memory that has to be taken meanwhile would be a gap of our own.
    let mut answers = Vec::with_capacity(1 << 20);
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let deadline = Deadline::after(PATIENCE);
        let mut client = match connection.take() {
            Some(client) => client,
            None => Client::connect(path, deadline).map_err(|error| error.to_string())?,
        };
        client.retrieve(id, deadline).map_err(|error| error.to_string())?;
        answers.push(Instant::now());
        if answers.len() == 1 {
            let _ = answered.send(());
        }
        connection = Some(client).filter(|_| manner == Manner::Steady);
    }
    Ok(answers)
}

/// When a client was answered.
#[derive(Debug)]
pub struct Answers(Vec<Instant>);

impl Answers {
    /// The longest time between two answers that is not quite before or behind this span,
    /// in milliseconds; `None` when there were no two.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Option<f64> {
        let gaps = self.0.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
        gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).max_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_where_it_touches_the_span() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let answers = Answers(vec![at(0), at(9), at(10), at(14), at(15), at(22), at(40)]);
        let longest = |from, to| answers.longest_gap(at(from), at(to)).map(f64::round);
        assert_eq!(longest(10, 15), Some(4.0));
        assert_eq!(longest(8, 15), Some(9.0));
        assert_eq!(longest(10, 16), Some(7.0));
        assert_eq!(longest(0, 40), Some(18.0));
        assert_eq!(Answers(vec![at(0)]).longest_gap(at(0), at(1)), None);
    }
}
