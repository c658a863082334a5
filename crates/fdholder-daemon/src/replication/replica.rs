//! The follower's side: what the primary holds, held here too.

use crate::limits::DROPPED_REMEMBERED;
use crate::store::{Record, Store};
use fdholder::link::{Fed, HandedClient, Heard, Mirrored};
use fdholder::{Errno, Malformed};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// What a follower has got.
#[derive(Debug)]
pub struct Replica<F> {
    store: Store<F>,
    /// Changes that belong together with others that have not come yet.
    group: Vec<Mirrored<F>>,
    clients: Vec<HandedClient<Arc<F>>>,
    is_synced: bool,
    is_ours: bool,
    /// The numbers of what went last: whoever else was to be told of that may not have been.
    dropped: VecDeque<u64>,
}

/// What comes of what the primary has said.
#[derive(Debug)]
pub struct Told<F> {
    /// What to say to it.
    pub answer: Option<Heard>,
    /// What is not held any more, for whoever can tell when it is closed.
    pub dropped: Vec<Arc<Record<F>>>,
}

/// Why a follower cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaError {
    /// The primary speaks another language.
    Malformed(Malformed),
    /// More is held than fits here.
    NoRoom,
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for ReplicaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(malformed) => write!(f, "protocol error: {malformed}"),
            Self::NoMemory => f.write_str("there is no memory for what it holds"),
            Self::NoRoom => f.write_str("it holds more than there is room for here"),
        }
    }
}

impl std::error::Error for ReplicaError {}

impl From<Malformed> for ReplicaError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl<F> Replica<F> {
    /// Of a primary that holds no more than this.
    pub fn new(capacity: usize) -> Self {
        Self {
            store: Store::new(capacity),
            group: Vec::new(),
            clients: Vec::new(),
            is_synced: false,
            is_ours: false,
            dropped: VecDeque::new(),
        }
    }

    /// Whether it has everything.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Whether it was told that all this is its own.
    pub fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Takes in what the primary says, and tells what comes of it.
    ///
    /// # Errors
    ///
    /// When it cannot be followed any further.
    pub fn hear(&mut self, fed: Fed<F>) -> Result<Told<F>, ReplicaError> {
        let mut told = Told { answer: None, dropped: Vec::new() };
        match fed {
            // Of its process, not of what is held.
            Fed::Head { .. } | Fed::Listener(_) => return Err(Malformed::INCOMPLETE.into()),
            Fed::Changes { up_to, goes_on, changes } => {
                self.group.try_reserve(changes.len()).map_err(|_| ReplicaError::NoMemory)?;
                self.group.extend(changes);
                if !goes_on && self.carry_out(&mut told.dropped)? {
                    told.answer = Some(Heard::UpTo(up_to));
                }
            }
            Fed::Synced => {
                self.is_synced = true;
                told.answer = Some(Heard::Synced);
            }
            Fed::Client(client) => {
                self.clients.try_reserve(1).map_err(|_| ReplicaError::NoMemory)?;
                self.clients.extend(client.map(|socket| Some(Arc::new(socket))));
            }
            Fed::Yours => self.is_ours = true,
        }
        Ok(told)
    }

    /// Returns whether anything was released, which the primary waits for.
    fn carry_out(&mut self, dropped: &mut Vec<Arc<Record<F>>>) -> Result<bool, ReplicaError> {
        if !self.store.has_memory(self.group.len()) {
            return Err(ReplicaError::NoMemory);
        }
        let mut has_released = false;
        for change in self.group.drain(..) {
            let gone = match change {
                Mirrored::Held { entry, origin } => {
                    let replaced = self.store.mirror(Record { entry, origin });
                    replaced.map_err(|_: Errno| ReplicaError::NoRoom)?
                }
                Mirrored::Released(id) => {
                    has_released = true;
                    self.store.forget(&id)
                }
            };
            if let Some(gone) = gone {
                self.dropped.push_back(gone.origin.serial);
                if self.dropped.len() > DROPPED_REMEMBERED {
                    self.dropped.pop_front();
                }
                dropped.push(gone);
            }
        }
        Ok(has_released)
    }

    /// What to serve with. A part of what belongs together is dropped.
    pub fn into_parts(self) -> (Store<F>, Vec<HandedClient<Arc<F>>>, VecDeque<u64>) {
        (self.store, self.clients, self.dropped)
    }

    /// What it has.
    pub fn store(&self) -> &Store<F> {
        &self.store
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::link::Dropped;
    use fdholder::{Entry, Identifier, Limit, Origin, Tenure};

    fn held(number: u32, serial: u64) -> Mirrored<u32> {
        let id = Identifier::new(number.to_string()).unwrap();
        let origin = Origin { owner: 7, tenure: Tenure::from_bits(0), serial };
        Mirrored::Held { entry: Entry { id, limit: Limit::never(), fd: number }, origin }
    }

    fn released(number: u32) -> Mirrored<u32> {
        Mirrored::Released(Identifier::new(number.to_string()).unwrap())
    }

    fn changes(up_to: u64, goes_on: bool, changes: Vec<Mirrored<u32>>) -> Fed<u32> {
        Fed::Changes { up_to, goes_on, changes }
    }

    /// What comes of it: what to say, and the descriptors that are to be closed.
    fn told(replica: &mut Replica<u32>, fed: Fed<u32>) -> (Option<Heard>, Vec<u32>) {
        let Told { answer, dropped } = replica.hear(fed).unwrap();
        (answer, dropped.iter().map(|record| record.fd).collect())
    }

    #[test]
    fn what_belongs_together_happens_together() {
        let mut replica = Replica::new(10);
        let mut told = |fed| (told(&mut replica, fed), replica.store().len());
        let nothing = || (None, vec![]);
        assert_eq!(told(changes(1, true, vec![held(1, 1)])), (nothing(), 0));
        assert_eq!(told(changes(2, false, vec![held(2, 2)])), (nothing(), 2));
        assert_eq!(told(changes(3, true, vec![released(1)])), (nothing(), 2));
        // The primary waits for what closes.
        let carried_out = (Some(Heard::UpTo(4)), vec![1]);
        assert_eq!(told(changes(4, false, vec![held(3, 3)])), (carried_out, 2));
    }

    /// Be it released or replaced; of either it is known whose it was.
    #[test]
    fn what_is_to_be_closed_is_handed_out() {
        let mut replica = Replica::new(10);
        told(&mut replica, changes(2, false, vec![held(1, 1), held(2, 2)]));
        assert_eq!(told(&mut replica, changes(3, false, vec![held(1, 3)])), (None, vec![1]));
        let Told { dropped, .. } =
            replica.hear(changes(5, false, vec![released(2), released(9)])).unwrap();
        let dropped: Vec<_> = dropped.iter().map(|record| Dropped::from(record.origin)).collect();
        assert_eq!(dropped, [Dropped { owner: 7, serial: 2 }]);
    }

    #[test]
    fn it_has_everything_when_it_is_told_so() {
        let mut replica: Replica<u32> = Replica::new(10);
        assert!(!replica.is_synced() && !replica.is_ours());
        assert_eq!(told(&mut replica, Fed::Synced), (Some(Heard::Synced), vec![]));
        assert!(replica.is_synced() && !replica.is_ours());
        assert_eq!(told(&mut replica, Fed::Yours), (None, vec![]));
        assert!(replica.is_ours());
    }

    #[test]
    fn what_it_cannot_follow_is_said() {
        let mut replica = Replica::new(1);
        replica.hear(changes(1, false, vec![held(1, 1)])).unwrap();
        let error = replica.hear(changes(2, false, vec![held(2, 2)])).unwrap_err();
        assert_eq!(error, ReplicaError::NoRoom);
        assert_eq!(error.to_string(), "it holds more than there is room for here");
        let head = fdholder::link::Head { number: 1, pid: 2, count: 3, capacity: 4 };
        let error =
            replica.hear(Fed::Head { head, listener: 1, roll: 2, pending: None }).unwrap_err();
        assert_eq!(error.to_string(), "protocol error: not the message that was due");
    }

    #[test]
    fn what_went_last_is_remembered() {
        let mut replica = Replica::new(1);
        let last = DROPPED_REMEMBERED as u64 + 2;
        for serial in 1..=last {
            replica.hear(changes(serial, false, vec![held(1, serial)])).unwrap();
        }
        replica.hear(changes(last + 1, false, vec![released(1)])).unwrap();
        let (store, _, dropped) = replica.into_parts();
        assert!(store.is_empty());
        assert!(dropped.into_iter().eq(3..=last), "each that was replaced, and the released one");
    }
}
