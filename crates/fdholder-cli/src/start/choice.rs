//! Which descriptors to pass on: `--fd`, `--fd-prefix` and `--bind`.

use crate::binding::BindSpec;
use crate::failure::{exit, Failure};
use crate::options::number;
use crate::passing::is_fd_name;
use crate::program::Invocation;
use fdholder::Identifier;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What `--fd` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub id: Identifier,
    pub name: Option<String>,
    pub number: Option<u32>,
}

/// `ID`, `ID=N` or `ID=NAME`. The last `=` counts, and one at the end ends an identifier that
/// has one.
pub fn wanted(text: &OsStr) -> Result<Wanted, String> {
    let bytes = text.as_bytes();
    let cut = bytes.iter().rposition(|&byte| byte == b'=');
    let (id, suffix) = cut.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
    let id = Identifier::new(id).map_err(|bad| bad.to_string())?;
    let suffix = std::str::from_utf8(suffix).map_err(|_| "that is no name".to_owned())?;
    if suffix.is_empty() {
        return Ok(Wanted { id, name: None, number: None });
    }
    if suffix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Wanted { id, name: None, number: Some(number(suffix)?) });
    }
    if !is_fd_name(suffix) {
        return Err(format!("'{suffix}' is no name: printable ASCII without colons"));
    }
    Ok(Wanted { id, name: Some(suffix.to_owned()), number: None })
}

/// One thing to pass on, as the command line says it.
pub enum Choice {
    One(Wanted),
    Prefix(OsString),
    /// Bound by `--bind`. What another choice passes on is not passed on twice.
    Bound(Identifier),
}

/// What `--bind` asks for, with the `--nonblock` or `--blocking` that is for all.
///
/// # Errors
///
/// Two of them that contradict each other, or one that contradicts the option for all.
pub fn bind_specs(invocation: &Invocation) -> Result<Vec<BindSpec>, Failure> {
    let usage = |problem| Failure::new(exit::USAGE, problem);
    let flag = |id: &str| invocation.matches.get_flag(id);
    let mut specs: Vec<BindSpec> = Vec::new();
    for spec in invocation.matches.get_many::<BindSpec>("bind").into_iter().flatten().cloned() {
        if let Some(problem) = specs.iter().find_map(|before| spec.contradicts(before)) {
            return Err(usage(problem));
        }
        let for_all = flag("nonblock") || flag("blocking");
        specs.push(if for_all {
            spec.with_nonblock(flag("nonblock")).map_err(usage)?
        } else {
            spec
        });
    }
    Ok(specs)
}

/// What was asked for, in the order it was; `specs` is what each `--bind` says.
pub fn choices(invocation: &Invocation, specs: &[BindSpec]) -> Vec<Choice> {
    let matches = &invocation.matches;
    let places = |id: &str| matches.indices_of(id).into_iter().flatten();
    let ones = matches.get_many::<Wanted>("fd").into_iter().flatten().cloned().map(Choice::One);
    let prefixes = matches.get_many::<OsString>("fd-prefix").into_iter().flatten().cloned();
    let mut choices: Vec<_> = places("fd")
        .zip(ones)
        .chain(places("fd-prefix").zip(prefixes.map(Choice::Prefix)))
        .chain(places("bind").zip(specs).flat_map(|(place, spec)| {
            spec.ids().cloned().map(move |id| (place, Choice::Bound(id)))
        }))
        .collect();
    choices.sort_by_key(|(place, _)| *place);
    choices.into_iter().map(|(_, choice)| choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read() {
        let read = |text: &str| wanted(OsStr::new(text));
        let id = |text: &str| Identifier::new(text).unwrap();
        let plain = |text: &str| Wanted { id: id(text), name: None, number: None };
        assert_eq!(read("web"), Ok(plain("web")));
        assert_eq!(read("web=7"), Ok(Wanted { number: Some(7), ..plain("web") }));
        let named = Wanted { name: Some("http".into()), ..plain("web") };
        assert_eq!(read("web=http"), Ok(named));
        assert_eq!(read("a=b="), Ok(plain("a=b")));
        assert_eq!(read("a=b=5"), Ok(Wanted { number: Some(5), ..plain("a=b") }));
        for text in ["", "=5", "web=a:b", "web=4294967296"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
