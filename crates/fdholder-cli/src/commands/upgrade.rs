//! `upgrade`: have a daemon become the program that is now on disk.

use crate::connect::connect_fdholder;
use crate::failure::{exit, Failure};
use crate::options::{path_operand, timeout_option, Milliseconds, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use clap::Command;
use fdholder::Deadline;
use fdholder_daemon::limits::KEEP_PATIENCE;
use std::process::ExitCode;
use std::time::Duration;

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

/// Without `-t`, once the holder has answered at all: it gives the next program half of this to get
/// ready.
const UPGRADE_PATIENCE: Duration = KEEP_PATIENCE.saturating_mul(2);

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, mut deadline) = connect_fdholder(invocation)?;
    if invocation.optional::<Milliseconds>("timeout").is_none() {
        deadline = Deadline::after(UPGRADE_PATIENCE);
    }
    match holder.upgrade(deadline)? {
        // That it is done the exit code says, too.
        Ok(version) => drop(print(&format!("fdholder {version} serves now\n"))),
        Err(why) => {
            let why = if why.is_empty() { "the holder does not say why".to_owned() } else { why };
            return Err(Failure::new(exit::DENIED, format_args!("unable to upgrade: {why}")));
        }
    }
    Ok(ExitCode::SUCCESS)
}
