//! What can be learned of a holder, whichever it is.

use crate::failure::Failure;
use fdholder::{Cause, Client, Deadline, Errno, Error, Status};
use fdholder_daemon::credentials;
use fdholder_daemon::listen::connect_to;
use std::path::Path;

/// What a holder tells.
#[derive(Debug)]
pub enum Known {
    /// A fdholder, everything.
    All(Box<Status>),
    /// Another one. The kernel knows who listens; what it holds can be counted by who may
    /// list, or take a dump.
    LittleOf { pid: Option<i32>, uid: u32, held: Result<usize, Failure> },
}

/// Asks a holder.
///
/// # Errors
///
/// When there is none, or it does not let us in.
pub fn look(path: &Path, deadline: Deadline) -> Result<Known, Failure> {
    let mut holder = Client::connect_negotiated(path, deadline)?;
    if holder.version().is_some() {
        match holder.status(deadline) {
            Ok(status) => return Ok(Known::All(Box::new(status))),
            // One of an earlier version.
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::OPNOTSUPP)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let held = match count(&mut holder, deadline) {
        Err(error) if !matches!(error.cause(), Cause::Denied(_)) => return Err(error.into()),
        held => held.map_err(Failure::from),
    };
    let who = connect_to(path, deadline.remaining()).and_then(credentials::of_peer);
    let who = who.map_err(|errno| Failure::system("see who listens", errno))?;
    Ok(Known::LittleOf { pid: who.pid, uid: who.user.uid, held })
}

fn count(holder: &mut Client, deadline: Deadline) -> Result<usize, Error> {
    match holder.list(deadline) {
        // The first message of a dump says how much there is; the rest is not waited for.
        Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
            let dump = holder.begin_getdump(deadline).map_err(|_| error)?;
            Ok(dump.remaining() as usize)
        }
        ids => Ok(ids?.len()),
    }
}
