//! Descriptors on their way to another holder, over a socket that a client has handed in.
//!
//! The client speaks setdump with the destination itself and reads its answers; the
//! source only puts messages of descriptors into the connection. So nothing that the
//! destination says, or does not say, is read here.

use crate::outbox::Departing;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::request::setdump_data;
use fdholder::Entry;
use std::iter::Flatten;
use std::ops::Range;
use std::sync::Arc;

/// A part of a snapshot that is being sent to another holder.
#[derive(Debug)]
pub struct Delivery<F> {
    to: F,
    positions: Flatten<std::vec::IntoIter<Range<usize>>>,
    departing: Option<Departing<F>>,
    bytes: u64,
}

impl<F> Delivery<F> {
    /// What stands at these positions of a snapshot is to go to `to`.
    pub(crate) fn new(to: F, runs: Vec<Range<usize>>) -> Self {
        Self { to, positions: runs.into_iter().flatten(), departing: None, bytes: 0 }
    }

    /// Where it goes: nothing is known of this socket, not even that it is one.
    pub fn to(&self) -> &F {
        &self.to
    }

    /// Bytes of the messages so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where to send what next, made from the snapshot as it leaves; `None` when all has
    /// gone.
    pub(crate) fn front(
        &mut self,
        snapshot: &[Arc<Entry<F>>],
    ) -> Option<(&F, &[u8], &[Arc<Entry<F>>])> {
        if self.departing.is_none() {
            // The positions were checked against this snapshot.
            let part = self.positions.by_ref().take(MESSAGE_FDS_MAX).map(|at| &snapshot[at]);
            let message = setdump_data(part.map(|entry| (&entry.id, entry.limit, entry.clone())));
            if message.fds().is_empty() {
                return None;
            }
            self.bytes += message.bytes().len() as u64;
            self.departing = Some(Departing::from(message));
        }
        let (bytes, entries) = self.departing.as_ref()?.rest();
        Some((&self.to, bytes, entries))
    }

    /// Says that `len` bytes of [`front`](Self::front) were sent, and its descriptors.
    pub(crate) fn advance(&mut self, len: usize) {
        self.departing.take_if(|message| message.advance(len));
    }
}
