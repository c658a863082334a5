//! Connections with the beginning of a request for whose rest their user has no room.
//!
//! If each waited for room that the others have, none would ever be answered. So of each user the
//! one that has waited for longest goes on, whatever its user has.

use std::collections::BTreeSet;

/// Those who wait, by user, in the order in which they came. As many at most as there are
/// connections.
#[derive(Debug, Default)]
pub struct Line {
    places: BTreeSet<(u32, u64)>,
    last: u64,
}

impl Line {
    /// Whether this one is the first of its user's. It gets a place behind them if it has none.
    pub fn is_first(&mut self, uid: u32, place: &mut Option<u64>) -> bool {
        let place = *place.get_or_insert_with(|| {
            self.last += 1;
            self.places.insert((uid, self.last));
            self.last
        });
        let first = self.places.range((uid, 0)..).next();
        first == Some(&(uid, place))
    }

    /// It does not wait any more: its request is whole, there is room for that, or it has gone.
    pub fn leave(&mut self, uid: u32, place: &mut Option<u64>) {
        if let Some(place) = place.take() {
            self.places.remove(&(uid, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_user_goes_on_until_it_leaves() {
        let mut line = Line::default();
        let mut places = [None; 4];
        let uids = [7, 7, 8, 7];
        let mut are_first = |line: &mut Line| {
            let mut first = Vec::new();
            for (uid, place) in uids.iter().zip(&mut places) {
                first.push(line.is_first(*uid, place));
            }
            first
        };
        assert_eq!(are_first(&mut line), [true, false, true, false]);
        assert_eq!(are_first(&mut line), [true, false, true, false], "they keep their places");
        line.leave(7, &mut Some(1));
        let (mut again, mut none) = (None, None);
        assert!(!line.is_first(7, &mut again), "behind the others");
        line.leave(7, &mut none);
        assert!(line.is_first(7, &mut Some(2)));
        for place in [2, 4] {
            line.leave(7, &mut Some(place));
        }
        assert!(line.is_first(7, &mut again));
        line.leave(7, &mut again);
        line.leave(8, &mut Some(3));
        assert!(again.is_none() && line.places.is_empty());
    }
}
