//! `transferdump`: carry everything one holder has into another.

use crate::failure::Failure;
use crate::options::{milliseconds, path_operand, Milliseconds};
use crate::program::{Invocation, Program};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Command};
use fdholder::Transfer;
use fdholder_daemon::privileges::raise_open_files;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "transferdump",
    s6_name: "s6-fdholder-transferdump",
    s6_usage: "[ -t timeoutfrom:timeoutto ] pathfrom pathto",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Carry everything one holder has into another")
        .after_help(
            "The source keeps what it has; under an id that both have, its descriptor \
             replaces the destination's.\n\n\
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
                .help("Give up after waiting so many milliseconds for either (0 or none: never)"),
        )
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
    let (from, to): (PathBuf, PathBuf) = (invocation.required("from")?, invocation.required("to")?);
    let timeouts = invocation.optional("timeouts");
    let (Milliseconds(from_timeout), Milliseconds(to_timeout)) =
        timeouts.unwrap_or((Milliseconds(None), Milliseconds(None)));
    // The descriptors that a user has in flight are counted against the sender's soft limit.
    raise_open_files();
    Transfer::new(from, to).timeouts(from_timeout, to_timeout).run()?;
    Ok(ExitCode::SUCCESS)
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
