//! What one daemon leaves to the next.

use crate::closing::ClientFd;
use crate::replication::roll::Place;
use crate::store::Store;
use fdholder::link::HandedClient;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a daemon has to serve with.
#[derive(Debug)]
pub struct Inheritance {
    /// Where clients come in.
    pub listener: OwnedFd,
    /// Where clients came in before, who may still wait there.
    pub former: Vec<OwnedFd>,
    /// What is held.
    pub store: Store<ClientFd>,
    /// Clients that were served by another daemon.
    pub clients: Vec<HandedClient<Arc<ClientFd>>>,
    /// The numbers of what went last, of which others may not have been told.
    pub dropped: VecDeque<u64>,
    /// Of the daemon that had all that.
    pub place: Option<Place>,
}

impl Inheritance {
    /// A new socket, and room for so many descriptors.
    pub fn of(listener: OwnedFd, capacity: usize) -> Self {
        let store = Store::new(capacity);
        let (former, clients, dropped) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { listener, former, store, clients, dropped, place: None }
    }
}
