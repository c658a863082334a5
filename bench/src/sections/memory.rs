//! How much memory a daemon takes for what it holds.

use crate::bench::{say, Bench, FDS_MOST};
use crate::daemon::Daemon;
use crate::figures::{target, Thousands};
use crate::memory::kilobytes;
use crate::report::Report;
use crate::Result;

/// Percent of s6's.
const AT_MOST: f64 = 60.0;

pub fn run(bench: &Bench) -> Result<Report> {
    say(&format!("memory: {} held by each", Thousands(FDS_MOST)));
    let daemons = Daemon::both(bench)?;
    daemons.ours.fill(FDS_MOST)?;
    daemons.s6.fill(FDS_MOST)?;
    let mut rows = String::new();
    // Only the first has a target; the second leaves out the pages of programs and
    // libraries, which processes share.
    for (field, what, has_target) in
        [("VmRSS:", "all (VmRSS)", true), ("RssAnon:", "its own (RssAnon)", false)]
    {
        let ours = kilobytes(daemons.ours.id(), field)?;
        let s6 = kilobytes(daemons.s6.id(), field)?;
        let percent = 100.0 * f64::from(ours) / f64::from(s6);
        let verdict = if has_target {
            target("at most 60 % of s6's", Some(percent <= AT_MOST))
        } else {
            String::new()
        };
        let row = format!(
            "| {what} | {} kB | {} kB | {percent:.1} % | {verdict} |\n",
            Thousands(ours),
            Thousands(s6),
        );
        rows.push_str(&row);
    }
    Ok(format!(
        "## Memory\n\n\
         Of the daemon process that holds {} descriptors without expiry.\n\n\
         | resident | ours | s6 | ours / s6 | target |\n| --- | --- | --- | --- | --- |\n{rows}",
        Thousands(FDS_MOST),
    )
    .into())
}
