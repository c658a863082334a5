//! How soon a standby serves once the primary is killed.

use crate::bench::{say, Bench, FDS_MOST};
use crate::daemon::identifiers;
use crate::family::Family;
use crate::figures::{target, Thousands};
use crate::tally::{Outcome, Tally};
use crate::Result;
use fdholder::{Client, Deadline};
use std::time::{Duration, Instant};

/// In milliseconds.
const AT_MOST: f64 = 20.0;

/// A client that waits for longer is not served.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(bench: &Bench) -> Result<String> {
    let turns = if bench.quick { 5 } else { 20 };
    say(&format!("standby: {} descriptors, {turns} promotions", Thousands(FDS_MOST)));
    let mut family = Family::start(bench, &["--standby"])?;
    family.fill(FDS_MOST)?;
    let mut promotions = Tally::default();
    for _ in 0..turns {
        family.standby()?;
        promotions.add(promote(&mut family)?);
        let held = family.held()?;
        if held != FDS_MOST as usize {
            return Err(format!("a standby had {held}").into());
        }
    }
    let measured = promotions.measured.median();
    let met = measured.map(|measured| measured <= AT_MOST);
    Ok(format!(
        "The daemon that serves, and holds {} descriptors, is killed (SIGKILL) once its standby \
         has everything; {turns} times, each standby from the one before. From just before the \
         kill to the first answer, which a client gets that connects right after it.\n\n\
         | first answer | failed | target |\n| --- | --- | --- |\n| {} | {} | {} |\n",
        Thousands(FDS_MOST),
        promotions.measured.milliseconds(),
        promotions.failures(),
        target(
            &format!("at most {AT_MOST} ms"),
            met.zip(promotions.flawless()).map(|(a, b)| a && b)
        ),
    ))
}

fn promote(family: &mut Family) -> Result<Outcome<f64>> {
    let id = identifiers(1)?.remove(0);
    let primary = family.primary()?;
    let path = family.path().to_owned();
    let start = Instant::now();
    family.kill(primary);
    let deadline = Deadline::after(PATIENCE);
    let answer = Client::connect(path, deadline)
        .and_then(|mut client| client.retrieve(&id, deadline))
        .map_err(|error| error.to_string());
    let took = start.elapsed().as_secs_f64() * 1000.0;
    family.wait(primary)?;
    Ok(answer.map(|_| took))
}
