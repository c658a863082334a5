//! The programs, each a thin layer over the library.

pub mod delete;
pub mod demo;
pub mod getdump;
pub mod list;
pub mod retrieve;
pub mod rules;
pub mod serve;
pub mod setdump;
pub mod store;
pub mod transferdump;

use crate::failure::{exit, Failure};
use crate::program::{Invocation, Milliseconds};
use fdholder::{BadIdentifier, Cause, Client, Deadline, Errno, Error, Identifier};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Connects to the holder that the command line names; the deadline is for all that
/// follows as well.
fn connect(invocation: &Invocation) -> Result<(Client, Deadline), Failure> {
    let timeout = invocation
        .optional("timeout")
        .and_then(|Milliseconds(timeout)| timeout);
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    let path: PathBuf = invocation.required("path")?;
    Ok((Client::connect(path, deadline)?, deadline))
}

/// The identifier on the command line; a bad one fails what was to be done with it.
fn identifier(invocation: &Invocation, doing: &str) -> Result<Identifier, Failure> {
    let id: OsString = invocation.required("id")?;
    Identifier::new(id.as_bytes()).map_err(|bad| {
        let errno = match bad {
            BadIdentifier::TooLong(_) => Errno::NAMETOOLONG,
            BadIdentifier::Empty | BadIdentifier::Nul(_) => Errno::INVAL,
        };
        Error::new(doing, Cause::Exchange(errno)).into()
    })
}

/// Becomes the program on the command line, with these variables set or unset.
fn become_program(
    invocation: &Invocation,
    variables: impl IntoIterator<Item = fdholder::environ::Variable>,
) -> Failure {
    let mut words = invocation
        .matches
        .get_many::<OsString>("prog")
        .into_iter()
        .flatten();
    let Some(name) = words.next() else {
        return Failure::new(exit::USAGE, "no program to become");
    };
    let mut command = Command::new(name);
    command.args(words);
    for (variable, value) in variables {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    let error = command.exec();
    let (code, advice) = match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => (exit::NOT_FOUND, ""),
        Some(Errno::TOOBIG) => (exit::CANNOT_EXEC, " (too many variables: raise ulimit -s)"),
        _ => (exit::CANNOT_EXEC, ""),
    };
    let text = Errno::from_io_error(&error).map_or_else(|| error.to_string(), fdholder::strerror);
    let name = name.display();
    Failure::new(code, format_args!("unable to exec {name}: {text}{advice}"))
}

/// Writes to stdout; what cannot be written is a failure, not a panic.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::system("write to stdout", error))
}
