//! `upgrade`: have a daemon become the program that is now on disk.

use crate::connect::connect_negotiated;
use crate::failure::{exit, Failure};
use crate::options::{path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use clap::Command;
use std::process::ExitCode;

pub const PROGRAM: Program =
    Program { subcommand: "upgrade", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    command
        .about("Have a daemon become the program that is now where it was started from")
        .after_help(format!(
            "It keeps its pid, everything that it holds, and the connections of its clients, \
             who wait for a moment. A program that does not start changes nothing. For the \
             daemon's own user.\n\n{EXIT_CODES}"
        ))
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect_negotiated(invocation)?;
    match holder.upgrade(deadline)? {
        Ok(version) => print(&format!("fdholder {version} serves now\n"))?,
        Err(why) => {
            let why = if why.is_empty() { "the holder does not say why".to_owned() } else { why };
            return Err(Failure::new(exit::DENIED, format_args!("unable to upgrade: {why}")));
        }
    }
    Ok(ExitCode::SUCCESS)
}
