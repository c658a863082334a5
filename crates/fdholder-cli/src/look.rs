//! Looking at a holder, and at what it holds: as far as it tells, and lets us see.

pub mod contents;
pub mod describe;
pub mod runs;
pub mod status;
