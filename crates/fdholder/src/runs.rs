//! Positions in a snapshot, as runs.

use crate::limits::RUNS_MAX;
use std::collections::VecDeque;
use std::ops::Range;

/// Ascending positions, to be taken from the front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    runs: VecDeque<Range<u32>>,
    len: u32,
}

impl Runs {
    /// All from 0 to `count`.
    pub fn all(count: u32) -> Self {
        let mut runs = Self::default();
        if count > 0 {
            runs.runs.push_back(0..count);
            runs.len = count;
        }
        runs
    }

    /// Those, in ascending order.
    pub fn of(positions: impl Iterator<Item = u32>) -> Self {
        let mut runs = Self::default();
        for position in positions {
            match runs.runs.back_mut() {
                Some(last) if last.end == position => last.end += 1,
                _ => runs.runs.push_back(position..position + 1),
            }
            runs.len += 1;
        }
        runs
    }

    /// How many positions.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// One by one.
    pub fn positions(self) -> impl Iterator<Item = u32> {
        self.runs.into_iter().flatten()
    }

    /// Takes the first of them: at most `count`, and no more runs than a request may have.
    pub fn take(&mut self, count: u32) -> Vec<Range<u32>> {
        let mut wanted = count.min(self.len);
        let mut taken = Vec::new();
        while wanted > 0 && taken.len() < RUNS_MAX {
            let Some(run) = self.runs.front_mut() else { break };
            let part = run.start..run.end.min(run.start + wanted);
            let len = part.end - part.start;
            run.start = part.end;
            if run.start == run.end {
                self.runs.pop_front();
            }
            wanted -= len;
            self.len -= len;
            taken.push(part);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_taken_is_what_was_put_in(
            positions in proptest::collection::btree_set(0u32..500, 0..200), part in 1u32..60
        ) {
            let mut runs = Runs::of(positions.iter().copied());
            prop_assert_eq!(runs.len() as usize, positions.len());
            let mut taken = Vec::new();
            while runs.len() > 0 {
                let before = runs.len();
                let now = runs.take(part);
                prop_assert!(now.windows(2).all(|pair| pair[0].end < pair[1].start));
                let now: Vec<_> = now.into_iter().flatten().collect();
                prop_assert_eq!(now.len() as u32, part.min(before));
                taken.extend(now);
            }
            prop_assert_eq!(taken, positions.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_request_has_only_so_many_runs() {
        let mut runs = Runs::of((0..20_000).map(|number| number * 2));
        assert_eq!(runs.take(20_000).len(), RUNS_MAX);
        assert_eq!(runs.len(), 20_000 - RUNS_MAX as u32);
        assert_eq!(Runs::all(5).positions().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(Runs::all(0), Runs::default(), "an empty run is none");
    }
}
