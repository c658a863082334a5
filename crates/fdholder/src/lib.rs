//! Talk to a holder of file descriptors: fdholder's own daemon, or s6's `s6-fdholderd`.
//!
//! A *holder* keeps open file descriptors (listening sockets above all) under an
//! [`Identifier`], perhaps until an expiry date (a [`Limit`]), while the programs that
//! use them come and go. This crate is the protocol and the client side of it; it is
//! light on purpose (one dependency, rustix) and never starts a thread.
//!
//! Store a descriptor:
//!
//! ```
//! use fdholder::{Client, Deadline, Identifier, Limit};
//! use std::{net::TcpListener, time::Duration};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("holder");
//! # let _holder = fdholder_daemon::embedded::Holder::start(&path)?;
//! let deadline = Deadline::after(Duration::from_secs(2));
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut holder = Client::connect(&path, deadline)?; // such as "/run/holder"
//! holder.store(&Identifier::new("web")?, Limit::never(), &listener, deadline)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Retrieve it, in another process, after the first one has gone:
//!
//! ```
//! use fdholder::{Client, Deadline, Identifier};
//! use std::net::{TcpListener, TcpStream};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("holder");
//! # let _holder = fdholder_daemon::embedded::Holder::start(&path)?;
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let (web, never) = (Identifier::new("web")?, fdholder::Limit::never());
//! # Client::connect(&path, Deadline::NEVER)?.store(&web, never, listener, Deadline::NEVER)?;
//! let mut holder = Client::connect(&path, Deadline::NEVER)?;
//! let listener = TcpListener::from(holder.retrieve(&Identifier::new("web")?, Deadline::NEVER)?);
//! # let visitor = TcpStream::connect(listener.local_addr()?)?;
//! let (connection, peer) = listener.accept()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Carry everything one holder has into another:
//!
//! ```
//! use fdholder::{Client, Deadline, Transfer};
//! use std::time::Duration;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("holder");
//! # let _holder = fdholder_daemon::embedded::Holder::start(&path)?;
//! # let new_path = folder.path().join("holder.new");
//! # let _new_holder = fdholder_daemon::embedded::Holder::start(&new_path)?;
//! # let id = fdholder::Identifier::new("stdin")?;
//! # let never = fdholder::Limit::never();
//! # Client::connect(&path, Deadline::NEVER)?.store(&id, never, std::io::stdin(), Deadline::NEVER)?;
//! let five_secs = Some(Duration::from_secs(5));
//! let report = Transfer::new(&path, &new_path).timeouts(five_secs, five_secs).run()?;
//! assert_eq!(report.descriptors, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is laid out
//!
//! Data flows one way: bytes and descriptors ([`transport`]) make frames ([`frame`]),
//! frames make requests ([`request`]) or replies ([`reply`]). Everything but
//! [`transport`], [`Client`] and [`Transfer`] does no I/O, reads no clock and is generic
//! over the descriptor type, so that tests, the simulator and the fuzzers use numbers.
//! The bytes are described in `docs/protocol.md`.

mod client;
mod deadline;
mod dump;
pub mod environ;
mod error;
pub mod extension;
pub mod frame;
mod id;
pub mod limits;
pub mod link;
mod negotiated;
mod origin;
mod payload;
pub mod reply;
pub mod request;
mod runs;
mod status;
mod time;
mod transfer;
pub mod transport;

pub use client::Client;
pub use deadline::Deadline;
pub use dump::{Incoming, Outgoing};
pub use error::{strerror, Cause, Error, Malformed};
pub use extension::{Inspected, OnConflict, Snapshot, Taken};
pub use id::{BadIdentifier, Identifier};
pub use origin::{Origin, Tenure};
pub use request::{Entry, Request};
pub use rustix::io::Errno;
pub use status::{Listening, Service, Standby, Status};
pub use time::{Limit, Timestamp, TimestampError, LEAP_SECONDS};
pub use transfer::{
    Left, Plan, Planned, Progress, Report, Route, Side, Transfer, TransferError, Verification,
};
