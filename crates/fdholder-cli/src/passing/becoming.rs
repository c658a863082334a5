//! Becoming another program.

use crate::failure::{exit, Failure};
use crate::program::Invocation;
use crate::startup;
use fdholder::environ::Variable;
use fdholder::Errno;
use nix::unistd::execvpe;
use std::collections::HashMap;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Becomes the program on the command line, with these variables set or unset. Everything else that
/// execve(2) keeps is as this process found it, which `std::process::Command` would not leave so.
pub fn become_program(
    invocation: &Invocation,
    variables: impl IntoIterator<Item = Variable>,
) -> Failure {
    let words: Vec<OsString> =
        invocation.matches.get_many("prog").into_iter().flatten().cloned().collect();
    let Some(name) = words.first().cloned() else {
        return Failure::new(exit::USAGE, "no program to become");
    };
    let name = name.display();
    let words = words.into_iter().map(|word| CString::new(word.into_vec()));
    let (Ok(words), Ok(environment)) = (words.collect::<Result<Vec<_>, _>>(), merged(variables))
    else {
        let problem = format_args!("unable to exec {name}: an argument or a variable has a NUL");
        return Failure::new(exit::CANNOT_EXEC, problem);
    };
    startup::restore_sigpipe();
    // The program is found in the PATH of this process, which no variable here is.
    let Err(errno) = execvpe(&words[0], &words, &environment);
    startup::ignore_sigpipe();
    let errno = Errno::from_raw_os_error(errno as i32);
    let (code, advice) = match errno {
        Errno::NOENT => (exit::NOT_FOUND, ""),
        Errno::TOOBIG => (exit::CANNOT_EXEC, " (too many variables: raise ulimit -s)"),
        _ => (exit::CANNOT_EXEC, ""),
    };
    let text = fdholder::strerror(errno);
    Failure::new(code, format_args!("unable to exec {name}: {text}{advice}"))
}

/// The environment of this process with these variables: what they leave alone stays in its order,
/// also twice under one name. Of several values for one name the last counts.
fn merged(variables: impl IntoIterator<Item = Variable>) -> Result<Vec<CString>, NulError> {
    let variables: Vec<_> = variables.into_iter().collect();
    let last: HashMap<&OsStr, usize> =
        variables.iter().enumerate().map(|(at, (name, _))| (OsStr::new(name), at)).collect();
    let text = |name: &OsStr, value: &OsStr| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let kept = std::env::vars_os()
        .filter(|(name, _)| !last.contains_key(name.as_os_str()))
        .map(|(name, value)| text(&name, &value));
    let set = variables.iter().enumerate().filter_map(|(at, (name, value))| {
        let name = OsStr::new(name);
        value.as_ref().filter(|_| last[name] == at).map(|value| text(name, value))
    });
    kept.chain(set).collect()
}
