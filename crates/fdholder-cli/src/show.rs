//! Showing things to people: on a terminal, or into a file.

pub mod duration;
pub mod lines;
pub mod output;
pub mod progress;
pub mod table;
pub mod terminal;
