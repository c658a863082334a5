//! The holder and the identifier that a command line names.

use crate::failure::Failure;
use crate::options::{Milliseconds, PATIENCE};
use crate::program::Invocation;
use fdholder::{BadIdentifier, Cause, Client, Deadline, Errno, Error, Identifier};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Connects to the holder that the command line names; the deadline is for all that
/// follows as well.
pub fn connect(invocation: &Invocation) -> Result<(Client, Deadline), Failure> {
    connect_by(invocation, Client::connect)
}

/// The same, and finds out whether it is a fdholder.
pub fn connect_negotiated(invocation: &Invocation) -> Result<(Client, Deadline), Failure> {
    connect_by(invocation, Client::connect_negotiated)
}

/// The same, where no other will do.
pub fn connect_fdholder(invocation: &Invocation) -> Result<(Client, Deadline), Failure> {
    connect_by(invocation, Client::connect_fdholder)
}

/// When all that the command line wants done must be. If it says nothing, a holder that does not
/// answer is given up; s6's programs wait for ever.
pub fn deadline(invocation: &Invocation) -> Deadline {
    match invocation.optional("timeout") {
        Some(Milliseconds(Some(timeout))) => Deadline::after(timeout),
        None if !invocation.as_s6 => Deadline::each(PATIENCE),
        _ => Deadline::NEVER,
    }
}

fn connect_by(
    invocation: &Invocation,
    connect: impl FnOnce(PathBuf, Deadline) -> Result<Client, Error>,
) -> Result<(Client, Deadline), Failure> {
    let deadline = deadline(invocation);
    Ok((connect(invocation.required("path")?, deadline)?, deadline))
}

/// The identifier on the command line; a bad one fails what was to be done with it.
pub fn identifier(invocation: &Invocation, doing: &str) -> Result<Identifier, Failure> {
    let id: OsString = invocation.required("id")?;
    Identifier::new(id.as_bytes()).map_err(|bad| {
        let errno = match bad {
            BadIdentifier::TooLong(_) => Errno::NAMETOOLONG,
            BadIdentifier::Empty | BadIdentifier::Nul(_) => Errno::INVAL,
        };
        Error::new(doing, Cause::Exchange(errno)).into()
    })
}
