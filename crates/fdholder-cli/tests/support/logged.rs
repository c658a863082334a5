//! A daemon with a log that can be read.

use super::{suite, Daemon};
use std::fs::{self, File};

pub struct Logged {
    pub folder: tempfile::TempDir,
    pub daemon: Daemon,
}

impl Logged {
    /// One without rules, ready.
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let mut command = suite::fdholder(["serve", "-1"]);
        command.args(options).arg(&path);
        command.stderr(File::create(folder.path().join("log")).unwrap());
        let daemon = Daemon::spawn(command, &path);
        Self { folder, daemon }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}
