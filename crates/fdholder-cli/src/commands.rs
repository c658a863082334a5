//! The programs, each a thin layer over the library.

mod bind;
mod config;
mod delete;
mod demo;
mod exec;
mod getdump;
mod list;
mod metrics;
mod pages;
mod restart;
mod retrieve;
mod rules;
mod run;
mod serve;
mod setdump;
mod status;
mod store;
mod transferdump;
mod upgrade;

pub use serve::Wishes;

use crate::program::Program;

/// All of them.
pub const ALL: &[Program] = &[
    serve::DAEMON,
    serve::SERVER,
    bind::PROGRAM,
    run::PROGRAM,
    restart::PROGRAM,
    exec::PROGRAM,
    store::PROGRAM,
    retrieve::PROGRAM,
    list::PROGRAM,
    delete::PROGRAM,
    getdump::PROGRAM,
    setdump::PROGRAM,
    transferdump::PROGRAM,
    status::PROGRAM,
    metrics::PROGRAM,
    upgrade::PROGRAM,
    config::PROGRAM,
    rules::PROGRAM,
    demo::PROGRAM,
    pages::MAN,
    pages::COMPLETIONS,
];
