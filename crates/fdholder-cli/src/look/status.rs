//! What can be learned of a holder, whichever it is.

use crate::failure::Failure;
use fdholder::{Cause, Client, Deadline, Errno, Status};
use fdholder_daemon::credentials;
use fdholder_daemon::listen::connect_to;
use std::path::Path;

/// What a holder tells.
#[derive(Debug)]
pub enum Known {
    /// A fdholder, everything.
    All(Box<Status>),
    /// Another one. The kernel knows who listens; what it holds can be counted by who may
    /// list.
    LittleOf { pid: Option<i32>, uid: u32, held: Option<usize> },
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
    let held = match holder.list(deadline) {
        Ok(ids) => Some(ids.len()),
        Err(error) if matches!(error.cause(), Cause::Denied(Errno::PERM)) => None,
        Err(error) => return Err(error.into()),
    };
    let who = connect_to(path).and_then(credentials::of_peer);
    let who = who.map_err(|errno| Failure::system("see who listens", errno))?;
    Ok(Known::LittleOf { pid: who.pid, uid: who.user.uid, held })
}
