//! Transfers: whole or not at all, by whatever way, whoever is at the other end.
#![allow(missing_docs, clippy::unwrap_used)]
// A delivery of one run is nothing strange.
#![allow(clippy::single_range_in_vec_init)]

mod choice;
mod direct;
mod extensions;
mod live;
mod misbehaving;
mod pacing;
mod rights;
#[path = "../support/mod.rs"]
mod support;

use fdholder::{Entry, Identifier, Limit};
use libtest_mimic::Arguments;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ExitCode, Output};
use support::daemon::serve;
use support::{deadline, id, suite, trial::trial, Daemon, Suite};

/// A test, and whether it needs s6.
type Test = (&'static str, bool, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = [
        choice::TESTS,
        direct::TESTS,
        extensions::TESTS,
        live::TESTS,
        misbehaving::TESTS,
        pacing::TESTS,
        rights::TESTS,
    ];
    let trials = tests.into_iter().flatten().map(|&(name, needs_s6, run)| {
        let installed = Suite::S6V211.is_installed() && Suite::S6V213.is_installed();
        let missing = needs_s6 && !installed;
        trial(name.to_owned(), missing.then(|| "s6 (scripts/peers)".to_owned()), run)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// `fdholder transferdump`, with options, from one path to another.
fn transferdump(options: &[&str], from: &Path, to: &Path) -> Output {
    suite::fdholder(["transferdump"]).args(options).arg(from).arg(to).output().unwrap()
}

/// Has a holder hold `id0`, `id1` …, the last one for an hour, the others for ever.
fn fill(holder: &Daemon, count: u32) {
    let null = File::open("/dev/null").unwrap();
    let hour = Limit::after(std::time::Duration::from_secs(3600));
    let entry = |number: u32| Entry {
        id: id(&format!("id{number}")),
        limit: if number + 1 == count { hour } else { Limit::never() },
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..count).map(entry).collect();
    holder.client().setdump(&set, deadline()).unwrap();
}

/// Identifiers, in order.
fn ids(holder: &Daemon) -> Vec<Identifier> {
    let mut ids = holder.client().list(deadline()).unwrap();
    ids.sort_unstable();
    ids
}

/// Two of our holders, the first with so many descriptors.
fn pair(count: u32) -> (tempfile::TempDir, Daemon, tempfile::TempDir, Daemon) {
    let (from_folder, from) = serve(&["-n", "12100"]);
    let (to_folder, to) = serve(&["-n", "12100"]);
    fill(&from, count);
    (from_folder, from, to_folder, to)
}

/// s6's daemon, of Debian 13.
fn s6(folder: &Path, options: &[&str]) -> Daemon {
    let rules = support::Rules::all(folder.join("rules"));
    Daemon::with_rules(Suite::S6V213, &folder.join("s6"), &rules, options)
}
