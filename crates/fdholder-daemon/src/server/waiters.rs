//! Clients that wait until something is held.

use super::Server;
use crate::clock;
use crate::closing::ClientFd;
use crate::connection::Appearance;
use crate::store::Store;
use fdholder::{Identifier, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Who waits for what. What appears is looked up, however many wait.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by_awaited: BTreeMap<Appearance, BTreeSet<usize>>,
    by_token: BTreeMap<usize, Appearance>,
}

impl Waiters {
    /// A client waits from now on.
    pub fn add(&mut self, token: usize, awaited: &Appearance, store: &mut Store<ClientFd>) {
        if self.by_token.get(&token) == Some(awaited) {
            return;
        }
        self.remove(token, store);
        if self.by_token.is_empty() {
            store.set_awaited(true);
        }
        self.by_token.insert(token, awaited.clone());
        self.by_awaited.entry(awaited.clone()).or_default().insert(token);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_token.len()
    }

    /// It waits no more, if it did.
    pub fn remove(&mut self, token: usize, store: &mut Store<ClientFd>) {
        let Some(awaited) = self.by_token.remove(&token) else { return };
        if let Some(tokens) = self.by_awaited.get_mut(&awaited) {
            tokens.remove(&token);
            if tokens.is_empty() {
                self.by_awaited.remove(&awaited);
            }
        }
        if self.by_token.is_empty() {
            store.set_awaited(false);
        }
    }

    /// Those that wait for this one.
    fn of<'a>(&'a self, id: &'a Identifier) -> impl Iterator<Item = usize> + 'a {
        let bytes = id.as_bytes();
        let beginnings = (1..=bytes.len())
            .filter_map(|len| Identifier::new(&bytes[..len]).ok())
            .map(|id| Appearance { id, is_prefix: true });
        let itself = Appearance { id: id.clone(), is_prefix: false };
        let tokens = |awaited| self.by_awaited.get(&awaited).into_iter().flatten().copied();
        beginnings.chain([itself]).flat_map(tokens)
    }
}

impl Server {
    /// Tells those who have waited for what is held now.
    pub(super) fn wake_waiters(&mut self) {
        let appeared = self.hold.store.take_appeared();
        if appeared.is_empty() {
            return;
        }
        let tokens: BTreeSet<_> = appeared.iter().flat_map(|id| self.waiters.of(id)).collect();
        let now = Timestamp::now();
        self.hold.expire(now, 0);
        for token in tokens {
            let Some(peer) = self.peers.get_mut(token) else { continue };
            if peer.has_appeared(&self.hold.store, now) {
                peer.recharge(&mut self.hold.ledger);
                self.waiters.remove(token, &mut self.hold.store);
                self.serve_in_turn(token, clock::now());
            }
        }
    }
}
