//! Our daemon and our programs as processes, beyond what s6's can do as well.
#![allow(missing_docs, clippy::unwrap_used)]

mod bind;
mod config;
mod confined;
mod exec;
mod exhaustion;
mod hung_up;
mod lifecycle;
mod limits;
mod lingering;
mod logging;
mod looking;
mod lost;
mod notify;
mod programs;
mod readme;
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod texts;
mod wire;

use support::daemon::serve;
