//! `restart`: have a service that `run` keeps running start its next generation.

use crate::failure::{exit, Failure};
use crate::options::{path_operand, timeout_option, Milliseconds, EXIT_CODES};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use crate::show::terminal::harmless;
use crate::supervisor::control::{find, Question, Request, SOON};
use crate::supervisor::report::RestartReport;
use clap::{Arg, ArgAction, Command};
use fdholder::{strerror, Errno};
use serde_json::json;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

pub const PROGRAM: Program =
    Program { subcommand: "restart", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    command
        .about(
            "Start the next generation of a service, and stop the current one when that is ready",
        )
        .after_help(format!(
            "For a service that 'fdholder run --name NAME ... PATH' keeps running. Waits until the \
             next generation is ready, or has failed; then the current one serves on, and the \
             reason is printed with the last lines that the program wrote to stderr. Requires \
             permission to retrieve NAME/.run.\n\n\
             Example:\n  \
             fdholder restart /run/holder web\n\n\
             {EXIT_CODES} 1 also: the next generation failed."
        ))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON"))
        .arg(timeout_option().help(
            "Give up waiting after so many milliseconds; the restart goes on [default: wait until \
             it is done]",
        ))
        .arg(path_operand())
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .value_parser(clap::value_parser!(OsString))
                .help("The name of the service"),
        )
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let name: OsString = invocation.required("name")?;
    let shown = name.display();
    let Some(held) = find(invocation, &name)? else {
        let problem = format!(
            "no service {shown} has registered with this holder: 'fdholder run --name {shown} ... \
             PATH' does ('fdholder status' shows which have)"
        );
        return Err(Failure::new(exit::DENIED, problem));
    };
    let timeout = invocation.optional("timeout").and_then(|Milliseconds(timeout)| timeout);
    let answer = Question::ask(&held, Request::Restart)
        .and_then(|question| question.answer(SOON, timeout))
        .map_err(|errno| unanswered(&name, errno))?;
    let report: RestartReport = serde_json::from_str(&answer).map_err(|_| {
        Failure::new(exit::DENIED, format_args!("unable to read what {shown} says"))
    })?;
    if invocation.matches.get_flag("json") {
        let RestartReport { result, text, lines, .. } = &report;
        let name = name.to_string_lossy();
        let value = json!({ "name": name, "result": result, "text": text, "stderr": lines });
        print(&format!("{value}\n"))?;
    } else if report.is_done() {
        print(&format!("{shown}: {}\n", harmless(report.text.clone())))?;
    }
    if report.is_done() {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::new(exit::DENIED, format_args!("{shown}: {}", report.text));
    let code = failure.report(&invocation.called);
    for line in &report.lines {
        // Where stderr is closed the exit code still says it.
        let _ = writeln!(std::io::stderr(), "  {}", harmless(line.clone()));
    }
    Ok(code)
}

fn unanswered(name: &OsString, errno: Errno) -> Failure {
    let name = name.display();
    let problem = match errno {
        Errno::PIPE => format!("the 'fdholder run' of {name} has ended"),
        Errno::TIMEDOUT => {
            format!("no answer from the 'fdholder run' of {name} in time: is it stopped?")
        }
        errno => format!("unable to ask the 'fdholder run' of {name}: {}", strerror(errno)),
    };
    Failure::new(exit::DENIED, problem)
}
