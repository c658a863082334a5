//! `fdholder run` and `fdholder restart` as processes: services that restart, fail and are killed.
#![allow(missing_docs, clippy::unwrap_used)]

mod alone;
mod bad;
mod demand;
mod ending;
mod first;
mod hostile;
mod niceness;
mod premature;
mod ready;
mod restarts;
mod robust;
mod same_as_exec;
mod scene;
mod shown;
mod stopping;
#[path = "../support/mod.rs"]
mod support;
mod upward;
mod wrappers;
