//! `fdholder run` and `fdholder restart` as processes: services that restart, fail and are killed.
#![allow(missing_docs, clippy::unwrap_used)]

mod bad;
mod ready;
mod scene;
#[path = "../support/mod.rs"]
mod support;
