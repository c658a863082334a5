//! How long it takes to carry everything from one daemon to another, and how often that
//! fails.

mod picture;
mod tables;

use crate::bench::{say, time, Bench, FDS_MOST};
use crate::figures::{Sample, Thousands};
use crate::raw;
use crate::report::Report;
use crate::tally::Tally;
use crate::transfers::{Sources, Way, Ways};
use crate::Result;

const SIZES: [u32; 5] = [1, 253, 1_000, 5_000, FDS_MOST];

/// What was measured of one number of descriptors.
struct AtSize {
    size: u32,
    raw: Raw,
    ways: Ways<Tally>,
}

/// What the kernel takes by itself.
#[derive(Default)]
struct Raw {
    start: Sample,
    one_hop: Sample,
    two_hops: Sample,
}

/// How often everything is run.
struct Runs {
    /// Of everything, in turns.
    turns: u32,
    /// The same where most is transferred: where s6 fails now and then it takes many to
    /// tell how often.
    turns_most: u32,
    /// How many direct ones there are in all where most is transferred. Those beyond the
    /// turns only show whether they fail: their times would be of other minutes than the
    /// others' times.
    direct_most: u32,
}

impl Runs {
    fn of(bench: &Bench) -> Self {
        if bench.quick {
            Self { turns: 3, turns_most: 10, direct_most: 20 }
        } else {
            Self { turns: 100, turns_most: 200, direct_most: 1_000 }
        }
    }
}

pub fn run(bench: &Bench) -> Result<Report> {
    let runs = Runs::of(bench);
    let mut sizes = Vec::new();
    for size in SIZES {
        sizes.push(measure(bench, &runs, size)?);
    }
    let (link, picture) = picture::draw(&sizes);
    let text = [
        tables::introduction(&runs),
        link,
        tables::durations(&sizes),
        tables::ratios(&sizes),
        tables::from_s6(&sizes),
        tables::failures(&sizes),
    ]
    .join("\n");
    Ok(Report { text, picture })
}

/// Runs everything of one size, in turns.
fn measure(bench: &Bench, runs: &Runs, size: u32) -> Result<AtSize> {
    let turns = if size == FDS_MOST { runs.turns_most } else { runs.turns };
    say(&format!("transfer: {} descriptors, {turns} times each", Thousands(size)));
    let sources = Sources::start(bench, size)?;
    let mut raw = Raw::default();
    let mut ways = Ways::<Tally>::default();
    for turn in 0..turns {
        raw.start.push(raw::bare_start()?);
        raw.one_hop.push(raw::one_hop(size)?);
        raw.two_hops.push(raw::two_hops(size)?);
        for way in Way::in_turn(turn) {
            ways[way].add(sources.transfer(bench, way, time)?);
        }
    }
    if size == FDS_MOST {
        let more = runs.direct_most.saturating_sub(turns);
        say(&format!("transfer: {} descriptors, {more} times more, direct", Thousands(size)));
        for _ in 0..more {
            ways[Way::Direct].count(sources.transfer(bench, Way::Direct, time)?);
        }
    }
    Ok(AtSize { size, raw, ways })
}
