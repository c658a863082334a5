//! For how long clients are not served while a new standby is given everything.

use crate::asker::Manner;
use crate::bench::{say, Bench, FDS_MOST};
use crate::family::Family;
use crate::figures::{target, Sample, Thousands};
use crate::pauses::{watch, Pauses, Span};
use crate::Result;
use std::time::Instant;

/// In milliseconds.
const AT_MOST: f64 = 5.0;

pub fn run(bench: &Bench) -> Result<String> {
    let turns = if bench.quick { 5 } else { 20 };
    say(&format!("standby: {} descriptors, {turns} new standbys", Thousands(FDS_MOST)));
    let mut family = Family::start(bench, &["--standby"])?;
    family.fill(FDS_MOST)?;
    let (mut pauses, mut whole) = (Pauses::default(), Sample::default());
    let path = family.path().to_owned();
    for _ in 0..turns {
        let (standby, _) = family.standby()?;
        let span = watch(&path, [(Manner::Steady, &mut pauses)], || {
            let from = Instant::now();
            family.kill(standby);
            let (_, to) = family.standby()?;
            Ok(Span { from, to })
        })?;
        whole.push(span.milliseconds());
    }
    let median = pauses.longest.measured.median();
    let met = median.map(|median| median <= AT_MOST && pauses.longest.flawless() == Some(true));
    Ok(format!(
        "The standby is killed, and the daemon starts another, which gets {} descriptors, while a \
         client retrieves one again and again over one connection; {turns} times. The longest time \
         between two answers until the new standby has everything ({}); beside it the same of a \
         stretch of the same length right behind, in which nothing happens.\n\n\
         | longest gap | quiet | failed | target |\n| --- | --- | --- | --- |\n\
         | {} | {} | {} | {} |\n",
        Thousands(FDS_MOST),
        whole.milliseconds(),
        pauses.longest.measured.milliseconds(),
        pauses.quiet.milliseconds(),
        pauses.longest.failures(),
        target(&format!("at most {AT_MOST} ms"), met),
    ))
}
