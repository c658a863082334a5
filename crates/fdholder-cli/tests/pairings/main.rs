//! Every scenario between {ours, s6} clients and {ours, s6} daemons, s6 in the versions of
//! Debian 12 and 13.
//!
//! A scenario is written once. Where a peer cannot do what it asks, the scenario names
//! the peer's fault (see [`faults`]). Peers come from `scripts/peers`; without them the
//! pairings that need one are reported as ignored, by name, unless
//! `FDHOLDER_REQUIRE_PEERS` is set: then they fail.
#![allow(missing_docs, clippy::missing_panics_doc, clippy::unwrap_used)]

mod faults;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Trial};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use support::{Daemon, Rules, Suite};

/// Whose client meets whose daemon.
const PAIRINGS: [(Suite, Suite); 7] = [
    (Suite::Ours, Suite::Ours),
    (Suite::Ours, Suite::S6V211),
    (Suite::Ours, Suite::S6V213),
    (Suite::S6V211, Suite::Ours),
    (Suite::S6V213, Suite::Ours),
    (Suite::S6V211, Suite::S6V211),
    (Suite::S6V213, Suite::S6V213),
];

/// A client suite, a daemon suite, and a folder to meet in.
pub struct Pair {
    pub client: Suite,
    pub daemon: Suite,
    folder: tempfile::TempDir,
}

impl Pair {
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A daemon where its own user may do everything.
    pub fn start(&self, name: &str, options: &[&str]) -> Daemon {
        let rules = Rules::all(self.folder.path().join(format!("{name}.rules")));
        Daemon::with_rules(self.daemon, &self.socket(name), &rules, options)
    }

    /// A client program, `s6-fdholder-NAME`.
    pub fn program(&self, name: &str) -> Command {
        let mut command = self.client.command(&format!("s6-fdholder-{name}"));
        command.stdin(Stdio::null());
        command
    }

    /// What a client program comes to.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.program(name).args(arguments).output().unwrap()
    }

    /// The words of a client program, for another to become.
    pub fn words(&self, name: &str) -> Vec<PathBuf> {
        self.client.words(&format!("s6-fdholder-{name}"))
    }
}

fn main() {
    if scenarios::dumps::is_printer() {
        return scenarios::dumps::print_dump();
    }
    let mut trials = Vec::new();
    for scenario in scenarios::all() {
        for (client, daemon) in PAIRINGS {
            trials.push(trial(scenario.clone(), client, daemon));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(scenario: scenarios::Scenario, client: Suite, daemon: Suite) -> Trial {
    let name = format!("{}::{client}_client_{daemon}_daemon", scenario.name);
    let mut needed = [client, daemon].into_iter().chain(scenario.tools);
    let missing = needed.find(|suite| !suite.is_installed()).map(|suite| suite.to_string());
    support::trial::trial(name, missing, move || {
        let pair = Pair { client, daemon, folder: tempfile::tempdir().unwrap() };
        (scenario.play)(&pair);
    })
}
