//! A world of one primary after another, its standbys, processes that take over, clients,
//! and the messages between them, with one seed for all that happens.
//!
//! The code that is run is the daemon's: [`Store`](crate::store::Store),
//! [`Connection`](crate::connection::Connection), [`Mirrors`](crate::replication::Mirrors),
//! [`Replica`](crate::replication::Replica), the codecs, and the decisions of the roll and
//! about loans. What stands here is the kernel (`kernel.rs`), the order in which the daemon
//! does things (`serving.rs`, `peers.rs`, `links.rs`, `handover.rs`, `following.rs`, each after the
//! file of the daemon that it names), clients, and who knows what must be true
//! (`oracle.rs`, by `session.rs` and `model.rs`).

mod client;
mod following;
mod handover;
mod kernel;
mod links;
mod model;
mod oracle;
mod peers;
mod random;
mod serving;
mod session;
mod tests;
mod world;

/// Everything that happens with the seed in `FDHOLDER_SEED`.
#[test]
fn replay() {
    tests::replay();
}
