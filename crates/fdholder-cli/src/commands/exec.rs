//! `exec`: become a program that has held descriptors open, and knows of them.

mod source;

use self::source::Source;
use crate::endpoint::{set_nonblocking, Mode};
use crate::failure::{exit, Failure};
use crate::options::{milliseconds_option, number, path_operand, timeout_option, EXIT_CODES_EXEC};
use crate::passing::activation;
use crate::passing::becoming::become_program;
use crate::passing::front_door::{self, FrontDoor};
use crate::passing::kept::{check_given, Kept};
use crate::passing::{
    assign, is_fd_name, is_for_others, leave, variables, EnvStyle, Passed, Pids, FIRST,
};
use crate::program::{Invocation, Program};
use crate::users::read_owner;
use clap::builder::{EnumValueParser, OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use fdholder::environ::Variable;
use fdholder::Identifier;
use fdholder_daemon::privileges::raise_open_files;
use rustix::process::{getrlimit, setrlimit, Resource};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

pub const PROGRAM: Program = Program { subcommand: "exec", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    let text = |id: &'static str, name: &'static str| Arg::new(id).long(id).value_name(name);
    let many = |arg: Arg| arg.action(ArgAction::Append);
    command
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
             Examples:\n  \
             fdholder exec --fd web /run/holder -- gunicorn app\n  \
             fdholder exec --fd web --env-style nginx /run/holder -- nginx\n  \
             fdholder exec --fd web=10 /run/holder -- my-server --listen-fd 10\n  \
             fdholder exec --fd web /run/holder -- su www -c 'fdholder exec --inherited …'\n  \
             fdholder exec --notify db /run/holder -- made-for-systemd\n\n\
             {EXIT_CODES_EXEC}"
        ))
        .arg(
            many(text("fd", "ID[=N|=NAME]"))
                .value_parser(OsStringValueParser::new().try_map(|text| wanted(&text)))
                .help("Pass on what is held under ID; as number N, or under another NAME"),
        )
        .arg(
            many(text("fd-prefix", "PREFIX")).value_parser(clap::value_parser!(OsString)).help(
                "Pass on all whose identifiers begin so, in their order (web/2 before web/10)",
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
                .help("Program to become, and its arguments"),
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

/// What `--fd` says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    id: Identifier,
    name: Option<String>,
    number: Option<u32>,
}

/// `ID`, `ID=N` or `ID=NAME`. The last `=` counts, and one at the end ends an identifier that
/// has one.
fn wanted(text: &OsStr) -> Result<Wanted, String> {
    let bytes = text.as_bytes();
    let cut = bytes.iter().rposition(|&byte| byte == b'=');
    let (id, suffix) = cut.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
    let id = Identifier::new(id).map_err(|bad| bad.to_string())?;
    let suffix = std::str::from_utf8(suffix).map_err(|_| "that is no name".to_owned())?;
    if suffix.is_empty() {
        return Ok(Wanted { id, name: None, number: None });
    }
    if suffix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Wanted { id, name: None, number: Some(number(suffix)?) });
    }
    if !is_fd_name(suffix) {
        return Err(format!("'{suffix}' is no name: printable ASCII without colons"));
    }
    Ok(Wanted { id, name: Some(suffix.to_owned()), number: None })
}

/// One thing to pass on, as the command line says it.
enum Choice {
    One(Wanted),
    Prefix(OsString),
}

/// What was asked for, in the order it was.
fn choices(invocation: &Invocation) -> Vec<Choice> {
    let matches = &invocation.matches;
    let places = |id: &str| matches.indices_of(id).into_iter().flatten();
    let ones = matches.get_many::<Wanted>("fd").into_iter().flatten().cloned().map(Choice::One);
    let prefixes = matches.get_many::<OsString>("fd-prefix").into_iter().flatten().cloned();
    let mut choices: Vec<_> = places("fd")
        .zip(ones)
        .chain(places("fd-prefix").zip(prefixes.map(Choice::Prefix)))
        .collect();
    choices.sort_by_key(|(place, _)| *place);
    choices.into_iter().map(|(_, choice)| choice).collect()
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    let asked: Vec<u32> = many(invocation, "keep");
    // Before anything else is opened here.
    if !(flag("inherited") || flag("keep-all")) {
        check_given(activation::count())?;
    }
    let inherited = if flag("inherited") { activation::passed_on()? } else { Vec::new() };
    // They move, in the order in which they are told.
    let given = FIRST..FIRST + inherited.len() as u32; // As many as can be open.
    if let Some(number) = asked.iter().find(|number| given.contains(number)) {
        let problem = format!("{number} is one of those that LISTEN_FDS tells of: it is passed on");
        return Err(Failure::new(exit::USAGE, problem));
    }
    let kept = Kept::find(&asked, flag("keep-all"), &many(invocation, "prog"), given)?;
    let mut passed = Vec::new();
    for (name, fd) in inherited {
        let id = Identifier::new(name.as_bytes()).or_else(|_| Identifier::new("unknown"));
        let id = id.map_err(|bad| Failure::new(exit::SYSTEM, bad))?;
        passed.push(Passed { fd, id, name, number: None });
    }
    // On their way descriptors have two numbers each. The program gets the limit it would have
    // had.
    let limit = getrlimit(Resource::Nofile);
    raise_open_files();
    let choices = choices(invocation);
    let notify: Option<OsString> = invocation.optional("notify");
    let mut door = None;
    if !choices.is_empty() || notify.is_some() {
        if !invocation.matches.contains_id("path") {
            return Err(Failure::new(exit::USAGE, "no PATH: where does the holder listen?"));
        }
        let mut source = Source::of(invocation, notify.is_some())?;
        if notify.is_some() {
            // Before anything else, as no other holder will do.
            source.connected()?;
        }
        let mut chosen = source.get(choices)?;
        set_blocking(invocation, &chosen)?;
        for warning in source.parts_of_groups(&chosen) {
            warn(invocation, warning);
        }
        passed.append(&mut chosen);
        if let Some(service) = notify {
            let wanted = front_door::Wanted {
                path: invocation.optional("notify-socket"),
                mode: invocation.optional("notify-mode"),
                owner: invocation.optional("notify-owner"),
            };
            let holder = invocation.required::<PathBuf>("path")?;
            let (client, deadline) = source.connected()?;
            let opened = FrontDoor::open(client, &service, &wanted, &holder, deadline)?;
            if let Some(owner) = wanted.owner {
                let refused = opened.refused(client, owner, deadline);
                if let Some(id) = refused {
                    warn(
                        invocation,
                        format_args!(
                        "the holder's rules do not let the owner of the socket, {owner}, store \
                         under {id}: what PROG sends as that user will be refused"
                    ),
                    );
                }
            }
            let mut stored = opened.stored(client, deadline)?;
            // What was asked for by its identifier is not passed on twice.
            stored.retain(|one| passed.iter().all(|other| other.id != one.id));
            passed.append(&mut stored);
            door = Some(opened);
        }
    } else if passed.is_empty() {
        let problem =
            "nothing to pass on: say --fd ID, --fd-prefix PREFIX, --notify NAME or --inherited";
        return Err(Failure::new(exit::USAGE, problem));
    }
    let style = invocation.required("env-style")?;
    let numbers = assign(&passed, kept.taken(), style)?;
    let kept = kept.settle(&numbers)?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let own = (!flag("no-pid")).then(std::process::id);
    let pids = Pids { own, parent: parent.unsigned_abs() };
    let mut told = others_variables();
    told.extend(variables(&passed, &numbers, style, pids)?);
    told.extend(door.into_iter().flat_map(FrontDoor::variables));
    told.extend(kept.variables);
    leave(passed, &numbers, kept.numbers.as_deref())?;
    setrlimit(Resource::Nofile, limit).map_err(|errno| Failure::system("set a limit", errno))?;
    Err(become_program(invocation, told))
}

/// Sets or clears `O_NONBLOCK`, if that is asked for.
fn set_blocking(invocation: &Invocation, passed: &[Passed<OwnedFd>]) -> Result<(), Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    if !flag("nonblock") && !flag("blocking") {
        return Ok(());
    }
    for Passed { fd, id, .. } in passed {
        set_nonblocking(fd.as_fd(), flag("nonblock"))
            .map_err(|errno| Failure::system(format!("set O_NONBLOCK of {id}"), errno))?;
    }
    Ok(())
}

fn warn(invocation: &Invocation, problem: impl std::fmt::Display) {
    // Who cannot be told need not know.
    let _ = writeln!(std::io::stderr(), "{}: warning: {problem}", invocation.called);
}

/// What the environment says of descriptors that were for somebody else, and is not said anew:
/// unset first.
fn others_variables() -> Vec<Variable> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| is_for_others(name)).map(|name| (name, None)).collect()
}

/// All values of an option or operand.
fn many<T: Clone + Send + Sync + 'static>(invocation: &Invocation, id: &str) -> Vec<T> {
    invocation.matches.get_many(id).into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read() {
        let read = |text: &str| wanted(OsStr::new(text));
        let id = |text: &str| Identifier::new(text).unwrap();
        let plain = |text: &str| Wanted { id: id(text), name: None, number: None };
        assert_eq!(read("web"), Ok(plain("web")));
        assert_eq!(read("web=7"), Ok(Wanted { number: Some(7), ..plain("web") }));
        let named = Wanted { name: Some("http".into()), ..plain("web") };
        assert_eq!(read("web=http"), Ok(named));
        assert_eq!(read("a=b="), Ok(plain("a=b")));
        assert_eq!(read("a=b=5"), Ok(Wanted { number: Some(5), ..plain("a=b") }));
        for text in ["", "=5", "web=a:b", "web=4294967296"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
