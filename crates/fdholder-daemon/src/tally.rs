//! How often what has been asked.

use fdholder::Request;
use std::collections::BTreeMap;

/// What clients ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Store.
    Store,
    /// Delete.
    Delete,
    /// Retrieve, with or without delete.
    Retrieve,
    /// List.
    List,
    /// Get a dump.
    Getdump,
    /// Announce a set.
    Setdump,
    /// A part of a set.
    SetdumpData,
    /// Anything beyond s6's protocol.
    Extension,
}

/// All of them, with the names by which they are told.
const NAMES: [&str; 8] =
    ["store", "delete", "retrieve", "list", "getdump", "setdump", "setdump_data", "extension"];

impl<F> From<&Request<F>> for Operation {
    fn from(request: &Request<F>) -> Self {
        match request {
            Request::Store(_) => Self::Store,
            Request::Delete(_) => Self::Delete,
            Request::Retrieve { .. } => Self::Retrieve,
            Request::List => Self::List,
            Request::Getdump => Self::Getdump,
            Request::Setdump(_) => Self::Setdump,
            Request::SetdumpData(_) => Self::SetdumpData,
            Request::Extension(_) => Self::Extension,
        }
    }
}

/// What has happened since this process began to serve.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of each operation how often it was done, and how often refused.
    operations: [[u64; 2]; NAMES.len()],
    /// Clients that were let in.
    pub connections: u64,
    /// Clients that were not.
    pub turned_away: u64,
    /// Datagrams of services that were heeded.
    pub notified: u64,
    /// Datagrams of services that were not, or not all of them.
    pub notify_refused: u64,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, operation: Operation, is_refused: bool) {
        self.operations[operation as usize][usize::from(is_refused)] += 1;
    }

    /// All counts, by names for [`Status::counts`](fdholder::Status::counts); and how many
    /// descriptors have expired.
    pub fn told(&self, expired: u64) -> BTreeMap<String, u64> {
        let each = NAMES.iter().zip(self.operations).flat_map(|(name, [done, refused])| {
            [(format!("{name}.ok"), done), (format!("{name}.refused"), refused)]
        });
        let Self { connections, turned_away, notified, notify_refused, .. } = *self;
        let others = [
            ("expired", expired),
            ("connections.ok", connections),
            ("connections.refused", turned_away),
            ("notify.ok", notified),
            ("notify.refused", notify_refused),
        ];
        each.chain(others.map(|(name, count)| (name.to_owned(), count))).collect()
    }
}
