//! The scenarios.

pub mod dumps;
mod expiry;
mod hold;
mod refusals;
mod rules;

use crate::Pair;
use std::sync::Arc;

/// What is played out by a pair.
pub type Scenario = Arc<dyn Fn(&Pair) + Send + Sync>;

/// All scenarios, by name.
pub fn all() -> Vec<(String, Scenario)> {
    let plain: [(&str, fn(&Pair)); 15] = [
        ("store_and_list", hold::store_and_list),
        ("odd_bytes", hold::odd_bytes),
        ("retrieve", hold::retrieve),
        ("retrieve_and_delete", hold::retrieve_and_delete),
        ("delete", hold::delete),
        ("programs_to_become", hold::programs_to_become),
        ("expiry", expiry::expiry),
        ("overlapping_transfer", dumps::overlapping_transfer),
        (
            "transfer_into_a_full_holder",
            dumps::transfer_into_a_full_holder,
        ),
        ("transfer_of_limits", dumps::transfer_of_limits),
        ("denied_operations", refusals::denied_operations),
        ("no_daemon", refusals::no_daemon),
        ("wrong_usage", refusals::wrong_usage),
        ("bad_environment", refusals::bad_environment),
        ("rules_in_a_cdb", rules::in_a_cdb),
    ];
    let mut scenarios: Vec<(String, Scenario)> = plain
        .into_iter()
        .map(|(name, run)| (name.to_owned(), Arc::new(run) as Scenario))
        .collect();
    for count in [0, 1, 253, 254, 255, 256, 506, 1000, 5000] {
        let dump = move |pair: &Pair| dumps::dump_of(pair, count);
        scenarios.push((format!("dump_of_{count}"), Arc::new(dump)));
        let transfer = move |pair: &Pair| dumps::transfer_of(pair, count);
        scenarios.push((format!("transfer_of_{count}"), Arc::new(transfer)));
    }
    scenarios
}
