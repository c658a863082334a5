//! Visits: a client connects, retrieves a descriptor and goes, one after the other.

use crate::figures::Sample;
use crate::Result;
use fdholder::{Client, Deadline, Identifier};
use std::path::Path;
use std::time::Instant;

/// How many visits a second a holder has served of so many.
pub fn rate(path: &Path, ids: &[Identifier], visits: u32) -> Result<f64> {
    let start = Instant::now();
    for id in ids.iter().cycle().take(visits as usize) {
        Client::connect(path, Deadline::NEVER)?.retrieve(id, Deadline::NEVER)?;
    }
    Ok(f64::from(visits) / start.elapsed().as_secs_f64())
}

/// The rates of two holders in turns of so many visits each; each is first every other time.
pub fn compare(
    paths: [&Path; 2],
    ids: &[Identifier],
    turns: u32,
    visits: u32,
) -> Result<[Sample; 2]> {
    let mut rates = [Sample::default(), Sample::default()];
    for turn in 0..turns {
        let first = usize::from(turn % 2 == 1);
        for index in [first, 1 - first] {
            rates[index].push(rate(paths[index], ids, visits)?);
        }
    }
    Ok(rates)
}
