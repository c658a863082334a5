//! Clients of bad will, as users of their own, beside one of good will, who measures: nothing
//! of its is lost, and it is served nearly as fast as when it is alone. What only root can try,
//! as in `users`.
//!
//! Everybody who connects is a process of its own: this program once more, see `actor`.
#![allow(missing_docs, clippy::unwrap_used)]

mod actor;
mod arena;
mod attacks;
mod deeds;
mod failures;
mod flood;
mod latency;
mod leaks;
mod lingering;
mod quotas;
mod raw;
mod rights;
mod shares;
#[path = "../support/mod.rs"]
mod support;
mod victim;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if actor::plays_a_role() {
        return;
    }
    let mut arguments = Arguments::from_args();
    // They measure: each has the machine to itself.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    failures::cases(&mut trials);
    lingering::cases(&mut trials);
    shares::cases(&mut trials);
    quotas::cases(&mut trials);
    flood::cases(&mut trials);
    leaks::cases(&mut trials);
    rights::cases(&mut trials);
    libtest_mimic::run(&arguments, trials).exit();
}

/// One more case.
fn case(trials: &mut Vec<Trial>, name: impl Into<String>, run: impl FnOnce() + Send + 'static) {
    let missing = (!rustix::process::geteuid().is_root()).then(|| "root".to_owned());
    trials.push(support::trial::trial(name.into(), missing, run));
}
