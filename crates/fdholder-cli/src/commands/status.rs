//! `status`: how a holder is.

mod runs;

use crate::connect::deadline;
use crate::failure::Failure;
use crate::look::runs::{runs as ask_runs, Run};
use crate::look::status::{look, Known};
use crate::options::{path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::duration::brief;
use crate::show::output::print;
use crate::show::table::{Cell, Table};
use crate::show::terminal::{Screen, Style};
use crate::users::UserNames;
use clap::{Arg, ArgAction, Command};
use fdholder::{Listening, Service, Standby, Status};
use fdholder_daemon::accept_queue::AcceptQueue;
use serde_json::{json, Value};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const PROGRAM: Program =
    Program { subcommand: "status", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    command
        .about("Show how a holder is: process, room, standby, what was asked, what services say")
        .after_help(format!(
            "For users that may list or take a dump. Counts begin when the process does. Of s6's daemon only process, \
             user, and how much it holds can be seen.\n\n{EXIT_CODES}"
        ))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON"))
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let path: PathBuf = invocation.required("path")?;
    let known = look(&path, deadline(invocation))?;
    let running = ask_runs(&path, deadline(invocation));
    let text = if invocation.matches.get_flag("json") {
        format!("{}\n", as_json(&known, &running))
    } else {
        let screen = Screen::stdout();
        let mut text = match &known {
            Known::All(status) => text(status, &path, screen),
            Known::LittleOf { pid, uid, held } => {
                little(&path, *pid, *uid, held.as_ref().ok().copied())
            }
        };
        if !running.is_empty() {
            text.push('\n');
            text.push_str(&runs::text(&running, screen));
        }
        text
    };
    print(&text)?;
    match known {
        Known::LittleOf { held: Err(failure), .. } => Err(failure),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Since the process began to serve.
fn uptime(status: &Status) -> Duration {
    let started = UNIX_EPOCH + Duration::from_secs(status.started);
    SystemTime::now().duration_since(started).unwrap_or_default()
}

/// A line for each thing, as wide as the widest name.
fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<12} {value}");
}

fn text(status: &Status, path: &Path, screen: Screen) -> String {
    let mut text = String::new();
    line(&mut text, "holder", format_args!("{}, fdholder {}", path.display(), status.version));
    let (user, up) = (UserNames::read().of(status.uid), brief(uptime(status)));
    line(&mut text, "process", format_args!("pid {}, user {user}, up {up}", status.pid));
    line(&mut text, "held", format_args!("{} of {}", status.held, status.capacity));
    let Status { connections, connections_max, .. } = status;
    line(&mut text, "connections", format_args!("{connections} of {connections_max}"));
    if status.waiting > 0 {
        line(&mut text, "waiting", format_args!("{} for ids that are not held", status.waiting));
    }
    match status.standby {
        Standby::None => line(&mut text, "standby", "none"),
        Standby::Starting => line(&mut text, "standby", "is getting its copy"),
        Standby::Ready(pid) => {
            line(&mut text, "standby", format_args!("pid {pid} has everything"));
        }
    }
    line(&mut text, "systemd", if status.fdstore { "keeps a copy" } else { "keeps nothing" });
    text.push('\n');
    text.push_str(&counts(status).to_text(screen));
    if !status.services.is_empty() {
        text.push('\n');
        text.push_str(&services(&status.services).to_text(screen));
    }
    if !status.listeners.is_empty() {
        text.push('\n');
        text.push_str(&listeners(&status.listeners).to_text(screen));
    }
    text
}

/// What was asked, how often.
fn counts(status: &Status) -> Table {
    let mut table = Table::new(["ASKED", "DONE", "REFUSED"]);
    for (name, done) in &status.counts {
        let Some(name) = name.strip_suffix(".ok") else { continue };
        let refused = status.counts.get(&format!("{name}.refused")).copied().unwrap_or(0);
        let style = if refused > 0 { Style::Soon } else { Style::Plain };
        if *done > 0 || refused > 0 {
            let refused = Cell::styled(refused.to_string(), style);
            table.row([name.replace('_', " ").into(), done.to_string().into(), refused]);
        }
    }
    let expired = status.counts.get("expired").copied().unwrap_or(0);
    table.row([Cell::from("(expired)"), expired.to_string().into(), Cell::default()]);
    table
}

fn services(services: &[Service]) -> Table {
    let mut table = Table::new(["SERVICE", "READY", "PID", "STATUS"]);
    for Service { name, ready, pid, status } in services {
        let ready = if *ready { Cell::styled("yes", Style::Good) } else { "not yet".into() };
        let pid = if *pid == 0 { "?".to_owned() } else { pid.to_string() };
        table.row([name.as_str().into(), ready, pid.into(), status.as_str().into()]);
    }
    table
}

/// Held listeners at which somebody waits. Of the others it is only said how many there are.
fn listeners(listeners: &[Listening]) -> Table {
    let mut table = Table::new(["LISTENER", "QUEUE", "NOBODY ACCEPTS"]);
    let (quiet, waited_at): (Vec<_>, Vec<_>) = listeners.iter().partition(|it| it.queue == 0);
    for Listening { id, queue, queue_max, waiting } in waited_at {
        let style = if *waiting > 0 { Style::Soon } else { Style::Plain };
        let since = format!("for {}", brief(Duration::from_secs(*waiting)));
        let since = if *waiting > 0 { since } else { String::new() };
        let queue = AcceptQueue { len: *queue, max: *queue_max }.to_string();
        table.row([id.as_str().into(), queue.into(), Cell::styled(since, style)]);
    }
    let quiet = format!("({} at which nobody waits)", quiet.len());
    table.row([Cell::from(quiet), Cell::default(), Cell::default()]);
    table
}

fn little(path: &Path, pid: Option<i32>, uid: u32, held: Option<usize>) -> String {
    let mut text = String::new();
    line(&mut text, "holder", format_args!("{}, s6's or alike", path.display()));
    let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    line(&mut text, "process", format_args!("pid {pid}, user {}", UserNames::read().of(uid)));
    let held = held.map_or_else(|| "? (you may not list)".to_owned(), |held| held.to_string());
    line(&mut text, "held", held);
    text.push_str("\nIts protocol does not tell more.\n");
    text
}

fn as_json(known: &Known, running: &[Run]) -> Value {
    let running = runs::as_json(running);
    let status = match known {
        Known::All(status) => status,
        Known::LittleOf { pid, uid, held } => {
            let held = held.as_ref().ok();
            return json!({
                "is_fdholder": false, "pid": pid, "uid": uid, "held": held, "runs": running,
            });
        }
    };
    let (standby, standby_pid) = match status.standby {
        Standby::None => ("none", None),
        Standby::Starting => ("starting", None),
        Standby::Ready(pid) => ("ready", Some(pid)),
    };
    let service = |Service { name, ready, pid, status }: &Service| {
        let pid = (*pid != 0).then_some(*pid);
        json!({ "name": name, "ready": ready, "pid": pid, "status": status })
    };
    let listener = |Listening { id, queue, queue_max, waiting }: &Listening| json!({ "id": id, "queue": queue, "queue_max": queue_max, "waiting_seconds": waiting });
    json!({
        "is_fdholder": true,
        "version": status.version,
        "pid": status.pid,
        "uid": status.uid,
        "started_at": status.started,
        "held": status.held,
        "capacity": status.capacity,
        "connections": status.connections,
        "connections_max": status.connections_max,
        "waiting": status.waiting,
        "standby": standby,
        "standby_pid": standby_pid,
        "fdstore": status.fdstore,
        "counts": status.counts,
        "services": status.services.iter().map(service).collect::<Vec<_>>(),
        "runs": running,
        "listeners": status.listeners.iter().map(listener).collect::<Vec<_>>(),
    })
}
