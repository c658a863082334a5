//! Descriptors for a program that this process becomes: which numbers they get, what the
//! environment says of them, and that it gets nothing else.

pub mod activation;
pub mod becoming;
pub mod front_door;
pub mod inherited;
pub mod kept;
mod mentions;
mod names;
mod order;

pub use names::{is_fd_name, stand_in};
pub use order::natural;

use crate::failure::{exit, Failure};
use clap::builder::PossibleValue;
use clap::ValueEnum;
use fdholder::environ::{self, Variable};
use fdholder::{Entry, Errno, Identifier, Limit};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};

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
    /// The number it is to have, if that was asked for.
    pub number: Option<u32>,
}

/// How the environment tells of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvStyle {
    /// `sd_listen_fds(3)`.
    Systemd,
    Nginx,
    Einhorn,
    /// What `getdump` sets, and `setdump` reads.
    S6,
    UvicornFd,
}

impl ValueEnum for EnvStyle {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Systemd, Self::Nginx, Self::Einhorn, Self::S6, Self::UvicornFd]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Systemd => ("systemd", "LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID"),
            Self::Nginx => ("nginx", "NGINX=3;4;"),
            Self::Einhorn => ("einhorn", "EINHORN_FD_COUNT and EINHORN_FD_i"),
            Self::S6 => ("s6", "S6_FD#, S6_FD_i and S6_FDID_i, as getdump does"),
            Self::UvicornFd => ("uvicorn-fd", "UVICORN_FD, of one descriptor"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// What the variables of all styles begin with or are. None that was meant for somebody else
/// goes on.
const OTHERS: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "NGINX", "UVICORN_FD"];

/// Whether a variable tells of descriptors that were meant for somebody else.
pub fn is_for_others(name: &str) -> bool {
    OTHERS.contains(&name) || name.starts_with("EINHORN_") || name.starts_with("S6_FD")
}

/// The processes that variables tell of.
#[derive(Debug, Clone, Copy)]
pub struct Pids {
    /// The one that is to take the descriptors; `None`: whichever finds the variables.
    pub own: Option<u32>,
    pub parent: u32,
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

/// What the environment says of descriptors that have these numbers.
///
/// # Errors
///
/// When the style cannot say it.
pub fn variables<F>(
    passed: &[Passed<F>],
    numbers: &[u32],
    style: EnvStyle,
    pids: Pids,
) -> Result<Vec<Variable>, Failure> {
    let mut variables: Vec<Variable> = OTHERS.iter().map(|&name| (name.to_owned(), None)).collect();
    let mut set = |name: &str, value: String| {
        variables.push((name.to_owned(), Some(OsString::from(value))));
    };
    match style {
        EnvStyle::Systemd => {
            // One whose number was asked for is known by it.
            let listed = || passed.iter().filter(|it| it.number.is_none());
            let names: Vec<_> = listed().map(|it| it.name.as_str()).collect();
            if names.is_empty() {
                return Ok(variables);
            }
            set("LISTEN_FDS", names.len().to_string());
            set("LISTEN_FDNAMES", names.join(":"));
            if let Some(pid) = pids.own {
                set("LISTEN_PID", pid.to_string());
            }
        }
        EnvStyle::Nginx => {
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            set("NGINX", numbers.join(";") + ";");
        }
        EnvStyle::Einhorn => {
            set("EINHORN_FD_COUNT", numbers.len().to_string());
            // Its workers check that their parent is the master.
            set("EINHORN_MASTER_PID", pids.parent.to_string());
            for (index, number) in numbers.iter().enumerate() {
                set(&format!("EINHORN_FD_{index}"), number.to_string());
            }
        }
        EnvStyle::S6 => {
            let entry = |(one, &fd): (&Passed<F>, &u32)| Entry {
                id: one.id.clone(),
                limit: Limit::never(),
                fd,
            };
            let entries: Vec<_> = passed.iter().zip(numbers).map(entry).collect();
            variables.extend(environ::variables(&entries));
        }
        EnvStyle::UvicornFd => {
            let [number] = numbers else {
                let count = numbers.len();
                return Err(usage(format_args!("uvicorn takes one descriptor, not {count}")));
            };
            set("UVICORN_FD", number.to_string());
        }
    }
    Ok(variables)
}

fn usage(problem: impl std::fmt::Display) -> Failure {
    Failure::new(exit::USAGE, problem)
}

/// Leaves descriptors to the program that this process becomes, under these numbers; besides,
/// it gets standard streams, and what is kept: these numbers, or all that is open.
///
/// # Errors
///
/// When a system call fails. This process is of no more use then.
pub fn leave(
    passed: Vec<Passed<OwnedFd>>,
    numbers: &[u32],
    kept: Option<&[u32]>,
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
    // Nothing of ours may be where another is to go.
    let above = numbers.iter().max().map_or(FIRST, |highest| highest.saturating_add(1));
    let moved: Vec<_> = passed
        .into_iter()
        .map(|one| {
            let above = i32::try_from(above).map_err(|_| failed(above)(Errno::BADF))?;
            fcntl_dupfd_cloexec(&one.fd, above).map_err(failed(above.unsigned_abs()))
        })
        .collect::<Result<_, _>>()?;
    if let Some(kept) = kept {
        inherited::close_on_exec_from(FIRST, kept)
            .map_err(|errno| Failure::system("close what is not passed on", errno))?;
    }
    for (fd, &number) in moved.iter().zip(numbers) {
        inherited::leave(fd.as_fd(), number).map_err(failed(number))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(wanted: &[(&str, Option<u32>)]) -> Vec<Passed<()>> {
        let one = |&(id, number): &(&str, Option<u32>)| Passed {
            fd: (),
            id: Identifier::new(id).unwrap(),
            name: stand_in(id.as_bytes()),
            number,
        };
        wanted.iter().map(one).collect()
    }

    const PIDS: Pids = Pids { own: Some(17), parent: 16 };

    fn set(variables: Vec<Variable>) -> Vec<String> {
        let text = |(name, value): Variable| {
            value.map(|value| format!("{name}={}", value.to_str().unwrap()))
        };
        variables.into_iter().filter_map(text).collect()
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
    fn every_style_says_it_in_its_own_way() {
        let wanted = passed(&[("web", None), ("tcp:80", None)]);
        let say = |style| set(variables(&wanted, &[3, 4], style, PIDS).unwrap());
        assert_eq!(
            say(EnvStyle::Systemd),
            ["LISTEN_FDS=2", "LISTEN_FDNAMES=web:tcp%3A80", "LISTEN_PID=17"]
        );
        assert_eq!(say(EnvStyle::Nginx), ["NGINX=3;4;"]);
        assert_eq!(
            say(EnvStyle::Einhorn),
            ["EINHORN_FD_COUNT=2", "EINHORN_MASTER_PID=16", "EINHORN_FD_0=3", "EINHORN_FD_1=4"]
        );
        assert_eq!(
            say(EnvStyle::S6),
            ["S6_FD#=2", "S6_FD_0=3", "S6_FDID_0=web", "S6_FD_1=4", "S6_FDID_1=tcp:80"]
        );
        assert!(variables(&wanted, &[3, 4], EnvStyle::UvicornFd, PIDS).is_err());
        let one = variables(&wanted[..1], &[3], EnvStyle::UvicornFd, PIDS).unwrap();
        assert_eq!(set(one), ["UVICORN_FD=3"]);
    }

    #[test]
    fn a_number_that_was_asked_for_is_not_counted_by_systemd() {
        let wanted = passed(&[("a", None), ("b", Some(10))]);
        let pids = Pids { own: None, ..PIDS };
        let said = variables(&wanted, &[3, 10], EnvStyle::Systemd, pids).unwrap();
        assert_eq!(set(said), ["LISTEN_FDS=1", "LISTEN_FDNAMES=a"]);
    }

    #[test]
    fn what_was_meant_for_others_is_unset() {
        let said = variables(&passed(&[("a", None)]), &[3], EnvStyle::Nginx, PIDS).unwrap();
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            assert!(said.contains(&(name.to_owned(), None)), "{name}");
        }
    }
}
