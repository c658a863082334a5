//! What is measured.

pub mod client_memory;
pub mod getdump;
pub mod idle;
pub mod kernel;
pub mod many;
pub mod memory;
pub mod retrieve;
pub mod standby;
pub mod store;
pub mod takeover;
pub mod transfer;
