//! `setdump`: give the holder the descriptors that the environment describes.

use crate::connect::connect;
use crate::failure::{exit, Failure};
use crate::options::{path_operand, timeout_option, EXIT_CODES};
use crate::passing::inherited;
use crate::program::{Invocation, Program};
use clap::Command;
use fdholder::{environ, Cause, Entry, Error};
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "setdump",
    s6_name: "s6-fdholder-setdump",
    s6_usage: "[ -t timeout ] path",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Give the holder the descriptors that getdump's environment describes")
        .after_help(format!(
            "The environment is that of 'fdholder getdump PATH PROG'.\n\n{EXIT_CODES}"
        ))
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let numbers = environ::parse(|name| std::env::var_os(name)).map_err(|bad| {
        let advice = "set by getdump for the program it becomes";
        Failure::new(exit::USAGE, format_args!("{bad} ({advice})"))
    })?;
    let dump: Result<Vec<_>, _> = numbers
        .into_iter()
        .map(|Entry { id, limit, fd }| Ok(Entry { id, limit, fd: inherited::descriptor(fd)? }))
        .collect();
    let (mut holder, deadline) = connect(invocation)?;
    let dump = dump.map_err(|errno| Error::new("set dump", Cause::Exchange(errno)))?;
    let given = holder.setdump(&dump, deadline);
    given.map_err(|error| Failure::asking_why(error, &mut holder, deadline))?;
    Ok(ExitCode::SUCCESS)
}
