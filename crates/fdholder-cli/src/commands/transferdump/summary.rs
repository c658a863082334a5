//! What a transfer did, in words and as JSON.

use crate::failure::Failure;
use crate::show::output::print;
use fdholder::{Identifier, Report, Verification};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{json, Value};
use std::io::Write;
use std::time::Duration;

/// Identifiers that a message names; more are only counted.
const NAMED_MAX: usize = 5;

/// One line on stderr.
pub fn say(called: &str, report: &Report, verification: Option<&Verification>) {
    let mut notes = Vec::new();
    let mut note = |count: u32, what: &str| {
        if count > 0 {
            notes.push(format!("{} {what}", HumanCount(count.into())));
        }
    };
    note(report.taken.as_ref().map_or(0, |taken| taken.replaced), "replaced");
    note(kept(report), "kept by the destination");
    note(report.moved.unwrap_or_default(), "deleted from the source");
    let verified = verification.filter(|verification| verification.is_good());
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
    let s = if report.descriptors == 1 { "" } else { "s" };
    let line = format!(
        "{called}: {} descriptor{s}{notes}, {}, {}, {}{}",
        HumanCount(report.descriptors.into()),
        HumanBytes(report.bytes),
        span(report.elapsed),
        report.route,
        if verified.is_some() { ", verified" } else { "" },
    );
    // Who cannot be told cannot be told.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{:.1} ms", span.as_secs_f64() * 1000.0)
    } else {
        format!("{:.2} s", span.as_secs_f64())
    }
}

/// How many the destination kept its own of, whoever decided that.
fn kept(report: &Report) -> u32 {
    let told = report.taken.as_ref().map_or(0, |taken| taken.kept.len());
    report.passed_over + told as u32 // As many as there are descriptors at most.
}

/// The same facts on stdout.
pub fn print_json(report: &Report, verification: Option<&Verification>) -> Result<(), Failure> {
    let taken = report.taken.as_ref();
    let value = json!({
        "descriptors": report.descriptors,
        "bytes": report.bytes,
        "seconds": report.elapsed.as_secs_f64(),
        "path": report.route.to_string(),
        "added": taken.map(|taken| taken.added),
        "replaced": taken.map(|taken| taken.replaced),
        "kept": taken.map(|_| kept(report)),
        "deleted_from_source": report.moved,
        "verification": verification.map(|verification| json!({
            "good": verification.is_good(),
            "limits_compared": verification.limits_compared,
            "missing": ids(&verification.missing),
            "limits_differ": ids(&verification.limits_differ),
            "source_changed": ids(&verification.source_changed),
        })),
    });
    print(&format!("{value}\n"))
}

/// As `list` prints them.
fn ids(ids: &[Identifier]) -> Value {
    ids.iter().map(ToString::to_string).collect()
}

/// What is wrong after a transfer.
pub fn complaint(bad: &Verification) -> String {
    let tell = |ids: &[Identifier], what: &str| {
        let named: Vec<_> = ids.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = if ids.len() > NAMED_MAX { ", …" } else { "" };
        (!ids.is_empty()).then(|| format!("{} {what} ({}{more})", ids.len(), named.join(", ")))
    };
    let missing = tell(&bad.missing, "missing from the destination");
    let differ = tell(&bad.limits_differ, "held there until another time");
    let problems: Vec<_> = missing.into_iter().chain(differ).collect();
    format!("the transfer was confirmed, but now the holders differ: {}", problems.join("; "))
}
