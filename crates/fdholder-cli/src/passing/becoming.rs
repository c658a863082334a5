//! Becoming another program.

use crate::failure::{exit, Failure};
use crate::program::Invocation;
use fdholder::Errno;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Becomes the program on the command line, with these variables set or unset.
pub fn become_program(
    invocation: &Invocation,
    variables: impl IntoIterator<Item = fdholder::environ::Variable>,
) -> Failure {
    let mut words = invocation.matches.get_many::<OsString>("prog").into_iter().flatten();
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
