//! Loads an HTTP server and reports what its clients saw, as one line of JSON.
//!
//! An **open loop** sends requests on a fixed schedule, however slow the answers are. The
//! latency of each counts from the moment at which it was due, so a pause of the server
//! delays every request that was due in it. A **closed loop** (`ab -c10`) sends the next
//! request when one is answered, and so sends only a few during a pause.

mod answer;
mod generator;
mod netstat;
mod options;
mod outcome;
mod pace;
#[cfg(test)]
mod tests;

use crate::Result;
use generator::Generator;
use netstat::ListenQueues;
use options::Options;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::ffi::OsString;

/// The first argument that asks for this.
pub const COMMAND: &str = "load";

/// Loads a server as the arguments say and prints the outcome.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let Some(options) = Options::parse(arguments)? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    raise_fd_limit()?;
    let before = ListenQueues::read()?;
    let outcome = Generator::new(&options)?.run()?;
    let queues = ListenQueues::read()?.since(before);
    println!("{}", outcome.to_json(queues));
    Ok(())
}

/// A pause of the server leaves thousands of connections open.
fn raise_fd_limit() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
