//! What `status` says of services that `run` keeps running.

use crate::look::runs::Run;
use crate::show::duration::brief;
use crate::show::table::{Cell, Table};
use crate::show::terminal::{harmless, Screen, Style};
use crate::supervisor::report::{Report, State};
use serde_json::{json, Value};
use std::fmt::Write;
use std::time::Duration;

/// A row for each generation, and a line for each start that has failed last.
pub fn text(runs: &[Run], screen: Screen) -> String {
    let mut table = Table::new(["RUN", "GENERATION", "PID", "STATE", "FOR"]);
    for Run { name, report } in runs {
        let name = || Cell::from(name.as_str());
        let report = match report {
            Ok(report) => report,
            Err(why) => {
                let why = Cell::styled(why.clone(), Style::Soon);
                table.row([name(), Cell::default(), Cell::default(), why, Cell::default()]);
                continue;
            }
        };
        if report.generations.is_empty() {
            let state = if report.waits_for_clients { "waits for clients" } else { "starts soon" };
            table.row([name(), Cell::default(), Cell::default(), state.into(), Cell::default()]);
        }
        for generation in report.generations.iter().rev() {
            let style = match generation.state {
                State::Ready => Style::Good,
                State::Starting | State::Draining => Style::Plain,
            };
            table.row([
                name(),
                generation.number.to_string().into(),
                generation.pid.to_string().into(),
                Cell::styled(generation.state.word().to_owned(), style),
                brief(Duration::from_millis(generation.since_ms)).into(),
            ]);
        }
    }
    let mut text = table.to_text(screen);
    for report in runs.iter().filter_map(|run| run.report.as_ref().ok()) {
        text.push_str(&last_restart(report));
    }
    text
}

fn last_restart(report: &Report) -> String {
    let Some(last) = &report.last_restart else { return String::new() };
    let ago = brief(Duration::from_millis(last.ago_ms));
    let mut text = format!("{}, {ago} ago: {}\n", report.name, last.text);
    for line in &last.lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {line}");
    }
    text.lines().map(|line| harmless(line.to_owned()) + "\n").collect()
}

/// The same as JSON.
pub fn as_json(runs: &[Run]) -> Value {
    let one = |Run { name, report }: &Run| match report {
        Ok(report) => json!(report),
        Err(why) => json!({ "name": name, "error": why }),
    };
    runs.iter().map(one).collect()
}
