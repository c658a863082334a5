//! What is measured.

pub mod client_memory;
pub mod getdump;
pub mod memory;
pub mod retrieve;
pub mod standby;
pub mod store;
pub mod takeover;
pub mod transfer;
