//! A message to systemd, which is the same until it could be sent.

use super::about;
use super::{wrap, Notifier};
use crate::closing::ClientFd;
use crate::reading::is_transient;
use crate::store::Record;
use fdholder::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Says that something with this name is to be kept, or not any more.
#[derive(Debug)]
pub(super) struct Letter {
    name: String,
    kept: Option<Fd>,
}

/// What is to be kept. What it takes a system call to make is made when it is sent: if that fails,
/// so does sending, and both are tried again.
#[derive(Debug)]
pub(super) enum Fd {
    Held(Arc<Record<ClientFd>>),
    /// To be wrapped.
    Wrapped(Arc<Record<ClientFd>>),
    /// To be written down: what some numbers are, and up to which number nothing else is held.
    Written(u64, Vec<Arc<Record<ClientFd>>>),
    Own(OwnedFd),
    /// Not to be closed by us.
    Shared(Arc<OwnedFd>),
}

impl Letter {
    pub fn keep(name: &str, fd: Fd) -> Self {
        Self { name: name.to_owned(), kept: Some(fd) }
    }

    pub fn forget(name: &str) -> Self {
        Self { name: name.to_owned(), kept: None }
    }

    /// Sends it, at once or not at all.
    ///
    /// # Errors
    ///
    /// Those of [`Notifier::send`], and of what it takes to make what is to be kept.
    pub fn send(&mut self, notifier: &Notifier) -> Result<(), Errno> {
        let name = &self.name;
        let Some(fd) = &mut self.kept else {
            return notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        };
        match fd {
            Fd::Wrapped(record) => *fd = Fd::Own(wrap(record.fd.as_fd())?),
            Fd::Written(last, all) => {
                let all = all.iter().map(|it| (it.origin, it.limit, &it.id));
                *fd = Fd::Own(about::write(*last, all)?);
            }
            Fd::Held(_) | Fd::Own(_) | Fd::Shared(_) => {}
        }
        let made = match &self.kept {
            Some(Fd::Held(record) | Fd::Wrapped(record)) => Some(record.fd.as_fd()),
            Some(Fd::Own(fd)) => Some(fd.as_fd()),
            Some(Fd::Shared(fd)) => Some(fd.as_fd()),
            Some(Fd::Written(..)) | None => None,
        };
        notifier.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), made)
    }

    /// The number whose descriptor it is about, if it is about one.
    pub fn serial(&self) -> Option<u64> {
        self.name.strip_prefix(['h', 'b'])?.parse().ok()
    }
}

/// Whether a message that was not sent for this may be in a moment: systemd has not read those
/// before, or is becoming another program, or there is no memory.
pub(super) fn is_for_a_moment(errno: Errno) -> bool {
    is_transient(errno) || matches!(errno, Errno::AGAIN | Errno::CONNREFUSED)
}
