//! `run`: keep a service running, and start its next version beside the last one.

use crate::failure::Failure;
use crate::options::{milliseconds, number, Milliseconds, EXIT_CODES_EXEC};
use crate::program::{Invocation, Program};
use crate::show::lines;
use crate::start;
use crate::start::options::BIND_HELP;
use crate::supervisor::child;
use crate::supervisor::machine::{Exit, Policy};
use crate::supervisor::signals::read_signal;
use crate::supervisor::{Settings, Supervisor};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub const PROGRAM: Program = Program { subcommand: "run", s6_name: "", s6_usage: "", define, run };

/// Generations that may drain while another one starts, by default.
const DRAINING_MAX: &str = "16";

fn define(command: Command) -> Command {
    let command = command
        .about("Run a service, and restart it without a client noticing")
        .override_usage("fdholder run [OPTIONS] [PATH] -- PROG...")
        .after_help(format!(
            "PROG gets its descriptors as by 'fdholder exec'. SIGHUP, or 'fdholder restart PATH \
             NAME', starts the next generation of PROG with the same descriptors while the current \
             one goes on serving. When the next one is ready, the current one is told to stop. If \
             the next one fails before it is ready, the current one serves on.\n\n\
             Without PATH, run keeps the sockets itself: they are lost when run ends. With PATH \
             they stay in the holder that listens there, and the \
             next run goes on without refusing a client.\n\n\
             The program is ready\n  \
             - with --notify or --ready-notify: when it sends READY=1 to NOTIFY_SOCKET\n  \
             - with --ready-fd N: when it writes a newline to descriptor N\n  \
             - with --ready-command CMD: when that exits with 0\n  \
             - otherwise: after it has lived for --ready-after\n\n\
             SIGTERM, SIGINT and SIGQUIT stop PROG and run. SIGUSR1, SIGUSR2, SIGWINCH, SIGTTIN \
             and SIGTTOU are passed on to PROG once it runs. When PROG ends by itself, run ends \
             with its exit code, unless --respawn. Processes that a generation leaves in its \
             process group are stopped as well, unless PROG was ready and exits with 0 by itself.\n\n\
             After PROG was killed by signal N run exits with 128 + N, also where that is the stop \
             signal: 143 for a PROG that does not catch SIGTERM. systemd takes that for a failure \
             unless the unit says SuccessExitStatus=143.\n\n\
             {BIND_HELP}\n\n\
             READY=1, RELOADING=1 and the like go to the NOTIFY_SOCKET that run was started with \
             (Type=notify, Type=notify-reload).\n\n\
             Examples:\n  \
             fdholder run --bind web=tcp:127.0.0.1:8080 -- gunicorn app\n  \
             fdholder run --fd web --stop-signal QUIT --env-style nginx /run/holder -- nginx\n  \
             fdholder run --fd web --notify web /run/holder -- made-for-systemd\n\n\
             {EXIT_CODES_EXEC}"
        ))
        .args(supervision())
        .args(readiness());
    start::options::define(command)
}

fn span(id: &'static str) -> Arg {
    Arg::new(id)
        .long(id)
        .value_name("MS")
        .value_parser(OsStringValueParser::new().try_map(|text| milliseconds(&text)))
}

fn supervision() -> [Arg; 8] {
    let flag = |id: &'static str| Arg::new(id).long(id).action(ArgAction::SetTrue);
    let count = |id: &'static str| {
        Arg::new(id)
            .long(id)
            .value_name("N")
            .value_parser(OsStringValueParser::new().try_map(|text| number(&text)))
    };
    [
        Arg::new("name")
            .long("name")
            .value_name("NAME")
            .value_parser(clap::value_parser!(OsString))
            .help("The name of the service [default: the file name of PROG]"),
        Arg::new("stop-signal")
            .long("stop-signal")
            .value_name("SIGNAL")
            .value_parser(|text: &str| read_signal(text))
            .default_value("TERM")
            .help("What makes PROG finish its clients and end: QUIT for nginx, USR1 for HAProxy"),
        span("stop-timeout").default_value("30000").help(
            "Kill a generation that has not ended so long after it was told to stop; 0: never",
        ),
        count("drain-max")
            .value_parser(OsStringValueParser::new().try_map(|text| match number(&text)? {
                0 => Err("0 would refuse every restart".to_owned()),
                most => Ok(most),
            }))
            .default_value(DRAINING_MAX)
            .help("Refuse a restart while so many generations are still stopping"),
        flag("stop-first").help(
            "Start the next generation only when the current one has ended, for a PROG that cannot \
             run twice: clients wait meanwhile",
        ),
        flag("respawn").help(
            "Start PROG again when it ends by itself after it was ready, with a pause that grows \
             from 0.1 s to 30 s",
        ),
        span("idle-stop")
            .requires("on-demand")
            .help("Stop PROG when no client has come for so long; the next one starts it again"),
        count("ready-fd")
            .help("PROG is ready when it writes a newline to descriptor N, which it is given"),
    ]
}

fn readiness() -> [Arg; 5] {
    [
        Arg::new("ready-notify")
            .long("ready-notify")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(["ready-fd", "ready-command"])
            .help(
                "PROG is ready when it sends READY=1 to NOTIFY_SOCKET, and not before: as --notify, \
                 for a PROG that stores nothing",
            ),
        Arg::new("ready-command")
            .long("ready-command")
            .value_name("CMD")
            .value_parser(clap::value_parser!(OsString))
            .help("PROG is ready when the shell command CMD, run every 100 ms, exits with 0"),
        span("ready-after")
            .default_value("1000")
            .help("PROG is ready when it has lived so long, if it does not tell"),
        span("start-timeout")
            .default_value("60000")
            .help("Stop a generation that is not ready after so long; 0: never"),
        Arg::new("start-nice")
            .long("start-nice")
            .value_name("N")
            .value_parser(clap::value_parser!(u32).range(0..=19))
            .help(
                "Make the next generation nicer by N until it is ready, so that it takes no \
                 processor from the one that serves [default: 10 where PROG tells when it is ready \
                 and run may take niceness back (CAP_SYS_NICE), otherwise 0]",
            ),
    ]
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    if let Some(outcome) = child::act(invocation) {
        return outcome;
    }
    let exit = Supervisor::new(invocation, settings(invocation)?).and_then(Supervisor::run);
    lines::finish();
    let exit = exit?;
    Ok(ExitCode::from(match exit {
        Exit::Code(code) | Exit::NotStarted { code, .. } => code,
        Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX), // There are 64.
    }))
}

fn settings(invocation: &Invocation) -> Result<Settings, Failure> {
    let span = |id: &str| {
        let span: Option<Milliseconds> = invocation.optional(id);
        span.and_then(|Milliseconds(span)| span)
    };
    let flag = |id: &str| invocation.matches.get_flag(id);
    let ready_fd = invocation.optional("ready-fd");
    let has_ready_command = invocation.matches.contains_id("ready-command");
    let notify: Option<OsString> = invocation.optional("notify");
    let tells = flag("ready-notify") || ready_fd.is_some() || has_ready_command || notify.is_some();
    let program: OsString = invocation.required("prog")?;
    let file_name = || Path::new(&program).file_name().map(OsString::from);
    let name = invocation.optional("name").or_else(file_name).unwrap_or_default();
    let stop_signal: Signal = invocation.required("stop-signal")?;
    Ok(Settings {
        name,
        policy: Policy {
            ready_after: (!tells).then(|| span("ready-after").unwrap_or(Duration::ZERO)),
            start_timeout: span("start-timeout"),
            stop_timeout: span("stop-timeout"),
            draining_max: invocation.required::<u32>("drain-max")? as usize,
            respawn: flag("respawn"),
            overlaps: !flag("stop-first"),
            on_demand: flag("on-demand"),
            idle_stop: span("idle-stop"),
        },
        stop_signal,
        ready_fd,
        has_ready_command,
        notify,
        notify_fd: start::notify_fd(invocation),
        start_nice: invocation.optional("start-nice"),
    })
}
