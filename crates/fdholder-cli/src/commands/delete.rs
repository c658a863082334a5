//! `delete`: have the holder close a descriptor.

use crate::connect::connect;
use crate::connect::identifier;
use crate::failure::Failure;
use crate::options::{id_operand, path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use clap::Command;
use fdholder::Errno;
use std::io::Write;
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "delete",
    s6_name: "s6-fdholder-delete",
    s6_usage: "[ -t timeout ] path id",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Have the holder close a descriptor")
        .after_help(EXIT_CODES)
        .arg(timeout_option())
        .arg(path_operand())
        .arg(id_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect(invocation)?;
    let id = identifier(invocation, "delete fd")?;
    match holder.delete(&id, deadline) {
        Err(error) if error.errno() == Errno::INPROGRESS => {
            // Who cannot be told need not know.
            let _ = writeln!(
                std::io::stderr(),
                "{}: warning: nothing is held under {id} any more, but its descriptor takes long \
                 to close, and is not closed yet",
                invocation.called
            );
        }
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}
