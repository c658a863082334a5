//! Measures fdholder against s6 2.13: whole processes, side by side in one run.
//!
//! The two take turns (ours, s6, ours, s6 …), so that whatever else the machine does
//! meets both alike, and what counts is the ratio of their medians.

mod asker;
mod bench;
mod chart;
mod cpu;
mod crowd;
mod daemon;
mod document;
mod family;
mod figures;
mod load;
mod machine;
mod memory;
mod options;
mod pauses;
mod programs;
mod raw;
mod report;
mod sections;
mod tally;
mod transfers;
mod visits;

use bench::Bench;
use options::Options;
use programs::Programs;
use report::{Picture, Report};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One thing that is measured.
struct Section {
    name: &'static str,
    run: fn(&Bench) -> Result<Report>,
}

const SECTIONS: &[Section] = &[
    Section { name: "transfer", run: sections::transfer::run },
    Section { name: "client-memory", run: sections::client_memory::run },
    Section { name: "getdump", run: sections::getdump::run },
    Section { name: "retrieve", run: sections::retrieve::run },
    Section { name: "kernel", run: sections::kernel::run },
    Section { name: "idle", run: sections::idle::run },
    Section { name: "many", run: sections::many::run },
    Section { name: "store", run: sections::store::run },
    Section { name: "memory", run: sections::memory::run },
    Section { name: "takeover", run: sections::takeover::run },
    Section { name: "standby", run: sections::standby::run },
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == raw::FLAG => raw::play(rest),
        Some((first, rest)) if first == load::COMMAND => load::run(rest),
        _ => measure(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fdholder-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: Vec<OsString>) -> Result<()> {
    let names: Vec<_> = SECTIONS.iter().map(|section| section.name).collect();
    let Some(options) = Options::parse(arguments, &names)? else {
        println!("{}", options::usage(&names));
        return Ok(());
    };
    // Better to learn now than after minutes that the file cannot take the tables.
    if let Some(file) = &options.write {
        document::check(file)?;
    }
    let programs = Programs::find(options.binary.as_deref())?;
    let head = machine::describe(&programs, options.quick)?;
    let bench = Bench::new(programs, options.quick)?;
    let mut tables = vec![head];
    let mut pictures = Vec::new();
    for section in SECTIONS.iter().filter(|section| options.wants(section.name)) {
        let report = (section.run)(&bench)?;
        tables.push(report.text);
        pictures.extend(report.picture);
    }
    publish(&tables.join("\n"), &pictures, options.write.as_deref())
}

fn publish(tables: &str, pictures: &[Picture], file: Option<&Path>) -> Result<()> {
    // Printed in any case: what took minutes must not be lost to a full disk.
    print!("{tables}");
    file.map_or(Ok(()), |file| document::write(file, tables, pictures))
}
