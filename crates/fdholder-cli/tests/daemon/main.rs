//! Our daemon and our programs as processes, beyond what s6's can do as well.
#![allow(missing_docs, clippy::unwrap_used)]

mod bind;
mod bind_and_pass;
mod blame;
mod config;
mod confined;
mod confined_failures;
mod doors;
mod elsewhere;
mod exec;
mod exhaustion;
mod groups;
mod hung_up;
mod kept;
mod lifecycle;
mod limits;
mod lingering;
mod logging;
mod looking;
mod lost;
mod notify;
mod on_demand;
mod programs;
mod readme;
mod rebind;
mod relay;
mod reload;
mod rights;
mod signals;
mod stopped;
mod styles;
#[path = "../support/mod.rs"]
mod support;
mod texts;
mod unattended;
mod unchanged;
mod unseen;
mod waiting;
mod wire;

use support::daemon::serve;
