//! What a configuration wants open from the start.

use crate::config::Socket;
use crate::endpoint::OpenError;
use crate::look::describe::describe;
use fdholder::{Entry, Identifier, Limit};
use fdholder_daemon::{ClientFd, Store};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// What is wanted, and what was opened for it while this process could.
#[derive(Debug, Default)]
pub struct Sockets {
    wanted: Vec<Socket>,
    opened: HashMap<Identifier, Result<OwnedFd, OpenError>>,
}

/// What a store lacks of what is wanted.
#[derive(Debug, Default)]
pub struct Missing {
    /// What was opened for it.
    pub entries: Vec<Entry<OwnedFd>>,
    /// What could not be had, and why, to read behind "unable to ".
    pub problems: Vec<String>,
}

impl Sockets {
    /// None of them is open yet.
    pub fn of(wanted: Vec<Socket>) -> Self {
        Self { wanted, opened: HashMap::new() }
    }

    /// Opens what can be: the address of what is held already, by a daemon that is about to
    /// be taken over from, cannot.
    pub fn open(&mut self) {
        for Socket { id, endpoint, options } in &self.wanted {
            self.opened.insert(id.clone(), endpoint.open(options));
        }
    }

    /// What is not held, or not with its address; opened now where it was not before.
    pub fn missing_from(self, store: &Store<ClientFd>) -> Missing {
        let Self { wanted, mut opened } = self;
        let mut missing = Missing::default();
        for Socket { id, endpoint, options } in wanted {
            let opened = opened.remove(&id);
            if let Some(held) = store.find_held(&id) {
                if !endpoint.is(&held.fd) {
                    let held = describe(&held.fd);
                    let problem = format!("open {endpoint} for {id}: held under it is {held}");
                    missing.problems.push(problem);
                }
                continue;
            }
            match opened.unwrap_or_else(|| endpoint.open(&options)) {
                Ok(fd) => missing.entries.push(Entry { id, limit: Limit::never(), fd }),
                Err(error) => missing.problems.push(format!("open {endpoint} for {id}: {error}")),
            }
        }
        missing
    }
}
