//! `getdump`: become a program that has everything that is held, described by its
//! environment.

use crate::connect::connect_negotiated;
use crate::failure::Failure;
use crate::options::{path_operand, prog_operands, timeout_option, EXIT_CODES_EXEC};
use crate::passing::becoming::{become_program, words};
use crate::program::{Invocation, Program};
use clap::Command;
use fdholder::{environ, Entry};
use fdholder_daemon::privileges::raise_open_files;
use rustix::io::{fcntl_setfd, FdFlags};
use rustix::process::{getrlimit, setrlimit, Resource};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "getdump",
    s6_name: "s6-fdholder-getdump",
    s6_usage: "[ -t timeout ] path prog...",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Become a program that has open everything that is held")
        .after_help(format!(
            "Environment of PROG:\n  S6_FD#         how many descriptors\n  \
             S6_FD_i        number of descriptor i, from 0\n  \
             S6_FDID_i      its identifier\n  \
             S6_FDLIMIT_i   when it expires (TAI64N), unset for never\n\n\
             {EXIT_CODES_EXEC}",
        ))
        .arg(timeout_option())
        .arg(path_operand())
        .arg(prog_operands())
}

/// Descriptors that the program needs beside those of the dump.
const SPARE_FDS: u64 = 16;

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect_negotiated(invocation)?;
    // Before the first descriptor comes, which may be together with their number.
    let limit = getrlimit(Resource::Nofile);
    raise_open_files();
    let dump = holder.getdump(deadline);
    let dump = dump.map_err(|error| Failure::asking_why(error, &mut holder, deadline))?;
    drop(holder);
    let needed = dump.len() as u64 + SPARE_FDS;
    if limit.current.is_some_and(|current| current >= needed) {
        // The program gets the limit it would have had.
        setrlimit(Resource::Nofile, limit)
            .map_err(|errno| Failure::system("set a limit", errno))?;
    }
    let mut numbers = Vec::with_capacity(dump.len());
    for Entry { id, limit, fd } in &dump {
        fcntl_setfd(fd, FdFlags::empty())
            .map_err(|errno| Failure::system("keep fd open", errno))?;
        let fd = fd.as_raw_fd().unsigned_abs(); // A descriptor is never negative.
        numbers.push(Entry { id: id.clone(), limit: *limit, fd });
    }
    Err(become_program(&words(invocation), environ::variables(&numbers)))
}
