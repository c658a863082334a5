//! For how long clients are not answered while something happens.

use crate::asker::{Answers, Asker, Manner};
use crate::daemon::identifiers;
use crate::figures::Sample;
use crate::tally::Tally;
use crate::Result;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long clients ask before something happens, and after it has.
const SETTLE: Duration = Duration::from_millis(20);

/// What clients of one manner have noticed.
#[derive(Debug, Default)]
pub struct Pauses {
    /// The longest gap between two answers, each time.
    pub longest: Tally,
    /// The same in a stretch of the same length right behind, in which nothing happened:
    /// a machine that does other things as well makes clients wait, too.
    pub quiet: Sample,
}

impl Pauses {
    fn add(&mut self, asked: std::result::Result<Answers, String>, during: Span, quiet: Span) {
        let gap = |answers: &Answers, span: Span| answers.longest_gap(span.from, span.to);
        match asked {
            Ok(answers) => {
                let longest = gap(&answers, during);
                self.longest.add(longest.ok_or_else(|| "it was not answered twice".to_owned()));
                if let Some(longest) = gap(&answers, quiet) {
                    self.quiet.push(longest);
                }
            }
            Err(reason) => self.longest.add(Err(reason)),
        }
    }
}

/// From when to when something happened.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub from: Instant,
    pub to: Instant,
}

impl Span {
    /// How long that was, in milliseconds.
    pub fn milliseconds(self) -> f64 {
        (self.to - self.from).as_secs_f64() * 1000.0
    }
}

/// Has clients ask whoever serves at `path`, one of each manner, while something happens.
pub fn watch<const CLIENTS: usize>(
    path: &Path,
    clients: [(Manner, &mut Pauses); CLIENTS],
    happen: impl FnOnce() -> Result<Span>,
) -> Result<Span> {
    let id = identifiers(1)?.remove(0);
    let asking = clients.map(|(manner, pauses)| (Asker::start(path, &id, manner), pauses));
    sleep(SETTLE);
    let during = happen()?;
    sleep(SETTLE);
    let from = Instant::now();
    sleep(during.to - during.from);
    let quiet = Span { from, to: Instant::now() };
    sleep(SETTLE);
    for (asker, pauses) in asking {
        pauses.add(asker.end()?, during, quiet);
    }
    Ok(during)
}
