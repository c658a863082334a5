//! `fdholder`: one binary for the daemon and the programs that talk to it.
//!
//! Called by the name of one of s6's nine programs (a symlink), it is that program: same
//! options, operands, environment, messages and exit codes. Called `fdholder`, it takes
//! the same operations as subcommands.

mod binding;
mod commands;
mod config;
mod connect;
mod endpoint;
mod failure;
mod group;
mod log;
mod look;
mod options;
mod passing;
mod program;
mod show;
mod similar;
mod sockopt;
mod start;
mod startup;
mod supervisor;
mod users;

use fdholder_daemon::memory::reserve::Reserving;
use program::Invocation;
use std::process::ExitCode;

/// As the system's, but for a daemon whose memory runs out.
#[global_allocator]
static ALLOCATOR: Reserving = Reserving;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match Invocation::of(commands::ALL, arguments) {
        Ok(invocation) => {
            let outcome = (invocation.program.run)(&invocation);
            outcome.unwrap_or_else(|failure| log::end(&invocation.called, &failure))
        }
        Err(answer) => answer.give(),
    }
}
