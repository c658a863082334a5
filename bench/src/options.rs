//! The command line.

use crate::Result;
use std::ffi::OsString;
use std::path::PathBuf;

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Fewer runs: to see that it works, not to quote.
    pub quick: bool,
    /// The document that gets the tables.
    pub write: Option<PathBuf>,
    /// Our binary, if it is not to be built.
    pub binary: Option<PathBuf>,
    /// None means all.
    sections: Vec<String>,
}

impl Options {
    /// Reads the command line; `None` when only help is wanted.
    pub fn parse(arguments: Vec<OsString>, sections: &[&str]) -> Result<Option<Self>> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut path = || arguments.next().map(PathBuf::from);
            match argument.to_str() {
                Some("--help" | "-h") => return Ok(None),
                Some("--quick") => options.quick = true,
                Some("--write") => options.write = Some(path().ok_or("--write needs a file")?),
                Some("--binary") => options.binary = Some(path().ok_or("--binary needs a path")?),
                Some(name) if sections.contains(&name) => options.sections.push(name.to_owned()),
                _ => {
                    let unknown = argument.display();
                    return Err(format!("what is {unknown}?\n{}", usage(sections)).into());
                }
            }
        }
        Ok(Some(options))
    }

    /// Whether a section is to be run.
    pub fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|name| name == section)
    }
}

/// How it is called.
pub fn usage(sections: &[&str]) -> String {
    format!(
        "usage: fdholder-bench [--quick] [--binary PATH] [--write FILE] [SECTION...]\n\
         sections: {}\n\
         all of them take about twenty minutes, nearly all of it getdump, where s6's program \
         takes seconds\n\
         --quick   fewer runs, in a minute\n\
         --binary  measure this fdholder instead of building the one in the workspace\n\
         --write   put the tables of this run, and no others, between the markers in FILE,\n          \
         and the pictures they refer to beside it",
        sections.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>> {
        Options::parse(line.split_whitespace().map(OsString::from).collect(), &["a", "b"])
    }

    #[test]
    fn no_section_means_all_of_them() {
        let options = parse("--quick").unwrap().unwrap();
        assert!(options.quick && options.wants("a") && options.wants("b"));
        let options = parse("--write file b").unwrap().unwrap();
        assert!(!options.wants("a") && options.wants("b"));
        assert_eq!(options.write, Some(PathBuf::from("file")));
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_refused() {
        assert!(parse("c").is_err());
        assert!(parse("--write").is_err());
        assert!(parse("a --help").unwrap().is_none());
    }
}
