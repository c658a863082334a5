//! How much memory transferdump takes for itself while it carries.

use crate::bench::{say, Bench, FDS_MOST};
use crate::figures::{ratio, times_up, Bound, Sample, Thousands};
use crate::memory;
use crate::report::Report;
use crate::tally::Outcome;
use crate::transfers::{Sources, Way, Ways};
use crate::Result;

const FEWEST: u32 = 1;
const SIZES: [u32; 3] = [FEWEST, 1_000, FDS_MOST];
const COLUMNS: [(&str, Way); 3] =
    [("direct", Way::Direct), ("relayed", Way::Relayed), ("s6", Way::S6)];

/// What flat means: the most descriptors may cost so many times what one costs.
const FLAT: f64 = 1.1;

pub fn run(bench: &Bench) -> Result<Report> {
    let runs = if bench.quick { 3 } else { 20 };
    let mut sizes = Vec::new();
    for size in SIZES {
        say(&format!("client-memory: {} descriptors, {runs} times each", Thousands(size)));
        let sources = Sources::start(bench, size)?;
        let mut peaks = Ways::<Sample>::default();
        for _ in 0..runs {
            for (_, way) in COLUMNS {
                // s6's fail now and then; how often is told elsewhere.
                if let Ok(peak) = transfer(bench, &sources, way)? {
                    peaks[way].push(f64::from(peak));
                }
            }
        }
        sizes.push((size, peaks));
    }
    Ok(describe(runs, &sizes).into())
}

/// The peak of one transfer.
fn transfer(bench: &Bench, sources: &Sources, way: Way) -> Result<Outcome<u32>> {
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        match sources.transfer(bench, way, memory::peak)? {
            Ok(Some(peak)) => return Ok(Ok(peak)),
            Ok(None) => {} // Over before it could be traced: once more.
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Err(format!("{TRIES} transfers ({way:?}) were over before they could be traced").into())
}

fn describe(runs: u32, sizes: &[(u32, Ways<Sample>)]) -> String {
    let row = |(size, peaks): &(u32, Ways<Sample>)| {
        let cells = COLUMNS.map(|(_, way)| peaks[way].kilobytes());
        format!("| {} | {} |\n", Thousands(size), cells.join(" | "))
    };
    let rows: String = sizes.iter().map(row).collect();
    let growth = |way: Way| {
        let at = |wanted| sizes.iter().find(|(size, _)| *size == wanted).map(|(_, peaks)| peaks);
        ratio(&at(FDS_MOST)?[way], &at(FEWEST)?[way])
    };
    let growths = COLUMNS.map(|(_, way)| times_up(growth(way)));
    let verdict = |(name, way)| {
        let text = format!("{name} flat (within {FLAT} ×)");
        format!("- {}\n", Bound::AtMost(FLAT).verdict(&text, growth(way)))
    };
    let verdicts: String =
        COLUMNS.into_iter().filter(|(_, way)| *way != Way::S6).map(verdict).collect();
    format!(
        "## Memory of the client\n\n\
         The most that was resident at once of the process that runs `s6-fdholder-transferdump`, \
         as in the section Transfer, during its whole life (`VmHWM` at its end); {runs} transfers \
         each, in turns. Flat means: no more than {FLAT} times as much for {most} descriptors as \
         for {FEWEST}.\n\n\
         | descriptors | direct | relayed | s6 |\n| ---: | --- | --- | --- |\n{rows}\
         | {most} / {FEWEST} | {} |\n\n{verdicts}",
        growths.join(" | "),
        most = Thousands(FDS_MOST),
    )
}
