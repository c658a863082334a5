//! The environment that carries a dump from `getdump` to `setdump` through exec.
//!
//! `S6_FD#` is the number of descriptors; for each index `S6_FD_i` is the descriptor,
//! `S6_FDID_i` its identifier and `S6_FDLIMIT_i` its limit in external TAI64N, unset when
//! it never expires. No I/O: names and values only.

use crate::id::Identifier;
use crate::limits::DUMP_FDS_MAX;
use crate::request::Entry;
use crate::time::Limit;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The variable that counts the descriptors.
pub const COUNT: &str = "S6_FD#";

/// One variable: `None` means that it must not be set.
pub type Variable = (String, Option<OsString>);

/// The variables that describe a dump of descriptor numbers.
pub fn variables(dump: &[Entry<u32>]) -> impl Iterator<Item = Variable> + '_ {
    let count = (COUNT.to_owned(), Some(dump.len().to_string().into()));
    std::iter::once(count).chain(dump.iter().enumerate().flat_map(|(index, entry)| {
        let limit = entry.limit.moment().map(|moment| moment.to_string().into());
        [
            (format!("S6_FD_{index}"), Some(entry.fd.to_string().into())),
            (format!("S6_FDID_{index}"), Some(OsString::from_vec(entry.id.as_bytes().into()))),
            (format!("S6_FDLIMIT_{index}"), limit),
        ]
    }))
}

/// A variable that is missing, or does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadVariable {
    /// Its name.
    pub name: String,
    /// What is wrong with it; `None` when it is not set.
    pub problem: Option<String>,
}

impl fmt::Display for BadVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            None => write!(f, "{} not set", self.name),
            Some(problem) => write!(f, "invalid {}: {problem}", self.name),
        }
    }
}

impl std::error::Error for BadVariable {}

/// Reads a dump of descriptor numbers from variables, which `get` looks up.
///
/// # Errors
///
/// [`BadVariable`] names the first that is missing or wrong.
pub fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Entry<u32>>, BadVariable> {
    let required = |name: String| match get(&name) {
        Some(value) => Ok((name, value)),
        None => Err(BadVariable { name, problem: None }),
    };
    let count = number(&required(COUNT.to_owned())?)?;
    if count > DUMP_FDS_MAX {
        return Err(bad(COUNT, format!("{count} is more than any process can hold")));
    }
    (0..count)
        .map(|index| {
            let fd = number(&required(format!("S6_FD_{index}"))?)?;
            let (name, id) = required(format!("S6_FDID_{index}"))?;
            let id = Identifier::new(id.as_bytes()).map_err(|error| bad(&name, error))?;
            let name = format!("S6_FDLIMIT_{index}");
            let limit = match get(&name) {
                None => Limit::never(),
                Some(text) => text
                    .to_str()
                    .unwrap_or_default() // Not UTF-8, so not a time stamp, as "" is none.
                    .parse()
                    .map(Limit::at)
                    .map_err(|error| bad(&name, error))?,
            };
            Ok(Entry { id, limit, fd })
        })
        .collect()
}

fn number((name, value): &(String, OsString)) -> Result<u32, BadVariable> {
    let digits: &OsStr = value;
    digits
        .to_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse::<i32>().ok()) // Descriptors are ints.
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| bad(name, format!("{} is not a number of a descriptor", value.display())))
}

fn bad(name: &str, problem: impl fmt::Display) -> BadVariable {
    BadVariable { name: name.to_owned(), problem: Some(problem.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::any_entry;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn read(variables: &[(&str, &str)]) -> Result<Vec<Entry<u32>>, BadVariable> {
        let map: HashMap<_, _> = variables.iter().copied().collect();
        parse(|name| map.get(name).map(OsString::from))
    }

    proptest! {
        #[test]
        fn a_dump_comes_back_as_it_was(mut dump in proptest::collection::vec(any_entry(), 0..20)) {
            for entry in &mut dump {
                entry.fd &= 0x7fff_ffff;
            }
            let map: HashMap<_, _> = variables(&dump).collect();
            let back = parse(|name| map.get(name).cloned().flatten()).unwrap();
            prop_assert_eq!(back, dump);
        }
    }

    #[test]
    fn the_first_bad_variable_is_named() {
        let name = |variables| read(variables).unwrap_err().name;
        assert_eq!(name(&[]), "S6_FD#");
        assert_eq!(name(&[("S6_FD#", "-1")]), "S6_FD#");
        assert_eq!(name(&[("S6_FD#", "99999999")]), "S6_FD#");
        assert_eq!(name(&[("S6_FD#", "1")]), "S6_FD_0");
        assert_eq!(name(&[("S6_FD#", "1"), ("S6_FD_0", "4294967295")]), "S6_FD_0");
        assert_eq!(name(&[("S6_FD#", "1"), ("S6_FD_0", "3")]), "S6_FDID_0");
        assert_eq!(name(&[("S6_FD#", "1"), ("S6_FD_0", "3"), ("S6_FDID_0", "")]), "S6_FDID_0");
        let limit = [("S6_FD#", "1"), ("S6_FD_0", "3"), ("S6_FDID_0", "a"), ("S6_FDLIMIT_0", "@4")];
        assert_eq!(name(&limit), "S6_FDLIMIT_0");
        assert_eq!(read(&[]).unwrap_err().to_string(), "S6_FD# not set");
        let signed = read(&[("S6_FD#", "+1")]).unwrap_err().to_string();
        assert_eq!(signed, "invalid S6_FD#: +1 is not a number of a descriptor");
        // As many as a dump may have are looked for, and one more is not.
        let name = |count: u32| read(&[("S6_FD#", &count.to_string())]).unwrap_err().name;
        assert_eq!(name(DUMP_FDS_MAX), "S6_FD_0");
        assert_eq!(name(DUMP_FDS_MAX + 1), "S6_FD#");
    }
}
