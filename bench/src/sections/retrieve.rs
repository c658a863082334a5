//! How many times a second a client connects, retrieves a descriptor and goes: what a
//! service does at its start.

use crate::bench::{say, Bench};
use crate::daemon::{identifiers, Daemon};
use crate::figures::{ratio, target, times, Sample};
use crate::report::Report;
use crate::visits::rate;
use crate::Result;

const HELD: u32 = 1_000;
const BATCH: u32 = 500;
const AT_LEAST: f64 = 1.4;

pub fn run(bench: &Bench) -> Result<Report> {
    let batches = if bench.quick { 6 } else { 20 };
    say(&format!("retrieve: {batches} batches of {BATCH} from each"));
    let ids = identifiers(HELD)?;
    let daemons = Daemon::both(bench)?;
    daemons.ours.fill(HELD)?;
    daemons.s6.fill(HELD)?;
    let (mut ours, mut s6) = (Sample::default(), Sample::default());
    for _ in 0..batches {
        ours.push(rate(daemons.ours.path(), &ids, BATCH)?);
        s6.push(rate(daemons.s6.path(), &ids, BATCH)?);
    }
    let faster = ratio(&ours, &s6);
    let met = faster.map(|faster| faster >= AT_LEAST);
    Ok(format!(
        "## Retrieve\n\n\
         One client connects, retrieves one of 1,000 descriptors, closes both; {batches} batches \
         of {BATCH} from each daemon in turns. Rules are in a folder.\n\n\
         | ours | s6 | ours / s6 | target |\n| --- | --- | --- | --- |\n| {} | {} | {} | {} |\n",
        ours.rate(),
        s6.rate(),
        times(faster),
        target("at least 1.4 × s6", met),
    )
    .into())
}
