//! How long it takes to carry everything from one daemon to another, and how often that
//! fails.

use crate::bench::{say, time, Bench, FDS_MOST};
use crate::daemon::Daemon;
use crate::figures::{ratio, target, times, Both, Sample, Thousands};
use crate::programs::Holder;
use crate::{raw, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};

const SIZES: [u32; 5] = [1, 253, 1_000, 5_000, FDS_MOST];

/// What came of the transfers of one kind.
#[derive(Default)]
struct Tally {
    /// Of those that succeeded.
    times: Sample,
    failures: u32,
    /// How often each reason was given.
    reasons: BTreeMap<String, u32>,
}

impl Tally {
    fn add(&mut self, outcome: std::result::Result<f64, String>) {
        match outcome {
            Ok(span) => self.times.push(span),
            Err(reason) => {
                self.failures += 1;
                *self.reasons.entry(reason).or_default() += 1;
            }
        }
    }
}

#[derive(Default)]
struct Raw {
    start: Sample,
    one_hop: Sample,
    two_hops: Sample,
}

pub fn run(bench: &Bench) -> Result<String> {
    let runs = if bench.quick { 3 } else { 9 };
    let runs_most = if bench.quick { 20 } else { 200 };
    let mut rows = String::new();
    let mut failures = String::new();
    for size in SIZES {
        // Where s6 fails now and then it takes many runs to tell how often.
        let transfers = if size == FDS_MOST { runs_most } else { runs };
        say(&format!("transfer: {} descriptors, {transfers} times", Thousands(size)));
        let (raw, tallies) = compare(bench, size, transfers, runs)?;
        rows.push_str(&row(size, &raw, &tallies));
        failures.push_str(&failures_row(size, transfers, &tallies));
    }
    Ok(format!(
        "## Transfer\n\n\
         `s6-fdholder-transferdump`, from its start to its end, from a daemon that holds so many \
         descriptors to an empty one of its kind; {runs} runs, {runs_most} at {}. Beside it what \
         the kernel takes by itself: a process that only starts and exits, one that sends as many \
         descriptors to another, one that receives them and sends them on.\n\n\
         | descriptors | bare start | one hop | two hops | ours | s6 | s6 / ours | target |\n\
         | ---: | --- | --- | --- | --- | --- | --- | --- |\n{rows}\n\
         Transfers that failed (their times do not count above):\n\n\
         | descriptors | ours | s6 | target |\n\
         | ---: | --- | --- | --- |\n{failures}",
        Thousands(FDS_MOST),
    ))
}

/// Runs everything of one size, in turns.
fn compare(bench: &Bench, size: u32, transfers: u32, raws: u32) -> Result<(Raw, Both<Tally>)> {
    let sources = Daemon::both(bench)?;
    sources.ours.fill(size)?;
    sources.s6.fill(size)?;
    let mut raw = Raw::default();
    let mut tallies = Both::<Tally>::default();
    for run in 0..transfers {
        // Spread over all the runs when they are fewer.
        if run.is_multiple_of(transfers / raws) {
            raw.start.push(raw::bare_start()?);
            raw.one_hop.push(raw::one_hop(size)?);
            raw.two_hops.push(raw::two_hops(size)?);
        }
        for holder in Holder::BOTH {
            let (source, tally) = match holder {
                Holder::Ours => (&sources.ours, &mut tallies.ours),
                Holder::S6 => (&sources.s6, &mut tallies.s6),
            };
            tally.add(transfer(bench, holder, source, size)?);
        }
    }
    Ok((raw, tallies))
}

/// One transfer: how long it took, or why it failed.
fn transfer(
    bench: &Bench,
    holder: Holder,
    source: &Daemon,
    size: u32,
) -> Result<std::result::Result<f64, String>> {
    // A fresh one each time: s6's refuses to be given what it has.
    let destination = Daemon::start(bench, holder)?;
    let said = bench.scratch_file();
    let mut command = bench.programs.command(holder, "s6-fdholder-transferdump");
    command.arg(source.path()).arg(destination.path()).stderr(File::create(&said)?);
    let (span, status) = time(&mut command)?;
    if !status.success() {
        let said = fs::read_to_string(&said)?;
        let reason = said.rsplit(": ").next().unwrap_or_default().trim().to_owned();
        return Ok(Err(format!("{status}, {reason}")));
    }
    let held = destination.held()?;
    if held != size as usize {
        return Ok(Err(format!("exit code 0, but {held} arrived")));
    }
    Ok(Ok(span))
}

fn row(size: u32, raw: &Raw, Both { ours, s6 }: &Both<Tally>) -> String {
    let faster = ratio(&s6.times, &ours.times);
    let mut targets = Vec::new();
    if size >= 1_000 {
        targets.push(target("no slower than s6", faster.map(|faster| faster >= 1.0)));
    }
    if size == FDS_MOST {
        targets.push(target("at least 2 × faster", faster.map(|faster| faster >= 2.0)));
    }
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
        Thousands(size),
        raw.start.milliseconds(),
        raw.one_hop.milliseconds(),
        raw.two_hops.milliseconds(),
        ours.times.milliseconds(),
        s6.times.milliseconds(),
        times(faster),
        targets.join("; "),
    )
}

fn failures_row(size: u32, transfers: u32, Both { ours, s6 }: &Both<Tally>) -> String {
    let tell = |tally: &Tally| {
        let reasons: Vec<_> =
            tally.reasons.iter().map(|(reason, count)| format!(" ({count} × {reason})")).collect();
        format!("{} of {transfers}{}", tally.failures, reasons.concat())
    };
    let verdict = if size == FDS_MOST {
        target(&format!("ours 0 of {transfers}"), Some(ours.failures == 0))
    } else {
        String::new()
    };
    let (told_ours, told_s6) = (tell(ours), tell(s6));
    format!("| {} | {told_ours} | {told_s6} | {verdict} |\n", Thousands(size))
}
