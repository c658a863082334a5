//! What is measured.

pub mod memory;
pub mod retrieve;
pub mod store;
pub mod transfer;
