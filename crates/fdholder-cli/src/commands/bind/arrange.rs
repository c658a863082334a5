//! Which held descriptor of a group belongs under which identifier, when the addresses are others
//! than before or in another order.

/// What is known of the places of a group: those that are wanted, in order, then the others.
pub struct Places<'a> {
    pub wanted: usize,
    /// Of each whether anything is held there.
    pub held: &'a [bool],
    /// Whether what is held in the second place is what is wanted in the first.
    pub fits: &'a dyn Fn(usize, usize) -> bool,
    /// Whether it has to go before that can be opened.
    pub is_in_the_way: &'a dyn Fn(usize, usize) -> bool,
}

/// Says of each place from which other what is held there shall come. Everything that is held has
/// one place afterwards, so that nothing is lost before all is open.
pub fn arrange(places: &Places<'_>) -> Vec<Option<usize>> {
    let Places { wanted, held, fits, is_in_the_way } = places;
    let mut from = vec![None; held.len()];
    let mut is_placed = vec![false; held.len()];
    let mut put = |from: &mut Vec<Option<usize>>, place: usize, find: &dyn Fn(usize) -> bool| {
        let mut own_first = std::iter::once(place).chain(0..held.len());
        let found = own_first.find(|&other| held[other] && !is_placed[other] && find(other));
        if let Some(other) = found.filter(|_| from[place].is_none()) {
            from[place] = Some(other);
            is_placed[other] = true;
        }
    };
    for place in 0..*wanted {
        put(&mut from, place, &|other| other == place && fits(place, other));
    }
    for place in 0..*wanted {
        put(&mut from, place, &|other| fits(place, other));
    }
    for place in 0..*wanted {
        put(&mut from, place, &|other| is_in_the_way(place, other));
    }
    for place in 0..held.len() {
        put(&mut from, place, &|other| other == place);
    }
    // What is not wanted comes to a place that is not.
    for place in (0..held.len()).rev().filter(|&place| held[place]) {
        put(&mut from, place, &|_| true);
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Addresses as letters, a dot for none: what is held in each place, and what is wanted. Those
    /// that differ in case alone are in the way of each other.
    fn arranged(held: &str, wanted: &str) -> String {
        let held: Vec<_> = held.chars().collect();
        let wanted: Vec<_> = wanted.chars().collect();
        let from = arrange(&Places {
            wanted: wanted.len(),
            held: &held.iter().map(|held| *held != '.').collect::<Vec<_>>(),
            fits: &|place, other| wanted[place] == held[other],
            is_in_the_way: &|place, other| wanted[place].eq_ignore_ascii_case(&held[other]),
        });
        from.into_iter().map(|other| other.map_or('.', |other| held[other])).collect()
    }

    #[test]
    fn what_is_held_comes_to_where_it_is_wanted() {
        for (held, wanted, after) in [
            ("ABC", "ABC", "ABC"),
            ("ABC", "BC", "BCA"),
            ("ABC", "AC", "ACB"),
            ("AB", "BA", "BA"),
            ("..A", "AB", "A.."),
            // The second B is given up.
            (".AB", "B", "BA."),
            ("AB.", "BXA", "B.A"),
            ("AAB", "AA", "AAB"),
            // What is in the way comes to where another is opened in its place.
            ("AB", "Xa", "BA"),
            ("AB", "XY", "AB"),
            ("", "", ""),
        ] {
            assert_eq!(arranged(held, wanted), after, "{held} {wanted}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_held_twice(
            held in "[.A-Da-d]{0,7}",
            wanted in "[A-Da-d]{0,7}",
        ) {
            let wanted = &wanted[..wanted.len().min(held.len())];
            let sorted = |text: &str| {
                let mut all: Vec<_> = text.chars().filter(|it| *it != '.').collect();
                all.sort_unstable();
                all
            };
            prop_assert_eq!(sorted(&arranged(&held, wanted)), sorted(&held));
        }
    }
}
