//! What a server is told while it runs.

use super::{Options, Server};
use crate::access::Rules;
use crate::audit::{Event, Operation, Verdict, Who};
use crate::clock;
use crate::closing::ClientFd;
use crate::hold::Hold;
use crate::{Outcome, Store};
use fdholder::extension::OnConflict;
use fdholder::{strerror, Entry, Errno, Tenure, Timestamp};
use std::fmt;
use std::os::fd::OwnedFd;
use tracing::{info, warn};

/// Reads a configuration again, given what is held. `None`: what is in force stays.
pub struct Reload(Box<dyn FnMut(&Store<ClientFd>) -> Option<Reloaded> + Send>);

impl Reload {
    /// By calling this.
    pub fn by(read: impl FnMut(&Store<ClientFd>) -> Option<Reloaded> + Send + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// What came of that.
#[derive(Debug)]
pub struct Reloaded {
    /// The rules, for clients that connect from now on.
    pub rules: Rules,
    /// Limits. How much can be held was decided at start.
    pub options: Options,
    /// What is to be held, too.
    pub entries: Vec<Entry<OwnedFd>>,
}

impl Server {
    /// Has the server read its configuration in this way when SIGHUP comes.
    #[must_use]
    pub fn with_configuration(self, reload: Reload) -> Self {
        Self { configuration: Some(reload), ..self }
    }

    /// What is held.
    pub fn store(&self) -> &Store<ClientFd> {
        &self.hold.store
    }

    /// Holds what does not come from a client, as if the daemon's own user had stored it; in the
    /// place of what was held under the same identifier.
    ///
    /// # Errors
    ///
    /// ENFILE as for a client. What came before is held, the rest is closed.
    pub fn hold(&mut self, entries: Vec<Entry<OwnedFd>>) -> Result<(), Errno> {
        let pid = i32::try_from(std::process::id()).ok();
        let who = Who { uid: self.user.uid, gid: Some(self.user.gid), pid };
        for Entry { id, limit, fd } in entries {
            let entry = Entry { id: id.clone(), limit, fd: ClientFd::new(fd, who.uid) };
            let (now, owner) = (Timestamp::now(), self.user.uid);
            let outcome = self.hold.apply(now, |store| {
                if store.find_held(&id).is_none() {
                    return store.store(entry, owner, now);
                }
                let set = vec![store.stage(entry, owner, Tenure::from(now))];
                let Outcome { answer, changes } =
                    store.setdump(set, OnConflict::Replace, owner, now);
                Outcome { answer: answer.map(|_| ()), changes }
            });
            let Hold { store, auditor, .. } = &mut self.hold;
            let (at, operation) = (clock::now(), Operation::Configure);
            auditor.changed(who, operation, &outcome.changes, store, now, at);
            if let Err(errno) = outcome.answer {
                let verdict = Verdict::Denied(errno);
                auditor.note(&Event { who, operation, id: Some(&id), verdict }, at);
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Reads configuration and rules again; what is in force stays when they cannot be read.
    pub fn reload(&mut self) {
        let Some(Reload(read)) = &mut self.configuration else {
            if let Err(refusal) = self.rules.reload() {
                warn!("the rules in force stay: {refusal}");
            }
            return;
        };
        let Some(Reloaded { rules, options, entries }) = read(&self.hold.store) else { return };
        self.rules = rules;
        let connections_max = options.connections_max.clamp(1, self.room.connections_max);
        if connections_max < options.connections_max {
            warn!("at most {connections_max} clients at once until the daemon is upgraded");
        }
        self.hold.crew.set_client_timeout(options.client_timeout);
        self.hold.auditor.set(options.audit);
        self.options = Options { connections_max, ..options };
        self.hold.store.hold_with_peers(options.drop_hung_up);
        self.hold.ledger.resize(self.room.sizes(connections_max), self.room.reserves());
        let count = entries.len();
        match self.hold(entries) {
            Ok(()) => info!("has read its configuration again, and holds {count} more"),
            Err(errno) => warn!("unable to hold what is new: {}", strerror(errno)),
        }
    }
}
