//! `list`: name what is held.

use crate::connect::connect;
use crate::failure::Failure;
use crate::options::{path_operand, timeout_option, EXIT_CODES};
use crate::output::print;
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "list",
    s6_name: "s6-fdholder-list",
    s6_usage: "[ -t timeout ] path",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about(
            "Name what is held, an identifier a line, other than printable ASCII as \\n or \\0xHH",
        )
        .after_help(EXIT_CODES)
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help(
                "As JSON: \"id\" (null if it is not UTF-8) and \"quoted\", as without --json",
            ),
        )
        .arg(timeout_option())
        .arg(path_operand())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let (mut holder, deadline) = connect(invocation)?;
    let ids = holder.list(deadline)?;
    if invocation.matches.get_flag("json") {
        let ids = ids
            .iter()
            .map(|id| {
                let text = std::str::from_utf8(id.as_bytes()).ok();
                serde_json::json!({ "id": text, "quoted": id.to_string() })
            })
            .collect();
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
