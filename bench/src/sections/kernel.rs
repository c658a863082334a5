//! How close connecting and retrieving come to what the kernel takes for the same.

use crate::bench::{say, Bench};
use crate::cpu;
use crate::daemon::{identifiers, Daemon};
use crate::figures::{ratio, target, times, times_up};
use crate::programs::Holder;
use crate::raw::Echo;
use crate::report::Report;
use crate::visits::{compare, rate};
use crate::Result;
use std::time::Duration;

const HELD: u32 = 1_000;
const BATCH: u32 = 500;
const AT_LEAST: f64 = 0.85;

pub fn run(bench: &Bench) -> Result<Report> {
    let turns = if bench.quick { 6 } else { 100 };
    say(&format!("kernel: {turns} batches of {BATCH} from each"));
    let ids = identifiers(HELD)?;
    let daemon = Daemon::start(bench, Holder::Ours)?;
    daemon.fill(HELD)?;
    let echo = Echo::start(bench)?;
    let paths = [daemon.path(), echo.path()];
    for path in paths {
        rate(path, &ids, BATCH)?; // What is done at the first time only.
    }
    let before = [cpu::time(daemon.id())?, cpu::time(echo.id())?];
    let [ours, raw] = compare(paths, &ids, turns, BATCH)?;
    let after = [cpu::time(daemon.id())?, cpu::time(echo.id())?];
    let [our_cost, raw_cost] = [0, 1].map(|side| {
        let taken: Duration = after[side].saturating_sub(before[side]);
        taken.as_secs_f64() * 1e6 / f64::from(turns * BATCH)
    });
    let kept = ratio(&ours, &raw);
    Ok(format!(
        "## Kernel\n\n\
         As in the section Retrieve, beside what the kernel takes by itself: a server that waits \
         with epoll for the same client, accepts, reads whatever comes, answers with the same \
         bytes and always the same descriptor, and closes when the client has. It knows no user, \
         no rules, no protocol and no identifier. {turns} batches of {BATCH} from each in turns. \
         The processor's time is that of the server alone, user and system.\n\n\
         | | ours | raw | ours / raw | target |\n| --- | --- | --- | --- | --- |\n\
         | connect and retrieve | {} | {} | {} | {} |\n\
         | processor's time for each | {our_cost:.2} µs | {raw_cost:.2} µs | {} |  |\n",
        ours.rate(),
        raw.rate(),
        times(kept),
        target(&format!("at least {AT_LEAST} × raw"), kept.map(|kept| kept >= AT_LEAST)),
        times_up(Some(our_cost / raw_cost)),
    )
    .into())
}
