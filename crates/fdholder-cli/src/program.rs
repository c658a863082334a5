//! Programs: their names, how their arguments are read, what runs them.
//!
//! Each program has one definition. Under its s6 name it is parsed as getopt would: short
//! options only, up to the first operand. As a subcommand it has long options and help
//! too, and options may follow operands.

use crate::failure::{exit, Failure};
use crate::show::output::write;
use crate::show::terminal::harmless;
use clap::error::{ContextKind, ErrorKind};
use clap::{ArgMatches, Command};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// One program.
pub struct Program {
    /// As a subcommand of `fdholder`; empty for one that is none.
    pub subcommand: &'static str,
    /// Under s6's name; empty for one that s6 does not have.
    pub s6_name: &'static str,
    /// What s6's program prints as its usage, after the name.
    pub s6_usage: &'static str,
    /// Adds options and operands.
    pub define: fn(Command) -> Command,
    /// Does it.
    pub run: fn(&Invocation) -> Result<ExitCode, Failure>,
}

/// A program as it was called.
pub struct Invocation {
    /// What it says its name is in messages: `s6-fdholder-list`, or `fdholder list`.
    pub called: String,
    /// Called by its s6 name, it behaves as s6's does where the two differ.
    pub as_s6: bool,
    /// Which.
    pub program: &'static Program,
    /// Its options and operands.
    pub matches: ArgMatches,
}

/// What is said instead of running a program.
pub enum Answer {
    /// Help, or the version.
    Text(String),
    /// Wrong usage: the line to print.
    Usage(String),
}

impl Answer {
    /// Says it, and gives the exit code.
    pub fn give(self) -> ExitCode {
        match self {
            Self::Text(text) => match write(&text) {
                // A reader that leaves early has read enough.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Failure::system("write to stdout", error).report("fdholder")
                }
                _ => ExitCode::SUCCESS,
            },
            Self::Usage(line) => {
                let _ = writeln!(io::stderr(), "{}", harmless(line));
                ExitCode::from(exit::USAGE)
            }
        }
    }
}

impl Invocation {
    /// Finds the program that is called in a table of them, and reads its arguments.
    pub fn of(programs: &'static [Program], mut arguments: Vec<OsString>) -> Result<Self, Answer> {
        let name = arguments
            .first()
            .and_then(|path| Path::new(path).file_name())
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if let Some(program) = programs.iter().find(|p| !p.s6_name.is_empty() && p.s6_name == name)
        {
            return Self::of_s6(program, arguments);
        }
        // A known subcommand is the only one defined: starting is most of what it takes.
        let wanted = arguments.get(1).and_then(|argument| argument.to_str()).unwrap_or_default();
        let known = programs.iter().find(|p| !p.subcommand.is_empty() && p.subcommand == wanted);
        let Some(program) = known else {
            let called = "fdholder";
            return Err(match everything(programs).try_get_matches_from(arguments) {
                Ok(_) => usage_answer(called, "a subcommand is required"),
                Err(error) => answer_to(called, &error),
            });
        };
        let mut called = format!("fdholder {wanted}");
        let mut command = definition(program).bin_name(&called);
        let nested = arguments.get(2).and_then(|argument| argument.to_str());
        if let Some(nested) = nested.filter(|nested| command.find_subcommand(nested).is_some()) {
            called = format!("{called} {nested}");
        }
        arguments.remove(0);
        // Which only becomes known by what stands before it.
        let wants_dashes = command.get_positionals().any(clap::Arg::is_last_set);
        let matches = command.try_get_matches_from_mut(&arguments);
        let matches = matches.map_err(|error| {
            let found = match error.get(ContextKind::InvalidArg).map(ToString::to_string) {
                Some(found) if error.kind() == ErrorKind::UnknownArgument => found,
                _ => return answer_to(&called, &error),
            };
            let problem = format!("unexpected argument '{found}' found");
            match value_behind(&command, &arguments, &found) {
                Some(joined) => {
                    let joined = joined.display();
                    usage_answer(&called, &format!("{problem}: if it is a value, say {joined}"))
                }
                // What is alike is also said, but not that it may be an operand.
                None if wants_dashes && error.get(ContextKind::SuggestedArg).is_none() => {
                    usage_answer(&called, &format!("{problem}: put -- before PROG"))
                }
                None => answer_to(&called, &error),
            }
        })?;
        Ok(Self { called, as_s6: false, program, matches })
    }

    fn of_s6(program: &'static Program, arguments: Vec<OsString>) -> Result<Self, Answer> {
        let command = definition(program).disable_help_flag(true);
        let called = program.s6_name;
        let matches = as_getopt_reads(&command, arguments)
            .and_then(|arguments| command.try_get_matches_from(arguments).ok())
            .ok_or_else(|| {
                Answer::Usage(format!("{called}: usage: {called} {}", program.s6_usage))
            })?;
        Ok(Self { called: called.to_owned(), as_s6: true, program, matches })
    }

    /// An argument of the command line. The definition of the program says that it is
    /// required, or has a default.
    pub fn required<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Result<T, Failure> {
        let missing = || Failure::new(exit::USAGE, format_args!("missing argument {id}"));
        self.matches.get_one::<T>(id).cloned().ok_or_else(missing)
    }

    /// An optional argument of the command line.
    pub fn optional<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Option<T> {
        self.matches.get_one::<T>(id).cloned()
    }
}

/// Columns of help, on terminals that have as many.
const HELP_WIDTH: usize = 80;

/// The command of one program.
fn definition(program: &Program) -> Command {
    let name = if program.subcommand.is_empty() { program.s6_name } else { program.subcommand };
    // As with getopt, the last of an option's several values counts.
    (program.define)(Command::new(name).args_override_self(true).max_term_width(HELP_WIDTH))
}

/// The command with everything, for help and for what is wrong.
pub fn everything(programs: &'static [Program]) -> Command {
    Command::new("fdholder")
        .max_term_width(HELP_WIDTH)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Hold open file descriptors for programs that come and go")
        .after_help(
            "Example:\n  fdholder serve /run/holder &\n  \
             fdholder list /run/holder\n  fdholder demo\n\n\
             'fdholder SUBCOMMAND --help' explains each. Called by the name of one of s6's\n\
             fdholder programs (a symlink), it behaves as that program does.",
        )
        .subcommand_required(true)
        .subcommands(programs.iter().filter(|p| !p.subcommand.is_empty()).map(definition))
}

/// Puts `--` before the first operand, where getopt stops looking for options. `None` for
/// a long option, as getopt has none.
fn as_getopt_reads(command: &Command, arguments: Vec<OsString>) -> Option<Vec<OsString>> {
    let takes_value = |letter: char| {
        command
            .get_arguments()
            .any(|arg| arg.get_short() == Some(letter) && arg.get_action().takes_values())
    };
    let mut ordered = Vec::with_capacity(arguments.len() + 1);
    let mut arguments = arguments.into_iter();
    ordered.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_encoded_bytes();
        if bytes.first() != Some(&b'-') || bytes == b"-" || bytes == b"--" {
            if bytes != b"--" {
                ordered.push("--".into());
            }
            ordered.push(argument);
            break;
        }
        if bytes.starts_with(b"--") {
            return None;
        }
        // The first letter of a cluster that takes a value takes the rest of it, or the
        // next argument.
        let value_at = bytes[1..].iter().position(|&letter| takes_value(letter as char));
        let value_follows = value_at == Some(bytes.len() - 2);
        ordered.push(argument);
        if value_follows {
            ordered.extend(arguments.next());
        }
    }
    ordered.extend(arguments);
    // s6's programs pass over what follows their operands.
    let operands = || command.get_positionals();
    if !operands().any(clap::Arg::is_trailing_var_arg_set) {
        let dashes = ordered.iter().position(|argument| argument == "--");
        ordered.truncate(dashes.map_or(ordered.len(), |at| at + 1 + operands().count()));
    }
    Some(ordered)
}

/// An option and what stands behind it, as one argument: as another, what begins with `-` is none of
/// its values.
fn value_behind(command: &Command, arguments: &[OsString], found: &str) -> Option<OsString> {
    let takes_value = |option: &OsStr| {
        let is_named = |arg: &clap::Arg| {
            let long = arg.get_long().map(|name| format!("--{name}"));
            long.is_some_and(|name| option == name.as_str()) && arg.get_action().takes_values()
        };
        command.get_arguments().any(is_named)
    };
    let pair = arguments.windows(2).find(|pair| {
        takes_value(&pair[0]) && pair[1].as_encoded_bytes().starts_with(found.as_bytes())
    })?;
    Some([&pair[0], OsStr::new("="), &pair[1]].into_iter().collect())
}

fn answer_to(called: &str, error: &clap::Error) -> Answer {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Answer::Text(error.to_string()),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            usage_answer(called, "a subcommand is required")
        }
        kind => {
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.trim().is_empty());
            let mut problem = lines.map(str::trim).collect::<Vec<_>>().join(" ");
            if let Some(rest) = problem.strip_prefix("error: ") {
                problem = rest.to_owned();
            }
            if kind == ErrorKind::MissingRequiredArgument {
                let (_, missing) = problem.split_once(": ").unwrap_or(("", &problem));
                problem = format!("missing {missing}");
            }
            if let Some(tip) = text.lines().find_map(|line| line.trim().strip_prefix("tip: ")) {
                problem = format!("{problem}: {tip}");
            }
            usage_answer(called, &problem)
        }
    }
}

fn usage_answer(called: &str, problem: &str) -> Answer {
    Answer::Usage(format!("{called}: usage: {problem} (see '{called} --help')"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands;

    fn s6(line: &str) -> Result<Invocation, Answer> {
        Invocation::of(commands::ALL, line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn every_definition_is_sound() {
        everything(commands::ALL).debug_assert();
        for program in commands::ALL {
            definition(program).debug_assert();
        }
    }

    #[test]
    fn options_are_read_as_getopt_does() {
        let operands = |line| {
            let invocation = s6(line).ok().expect(line);
            let of = |id: &str| invocation.matches.get_raw(id).into_iter().flatten();
            let operands: Vec<_> = ["path", "id", "prog"]
                .iter()
                .filter(|id| invocation.matches.try_contains_id(id).is_ok())
                .flat_map(|id| of(id))
                .map(|value| value.to_str().unwrap().to_owned())
                .collect();
            operands.join(" ")
        };
        assert_eq!(operands("s6-fdholder-retrieve -Dt5 p id prog -D -- x"), "p id prog -D -- x");
        assert_eq!(operands("/usr/bin/s6-fdholder-retrieve -D -t 5 -- p id prog"), "p id prog");
        assert_eq!(operands("s6-fdholder-list -t 1 -t 2 p"), "p");
        assert_eq!(operands("s6-fdholder-list -"), "-");
        assert_eq!(operands("s6-fdholder-getdump p prog -t x"), "p prog -t x");
        assert_eq!(operands("s6-fdholder-list -t 5 p more -z --"), "p");
        assert_eq!(operands("s6-fdholder-store -d 0 -- p id more"), "p id");
        assert_eq!(operands("s6-fdholder-list -- -- p"), "--");
    }

    #[test]
    fn what_getopt_refuses_is_wrong_usage() {
        for line in [
            "s6-fdholder-list",
            "s6-fdholder-list -z p",
            "s6-fdholder-list --timeout 5 p",
            "s6-fdholder-list -t x p",
            "s6-fdholder-list -t +5 p",
            "s6-fdholder-list -t -5 p",
            "s6-fdholder-list -t 4294967296 p",
            "s6-fdholder-store p",
            "s6-fdholder-list --help",
            "s6-fdholder-retrieve p id",
            "fdholder list",
            "fdholder list -t",
            "fdholder nope",
            "fdholder",
        ] {
            assert!(matches!(s6(line), Err(Answer::Usage(_))), "{line}");
        }
    }

    #[test]
    fn usage_errors_are_one_line() {
        for line in ["fdholder store", "fdholder list --tiemout 5 p", "fdholder", "fdholder lst"] {
            let Err(Answer::Usage(text)) = s6(line) else { panic!("{line}") };
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.starts_with("fdholder"), "{text}");
        }
    }
}
