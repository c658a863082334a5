//! `list`: name what is held, or show it.

mod long;

use crate::connect::{connect, deadline};
use crate::failure::Failure;
use crate::look::contents::Contents;
use crate::options::{milliseconds_option, path_operand, timeout_option, Milliseconds, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use crate::show::terminal::Screen;
use clap::{Arg, ArgAction, Command};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

pub const PROGRAM: Program = Program {
    subcommand: "list",
    s6_name: "s6-fdholder-list",
    s6_usage: "[ -t timeout ] path",
    define,
    run,
};

/// How often to look again, by default.
const INTERVAL: Duration = Duration::from_secs(1);

fn define(command: Command) -> Command {
    let flag = |id: &'static str| Arg::new(id).long(id).action(ArgAction::SetTrue);
    command
        .about(
            "Name what is held, an identifier a line, other than printable ASCII as \\n or \\0xHH",
        )
        .after_help(format!(
            "--long shows what a descriptor is to who may retrieve it, or take a dump. QUEUE \
             shows how many clients wait to be accepted, of how many at most, and for how long \
             nobody has accepted one; or how many bytes wait to be read. s6's daemon does not tell owners and ages.\n\n{EXIT_CODES}"
        ))
        .arg(
            flag("long")
                .short('l')
                .help("A table, ordered by identifier: kind, addresses, queue, owner, age, expiry"),
        )
        .arg(flag("watch").help("The table again and again, until it is interrupted"))
        .arg(
            milliseconds_option("interval", 'i', "interval")
                .help("With --watch, so often [default: 1000]"),
        )
        .arg(flag("json").help(
            "As JSON: \"id\" (null if it is not UTF-8) and \"quoted\", as without --json; with \
             --long everything; with --watch a line each time",
        ))
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let flag = |id: &str| invocation.matches.get_flag(id);
    if !flag("long") && !flag("watch") {
        return names(invocation, flag("json"));
    }
    let path: PathBuf = invocation.required("path")?;
    let look = || Contents::of(&path, deadline(invocation));
    let shown = |contents: &Contents, screen| {
        if flag("json") {
            long::json(contents)
        } else {
            long::text(contents, screen)
        }
    };
    if !flag("watch") {
        let contents = look()?;
        print(&shown(&contents, Screen::stdout()))?;
        if !contents.is_fdholder && !flag("json") {
            long::say_what_is_missing(&invocation.called);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let interval = invocation.optional("interval").and_then(|Milliseconds(span)| span);
    // Whoever cannot be reached at first may have been mistyped; later it may come again.
    let mut contents = Ok(look()?);
    loop {
        // Its size may have changed.
        let screen = Screen::stdout();
        let text = match &contents {
            Ok(contents) => shown(contents, screen),
            Err(failure) => format!("{failure}\n"),
        };
        screen.begin_again().map_err(|error| Failure::system("write to stdout", error))?;
        print(&long::fitting(&text, screen))?;
        std::thread::sleep(interval.unwrap_or(INTERVAL));
        contents = look();
    }
}

fn names(invocation: &Invocation, as_json: bool) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect(invocation)?;
    let ids = holder.list(deadline);
    let ids = ids.map_err(|error| Failure::asking_why(error, &mut holder, deadline))?;
    if as_json {
        let ids = ids.iter().map(long::names_as_json).collect();
        print(&format!("{}\n", serde_json::Value::Array(ids)))?;
    } else {
        let mut text = String::new();
        for id in &ids {
            text.push_str(&id.to_string());
            text.push('\n');
        }
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}
