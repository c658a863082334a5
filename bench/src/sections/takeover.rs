//! For how long clients are not served when a daemon takes over from another, or becomes
//! another program.

use crate::asker::Manner;
use crate::bench::{say, Bench, FDS_MOST};
use crate::family::Family;
use crate::figures::{target, Sample, Thousands};
use crate::pauses::{watch, Pauses, Span};
use crate::raw;
use crate::report::Report;
use crate::Result;
use std::time::Instant;

/// So many times what the kernel takes to move as many descriptors, and so many
/// milliseconds on top: for that, serving may pause.
const RAW_TIMES: f64 = 1.6;
const ON_TOP: f64 = 5.0;

/// What clients of both manners have noticed, and how long it took as a whole.
#[derive(Debug, Default)]
struct Happening {
    steady: Pauses,
    anew: Pauses,
    whole: Sample,
}

impl Happening {
    fn happen(
        &mut self,
        family: &mut Family,
        what: impl FnOnce(&mut Family) -> Result<()>,
    ) -> Result<()> {
        let path = family.path().to_owned();
        let clients = [(Manner::Steady, &mut self.steady), (Manner::Anew, &mut self.anew)];
        let span = watch(&path, clients, || {
            let from = Instant::now();
            what(family)?;
            Ok(Span { from, to: Instant::now() })
        })?;
        self.whole.push(span.milliseconds());
        let held = family.held()?;
        if held != FDS_MOST as usize {
            return Err(format!("{held} were held afterwards").into());
        }
        Ok(())
    }

    fn rows(&self, target: impl Fn(&Pauses) -> String) -> String {
        let row = |name: &str, pauses: &Pauses| {
            format!(
                "| {name} | {} | {} | {} | {} |\n",
                pauses.longest.measured.milliseconds(),
                pauses.quiet.milliseconds(),
                pauses.longest.failures(),
                target(pauses),
            )
        };
        row("over one connection", &self.steady) + &row("over a new one each time", &self.anew)
    }
}

pub fn run(bench: &Bench) -> Result<Report> {
    let turns = if bench.quick { 5 } else { 20 };
    say(&format!("takeover: {} descriptors, {turns} times", Thousands(FDS_MOST)));
    let mut family = Family::start(bench, &[])?;
    family.fill(FDS_MOST)?;
    let mut raw = Sample::default();
    let (mut takeovers, mut upgrades) = (Happening::default(), Happening::default());
    for _ in 0..turns {
        raw.push(raw::one_hop(FDS_MOST)?);
        takeovers.happen(&mut family, |family| take_over(bench, family))?;
        upgrades.happen(&mut family, |family| upgrade(bench, family))?;
    }
    Ok(describe(turns, &raw, &takeovers, &upgrades).into())
}

/// Another daemon takes over; returns when the one before has ended.
fn take_over(bench: &Bench, family: &mut Family) -> Result<()> {
    let before = family.primary()?;
    family.serve(bench, &[])?;
    family.wait(before)
}

fn upgrade(bench: &Bench, family: &mut Family) -> Result<()> {
    let mut command = bench.programs.subcommand("upgrade");
    let status = command.arg(family.path()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("an upgrade failed: {status}").into())
    }
}

fn describe(turns: u32, raw: &Sample, takeovers: &Happening, upgrades: &Happening) -> String {
    let limit = raw.median().map(|raw| RAW_TIMES * raw + ON_TOP);
    let verdict = |pauses: &Pauses| {
        let (Some(limit), Some(pause)) = (limit, pauses.longest.measured.median()) else {
            return target("served without failure", pauses.longest.flawless());
        };
        let met = pause <= limit && pauses.longest.flawless() == Some(true);
        target(&format!("at most {limit:.2} ms"), Some(met))
    };
    format!(
        "## Takeover\n\n\
         `fdholder serve PATH` where a daemon serves that holds {} descriptors; {turns} times, \
         each daemon from the one before. Meanwhile two clients retrieve one descriptor again and \
         again, one over one connection, the other over a new one each time. Serving pauses for \
         the longest time between two answers, from the start of the new daemon to the end of the \
         old one; beside it the same of a stretch of the same length right behind, in which \
         nothing happens.\n\n\
         Serving may pause for {RAW_TIMES} × raw one hop (as in the section Transfer, in the same \
         turns: {}) and {ON_TOP} ms. Start to end: {}.\n\n\
         | client | longest gap | quiet | failed | target |\n\
         | --- | --- | --- | --- | --- |\n{}\n\
         The same for `fdholder upgrade PATH`, when a daemon becomes the program on disk and keeps \
         its pid; in turns with the above. From the start of that command to its end: {}.\n\n\
         | client | longest gap | quiet | failed | target |\n\
         | --- | --- | --- | --- | --- |\n{}",
        Thousands(FDS_MOST),
        raw.milliseconds(),
        takeovers.whole.milliseconds(),
        takeovers.rows(verdict),
        upgrades.whole.milliseconds(),
        upgrades.rows(|_| String::new()),
    )
}
