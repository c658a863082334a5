//! `transferdump`: carry what one holder has into another.

mod plan;
mod summary;

use crate::failure::{exit, Failure};
use crate::options::{milliseconds, path_operand, Milliseconds, PATIENCE};
use crate::program::{Invocation, Program};
use crate::show::progress::Bar;
use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use fdholder::{Identifier, Left, OnConflict, Transfer, TransferError};
use fdholder_daemon::access::pattern::Pattern;
use fdholder_daemon::privileges::raise_open_files;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

pub const PROGRAM: Program = Program {
    subcommand: "transferdump",
    s6_name: "s6-fdholder-transferdump",
    s6_usage: "[ -t timeoutfrom:timeoutto ] pathfrom pathto",
    define,
    run,
};

fn define(command: Command) -> Command {
    let switch = |name| Arg::new(name).long(name).action(ArgAction::SetTrue);
    command
        .about("Carry what one holder has into another")
        .after_help(
            "What goes is what the source held at one instant. The source keeps it (but see \
             --move); the destination takes all of it or nothing, unless it is s6's daemon. \
             From a fdholder the descriptors go directly, from s6's daemon through this \
             process.\n\n\
             It takes the right to take a dump of the source and to give one to the destination, \
             also when nothing goes. --move takes the right to store, and so delete, each id in the \
             source; --verify takes the right to list the destination, or to take a dump of it.\n\n\
             Exit codes: 0 done, 1 the source said no or broke off, 2 the destination did, \
             100 wrong usage, 111 no holder there or a system error.",
        )
        .arg(
            Arg::new("timeouts")
                .short('t')
                .long("timeout")
                .value_name("FROM:TO")
                .allow_hyphen_values(true)
                .value_parser(OsStringValueParser::new().try_map(|text| timeouts(&text)))
                .help(format!(
                    "Give up after waiting so many milliseconds for either; 0 or none: never \
                     [default: {} for each answer]",
                    PATIENCE.as_millis()
                )),
        )
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("REGEX")
                .value_parser(
                    OsStringValueParser::new()
                        .try_map(|text| Pattern::new(text.as_bytes()).map(Arc::new)),
                )
                .help("Carry only ids in which this POSIX extended regular expression is found"),
        )
        .arg(
            Arg::new("prefix")
                .long("prefix")
                .value_name("P")
                .value_parser(clap::value_parser!(OsString))
                .help("Carry only ids that begin with P"),
        )
        .arg(
            Arg::new("on-conflict")
                .long("on-conflict")
                .value_name("WHAT")
                .value_parser(
                    PossibleValuesParser::new(["replace", "keep", "fail"]).map(|what| {
                        match what.as_str() {
                            "keep" => OnConflict::Keep,
                            "fail" => OnConflict::Fail,
                            _ => OnConflict::Replace,
                        }
                    }),
                )
                .help(
                    "When the destination holds an id already: replace its descriptor [default], keep it, \
                     or fail and carry nothing. keep and fail take the right to list there, or to \
                     take a dump",
                ),
        )
        .arg(switch("move").help("Delete from the source what the destination has confirmed"))
        .arg(switch("verify").help("Afterwards compare ids and limits in both holders"))
        .arg(switch("dry-run").help("Only say what would be carried and replaced, and whether it would be refused"))
        .arg(switch("relay").help("Carry through this process even what could go directly"))
        .arg(switch("json").help("Say what was done (or would be) as JSON on stdout"))
        .arg(path_operand().id("from").value_name("FROM").help("Where the source listens"))
        .arg(path_operand().id("to").value_name("TO").help("Where the destination listens"))
}

/// `100:200`, `100:`, `:200`, `100`, `:`.
fn timeouts(text: &OsStr) -> Result<(Milliseconds, Milliseconds), String> {
    let side = |text: &str| match text {
        "" => Ok(Milliseconds(None)),
        text => milliseconds(text),
    };
    let text = text.to_str().ok_or("it is not FROM:TO")?;
    match text.split_once(':') {
        Some((from, to)) => Ok((side(from)?, side(to)?)),
        None => Ok((milliseconds(text)?, Milliseconds(None))),
    }
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let flag = |name| invocation.matches.get_flag(name);
    let (json, verify) = (flag("json"), flag("verify"));
    // As quiet as s6's when it goes by its name.
    let is_seen = !invocation.as_s6 && std::io::stderr().is_terminal();
    let transfer = transfer(invocation)?
        .moving(flag("move"))
        .relay(flag("relay"))
        .detailed(json || is_seen)
        .recorded(verify);
    // The descriptors that a user has in flight are counted against the sender's soft limit.
    raise_open_files();
    if flag("dry-run") {
        return plan::show(&transfer.plan()?, json);
    }
    let bar = if is_seen { Bar::on_terminal() } else { None };
    let report = transfer.run_watched(&mut |progress| {
        if let Some(bar) = &bar {
            bar.show(progress);
        }
    })?;
    drop(bar);
    let all = |error: TransferError| TransferError { left: Left::All, ..error };
    let carried = report.carried.as_deref().filter(|_| verify);
    let verification = carried.map(|carried| transfer.verify(carried)).transpose().map_err(all)?;
    if json {
        summary::print_json(&report, verification.as_ref())?;
    } else if is_seen {
        summary::say(&invocation.called, &report, verification.as_ref());
    }
    match verification.filter(|verification| !verification.is_good()) {
        Some(bad) => Err(Failure::new(exit::DENIED_BY_DESTINATION, summary::complaint(&bad))),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// What the command line says of holders, timeouts and choice.
fn transfer(invocation: &Invocation) -> Result<Transfer, Failure> {
    let (from, to): (PathBuf, PathBuf) = (invocation.required("from")?, invocation.required("to")?);
    let mut transfer = Transfer::new(from, to);
    match invocation.optional("timeouts") {
        Some((Milliseconds(from), Milliseconds(to))) => transfer = transfer.timeouts(from, to),
        None if !invocation.as_s6 => transfer = transfer.patience(PATIENCE),
        None => {}
    }
    if let Some(on_conflict) = invocation.optional("on-conflict") {
        transfer = transfer.on_conflict(on_conflict);
    }
    let prefix: Option<OsString> = invocation.optional("prefix");
    let only: Option<Arc<Pattern>> = invocation.optional("only");
    if prefix.is_some() || only.is_some() {
        transfer = transfer.only(move |id: &Identifier| {
            let begins = |prefix: &OsString| id.as_bytes().starts_with(prefix.as_bytes());
            prefix.as_ref().is_none_or(begins)
                && only.as_ref().is_none_or(|only| only.is_found_in(id))
        });
    }
    Ok(transfer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_form_of_the_page_and_no_other() {
        let read = |text: &str| {
            timeouts(OsStr::new(text)).map(|(Milliseconds(from), Milliseconds(to))| (from, to))
        };
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(read("100:200"), Ok((ms(100), ms(200))));
        assert_eq!(read("100:"), Ok((ms(100), None)));
        assert_eq!(read(":200"), Ok((None, ms(200))));
        assert_eq!(read("100"), Ok((ms(100), None)));
        assert_eq!(read(":"), Ok((None, None)));
        assert_eq!(read("0:0"), Ok((None, None)));
        for bad in ["", "x", "1:x", "1:2:3", "-1", "1 ", "+1", "1.5", ":-2", "4294967296"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
