//! The daemon of fdholder, as a library.
//!
//! Bytes become frames, frames requests (crate `fdholder`); a [`Connection`] turns a
//! request and the client's [`access::Rights`] into a decision of the [`Store`] and a
//! reply. None of that does I/O or reads a clock, and all of it is generic over the
//! descriptor. [`Server`] is the thin loop around it that owns sockets, timers and
//! signals.

pub mod accept_queue;
pub mod access;
pub mod audit;
mod backlog;
mod bugs;
pub mod children;
pub mod claim;
pub mod clock;
mod closing;
pub mod confinement;
mod connection;
mod courier;
pub mod credentials;
pub mod datagram;
mod deadlines;
mod delivery;
pub mod embedded;
mod exchange;
mod expiry_timer;
pub mod fdstore;
pub mod follower;
mod hold;
pub mod inheritance;
mod keeper;
pub mod launch;
pub mod limits;
pub mod listen;
mod lookout;
pub mod memory;
pub mod nothing;
pub mod notify;
mod outbox;
mod own_table;
pub mod panics;
mod peer;
pub mod privileges;
mod reading;
mod replication;
mod room;
mod rota;
mod same_file;
mod server;
mod shares;
pub mod signals;
#[cfg(test)]
mod simulator;
mod store;
mod tally;
mod there;
mod thread;
mod unread;

pub use closing::{begin as begin_closing, unclosed, ClientFd};
pub use connection::{Answered, Connection, Question, Standing, Step};
pub use delivery::Delivery;
pub use outbox::Outbox;
pub use reading::{is_transient, retried};
pub use replication::{Carrier, Mirror, Mirrors, Releases, Replica, ReplicaError, Ticket, Told};
pub use room::Room;
pub use server::{Ended, Options, Reload, Reloaded, Server};
pub use shares::{Allowance, Amounts, Claimant, Ledger, Quotas, Resource, Short, Usage};
pub use store::{Change, Outcome, Record, Staged, Store};
pub use tally::Operation;
