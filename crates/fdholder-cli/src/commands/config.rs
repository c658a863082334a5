//! `config check`: whether a configuration file is well.

use crate::config::{Config, Socket};
use crate::failure::{exit, Failure};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use crate::show::table::Table;
use crate::show::terminal::Screen;
use clap::{Arg, ArgAction, Command};
use fdholder_daemon::access::check::{check, Says};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub const PROGRAM: Program =
    Program { subcommand: "config", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    command.about("Look at configuration files").subcommand_required(true).subcommand(
        Command::new("check")
            .about("Say whether a configuration file of serve --config is well")
            .after_help(
                "Nothing is opened. Exit codes: 0 all is well, 1 something is wrong, 111 it \
                 cannot be read.",
            )
            .arg(
                Arg::new("file")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("The file"),
            )
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON")),
    )
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let Some(("check", matches)) = invocation.matches.subcommand() else {
        return Err(Failure::new(exit::USAGE, "a subcommand is required: check"));
    };
    let Some(file) = matches.get_one::<PathBuf>("file") else {
        return Err(Failure::new(exit::USAGE, "which file?"));
    };
    let config = Config::read(file).map_err(|failure| match failure.code() {
        // It is what was asked about, not how it was asked.
        exit::USAGE => Failure::new(exit::DENIED, failure),
        _ => failure,
    })?;
    if let Some(problem) = problem_with_rules(&config) {
        return Err(Failure::new(exit::DENIED, format_args!("{}: {problem}", file.display())));
    }
    let text = if matches.get_flag("json") { as_json(&config) } else { text(&config, file) };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What `rules check` would find.
fn problem_with_rules(config: &Config) -> Option<String> {
    let wishes = &config.wishes;
    let path = wishes.rules_dir.as_ref().or(wishes.rules_file.as_ref())?;
    let rules = match check(path) {
        Ok((rules, _remarks)) => rules,
        Err(refusal) => return Some(refusal.to_string()),
    };
    let broken = rules.into_iter().find_map(|rule| match rule.says {
        Says::Broken(problem) => Some(format!("rule {}: {problem}", rule.key)),
        _ => None,
    });
    broken
}

fn text(config: &Config, file: &Path) -> String {
    let mut text = format!("{}: all is well\n", file.display());
    if !config.sockets.is_empty() {
        let mut table = Table::new(["ID", "ADDRESS"]);
        for Socket { id, endpoint, .. } in &config.sockets {
            table.row([id.to_string().into(), endpoint.to_string().into()]);
        }
        text.push('\n');
        text.push_str(&table.to_text(Screen::stdout()));
    }
    text
}

fn as_json(config: &Config) -> String {
    let socket = |Socket { id, endpoint, .. }: &Socket| json!({ "id": id.to_string(), "address": endpoint.to_string() });
    let sockets: Vec<_> = config.sockets.iter().map(socket).collect();
    format!("{}\n", json!({ "path": config.wishes.path, "sockets": sockets }))
}
