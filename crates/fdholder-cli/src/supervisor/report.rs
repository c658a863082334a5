//! What `run` says of itself to `restart`, `status` and `metrics`: one line of JSON.

use super::machine::{Exit, Failed, Number, Outcome};
use super::signals::name_of;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A service, as `run` knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub name: String,
    /// The process of `run`.
    pub pid: u32,
    /// Oldest first.
    pub generations: Vec<GenerationReport>,
    /// Whether PROG starts when the next client comes.
    pub waits_for_clients: bool,
    /// How many wait for the answer to a restart.
    #[serde(default)]
    pub askers: usize,
    pub last_restart: Option<RestartReport>,
    /// How many starts and restarts there were, by result.
    pub starts: BTreeMap<String, u64>,
    /// How long all those together took that got ready, in milliseconds.
    pub time_to_ready_ms: u64,
}

/// One generation of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationReport {
    pub number: Number,
    pub pid: u32,
    pub state: State,
    /// For how long it has been so, in milliseconds.
    pub since_ms: u64,
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    Ready,
    /// Told to stop, and perhaps busy with its last clients.
    Draining,
}

impl State {
    /// As a word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// How a start or a restart went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartReport {
    /// `ready`, or the kind of failure.
    pub result: String,
    /// In words.
    pub text: String,
    /// The last lines that PROG has written to stderr, if it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// How long ago that was, in milliseconds.
    #[serde(default)]
    pub ago_ms: u64,
}

impl RestartReport {
    /// Whether the next generation serves, or will when a client comes.
    pub fn is_done(&self) -> bool {
        matches!(self.result.as_str(), "ready" | "asleep")
    }
}

/// In seconds, as people read it: 0.3 s.
pub fn seconds(span: Duration) -> String {
    let tenths = (span.as_millis() + 50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// The kind of an outcome, for counters, and what it says to people.
pub fn in_words(outcome: &Outcome) -> (&'static str, String) {
    match outcome {
        Outcome::Ready(number, took) => {
            ("ready", format!("generation {number} is ready after {}", seconds(*took)))
        }
        Outcome::Failed { number, why, others_serve } => {
            let (kind, why) = failure(why);
            let fate = match (*others_serve, kind) {
                (_, "stopped") => "",
                (true, _) => "; the generation before it serves on",
                (false, _) => "; no generation serves",
            };
            (kind, format!("generation {number} {why}{fate}"))
        }
        Outcome::TooMany(count) => (
            "too_many",
            format!("{count} generations are still draining (--drain-max): try again later"),
        ),
        Outcome::Stopping => ("stopped", "the service is being stopped".to_owned()),
        Outcome::Asleep => ("asleep", "the next client starts the next generation".to_owned()),
    }
}

fn failure(why: &Failed) -> (&'static str, String) {
    match why {
        Failed::Ended(Exit::Code(code)) => {
            ("exited", format!("exited with code {code} before it was ready"))
        }
        Failed::Ended(Exit::Signal(signal)) => {
            ("killed", format!("was killed by {} before it was ready", name_of(*signal)))
        }
        Failed::Ended(Exit::NotStarted { why, .. }) => {
            ("not_started", format!("did not start: {why}"))
        }
        Failed::TimedOut(limit) => {
            ("timed_out", format!("was not ready within {} (--start-timeout)", seconds(*limit)))
        }
        Failed::Stopped => ("stopped", "was stopped before it was ready".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_comes_back_as_it_was() {
        let generation =
            GenerationReport { number: 2, pid: 77, state: State::Draining, since_ms: 5 };
        let report = Report {
            name: "web".to_owned(),
            pid: 1,
            generations: vec![generation],
            last_restart: Some(RestartReport { result: "ready".to_owned(), ..Default::default() }),
            starts: BTreeMap::from([("ready".to_owned(), 3)]),
            ..Report::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains('\n') && text.contains("\"draining\""), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn every_outcome_has_words() {
        let failed = |why, others_serve| Outcome::Failed { number: 3, why, others_serve };
        let not_started = Exit::NotStarted { code: 126, why: "unable to exec x".to_owned() };
        let all = [
            (Outcome::Ready(2, Duration::from_millis(349)), "generation 2 is ready after 0.3 s"),
            (
                failed(Failed::Ended(Exit::Code(1)), true),
                "generation 3 exited with code 1 before it was ready; the generation before it \
                 serves on",
            ),
            (
                failed(Failed::Ended(not_started), false),
                "generation 3 did not start: unable to exec x; no generation serves",
            ),
            (
                failed(Failed::TimedOut(Duration::from_secs(60)), true),
                "generation 3 was not ready within 60.0 s (--start-timeout); the generation before \
                 it serves on",
            ),
        ];
        for (outcome, text) in all {
            assert_eq!(in_words(&outcome).1, text);
        }
    }
}
