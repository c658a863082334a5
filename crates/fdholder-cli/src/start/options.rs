//! The options that `exec` and `run` share.

use super::choice::wanted;
use crate::binding::BindSpec;
use crate::endpoint::Mode;
use crate::options::{milliseconds_option, number, path_operand, timeout_option};
use crate::passing::EnvStyle;
use crate::users::read_owner;
use clap::builder::{EnumValueParser, OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::path::PathBuf;

/// How `--bind` is written, for the help of `exec` and `run`.
pub const BIND_HELP: &str =
    "--bind takes the addresses and the long options of bind, separated by \
    commas; an option is written without dashes. It opens the socket and stores it, unless it is \
    held already. A held socket that differs is changed, or refused unless 'replace' is given, \
    as bind does. It is passed on once; --fd ID=N still chooses its number. Of \
    several addresses the first is ID/1, the second ID/2, and so on. A comma in a path is written \
    \\, and a backslash \\\\. ID may contain =: it ends where an address follows.\n  \
    --bind web=tcp:0.0.0.0:80,backlog=1024,nonblock\n  \
    --bind web=tcp:0.0.0.0:80,tcp:[::]:80,ipv6only\n  \
    --bind db=unix:/run/db.sock,mode=0660,owner=db:web";

/// Adds the options that say what PROG gets, and the operands PATH and PROG.
pub fn define(command: Command) -> Command {
    let text = |id: &'static str, name: &'static str| Arg::new(id).long(id).value_name(name);
    let many = |arg: Arg| arg.action(ArgAction::Append);
    command
        .arg(
            many(text("fd", "ID[=N|=NAME]"))
                .value_parser(OsStringValueParser::new().try_map(|text| wanted(&text)))
                .help(
                    "Pass on what is held under ID; as number N (0: standard input), or under \
                     another NAME",
                ),
        )
        .arg(
            many(text("fd-prefix", "PREFIX")).value_parser(clap::value_parser!(OsString)).help(
                "Pass on all whose identifiers begin so, in their order (web/2 before web/10)",
            ),
        )
        .arg(
            many(text("bind", "ID=ADDRESS[,OPTION]..."))
                .value_parser(OsStringValueParser::new().try_map(|text| BindSpec::read(&text)))
                .help(
                    "Open ADDRESS and store it under ID, unless it is held already, as bind does; \
                     then pass it on: see below",
                ),
        )
        .arg(text("notify", "NAME").value_parser(clap::value_parser!(OsString)).help(
            "Set NOTIFY_SOCKET: what PROG stores by FDSTORE=1 is held under NAME/…, and passed \
             on at its next start, behind everything else",
        ))
        .arg(
            text("notify-socket", "FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .requires("notify")
                .help("Where that socket is to be [default: PATH.NAME.notify]"),
        )
        .arg(
            text("notify-mode", "MODE")
                .value_parser(|text: &str| Mode::read(text))
                .requires("notify")
                .help("Mode of that socket: who may send [default: 0600 when it is made]"),
        )
        .arg(
            text("notify-owner", "USER[:GROUP]")
                .value_parser(|text: &str| read_owner(text))
                .requires("notify")
                .help("Owner of that socket, for a PROG that becomes another user"),
        )
        .arg(
            text("notify-fd", "N")
                .value_parser(OsStringValueParser::new().try_map(|text| number(&text)))
                .help(
                    "Write a newline to descriptor N when PROG has sent READY=1: the notification \
                     fd of s6, dinit or OpenRC",
                ),
        )
        .arg(Arg::new("on-demand").long("on-demand").action(ArgAction::SetTrue).help(
            "Start PROG when the first connection or datagram waits at a socket that it would get",
        ))
        .arg(Arg::new("inherited").long("inherited").action(ArgAction::SetTrue).help(
            "First pass on what LISTEN_FDS gave to this process, whatever LISTEN_PID says: \
                 behind a program that forks, or to add to what systemd gives",
        ))
        .arg(
            text("env-style", "STYLE")
                .value_parser(EnumValueParser::<EnvStyle>::new())
                .default_value("systemd")
                .help("How PROG is told"),
        )
        .args(blocking_options())
        .arg(
            Arg::new("no-pid")
                .long("no-pid")
                .action(ArgAction::SetTrue)
                .help("Leave LISTEN_PID unset, for a PROG that starts another one"),
        )
        .args(kept_options())
        .arg(
            Arg::new("missing-ok")
                .long("missing-ok")
                .action(ArgAction::SetTrue)
                .help("Leave out what is not held, rather than fail"),
        )
        .arg(
            milliseconds_option("wait", 'w', "wait")
                .help("Wait so long for the holder and what it does not hold yet, besides --timeout [default: 0, not at all]"),
        )
        .arg(timeout_option())
        .arg(path_operand().required(false))
        .arg(
            Arg::new("prog")
                .value_name("PROG")
                .num_args(1..)
                .required(true)
                .last(true)
                .value_parser(clap::value_parser!(OsString))
                .help("Program to become, and its arguments, in which {ID} stands for a number"),
        )
}

fn blocking_options() -> [Arg; 2] {
    let flag = |id: &'static str| Arg::new(id).long(id).action(ArgAction::SetTrue);
    [
        flag("nonblock").help(
            "Set O_NONBLOCK on what comes from the holder, as PROG expects it: the program before \
             may have cleared it",
        ),
        flag("blocking")
            .conflicts_with("nonblock")
            .help("Clear O_NONBLOCK, for a PROG that waits in accept(2)"),
    ]
}

/// What else stays open.
fn kept_options() -> [Arg; 2] {
    [
        Arg::new("keep")
            .long("keep")
            .value_name("N")
            .action(ArgAction::Append)
            .value_parser(OsStringValueParser::new().try_map(|text| number(&text)))
            .help("Pass on descriptor N as it is: the notification fd of s6, say"),
        Arg::new("keep-all")
            .long("keep-all")
            .action(ArgAction::SetTrue)
            .help("Pass on all that this process has open, as it is"),
    ]
}
