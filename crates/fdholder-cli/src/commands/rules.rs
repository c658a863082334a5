//! `rules check`: who may do what, and where a rule is wrong.

use crate::failure::{exit, Failure};
use crate::program::{Invocation, Program};
use crate::show::output::print;
use crate::show::table::{Cell, Table};
use crate::show::terminal::Screen;
use clap::{Arg, ArgAction, ArgMatches, Command};
use fdholder_daemon::access::check::{check, Rule, Says};
use fdholder_daemon::access::{Refusal, Rights, Rules, User};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub const PROGRAM: Program =
    Program { subcommand: "rules", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    let id = |name: &'static str, help: &'static str| {
        let parser = clap::value_parser!(u32);
        Arg::new(name).long(name).value_name("N").value_parser(parser).help(help)
    };
    command.about("Look at access rules").subcommand_required(true).subcommand(
        Command::new("check")
            .about("Show who may do what, and where a rule is wrong")
            .after_help("Exit codes: 0 all is well, 1 a rule is wrong or that user is refused.")
            .arg(
                Arg::new("rules")
                    .value_name("DIR|FILE")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("The rules: a folder (-i) or a cdb (-x)"),
            )
            .arg(id("uid", "Show what this user may do").requires("gid"))
            .arg(id("gid", "The user's group").requires("uid"))
            .arg(id("daemon-uid", "User of the daemon, which 'self' means [default: you]"))
            .arg(id("daemon-gid", "Group of the daemon [default: yours]"))
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("As JSON")),
    )
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let Some(("check", matches)) = invocation.matches.subcommand() else {
        return Err(Failure::new(exit::USAGE, "a subcommand is required: check"));
    };
    let Some(path) = matches.get_one::<PathBuf>("rules") else {
        return Err(Failure::new(exit::USAGE, "which rules?"));
    };
    let number = |name: &str| matches.get_one::<u32>(name).copied();
    match (number("uid"), number("gid")) {
        (Some(uid), Some(gid)) => {
            let this = User::this_process();
            let daemon = User {
                uid: number("daemon-uid").unwrap_or(this.uid),
                gid: number("daemon-gid").unwrap_or(this.gid),
            };
            explain(matches, path, User { uid, gid }, daemon)
        }
        _ => check_all(matches, path),
    }
}

fn unreadable(refusal: &Refusal) -> Failure {
    Failure::new(exit::SYSTEM, format_args!("unable to read the rules: {refusal}"))
}

/// What one user may do, and which rule says so.
fn explain(
    matches: &ArgMatches,
    path: &Path,
    user: User,
    daemon: User,
) -> Result<ExitCode, Failure> {
    let rules = if path.is_dir() {
        Rules::in_dir(path)
    } else {
        Rules::in_cdb(path).map_err(|refusal| unreadable(&refusal))?
    };
    let decision = rules.explain(user, daemon);
    let text = match (&decision, matches.get_flag("json")) {
        (Ok((key, rights)), true) => {
            let mut value = rights_as_json(rights);
            value["rule"] = json!(key);
            format!("{value}\n")
        }
        (Err(refusal), true) => {
            format!("{}\n", json!({ "connect": "refused", "reason": refusal.to_string() }))
        }
        (Ok((key, rights)), false) => {
            let yes = |granted| if granted { "yes" } else { "no" };
            let limits = rights.quotas.set().map(|(name, limit)| format!("  {name} {limit}\n"));
            let limits: String = limits.collect();
            format!(
                "{user}: may connect, by rule {key}\n  \
                 store, delete  {}\n  retrieve       {}\n  \
                 list           {}\n  getdump        {}\n  setdump        {}\n{limits}",
                rights.store,
                rights.retrieve,
                yes(rights.list),
                yes(rights.getdump),
                yes(rights.setdump),
            )
        }
        (Err(refusal), false) => format!("{user}: may not connect: {refusal}\n"),
    };
    print(&text)?;
    Ok(ExitCode::from(if decision.is_ok() { 0 } else { exit::DENIED }))
}

fn check_all(matches: &ArgMatches, path: &Path) -> Result<ExitCode, Failure> {
    let (rules, remarks) = check(path).map_err(|refusal| unreadable(&refusal))?;
    let broken = rules.iter().any(|rule| matches!(rule.says, Says::Broken(_)));
    let wrong = broken || !remarks.is_empty() || rules.iter().any(|rule| !rule.remarks.is_empty());
    if matches.get_flag("json") {
        let rules: Vec<Value> = rules.iter().map(rule_as_json).collect();
        print(&format!("{}\n", json!({ "rules": rules, "remarks": remarks })))?;
    } else {
        print(&table(&rules, &remarks))?;
    }
    Ok(ExitCode::from(if wrong { exit::DENIED } else { 0 }))
}

fn table(rules: &[Rule], remarks: &[String]) -> String {
    const HEAD: [&str; 7] = ["RULE", "CONNECT", "LIST", "GETDUMP", "SETDUMP", "STORE", "RETRIEVE"];
    let row = |rule: &Rule| -> [String; 7] {
        let mark = |granted: bool| if granted { "yes" } else { "-" }.to_owned();
        let simple = |word: &str| {
            let mut row = std::array::from_fn(|_| "-".to_owned());
            word.clone_into(&mut row[1]);
            row
        };
        let mut row = match &rule.says {
            Says::Allow(rights) => [
                String::new(),
                "allow".to_owned(),
                mark(rights.list),
                mark(rights.getdump),
                mark(rights.setdump),
                rights.store.to_string(),
                rights.retrieve.to_string(),
            ],
            Says::Deny => simple("deny"),
            Says::Nothing => simple("-"),
            Says::Broken(_) => simple("BROKEN"),
        };
        row[0].clone_from(&rule.key);
        row
    };
    let mut table = Table::new(HEAD);
    for rule in rules {
        table.row(row(rule).map(Cell::from));
    }
    // An expression is nothing by half.
    let mut text = table.to_text(Screen { size: None, ..Screen::stdout() });
    let mut notes = Vec::new();
    for rule in rules {
        if let Says::Allow(rights) = &rule.says {
            let limits = rights.quotas.set();
            notes.extend(limits.map(|(name, limit)| format!("{}: {name} {limit}", rule.key)));
        }
        if let Says::Broken(problem) = &rule.says {
            notes.push(format!("{}: broken, nobody it is about gets in: {problem}", rule.key));
        }
        notes.extend(rule.remarks.iter().map(|remark| format!("{}: {remark}", rule.key)));
    }
    notes.extend_from_slice(remarks);
    if !notes.is_empty() {
        text.push('\n');
        for line in notes {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn rights_as_json(rights: &Rights) -> Value {
    json!({
        "connect": "allow",
        "store": rights.store.to_string(),
        "retrieve": rights.retrieve.to_string(),
        "list": rights.list,
        "getdump": rights.getdump,
        "setdump": rights.setdump,
        "limits": rights.quotas.set().collect::<BTreeMap<_, _>>(),
    })
}

fn rule_as_json(rule: &Rule) -> Value {
    let mut value = match &rule.says {
        Says::Allow(rights) => rights_as_json(rights),
        Says::Deny => json!({ "connect": "deny" }),
        Says::Nothing => json!({ "connect": null }),
        Says::Broken(problem) => json!({ "connect": "broken", "problem": problem }),
    };
    value["rule"] = json!(rule.key);
    value["remarks"] = json!(rule.remarks);
    value
}
