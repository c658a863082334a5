//! What the fuzzers run: a function for each target, which takes any bytes and panics when
//! something that must hold does not.
//!
//! Nothing here knows of a fuzzer. libFuzzer calls these functions from `fuzz/`
//! (`scripts/fuzz`), and the tests of this crate replay what it has found, so that a stable
//! toolchain runs the same.

// Panicking is what they are for.
#![allow(clippy::missing_panics_doc)]

mod cdb;
mod connection;
mod frames;
mod input;
mod ledger;
mod link;
mod replies;
mod requests;
mod rules;
mod seeds;
mod wire;

pub use cdb::cdb;
pub use connection::connection;
pub use frames::frames;
pub use link::link;
pub use replies::replies;
pub use requests::requests;
pub use rules::rules;

/// A target: its name, what it runs, and what honest inputs for it look like.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As in `fuzz/fuzz_targets` and `corpus`.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "frames", run: frames, seeds: seeds::frames },
    Target { name: "requests", run: requests, seeds: seeds::requests },
    Target { name: "replies", run: replies, seeds: seeds::replies },
    Target { name: "link", run: link, seeds: seeds::link },
    Target { name: "cdb", run: cdb, seeds: seeds::cdb },
    Target { name: "rules", run: rules, seeds: seeds::rules },
    Target { name: "connection", run: connection, seeds: seeds::connection },
];
