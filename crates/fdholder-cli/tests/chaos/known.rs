//! What a client knows of its own part of the holder.

use fdholder::{Identifier, Limit};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is behind an identifier: the path tells the open file, as each is opened once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub path: PathBuf,
    pub limit: Limit,
}

/// What is held under a client's identifiers.
pub type Part = BTreeMap<Identifier, Held>;

/// What an operation does if it happens.
#[derive(Debug, Clone)]
pub enum Change {
    /// These are held, each in the place of what its identifier had; all or none.
    Put(Vec<(Identifier, Held)>),
    Gone(Identifier),
}

impl Change {
    fn apply(self, part: &mut Part) {
        match self {
            Self::Put(entries) => part.extend(entries),
            Self::Gone(id) => {
                part.remove(&id);
            }
        }
    }
}

/// What is held for certain, and what may have happened since.
#[derive(Debug, Default)]
pub struct Known {
    held: Part,
    /// In the order in which they were asked for. The holder does them in this order, so
    /// that one which has happened means that those before it have.
    doubtful: Vec<Change>,
}

impl Known {
    /// What is held, if all that is in doubt has happened.
    pub fn held(&self) -> Part {
        let mut part = self.held.clone();
        self.doubtful.iter().for_each(|change| change.clone().apply(&mut part));
        part
    }

    /// What is held under one identifier, by the same count.
    pub fn get(&self, id: &Identifier) -> Option<&Held> {
        let last = self.doubtful.iter().rev().find_map(|change| match change {
            Change::Put(entries) => {
                entries.iter().find(|(put, _)| put == id).map(|(_, held)| Some(held))
            }
            Change::Gone(gone) => (gone == id).then_some(None),
        });
        last.unwrap_or_else(|| self.held.get(id))
    }

    /// This may have happened.
    pub fn doubt(&mut self, change: Change) {
        self.doubtful.push(change);
    }

    pub fn is_in_doubt(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// All that was in doubt has happened.
    pub fn is_certain(&mut self) {
        for change in self.doubtful.drain(..) {
            change.apply(&mut self.held);
        }
    }

    /// This is what is held. Fails when that cannot be.
    pub fn is(&mut self, found: &Part) -> Result<(), String> {
        if *found != self.held {
            let mut changes = std::mem::take(&mut self.doubtful).into_iter();
            loop {
                let Some(change) = changes.next() else {
                    return Err(format!("with all that may have happened, {}", self.unlike(found)));
                };
                change.apply(&mut self.held);
                if *found == self.held {
                    break;
                }
            }
        }
        self.doubtful.clear();
        Ok(())
    }

    fn unlike(&self, found: &Part) -> String {
        let lost: Vec<_> = self.held.iter().filter(|(id, _)| !found.contains_key(id)).collect();
        let strange: Vec<_> = found.iter().filter(|(id, _)| !self.held.contains_key(id)).collect();
        let pairs = self.held.iter().filter_map(|(id, held)| Some((id, held, found.get(id)?)));
        let other: Vec<_> = pairs.filter(|(_, held, found)| held != found).collect();
        format!("lost: {lost:?}\nnever given, or deleted: {strange:?}\nother than given: {other:?}")
    }
}
