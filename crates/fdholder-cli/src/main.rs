//! `fdholder`: one binary for the daemon and the programs that talk to it.
//!
//! Called by the name of one of s6's nine programs (a symlink), it is that program: same
//! options, operands, environment, messages and exit codes. Called `fdholder`, it takes
//! the same operations as subcommands.

mod activation;
mod commands;
mod config;
mod connect;
mod contents;
mod describe;
mod duration;
mod endpoint;
mod exec;
mod failure;
mod front_door;
mod holder_status;
mod inherited;
mod log;
mod options;
mod output;
mod passing;
mod program;
mod progress;
mod sockopt;
mod table;
mod terminal;
mod users;

use program::Invocation;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match Invocation::of(commands::ALL, arguments) {
        Ok(invocation) => {
            let outcome = (invocation.program.run)(&invocation);
            outcome.unwrap_or_else(|failure| failure.report(&invocation.called))
        }
        Err(answer) => answer.give(),
    }
}
