//! Descriptors for another holder, to be sent over a socket that a client has handed in.
//!
//! The client speaks setdump with the destination itself and reads its answers; the
//! source only puts messages of descriptors into the connection. So nothing that the
//! destination says, or does not say, is read here.

use crate::store::Record;
use fdholder::frame::Message;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::request::setdump_data;
use std::ops::Range;
use std::sync::Arc;

/// What was held at one instant.
pub(crate) type Held<F> = Arc<Vec<Arc<Record<F>>>>;

/// A part of a snapshot that is to be sent to another holder.
#[derive(Debug)]
pub struct Delivery<F> {
    to: F,
    snapshot: Held<F>,
    runs: Vec<Range<usize>>,
}

impl<F> Delivery<F> {
    /// What stands at these positions of a snapshot, which has them, is to go to `to`.
    pub(crate) fn new(to: F, snapshot: Held<F>, runs: Vec<Range<usize>>) -> Self {
        Self { to, snapshot, runs }
    }

    /// Where it goes: nothing is known of this descriptor, not even that it is a socket.
    pub fn to(&self) -> &F {
        &self.to
    }

    /// How many descriptors it is.
    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(Range::len).sum()
    }

    /// The messages, made one by one.
    pub fn messages(&self) -> impl Iterator<Item = Message<&F>> + '_ {
        let mut entries = self.runs.iter().flat_map(|run| &self.snapshot[run.clone()]);
        std::iter::from_fn(move || {
            let part = entries.by_ref().take(MESSAGE_FDS_MAX);
            let message = setdump_data(part.map(|entry| (&entry.id, entry.limit, &entry.fd)));
            (!message.fds().is_empty()).then_some(message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::{Entry, Identifier, Limit, Origin, Tenure};

    #[test]
    fn runs_are_cut_into_messages() {
        let entry = |fd: u32| {
            let id = Identifier::new(fd.to_string()).unwrap();
            let origin = Origin { owner: 0, tenure: Tenure::from_bits(0), serial: 0 };
            Arc::new(Record { entry: Entry { id, limit: Limit::never(), fd }, origin })
        };
        let snapshot = Arc::new((0..1000).map(entry).collect());
        let delivery = Delivery::new(9, snapshot, vec![0..3, 500..900]);
        let fds: Vec<Vec<u32>> = delivery
            .messages()
            .map(|message| message.fds().iter().map(|fd| **fd).collect())
            .collect();
        assert_eq!(fds.iter().map(Vec::len).collect::<Vec<_>>(), [253, 150]);
        assert_eq!(fds.concat(), (0..3).chain(500..900).collect::<Vec<_>>());
        let none = Delivery::new(9, Arc::default(), vec![]);
        assert_eq!(none.messages().count(), 0);
    }
}
