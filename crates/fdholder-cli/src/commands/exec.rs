//! `exec`: become a program that has held descriptors open, and knows of them.

use crate::failure::Failure;
use crate::options::EXIT_CODES_EXEC;
use crate::program::{Invocation, Program};
use crate::start;
use crate::start::options::BIND_HELP;
use clap::Command;
use std::process::ExitCode;

pub const PROGRAM: Program = Program { subcommand: "exec", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    let command = command
        .about("Become a program that has held descriptors open, as if systemd had passed them")
        .override_usage("fdholder exec [OPTIONS] [PATH] -- PROG...")
        .after_help(format!(
            "PROG gets the descriptors in the order of the options, from 3 on, and the \
             variables LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID; or others, by --env-style. \
             Besides those it has standard input, output and error, and the descriptors that its \
             arguments or environment name: /dev/fd/63, --ready-fd=9, NODE_CHANNEL_FD, the \
             jobserver in MAKEFLAGS and the like. If a held descriptor takes the number that a \
             variable names, that one moves, and the variable is changed. Everything else is closed, \
             unless --keep or --keep-all keeps it.\n\n\
             In LISTEN_FDNAMES a descriptor has its identifier as its name; a byte that cannot \
             stand there is written as % and two digits: tcp:80 is tcp%3A80.\n\n\
             {BIND_HELP}\n\n\
             In PROG's arguments {{ID}}, or {{NAME}} with --fd ID=NAME, stands for the number of \
             that descriptor. Other braces stay as they are, and so does ${{ID}}, a shell's \
             variable; {{{{ID}}}} stands for {{ID}}.\n\n\
             Descriptor 0, 1 or 2 (--fd web=0) replaces standard input, output or error; no \
             variable lists it. The styles server-starter, puma and php-fpm name descriptors by \
             address: PROG's configuration must have the same one. php-fpm deletes the file of a \
             Unix socket when it exits: use TCP.\n\n\
             Examples:\n  \
             fdholder exec --bind web=tcp:0.0.0.0:80 /run/holder -- gunicorn app\n  \
             fdholder exec --fd web /run/holder -- gunicorn app\n  \
             fdholder exec --fd web --env-style nginx /run/holder -- nginx\n  \
             fdholder exec --fd web /run/holder -- my-server --listen-fd {{web}}\n  \
             fdholder exec --fd web=0 /run/holder -- inetd-style-server\n  \
             fdholder exec --fd web /run/holder -- su www -c 'fdholder exec --inherited …'\n  \
             fdholder exec --notify db /run/holder -- made-for-systemd\n\n\
             {EXIT_CODES_EXEC}"
        ));
    start::options::define(command)
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    start::relay::act().unwrap_or_else(|| Err(start::start(invocation, None)))
}
