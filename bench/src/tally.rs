//! Runs of one program: what was measured of those that succeeded, why the others failed.

use crate::bench::Bench;
use crate::figures::{Sample, Thousands};
use crate::Result;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, ExitStatus};

/// What one run gave, or why it failed.
pub type Outcome<T> = std::result::Result<T, String>;

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of those that succeeded.
    pub measured: Sample,
    runs: u32,
    failures: u32,
    /// How often each reason was given.
    reasons: BTreeMap<String, u32>,
}

impl Tally {
    /// Counts a run, and keeps what it measured.
    pub fn add(&mut self, outcome: Outcome<f64>) {
        if let Some(value) = self.count(outcome) {
            self.measured.push(value);
        }
    }

    /// Counts a run of which only matters whether it failed.
    pub fn count<T>(&mut self, outcome: Outcome<T>) -> Option<T> {
        self.runs += 1;
        outcome
            .map_err(|reason| {
                self.failures += 1;
                *self.reasons.entry(reason).or_default() += 1;
            })
            .ok()
    }

    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// Whether none failed; `None` when there was none.
    pub fn flawless(&self) -> Option<bool> {
        (self.runs > 0).then_some(self.failures == 0)
    }

    /// How many failed, and why.
    pub fn failures(&self) -> String {
        let (failures, runs) = (Thousands(self.failures), Thousands(self.runs));
        let reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!(" ({count} × {reason})")).collect();
        format!("{failures} of {runs}{}", reasons.concat())
    }
}

/// Has `run` run a command to its end, and tells what it gave; or how the command ended,
/// with the reason that it printed.
pub fn attempt<T>(
    bench: &Bench,
    mut command: Command,
    run: impl FnOnce(&mut Command) -> Result<(T, ExitStatus)>,
) -> Result<Outcome<T>> {
    let said = bench.scratch_file();
    let (given, status) = run(command.stderr(File::create(&said)?))?;
    if status.success() {
        return Ok(Ok(given));
    }
    let said = fs::read_to_string(&said)?;
    let reason = said.rsplit(": ").next().unwrap_or_default().trim();
    Ok(Err(format!("{status}, {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted() {
        let mut tally = Tally::default();
        assert_eq!(tally.flawless(), None);
        tally.add(Ok(1.0));
        assert_eq!((tally.flawless(), tally.failures()), (Some(true), "0 of 1".to_owned()));
        tally.add(Err("exit status: 1, b".to_owned()));
        tally.add(Err("exit status: 1, a".to_owned()));
        tally.count(Err::<(), _>("exit status: 1, b".to_owned()));
        assert_eq!(tally.flawless(), Some(false));
        assert_eq!(tally.failures(), "3 of 4 (1 × exit status: 1, a) (2 × exit status: 1, b)");
        assert_eq!(tally.measured.median(), Some(1.0));
    }
}
