//! Which descriptors to pass on: `--fd` and `--fd-prefix`.

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
}

/// What was asked for, in the order it was.
pub fn choices(invocation: &Invocation) -> Vec<Choice> {
    let matches = &invocation.matches;
    let places = |id: &str| matches.indices_of(id).into_iter().flatten();
    let ones = matches.get_many::<Wanted>("fd").into_iter().flatten().cloned().map(Choice::One);
    let prefixes = matches.get_many::<OsString>("fd-prefix").into_iter().flatten().cloned();
    let mut choices: Vec<_> = places("fd")
        .zip(ones)
        .chain(places("fd-prefix").zip(prefixes.map(Choice::Prefix)))
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
