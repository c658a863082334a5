//! How many descriptors a second a daemon takes when they all expire at the same moment,
//! as those do that one program stores with one deadline.

use crate::bench::{say, Bench, FDS_MOST};
use crate::daemon::{identifiers, Daemon};
use crate::figures::{ratio, target, times, Sample, Thousands};
use crate::programs::Holder;
use crate::report::Report;
use crate::Result;
use fdholder::{Deadline, Limit, Timestamp};
use std::fs::File;
use std::time::{Duration, Instant};

const AT_LEAST: f64 = 10.0;

/// s6 takes quadratic time, some 20 s: it gets one turn.
const TURNS: [Holder; 4] = [Holder::Ours, Holder::S6, Holder::Ours, Holder::Ours];

pub fn run(bench: &Bench) -> Result<Report> {
    let count = if bench.quick { 5_000 } else { FDS_MOST };
    let (mut ours, mut s6) = (Sample::default(), Sample::default());
    for holder in TURNS {
        say(&format!("store: {} in {holder:?}", Thousands(count)));
        let rate = store_rate(&Daemon::start(bench, holder)?, count)?;
        match holder {
            Holder::Ours => ours.push(rate),
            Holder::S6 => s6.push(rate),
        }
    }
    let faster = ratio(&ours, &s6);
    // s6's quadratic time shows with many only: the target is for those.
    let met = faster.filter(|_| count == FDS_MOST).map(|faster| faster >= AT_LEAST);
    Ok(format!(
        "## Store\n\n\
         {} descriptors with equal limits, one after the other over one connection, into an \
         empty daemon; three times into ours, once into s6's.\n\n\
         | ours | s6 | ours / s6 | target |\n| --- | --- | --- | --- |\n| {} | {} | {} | {} |\n",
        Thousands(count),
        ours.rate(),
        s6.rate(),
        times(faster),
        target(&format!("at least 10 × s6 at {}", Thousands(FDS_MOST)), met),
    )
    .into())
}

fn store_rate(daemon: &Daemon, count: u32) -> Result<f64> {
    let null = File::open("/dev/null")?;
    let ids = identifiers(count)?;
    let limit = Limit::at(Timestamp::now().saturating_add(Duration::from_secs(24 * 60 * 60)));
    let mut client = daemon.connect()?;
    let start = Instant::now();
    for id in &ids {
        client.store(id, limit, &null, Deadline::NEVER)?;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}
