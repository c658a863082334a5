//! Which held descriptor of a group belongs under which identifier, when the addresses are others
//! than before or in another order.

use super::Binding;
use crate::endpoint::{is_reachable_at, Endpoint};
use crate::failure::{exit, Failure};
use crate::group::Group;
use fdholder::{Cause, Entry, Errno, Identifier, Limit};
use std::os::fd::OwnedFd;

/// What was held under one identifier is held under another.
pub struct Move {
    was: Identifier,
    is: Identifier,
    /// It was wanted there; and otherwise it is only kept there.
    is_wanted: bool,
}

impl Binding<'_> {
    /// Puts what is held of a group under the identifiers where it is wanted. What is wanted
    /// nowhere is held on, until all that is wanted is open.
    pub fn rearrange(
        &mut self,
        ids: &[Identifier],
        endpoints: &[&Endpoint],
        group: &Group,
    ) -> Result<Vec<Move>, Failure> {
        let ids: Vec<_> = ids.iter().chain(&group.surplus).collect();
        let mut fds = Vec::with_capacity(ids.len());
        for id in &ids {
            fds.push(match self.holder.retrieve(id, self.deadline) {
                Ok(fd) => Some(fd),
                Err(error) if matches!(error.cause(), Cause::Denied(_)) => None,
                Err(error) => return Err(error.into()),
            });
        }
        let options = self.options;
        let is =
            |other: usize, test: &dyn Fn(&OwnedFd) -> bool| fds[other].as_ref().is_some_and(test);
        let fits =
            |place: usize, other| is(other, &|fd| is_reachable_at(endpoints[place], options, fd));
        let from = arrange(&Places {
            wanted: endpoints.len(),
            held: &fds.iter().map(Option::is_some).collect::<Vec<_>>(),
            fits: &fits,
            is_in_the_way: &|place, other| is(other, &|fd| endpoints[place].is_in_the_way_of(fd)),
        });
        let shifted: Vec<_> = from
            .iter()
            .enumerate()
            .filter_map(|(place, from)| Some((place, from.filter(|other| *other != place)?)))
            .collect();
        let given = shifted.iter().filter_map(|(place, other)| {
            Some((ids[*place], fds[*other].as_ref()?, fds[*place].as_ref()))
        });
        self.give_all(&given.collect::<Vec<_>>())?;
        for (place, fd) in fds.iter().enumerate() {
            if fd.is_some() && from[place].is_none() {
                self.delete(ids[place])?;
            }
        }
        let moves = shifted.into_iter().map(|(place, other)| Move {
            was: ids[other].clone(),
            is: ids[place].clone(),
            is_wanted: place < endpoints.len() && fits(place, other),
        });
        Ok(moves.collect())
    }

    /// Says what came of it.
    pub fn say_moves(&self, moves: &[Move]) {
        for Move { was, is, .. } in moves.iter().filter(|one| one.is_wanted) {
            self.say(is, [format!("is what was held under {was}")]);
        }
    }

    /// Undoes that.
    pub fn put_back(&mut self, moves: &[Move]) -> Result<(), Failure> {
        let mut fds = Vec::with_capacity(moves.len());
        for Move { is, .. } in moves {
            fds.push(self.held(is)?);
        }
        let given = moves.iter().zip(&fds).filter_map(|(Move { was, .. }, fd)| {
            let fd = fd.as_ref()?;
            let is_held = moves.iter().zip(&fds).find(|(one, _)| one.is == *was);
            Some((was, fd, is_held.and_then(|(_, fd)| fd.as_ref())))
        });
        self.give_all(&given.collect::<Vec<_>>())?;
        for Move { is, .. } in moves {
            if !moves.iter().any(|one| one.was == *is) {
                self.delete(is)?;
            }
        }
        Ok(())
    }

    /// Has all of them held, each in the place of another.
    fn give_all(
        &mut self,
        given: &[(&Identifier, &OwnedFd, Option<&OwnedFd>)],
    ) -> Result<(), Failure> {
        let entry = |&(id, fd, _): &(&Identifier, _, _)| Entry {
            id: id.clone(),
            limit: Limit::never(),
            fd,
        };
        let set: Vec<_> = given.iter().map(entry).collect();
        if set.is_empty() {
            return Ok(());
        }
        match self.holder.setdump(&set, self.deadline) {
            // One after the other, by who may not give a set.
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::PERM)) => {
                for (place, (id, fd, in_place_of)) in given.iter().enumerate() {
                    let one = self.give(id, fd, *in_place_of);
                    if matches!(one, Ok(true)) {
                        continue;
                    }
                    self.give_back(&given[..place]);
                    one?;
                    let problem = format!("others store under {id} meanwhile: try again");
                    return Err(Failure::new(exit::DENIED, problem));
                }
            }
            result => result?,
        }
        Ok(())
    }

    /// Has held again what stood in these places: it may be held nowhere else by now.
    fn give_back(&mut self, given: &[(&Identifier, &OwnedFd, Option<&OwnedFd>)]) {
        for (id, fd, in_place_of) in given.iter().rev() {
            let given = in_place_of.map(|before| self.give(id, before, Some(fd)));
            if let Some(Err(failure)) = given {
                self.warn(&format!("{id} is not held any more as it was: {failure}"));
            }
        }
    }
}

/// What is known of the places of a group: those that are wanted, in order, then the others.
struct Places<'a> {
    wanted: usize,
    /// Of each whether anything is held there.
    held: &'a [bool],
    /// Whether what is held in the second place is what is wanted in the first.
    fits: &'a dyn Fn(usize, usize) -> bool,
    /// Whether it has to go before that can be opened.
    is_in_the_way: &'a dyn Fn(usize, usize) -> bool,
}

/// Says of each place from which other what is held there shall come. Everything that is held has
/// one place afterwards, so that nothing is lost before all is open.
fn arrange(places: &Places<'_>) -> Vec<Option<usize>> {
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
