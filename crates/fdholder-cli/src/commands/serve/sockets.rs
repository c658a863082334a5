//! What a configuration wants open from the start.

use crate::config::Socket;
use crate::endpoint::{
    left_in_queue, limits, settle, Endpoint, EndpointOptions, NotSettled, OpenError, Policy,
    Settled, Unasked,
};
use fdholder::{Entry, Identifier, Limit};
use fdholder_daemon::{ClientFd, Store};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use tracing::{info, warn};

/// What is wanted, and what was opened for it while this process could.
#[derive(Debug, Default)]
pub struct Sockets {
    wanted: Vec<Socket>,
    opened: HashMap<Identifier, Result<OwnedFd, OpenError>>,
    /// It is known what the file said before.
    knows_before: bool,
}

/// What a store lacks of what is wanted.
#[derive(Debug, Default)]
pub struct Missing {
    /// What was opened for it, also in the place of what is held.
    pub entries: Vec<Entry<OwnedFd>>,
    /// What was changed, on what is held or by that.
    pub notes: Vec<String>,
    /// What could not be had, and why, to read behind "unable to ".
    pub problems: Vec<String>,
}

impl Sockets {
    /// None of them is open yet.
    pub fn of(wanted: Vec<Socket>) -> Self {
        Self { wanted, opened: HashMap::new(), knows_before: false }
    }

    /// The same, where options that were there before and are not now get the system's values.
    #[must_use]
    pub fn after(mut self, before: &[Socket]) -> Self {
        for socket in &mut self.wanted {
            if let Some(before) = before.iter().find(|before| before.id == socket.id) {
                socket.options = socket.options.after(&before.options);
            }
        }
        self.knows_before = true;
        self
    }

    /// Opens what can be: the address of what is held already, by a daemon that is about to be
    /// taken over from, cannot. Where it can, no client must come to what is perhaps closed again.
    pub fn open(&mut self) {
        for Socket { id, endpoint, options } in &self.wanted {
            if !endpoint.receives_at_once(options) {
                self.opened.insert(id.clone(), endpoint.bound(options));
            }
        }
    }

    /// What is not held, or not as it is wanted; opened now where it was not before.
    pub fn missing_from(self, store: &Store<ClientFd>) -> Missing {
        let Self { wanted, mut opened, knows_before } = self;
        // A daemon that is confined does not see which programs have a socket.
        let unasked = if knows_before { Unasked::Stays } else { Unasked::IsSaid };
        let policy = Policy { replace: false, unasked };
        let mut missing = Missing::default();
        for Socket { id, endpoint, options } in wanted {
            let opened = opened.remove(&id);
            if let Some(held) = store.find_held(&id) {
                let opened = opened.and_then(Result::ok);
                match settle(&endpoint, &options, &held.fd, policy, opened) {
                    Ok(Settled::Replaced(fd, why)) => {
                        let why = format!("opened anew: {}", why.unwrap_or_default());
                        let left = left_in_queue(&held.fd);
                        let left = left.map(|left| format!("the one before: {left}"));
                        missing.note(&id, [why].into_iter().chain(left));
                        missing.add(id, &endpoint, &options, fd);
                    }
                    Ok(Settled::Held(notes)) => missing.note(&id, notes),
                    other => missing.problems.push(problem(&id, &endpoint, other)),
                }
                continue;
            }
            let opened = opened.unwrap_or_else(|| endpoint.bound(&options));
            match opened.and_then(|fd| endpoint.listen(&fd, &options).map(|()| fd)) {
                Ok(fd) => missing.add(id, &endpoint, &options, fd),
                Err(error) => {
                    let error = whose(&endpoint, error, store);
                    missing.problems.push(format!("open {endpoint} for {id}: {error}"));
                }
            }
        }
        missing
    }
}

impl Missing {
    /// Logs what was changed and what could not be had, and leaves what was opened.
    pub fn said(self) -> Vec<Entry<OwnedFd>> {
        for note in self.notes {
            info!("{note}");
        }
        for problem in self.problems {
            warn!("unable to {problem}");
        }
        self.entries
    }

    fn note(&mut self, id: &Identifier, notes: impl IntoIterator<Item = String>) {
        self.notes.extend(notes.into_iter().map(|note| format!("{id}: {note}")));
    }

    fn add(&mut self, id: Identifier, endpoint: &Endpoint, options: &EndpointOptions, fd: OwnedFd) {
        self.note(&id, limits(endpoint, options, &fd));
        self.entries.push(Entry { id, limit: Limit::never(), fd });
    }
}

/// Why what is held stays, though it is not as it is wanted.
fn problem(id: &Identifier, endpoint: &Endpoint, settled: Result<Settled, NotSettled>) -> String {
    match settled {
        Err(NotSettled::Differs(what)) => format!(
            "open {endpoint} for {id}: held under it is {what}: fdholder bind --replace replaces it"
        ),
        Err(NotSettled::Open(error)) => format!("open {endpoint} for {id}: {error}; {id} stays"),
        Err(NotSettled::Unable { what, why }) => format!("change {what} for {id}: {why}"),
        Ok(Settled::MustGo(why)) => format!(
            "open {endpoint} for {id} anew: {why}, and what is held has the name until it is closed: \
             delete it, then send SIGHUP"
        ),
        Ok(Settled::Held(_) | Settled::Replaced(..)) => String::new(),
    }
}

/// The error, and which identifier has the address.
fn whose(endpoint: &Endpoint, error: OpenError, store: &Store<ClientFd>) -> OpenError {
    let is_in_use = matches!(error, OpenError::InUse(_));
    let mut others = store.iter().filter(|_| is_in_use);
    match others.find(|other| endpoint.leads_to(&other.fd)) {
        Some(other) => OpenError::InUse(format!(
            "Address already in use: this holder has it, held under {}",
            other.id
        )),
        None => error,
    }
}
