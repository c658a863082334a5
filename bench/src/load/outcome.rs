//! What the requests of a run came to.

use crate::load::netstat::ListenQueues;
use serde_json::{json, Map, Value};
use std::io::{Error, ErrorKind};
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Refused,
    /// Also any other error of an established connection.
    Reset,
    /// The connection ended before the answer did.
    CutShort,
    /// Not 2xx or 3xx, or not HTTP.
    Status,
    Timeout,
    /// The generator had no descriptor or no port left: its own fault, not the server's.
    Local,
}

impl Failure {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Refused, "refused"),
        (Self::Reset, "reset"),
        (Self::CutShort, "cut_short"),
        (Self::Status, "status"),
        (Self::Timeout, "timeout"),
        (Self::Local, "local"),
    ];

    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Reset,
        }
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    failures: Vec<Failure>,
    /// Of answered requests, with the time from the start of the run at which each was due.
    latencies: Vec<(Duration, Duration)>,
    /// How late each request was sent.
    lags: Vec<Duration>,
    pub in_flight_max: usize,
    pub elapsed: Duration,
}

impl Outcome {
    pub fn sent(&mut self, lag: Duration) {
        self.lags.push(lag);
    }

    pub fn answered(&mut self, due: Duration, latency: Duration) {
        self.latencies.push((latency, due));
    }

    pub fn failed(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    pub fn to_json(&self, queues: ListenQueues) -> Value {
        let count = |kind| self.failures.iter().filter(|&&it| it == kind).count();
        let failures: Map<_, _> = Failure::ALL
            .iter()
            .map(|&(kind, name)| (name.to_owned(), count(kind).into()))
            .collect();
        let latencies = sorted(self.latencies.iter().map(|&(latency, _)| latency));
        let lags = sorted(self.lags.iter().copied());
        let longest_due = self.latencies.iter().max().map(|(_, due)| due.as_secs_f64());
        json!({
            "sent": self.lags.len(),
            "answered": latencies.len(),
            "failed": self.failures.len(),
            "failures": failures,
            "p50": percentile(&latencies, 500),
            "p99": percentile(&latencies, 990),
            "p99.9": percentile(&latencies, 999),
            "longest": percentile(&latencies, 1000),
            "longest_due_s": longest_due,
            "lag_p99": percentile(&lags, 990),
            "lag_longest": percentile(&lags, 1000),
            "in_flight_max": self.in_flight_max,
            "seconds": self.elapsed.as_secs_f64(),
            "listen_overflows": queues.overflows,
            "listen_drops": queues.drops,
        })
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<u64> {
    let mut sorted: Vec<_> = times.map(|time| time.as_micros() as u64).collect();
    sorted.sort_unstable();
    sorted
}

/// The smallest value that `per_mille` of all do not exceed; `None` of nothing.
fn percentile(sorted: &[u64], per_mille: usize) -> Option<u64> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let thousand: Vec<_> = (1..=1000).collect();
        let of = |per_mille| percentile(&thousand, per_mille).unwrap();
        assert_eq!((of(500), of(990), of(999), of(1000)), (500, 990, 999, 1000));
        assert_eq!(percentile(&[7], 500), Some(7));
        assert_eq!(percentile(&[], 500), None);
    }

    #[test]
    fn failures_are_counted_by_kind() {
        let mut outcome = Outcome::default();
        for failure in [Failure::Refused, Failure::Refused, Failure::Timeout] {
            outcome.sent(Duration::ZERO);
            outcome.failed(failure);
        }
        let json = outcome.to_json(ListenQueues { overflows: 4, drops: 5 });
        assert_eq!(json["failed"], 3);
        assert_eq!(json["failures"]["refused"], 2);
        assert_eq!(json["failures"]["reset"], 0);
        assert_eq!(json["failures"]["timeout"], 1);
        assert_eq!(json["p50"], Value::Null);
        assert_eq!(json["listen_overflows"], 4);
    }
}
