//! A program in a file of its own, which can be replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Ours, installed in a folder.
pub struct Installed {
    pub path: PathBuf,
}

impl Installed {
    pub fn in_folder(folder: &Path) -> Self {
        let installed = Self { path: folder.join("fdholder") };
        installed.replace();
        installed
    }

    /// As a package manager does: another file under the same name. By another process, as
    /// what is open for writing here cannot be executed.
    pub fn replace(&self) {
        let new = self.path.with_extension("new");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_fdholder")).arg(&new).status();
        assert!(copied.unwrap().success());
        fs::rename(new, &self.path).unwrap();
    }

    /// The same with a script in its place.
    pub fn replace_by_script(&self, script: &str) {
        let new = self.path.with_extension("new");
        let install = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let installed = Command::new("sh").args(["-c", install]).arg(&new).arg(script).status();
        assert!(installed.unwrap().success());
        fs::rename(new, &self.path).unwrap();
    }
}
