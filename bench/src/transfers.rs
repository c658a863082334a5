//! The ways in which transferdump carries everything from one daemon into another.

use crate::bench::Bench;
use crate::daemon::Daemon;
use crate::figures::Both;
use crate::programs::{Holder, Programs};
use crate::tally::{attempt, Outcome};
use crate::Result;
use std::ops::{Index, IndexMut};
use std::process::{Command, ExitStatus};

/// Whose program carries, between whose daemons, and by which route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Ours between two of ours; the source itself sends into the destination.
    Direct,
    /// Ours between two of ours, everything through the client.
    Relayed,
    /// Ours from s6's daemon, which cannot send by itself, into ours.
    FromS6,
    /// s6's between two of s6's.
    S6,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Relayed, Self::FromS6, Self::S6];

    /// All of them, each turn another one first: what one leaves behind (daemons that end,
    /// warm caches) is not always met by the same.
    pub fn in_turn(turn: u32) -> impl Iterator<Item = Self> {
        let first = turn as usize % Self::ALL.len();
        Self::ALL.into_iter().cycle().skip(first).take(Self::ALL.len())
    }

    /// Whose daemon everything is in.
    fn source(self) -> Holder {
        match self {
            Self::Direct | Self::Relayed => Holder::Ours,
            Self::FromS6 | Self::S6 => Holder::S6,
        }
    }

    /// Whose program, and whose daemon everything goes to.
    fn destination(self) -> Holder {
        match self {
            Self::Direct | Self::Relayed | Self::FromS6 => Holder::Ours,
            Self::S6 => Holder::S6,
        }
    }

    fn command(self, programs: &Programs) -> Command {
        match self {
            Self::Direct | Self::FromS6 | Self::S6 => {
                programs.command(self.destination(), "s6-fdholder-transferdump")
            }
            Self::Relayed => {
                let mut command = programs.subcommand("transferdump");
                command.arg("--relay");
                command
            }
        }
    }
}

/// Something for each way.
#[derive(Debug, Default)]
pub struct Ways<T>([T; Way::ALL.len()]);

impl<T> Index<Way> for Ways<T> {
    type Output = T;

    fn index(&self, way: Way) -> &T {
        &self.0[way as usize]
    }
}

impl<T> IndexMut<Way> for Ways<T> {
    fn index_mut(&mut self, way: Way) -> &mut T {
        &mut self.0[way as usize]
    }
}

/// A daemon of each kind that holds as many, to transfer from.
#[derive(Debug)]
pub struct Sources {
    daemons: Both<Daemon>,
    size: u32,
}

impl Sources {
    /// Starts and fills them.
    pub fn start(bench: &Bench, size: u32) -> Result<Self> {
        let daemons = Daemon::both(bench)?;
        daemons.ours.fill(size)?;
        daemons.s6.fill(size)?;
        Ok(Self { daemons, size })
    }

    /// Transfers everything once; `run` runs the command and measures.
    pub fn transfer<T>(
        &self,
        bench: &Bench,
        way: Way,
        run: impl FnOnce(&mut Command) -> Result<(T, ExitStatus)>,
    ) -> Result<Outcome<T>> {
        // A fresh one each time: s6's refuses to be given what it has.
        let destination = Daemon::start(bench, way.destination())?;
        let mut command = way.command(&bench.programs);
        command.arg(self.daemons.of(way.source()).path()).arg(destination.path());
        let outcome = attempt(bench, command, run)?;
        let held = destination.held()?;
        if outcome.is_ok() && held != self.size as usize {
            return Ok(Err(format!("exit code 0, but {held} arrived")));
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_first_now_and_then() {
        let ways = |turn| Way::in_turn(turn).collect::<Vec<_>>();
        assert_eq!(ways(0), Way::ALL);
        assert_eq!(ways(3), [Way::S6, Way::Direct, Way::Relayed, Way::FromS6]);
        assert_eq!(ways(4), Way::ALL);
    }
}
