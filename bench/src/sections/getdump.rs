//! Whether a client gets everything at once from a daemon, s6's client from ours too, and
//! how long that takes.

use crate::bench::{say, time, Bench, FDS_MOST};
use crate::daemon::Daemon;
use crate::figures::{target, Thousands};
use crate::programs::Holder;
use crate::report::Report;
use crate::tally::{attempt, Tally};
use crate::Result;

/// Whose program, from whose daemon, every how many turns. s6's program takes seconds, so
/// what is only to compare with gets few.
const PAIRS: [(Holder, Holder, u32); 3] =
    [(Holder::S6, Holder::Ours, 1), (Holder::Ours, Holder::Ours, 1), (Holder::S6, Holder::S6, 10)];

pub fn run(bench: &Bench) -> Result<Report> {
    let turns: u32 = if bench.quick { 5 } else { 200 };
    say(&format!("getdump: {} descriptors, {turns} turns", Thousands(FDS_MOST)));
    let daemons = Daemon::both(bench)?;
    daemons.ours.fill(FDS_MOST)?;
    daemons.s6.fill(FDS_MOST)?;
    let mut tallies = PAIRS.map(|_| Tally::default());
    for turn in 0..turns {
        for (&(client, daemon, every), tally) in PAIRS.iter().zip(&mut tallies) {
            if !turn.is_multiple_of(every) {
                continue;
            }
            let mut command = bench.programs.command(client, "s6-fdholder-getdump");
            command.arg(daemons.of(daemon).path()).arg("true");
            tally.add(attempt(bench, command, time)?);
        }
    }
    let rows: String = PAIRS
        .iter()
        .zip(&tallies)
        .map(|(&(client, daemon, _), tally)| row(client, daemon, tally))
        .collect();
    Ok(format!(
        "## Getdump\n\n\
         `s6-fdholder-getdump PATH true` from a daemon that holds {} descriptors, from its start \
         until `true` has exited with all of them; {turns} turns, of which s6's from s6's takes one \
         in ten.\n\n\
         | program | daemon | time | failed | target |\n\
         | --- | --- | --- | --- | --- |\n{rows}",
        Thousands(FDS_MOST),
    )
    .into())
}

fn row(client: Holder, daemon: Holder, tally: &Tally) -> String {
    let name = |holder| match holder {
        Holder::Ours => "ours",
        Holder::S6 => "s6's",
    };
    let verdict = if daemon == Holder::Ours {
        target(&format!("0 of {}", tally.runs()), tally.flawless())
    } else {
        String::new()
    };
    format!(
        "| {} | {} | {} | {} | {verdict} |\n",
        name(client),
        name(daemon),
        tally.measured.milliseconds(),
        tally.failures(),
    )
}
