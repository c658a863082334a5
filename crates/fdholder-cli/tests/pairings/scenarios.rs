//! The scenarios.

pub mod dumps;
mod expiry;
mod hold;
mod refusals;
mod rules;

use crate::support::Suite;
use crate::Pair;
use std::sync::Arc;

/// What is played out by a pair.
#[derive(Clone)]
pub struct Scenario {
    pub name: String,
    /// A suite whose tools it uses, whoever meets.
    pub tools: Option<Suite>,
    pub play: Arc<dyn Fn(&Pair) + Send + Sync>,
}

impl Scenario {
    fn new(name: impl Into<String>, play: impl Fn(&Pair) + Send + Sync + 'static) -> Self {
        Self { name: name.into(), tools: None, play: Arc::new(play) }
    }
}

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::new("store_and_list", hold::store_and_list),
        Scenario::new("odd_bytes", hold::odd_bytes),
        Scenario::new("retrieve", hold::retrieve),
        Scenario::new("retrieve_and_delete", hold::retrieve_and_delete),
        Scenario::new("delete", hold::delete),
        Scenario::new("programs_to_become", hold::programs_to_become),
        Scenario::new("expiry", expiry::expiry),
        Scenario::new("overlapping_transfer", dumps::overlapping_transfer),
        Scenario::new("transfer_into_a_full_holder", dumps::transfer_into_a_full_holder),
        Scenario::new("transfer_of_limits", dumps::transfer_of_limits),
        Scenario::new("denied_operations", refusals::denied_operations),
        Scenario::new("no_daemon", refusals::no_daemon),
        Scenario::new("wrong_usage", refusals::wrong_usage),
        Scenario::new("bad_environment", refusals::bad_environment),
        Scenario {
            tools: Some(rules::CDB_MAKER),
            ..Scenario::new("rules_in_a_cdb", rules::in_a_cdb)
        },
    ];
    for count in [0, 1, 253, 254, 255, 256, 506, 1000, 5000] {
        let name = format!("dump_of_{count}");
        scenarios.push(Scenario::new(name, move |pair| {
            dumps::dump_of(pair, count);
        }));
        let name = format!("transfer_of_{count}");
        scenarios.push(Scenario::new(name, move |pair| {
            dumps::transfer_of(pair, count);
        }));
    }
    scenarios
}
