//! When the next request is sent.

use std::time::{Duration, Instant};

/// How often timeouts are looked for, at least.
const TICK_MAX: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// One each `period`, whatever is still unanswered.
    Open { period: Duration, requests: u64 },
    /// So many connections at a time.
    Closed { connections: usize, requests: u64 },
}

impl Pace {
    pub fn open(per_second: u32, seconds: u32) -> Self {
        let requests = u64::from(per_second) * u64::from(seconds);
        Self::Open { period: Duration::from_secs(1) / per_second, requests }
    }

    pub fn requests(self) -> u64 {
        match self {
            Self::Open { requests, .. } | Self::Closed { requests, .. } => requests,
        }
    }

    /// When the request of this number is due, if that is not later than `now`.
    pub fn due(
        self,
        number: u64,
        start: Instant,
        now: Instant,
        connections: usize,
    ) -> Option<Instant> {
        match self {
            Self::Open { period, .. } => {
                let due = start + Duration::from_nanos(period.as_nanos() as u64 * number);
                (due <= now).then_some(due)
            }
            Self::Closed { connections: limit, .. } => (connections < limit).then_some(now),
        }
    }

    /// An interval such that each due moment is one of its multiples.
    pub fn tick(self) -> Duration {
        match self {
            Self::Open { period, .. } => {
                period / (period.as_nanos().div_ceil(TICK_MAX.as_nanos()) as u32)
            }
            Self::Closed { .. } => TICK_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_loop_does_not_wait_for_answers() {
        let (pace, start) = (Pace::open(500, 60), Instant::now());
        let due = |number, ms| pace.due(number, start, start + Duration::from_millis(ms), 9_999);
        assert_eq!(pace.requests(), 30_000);
        assert_eq!(due(0, 0), Some(start));
        assert_eq!(due(1, 1), None);
        assert_eq!(due(1, 3_000), Some(start + Duration::from_millis(2)));
    }

    #[test]
    fn closed_loop_waits_for_a_free_connection() {
        let (pace, now) = (Pace::Closed { connections: 10, requests: 100 }, Instant::now());
        assert_eq!(pace.due(50, now, now, 9), Some(now));
        assert_eq!(pace.due(50, now, now, 10), None);
    }

    #[test]
    fn tick_divides_the_period() {
        assert_eq!(Pace::open(500, 1).tick(), Duration::from_millis(2));
        assert_eq!(Pace::open(10, 1).tick(), Duration::from_millis(10));
        assert_eq!(Pace::open(8, 1).tick(), Duration::from_secs(1) / 8 / 13);
    }
}
