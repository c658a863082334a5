//! Becoming another program.

use crate::failure::{exit, Failure};
use crate::program::Invocation;
use crate::startup;
use fdholder::environ::Variable;
use fdholder::Errno;
use nix::unistd::execvpe;
use rustix::fs::{accessat, stat, Access, AtFlags, FileType, CWD};
use std::collections::HashMap;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// PROG and its arguments, as the command line has them.
pub fn words(invocation: &Invocation) -> Vec<OsString> {
    invocation.matches.get_many("prog").into_iter().flatten().cloned().collect()
}

/// Becomes this program, with these variables set or unset. Everything else that execve(2) keeps is as
/// this process found it, which `std::process::Command` would not leave so.
pub fn become_program(
    words: &[OsString],
    variables: impl IntoIterator<Item = Variable>,
) -> Failure {
    let words =
        words.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<_>, _>>();
    let (Ok(words), Ok(environment)) = (words, merged(variables)) else {
        return Failure::new(exit::USAGE, "an argument or a variable has a NUL inside");
    };
    let Some(name) = words.first() else {
        return Failure::new(exit::USAGE, "no program to become");
    };
    startup::restore_signals();
    // The program is found in the PATH of this process, which no variable here is.
    let Err(errno) = execvpe(name, &words, &environment);
    startup::ignore_sigpipe();
    failed(OsStr::from_bytes(name.to_bytes()), Errno::from_raw_os_error(errno as i32))
}

/// Fails as [`become_program`] would where the program is not there, or is none that this user may
/// execute: for a command that changes something before it becomes that.
pub fn check_program(words: &[OsString]) -> Result<(), Failure> {
    let name = words.first().map(OsString::as_os_str).unwrap_or_default();
    find(name).map_err(|errno| failed(name, errno))
}

/// Looks where execvp(3) does.
fn find(name: &OsStr) -> Result<(), Errno> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return check_executable(Path::new(name));
    }
    let folders = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut problem = Errno::NOENT;
    for folder in std::env::split_paths(&folders) {
        match check_executable(&folder.join(name)) {
            Ok(()) => return Ok(()),
            Err(Errno::ACCESS) => problem = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(problem)
}

fn check_executable(file: &Path) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(Errno::ACCESS) => Err(Errno::ACCESS),
        // exec knows, on a kernel that does not.
        _ => Ok(()),
    }
}

fn failed(name: &OsStr, errno: Errno) -> Failure {
    let (code, advice) = match errno {
        Errno::NOENT => (exit::NOT_FOUND, ""),
        Errno::TOOBIG => (exit::CANNOT_EXEC, " (too many variables: raise ulimit -s)"),
        _ => (exit::CANNOT_EXEC, ""),
    };
    let (name, text) = (name.display(), fdholder::strerror(errno));
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
