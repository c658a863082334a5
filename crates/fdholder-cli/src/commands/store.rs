//! `store`: give the holder a copy of a descriptor.

use crate::connect::connect;
use crate::connect::identifier;
use crate::failure::Failure;
use crate::options::{
    id_operand, milliseconds_option, number_option, path_operand, timeout_option, Milliseconds,
    EXIT_CODES,
};
use crate::passing::inherited;
use crate::program::{Invocation, Program};
use clap::Command;
use fdholder::{Cause, Error, Limit};
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "store",
    s6_name: "s6-fdholder-store",
    s6_usage: "[ -d fd ] [ -t timeout ] [ -T fdtimeout ] path id",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Have a descriptor held: standard input, or the one -d names")
        .after_help(EXIT_CODES)
        .arg(number_option("fd", 'd', "fd").help("Descriptor to store [default: 0]"))
        .arg(
            milliseconds_option("fdtimeout", 'T', "expire")
                .help("The holder closes it after so many milliseconds [default: 0, never]"),
        )
        .arg(timeout_option())
        .arg(path_operand())
        .arg(id_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let fd = inherited::descriptor(invocation.optional("fd").unwrap_or(0));
    let limit = match invocation.optional("fdtimeout") {
        Some(Milliseconds(Some(span))) => Limit::after(span),
        _ => Limit::never(),
    };
    let (mut holder, deadline) = connect(invocation)?;
    let id = identifier(invocation, "store fd")?;
    let fd = fd.map_err(|errno| Error::new("store fd", Cause::Exchange(errno)))?;
    let stored = holder.store(&id, limit, fd, deadline);
    stored.map_err(|error| Failure::asking_why(error, &mut holder, deadline))?;
    Ok(ExitCode::SUCCESS)
}
