//! Descriptors for a program that this process becomes: which numbers they get, what the
//! environment says of them, and that it gets nothing else.

pub mod activation;
mod addresses;
pub mod becoming;
pub mod front_door;
pub mod inherited;
pub mod kept;
mod mentions;
mod names;
mod order;
pub mod placeholders;
mod styles;

pub use names::{is_fd_name, stand_in};
pub use order::natural;
pub use styles::{is_for_others, is_of_servers, variables, EnvStyle, Pids};

use crate::failure::{exit, Failure};
use fdholder::{Errno, Identifier};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};

/// The number of the first descriptor that is not a standard stream.
pub const FIRST: u32 = 3;

/// A descriptor that is to be passed on.
#[derive(Debug)]
pub struct Passed<F> {
    pub fd: F,
    /// Under which it was held; for one that came from elsewhere, its name.
    pub id: Identifier,
    /// What `LISTEN_FDNAMES` calls it.
    pub name: String,
    /// Whether `--fd` gave it that name.
    pub is_named: bool,
    /// The number it is to have, if that was asked for.
    pub number: Option<u32>,
}

/// Gives each descriptor its number: those that ask for none get the lowest ones from 3 on,
/// in order. With systemd's variables these must have no gap.
///
/// # Errors
///
/// Which number would be given twice.
pub fn assign<F>(
    passed: &[Passed<F>],
    kept: &BTreeMap<u32, String>,
    style: EnvStyle,
) -> Result<Vec<u32>, Failure> {
    let mut taken = kept.clone();
    for (number, id) in passed.iter().filter_map(|it| Some((it.number?, &it.id))) {
        if let Some(why) = taken.insert(number, format!("it is to be {id}")) {
            return Err(usage(format_args!("{number} cannot be two descriptors: {why}")));
        }
    }
    let mut next = FIRST;
    let mut numbers = Vec::with_capacity(passed.len());
    for one in passed {
        if let Some(number) = one.number {
            numbers.push(number);
            continue;
        }
        while let Some(why) = taken.get(&next) {
            if style == EnvStyle::Systemd {
                return Err(usage(format_args!(
                    "{next} is taken ({why}), and LISTEN_FDS counts from {FIRST} without a gap: \
                     give {id} another number (--fd {id}=N), or choose another --env-style",
                    id = one.id
                )));
            }
            next += 1;
        }
        numbers.push(next);
        next += 1;
    }
    Ok(numbers)
}

fn usage(problem: impl std::fmt::Display) -> Failure {
    Failure::new(exit::USAGE, problem)
}

/// Leaves descriptors to the program that this process becomes, under these numbers; besides,
/// it gets standard streams, and what is kept: these numbers, or all that is open. `report` is for this
/// process alone, and moves out of the way.
///
/// # Errors
///
/// When a system call fails. This process is of no more use then.
pub fn leave(
    passed: Vec<Passed<OwnedFd>>,
    numbers: &[u32],
    kept: Option<&[u32]>,
    report: &mut Option<OwnedFd>,
) -> Result<(), Failure> {
    let failed = |number: u32| {
        move |errno| {
            let advice = if matches!(errno, Errno::BADF | Errno::INVAL | Errno::MFILE) {
                " (see ulimit -n)"
            } else {
                ""
            };
            let text = fdholder::strerror(errno);
            let problem = format!("unable to make a descriptor number {number}: {text}{advice}");
            Failure::new(exit::SYSTEM, problem)
        }
    };
    if let Some(kept) = kept {
        inherited::close_on_exec_from(FIRST, kept)
            .map_err(|errno| Failure::system("close what is not passed on", errno))?;
    }
    if let Some(fd) = report {
        keep_out_of_the_way(fd, numbers).map_err(failed(FIRST))?;
    }
    let mut fds: Vec<_> = passed.into_iter().map(|one| Some(one.fd)).collect();
    for step in moves(&places(&fds), numbers) {
        match step {
            Move::Aside(index) => {
                // Above all numbers that are still to be given.
                let above = numbers.iter().max().map_or(FIRST, |highest| highest.saturating_add(1));
                let number = i32::try_from(above).map_err(|_| failed(above)(Errno::BADF))?;
                let Some(fd) = fds[index].take() else { continue };
                fds[index] = Some(fcntl_dupfd_cloexec(&fd, number).map_err(failed(above))?);
            }
            Move::Home(index) => {
                let Some(fd) = fds[index].take() else { continue };
                inherited::leave(fd, numbers[index]).map_err(failed(numbers[index]))?;
            }
        }
    }
    Ok(())
}

/// Gives a descriptor a number that is none of these.
fn keep_out_of_the_way(fd: &mut OwnedFd, numbers: &[u32]) -> Result<(), Errno> {
    while numbers.contains(&fd.as_raw_fd().unsigned_abs()) {
        // The next that is free, which may be one of them again.
        *fd = fcntl_dupfd_cloexec(&*fd, fd.as_raw_fd().saturating_add(1))?;
    }
    Ok(())
}

fn places(fds: &[Option<OwnedFd>]) -> Vec<u32> {
    fds.iter().flatten().map(|fd| fd.as_raw_fd().unsigned_abs()).collect()
}

/// One step on the way of descriptors to their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// To a number that no other one is to get.
    Aside(usize),
    /// To its own.
    Home(usize),
}

/// The steps by which descriptors at these places get to these numbers. None is overwritten that
/// still has to move, and no more than one is aside at a time, so that the limit on open files has
/// room for them.
fn moves(places: &[u32], numbers: &[u32]) -> Vec<Move> {
    let mut at: HashMap<u32, usize> = places.iter().copied().zip(0..).collect();
    let mut steps = Vec::with_capacity(places.len());
    let mut is_home = vec![false; places.len()];
    for first in 0..places.len() {
        // Each waits for the one behind it.
        let mut waiting = vec![first];
        while let Some(&index) = waiting.last() {
            match at.get(&numbers[index]).copied() {
                _ if is_home[index] => {}
                Some(other) if other != index && waiting.contains(&other) => {
                    // They wait for each other.
                    steps.push(Move::Aside(other));
                    at.remove(&numbers[index]);
                    continue;
                }
                Some(other) if other != index => {
                    waiting.push(other);
                    continue;
                }
                _ => {
                    steps.push(Move::Home(index));
                    is_home[index] = true;
                    if at.get(&places[index]) == Some(&index) {
                        at.remove(&places[index]);
                    }
                }
            }
            waiting.pop();
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::Strategy;

    fn passed(wanted: &[(&str, Option<u32>)]) -> Vec<Passed<()>> {
        let one = |&(id, number): &(&str, Option<u32>)| Passed {
            fd: (),
            id: Identifier::new(id).unwrap(),
            name: stand_in(id.as_bytes()),
            is_named: false,
            number,
        };
        wanted.iter().map(one).collect()
    }

    #[test]
    fn numbers_are_given_in_order_around_those_that_are_asked_for() {
        let wanted = passed(&[("a", None), ("b", Some(4)), ("c", None), ("d", Some(0))]);
        let assign = |wanted: &[Passed<()>], kept: &[u32], style| {
            let kept = kept.iter().map(|number| (*number, "it is kept".to_owned())).collect();
            assign(wanted, &kept, style).ok()
        };
        assert_eq!(assign(&wanted, &[], EnvStyle::Nginx).unwrap(), [3, 4, 5, 0]);
        // systemd's have no gap.
        assert_eq!(assign(&wanted, &[], EnvStyle::Systemd), None);
        let wanted = passed(&[("a", None), ("b", Some(10)), ("c", None)]);
        assert_eq!(assign(&wanted, &[], EnvStyle::Systemd).unwrap(), [3, 10, 4]);
        assert_eq!(assign(&wanted, &[3], EnvStyle::S6).unwrap(), [4, 10, 5]);
        assert_eq!(assign(&wanted, &[3], EnvStyle::Systemd), None);
        assert_eq!(assign(&wanted, &[10], EnvStyle::S6), None);
    }

    #[test]
    fn report_has_no_number_of_the_program() {
        let mut report: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let first = report.as_raw_fd().unsigned_abs();
        let numbers: Vec<_> = (first..first + 50).collect();
        keep_out_of_the_way(&mut report, &numbers).unwrap();
        assert!(!numbers.contains(&report.as_raw_fd().unsigned_abs()));
        let place = report.as_raw_fd();
        keep_out_of_the_way(&mut report, &numbers).unwrap();
        assert_eq!(report.as_raw_fd(), place);
    }

    proptest::proptest! {
        /// Each gets its number; nothing is overwritten that has not moved; one is aside at most.
        #[test]
        fn descriptors_move_without_overwriting_each_other(
            places in proptest::collection::hash_set(3u32..20, 0..12),
            shuffled in proptest::sample::subsequence((0u32..24).collect::<Vec<_>>(), 12)
                .prop_shuffle(),
        ) {
            let places: Vec<_> = places.into_iter().collect();
            let numbers = &shuffled[..places.len()];
            let mut table: HashMap<u32, usize> = places.iter().copied().zip(0..).collect();
            let mut now: Vec<_> = places.clone();
            let mut aside = 0;
            for step in moves(&places, numbers) {
                let (index, to) = match step {
                    Move::Aside(index) => {
                        aside += 1;
                        (index, 100 + index as u32)
                    }
                    Move::Home(index) => {
                        aside -= usize::from(now[index] >= 100);
                        (index, numbers[index])
                    }
                };
                proptest::prop_assert!(aside <= 1);
                table.remove(&now[index]);
                proptest::prop_assert!(table.insert(to, index).is_none(), "overwritten");
                now[index] = to;
            }
            proptest::prop_assert_eq!(&now, numbers);
        }
    }
}
