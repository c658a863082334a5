//! Whether a client gets everything at once from a daemon, s6's client from ours too, and
//! how long that takes.

use crate::bench::{say, time, Bench, FDS_MOST};
use crate::daemon::Daemon;
use crate::figures::{target, Thousands};
use crate::programs::Holder;
use crate::report::Report;
use crate::tally::{attempt, Tally};
use crate::Result;

/// Whose program, from whose daemon, every how many turns. s6's program takes seconds: it
/// makes the environment in quadratic time.
const PAIRS: [(Holder, Holder, u32); 3] = [
    (Holder::S6, Holder::Ours, 10),
    (Holder::Ours, Holder::Ours, 10),
    (Holder::S6, Holder::S6, 100),
];

pub fn run(bench: &Bench) -> Result<Report> {
    let turns: u32 = if bench.quick { 20 } else { 200 };
    say(&format!("getdump: {} descriptors, {turns} turns", Thousands(FDS_MOST)));
    let daemons = Daemon::both(bench)?;
    daemons.ours.fill(FDS_MOST)?;
    daemons.s6.fill(FDS_MOST)?;
    let (mut tallies, mut transfers) = (PAIRS.map(|_| Tally::default()), Tally::default());
    for turn in 0..turns {
        let destination = Daemon::start(bench, Holder::Ours)?;
        let mut command = bench.programs.command(Holder::S6, "s6-fdholder-transferdump");
        command.arg(daemons.ours.path()).arg(destination.path());
        transfers.add(attempt(bench, command, time)?);
        for (&(client, daemon, every), tally) in PAIRS.iter().zip(&mut tallies) {
            if turn.is_multiple_of(every) {
                let mut command = bench.programs.command(client, "s6-fdholder-getdump");
                command.arg(daemons.of(daemon).path()).arg("true");
                tally.add(attempt(bench, command, time)?);
            }
        }
    }
    let mut rows = row("s6's `s6-fdholder-transferdump` (into ours)", Holder::Ours, &transfers);
    for (&(client, daemon, _), tally) in PAIRS.iter().zip(&tallies) {
        let program = match client {
            Holder::Ours => "our `getdump PATH true`",
            Holder::S6 => "s6's `s6-fdholder-getdump PATH true`",
        };
        rows.push_str(&row(program, daemon, tally));
    }
    Ok(format!(
        "## Getdump\n\n\
         Programs that read a dump of {} descriptors, from their start to their end. s6's share \
         one receiver, which fails when a message's descriptors come before those of the one \
         before were taken.\n\n\
         | program | daemon | time | failed | target |\n\
         | --- | --- | --- | --- | --- |\n{rows}",
        Thousands(FDS_MOST),
    )
    .into())
}

fn row(program: &str, daemon: Holder, tally: &Tally) -> String {
    let (name, verdict) = match daemon {
        Holder::Ours => ("ours", target(&format!("0 of {}", tally.runs()), tally.flawless())),
        Holder::S6 => ("s6's", String::new()),
    };
    format!(
        "| {program} | {name} | {} | {} | {verdict} |\n",
        tally.measured.milliseconds(),
        tally.failures(),
    )
}
