//! Options and operands that several programs have, and how their values are read.

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ValueHint};
use std::ffi::OsString;
use std::time::Duration;

/// The operand that says where the holder listens.
pub fn path_operand() -> Arg {
    Arg::new("path")
        .value_name("PATH")
        .required(true)
        .value_parser(clap::value_parser!(std::path::PathBuf))
        .value_hint(ValueHint::FilePath)
        .help("Where the holder listens")
}

/// The operand that names a descriptor. It is checked by whoever uses it, as s6's
/// programs call a bad one a refusal, not wrong usage.
pub fn id_operand() -> Arg {
    Arg::new("id")
        .value_name("ID")
        .required(true)
        .value_parser(clap::value_parser!(OsString))
        .help("Identifier of the descriptor, 1 to 255 bytes; put -- before one that begins with -")
}

/// The operands that make the program to become.
pub fn prog_operands() -> Arg {
    Arg::new("prog")
        .value_name("PROG")
        .num_args(1..)
        .required(true)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(clap::value_parser!(OsString))
        .help("Program to become, and its arguments")
}

/// Without `-t`: how long each answer may take. Ten times what the slowest takes on a busy machine;
/// a holder that is stopped, or whose machine is, takes longer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// `-t`: how long the whole operation may take.
pub fn timeout_option() -> Arg {
    milliseconds_option("timeout", 't', "timeout").help(format!(
        "Give up after so many milliseconds; 0: never [default: {} for each answer]",
        PATIENCE.as_millis()
    ))
}

/// An option whose value is a span in milliseconds.
pub fn milliseconds_option(id: &'static str, short: char, long: &'static str) -> Arg {
    Arg::new(id)
        .short(short)
        .long(long)
        .value_name("MS")
        .allow_hyphen_values(true)
        .value_parser(OsStringValueParser::new().try_map(|text| milliseconds(&text)))
}

/// An option whose value is an unsigned number.
pub fn number_option(id: &'static str, short: char, long: &'static str) -> Arg {
    Arg::new(id)
        .short(short)
        .long(long)
        .value_name("N")
        .allow_hyphen_values(true)
        .value_parser(OsStringValueParser::new().try_map(|text| number(&text)))
}

/// A span in milliseconds, where 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Milliseconds(pub Option<Duration>);

pub fn milliseconds(text: impl AsRef<std::ffi::OsStr>) -> Result<Milliseconds, String> {
    let span = number(text)?;
    Ok(Milliseconds((span != 0).then(|| Duration::from_millis(span.into()))))
}

/// A number as s6's programs read it: digits, and not more than an unsigned int holds.
pub fn number(text: impl AsRef<std::ffi::OsStr>) -> Result<u32, String> {
    text.as_ref()
        .to_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| "it is not a number from 0 to 4294967295".to_owned())
}

/// What the exit codes of a client program mean.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 the holder said no or broke off, \
                              100 wrong usage, 111 no holder there or a system error.";

/// The same for one that becomes another program.
pub const EXIT_CODES_EXEC: &str = "Exit codes: those of PROG; 1 the holder said no or broke off, \
                                   100 wrong usage, 111 no holder there or a system error, \
                                   126 PROG cannot be executed, 127 it was not found.";
