//! What a standby costs, and how soon it serves.

mod promotion;
mod resync;
mod stores;

use crate::bench::Bench;
use crate::report::Report;
use crate::Result;

pub fn run(bench: &Bench) -> Result<Report> {
    let parts = [promotion::run(bench)?, resync::run(bench)?, stores::run(bench)?];
    Ok(format!("## Standby\n\n{}", parts.join("\n")).into())
}
