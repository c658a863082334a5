//! `delete`: have the holder close a descriptor.

use crate::connect::{connect, identifier};
use crate::endpoint::{has_clients, left_in_queue};
use crate::failure::Failure;
use crate::options::{
    id_operand, milliseconds, path_operand, timeout_option, Milliseconds, EXIT_CODES,
};
use crate::program::{Invocation, Program};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Command};
use fdholder::{Cause, Deadline, Errno, Error};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

pub const PROGRAM: Program = Program {
    subcommand: "delete",
    s6_name: "s6-fdholder-delete",
    s6_usage: "[ -t timeout ] path id",
    define,
    run,
};

/// How often a queue is looked at until it is empty: the kernel tells nobody.
const DRAIN_PAUSE: Duration = Duration::from_millis(10);

fn define(command: Command) -> Command {
    command
        .about("Have the holder close a descriptor")
        .after_help(format!(
            "What is lost with it, clients that wait in a queue or bytes that were not read, is \
             said on stderr, if this user may retrieve it.\n\n{EXIT_CODES}"
        ))
        .arg(
            Arg::new("drain")
                .long("drain")
                .value_name("MS")
                .value_parser(OsStringValueParser::new().try_map(|text| milliseconds(&text)))
                .help(
                    "First wait until no client is in the queue of a listener, at most this long",
                ),
        )
        .arg(timeout_option())
        .arg(path_operand())
        .arg(id_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect(invocation)?;
    let id = identifier(invocation, "delete fd")?;
    // It is no option of s6's.
    let drain = if invocation.as_s6 { None } else { invocation.optional("drain") };
    let drain = drain.and_then(|Milliseconds(patience)| patience);
    let copy = match (!invocation.as_s6).then(|| holder.retrieve(&id, deadline)) {
        None => None,
        Some(Ok(copy)) => Some(copy),
        // Who may delete it may still not look at it: then there is no queue to wait for.
        Some(Err(error)) if error.cause() == Cause::Denied(Errno::PERM) && drain.is_some() => {
            return Err(error.into());
        }
        Some(Err(error)) if matches!(error.cause(), Cause::Denied(_)) => None,
        Some(Err(error)) => {
            return Err(Error::new(format!("delete fd for id {id}"), error.cause()).into());
        }
    };
    if let Some((copy, patience)) = copy.as_ref().zip(drain) {
        wait_for_queue(copy, Deadline::after(patience), deadline);
    }
    let warn = |warning: std::fmt::Arguments<'_>| {
        // Without a reader nobody misses it.
        let _ = writeln!(std::io::stderr(), "{}: warning: {warning}", invocation.called);
    };
    match holder.delete(&id, deadline) {
        Err(error) if error.errno() == Errno::INPROGRESS => warn(format_args!(
            "nothing is held under {id} any more, but its descriptor takes long to close, and is \
             not closed yet"
        )),
        result => result?,
    }
    // Counted when no program gets it any more: what has it now accepts them, or nobody does.
    if let Some(left) = copy.and_then(left_in_queue) {
        warn(format_args!("{id}: {left}, and no other program gets it"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the queue is empty.
fn wait_for_queue(listener: &OwnedFd, patience: Deadline, deadline: Deadline) {
    while has_clients(listener) && !patience.passed() && !deadline.passed() {
        std::thread::sleep(DRAIN_PAUSE);
    }
}
