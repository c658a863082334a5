//! What is held, held twice: by the primary, which serves, and by those that follow it.
//!
//! A follower is a standby, or a daemon that is about to take over. It gets a copy of what
//! is held, then every change, in order; no answer leaves the primary before what it may
//! depend on has left for every follower. What was sent to a Unix socket is safe from then
//! on: the kernel delivers it although the sender is killed.
//!
//! Pure, but for [`roll`], where the kernel decides who serves.

use crate::store::Store;
use fdholder::link::Head;
use roll::Roll;

mod bytes;
mod mirrors;
mod replica;
pub(crate) mod roll;

pub use mirrors::{Carrier, Item, Mirror, Mirrors, Releases, Ticket};
pub use replica::{Replica, ReplicaError, Told};

/// What a new follower is told first.
pub(crate) fn head<F>(roll: &mut Roll, store: &Store<F>) -> Head {
    Head {
        number: roll.enter(),
        pid: std::process::id(),
        count: store.len() as u32,         // At most FDS_MAX.
        capacity: store.capacity() as u32, // At most FDS_MAX.
    }
}
