//! Programs under s6's names: ours, and s6's of two Debian releases.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Ours,
    /// 2.11.3.2, from Debian 12.
    S6V211,
    /// 2.13.1.0, from Debian 13.
    S6V213,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::S6V211 => "s6-2.11",
            Self::S6V213 => "s6-2.13",
        })
    }
}

/// The folder that scripts/peers fills.
pub fn peers() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from)
    };
    let default = || cache().join("fdholder/peers");
    std::env::var_os("FDHOLDER_PEERS").map_or_else(default, PathBuf::from)
}

impl Suite {
    fn root(self) -> Option<PathBuf> {
        (self != Self::Ours).then(|| peers().join(self.to_string()))
    }

    /// Whether its programs are there.
    pub fn is_installed(self) -> bool {
        self.root().is_none_or(|root| loader(&root).is_some())
    }

    /// The words that run one of its programs, to be followed by arguments. s6's run
    /// through their own loader, with their own libraries.
    pub fn words(self, program: &str) -> Vec<PathBuf> {
        match self.root() {
            None => vec![ours(program)],
            Some(root) => {
                let (loader, libraries) = loader(&root).expect("s6 is installed: scripts/peers");
                vec![loader, "--library-path".into(), libraries, root.join("usr/bin").join(program)]
            }
        }
    }

    /// A command that runs one of its programs.
    pub fn command(self, program: &str) -> Command {
        let words = self.words(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

/// The dynamic loader of a root, and the folder of its libraries.
fn loader(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let folders = std::fs::read_dir(root.join("usr/lib")).ok()?;
    for folder in folders.flatten().map(|entry| entry.path()) {
        for file in std::fs::read_dir(&folder).ok().into_iter().flatten().flatten() {
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("ld-linux") && name.contains(".so") {
                return Some((file.path(), folder));
            }
        }
    }
    None
}

/// Our binary under one of s6's names: a symlink, as it is installed.
fn ours(program: &str) -> PathBuf {
    let links = Path::new(env!("CARGO_TARGET_TMPDIR")).join("s6-names");
    std::fs::create_dir_all(&links).unwrap();
    let link = links.join(program);
    match std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fdholder"), &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{error}"),
        _ => link,
    }
}

/// Our binary under its own name.
pub fn fdholder<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fdholder"));
    command.arg0("fdholder").args(arguments);
    command
}
