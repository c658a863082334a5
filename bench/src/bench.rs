//! What all sections share: the programs, a scratch folder, access rules, a stopwatch.

use crate::programs::Programs;
use crate::Result;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The most descriptors that any section has held.
pub const FDS_MOST: u32 = 19_000;

/// What a daemon is told it may hold, a little more than any section needs.
pub const DAEMON_FDS_MAX: u64 = 19_400;

/// Our daemon keeps what it decided from the rules until they change, but takes a file
/// for settled only 2.5 s after its last change (a clock may stamp files in steps of two
/// seconds). Rules are years old in use; these must not be measured as if just written.
const RULES_AGE: Duration = Duration::from_secs(3);

/// One run of the benchmark.
pub struct Bench {
    pub programs: Programs,
    /// Fewer runs.
    pub quick: bool,
    scratch: TempDir,
    sockets: Cell<u32>,
}

impl Bench {
    /// Prepares; takes the three seconds that the rules need to settle.
    pub fn new(programs: Programs, quick: bool) -> Result<Self> {
        if cfg!(debug_assertions) {
            return Err("figures of a debug build mean nothing: use --release".into());
        }
        raise_fds_limit()?;
        let scratch = tempfile::tempdir()?;
        let bench = Self { programs, quick, scratch, sockets: Cell::new(0) };
        write_rules(&bench.rules())?;
        say("letting the access rules settle");
        std::thread::sleep(RULES_AGE);
        Ok(bench)
    }

    /// Where the access rules are.
    pub fn rules(&self) -> PathBuf {
        self.scratch.path().join("rules")
    }

    /// A file that the next caller may overwrite.
    pub fn scratch_file(&self) -> PathBuf {
        self.scratch.path().join("scratch")
    }

    /// A path where no socket has been.
    pub fn new_socket_path(&self) -> PathBuf {
        self.sockets.set(self.sockets.get() + 1);
        self.scratch.path().join(format!("{}.sock", self.sockets.get()))
    }
}

/// Tells how far we are; what is measured goes to standard output.
pub fn say(what: &str) {
    eprintln!("fdholder-bench: {what}");
}

/// Runs a command to its end: how long that took, in milliseconds, and how it ended.
pub fn time(command: &mut Command) -> Result<(f64, ExitStatus)> {
    let start = Instant::now();
    let status = command.status()?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, status))
}

/// Children inherit it.
fn raise_fds_limit() -> Result<()> {
    // Beside what it holds a daemon has clients, a socket and a few of its own.
    const NEEDED: u64 = DAEMON_FDS_MAX + 100;
    let hard = getrlimit(Resource::Nofile).maximum;
    if hard.is_some_and(|hard| hard < NEEDED) {
        return Err(format!("the hard limit on open files (ulimit -Hn) is below {NEEDED}").into());
    }
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(())
}

/// The user that runs this may do everything.
fn write_rules(rules: &Path) -> Result<()> {
    let user = rules.join("uid/self");
    let rights = user.join("env");
    fs::create_dir_all(&rights)?;
    fs::write(user.join("allow"), "")?;
    for name in ["STORE_REGEX", "RETRIEVE_REGEX"] {
        fs::write(rights.join(format!("S6_FDHOLDER_{name}")), ".*\n")?;
    }
    for name in ["LIST", "GETDUMP", "SETDUMP"] {
        fs::write(rights.join(format!("S6_FDHOLDER_{name}")), "\n")?;
    }
    Ok(())
}
