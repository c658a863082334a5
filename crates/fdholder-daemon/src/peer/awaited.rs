//! What an answer waits for: that what its request has dropped is closed.

use crate::clock;
use crate::closing::{ClientFd, Closes};
use crate::limits::CLOSE_PATIENCE;
use crate::replication::{Mirrors, Releases};
use std::time::Instant;

/// What a request has dropped.
#[derive(Debug)]
pub(super) struct Awaited {
    here: Closes,
    /// What followers had of it, too.
    there: Releases,
    /// When the answer leaves all the same.
    pub until: Instant,
}

impl Awaited {
    /// `None` if that is nothing.
    pub fn new(here: Closes, there: Releases) -> Option<Self> {
        let is_nothing = here.is_empty() && there.is_empty();
        (!is_nothing).then(|| Self { here, there, until: clock::now() + CLOSE_PATIENCE })
    }

    /// Whether it is closed, everywhere.
    pub fn is_closed(&self, mirrors: &Mirrors<ClientFd>) -> bool {
        mirrors.have_closed(&self.there) && self.here.have_ended()
    }
}
