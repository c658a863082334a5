//! A daemon of either suite, and its access rules.

use super::family::{processes, signal};
use super::{Suite, PATIENCE};
use fdholder::Client;
use rustix::process::{kill_process, Pid, Signal};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A folder of access rules.
pub struct Rules {
    pub dir: PathBuf,
}

impl Rules {
    /// No rule yet.
    pub fn none(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    /// The daemon's own user may do everything.
    pub fn all(dir: impl Into<PathBuf>) -> Self {
        Self::none(dir)
            .allow("uid/self")
            .regexes("uid/self", ".*", ".*")
            .may("uid/self", &["LIST", "GETDUMP", "SETDUMP"])
    }

    pub fn write(self, file: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn allow(self, key: &str) -> Self {
        self.write(&format!("{key}/allow"), "")
    }

    pub fn deny(self, key: &str) -> Self {
        self.write(&format!("{key}/deny"), "")
    }

    pub fn regexes(self, key: &str, store: &str, retrieve: &str) -> Self {
        self.write(&format!("{key}/env/S6_FDHOLDER_STORE_REGEX"), store)
            .write(&format!("{key}/env/S6_FDHOLDER_RETRIEVE_REGEX"), retrieve)
    }

    pub fn may(self, key: &str, rights: &[&str]) -> Self {
        rights
            .iter()
            .fold(self, |rules, right| rules.write(&format!("{key}/env/S6_FDHOLDER_{right}"), "\n"))
    }
}

/// Our daemon without rules, on a socket in a folder of its own.
pub fn serve(options: &[&str]) -> (tempfile::TempDir, Daemon) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = super::suite::fdholder(["serve", "-1", "-v0"]);
    command.args(options).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    (folder, daemon)
}

/// The same under a limit of the shell's, such as `ulimit -n 600`.
pub fn serve_under(limit: &str, options: &[&str]) -> (tempfile::TempDir, Daemon) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let script = format!("{limit}; exec \"$0\" serve -1 -v0 \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]).args(options).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    (folder, daemon)
}

/// A running daemon. Killed when dropped, with all that it has started: a standby would serve in
/// its place, and for ever. Nothing leaves the test's process group, which whoever runs the test
/// kills when that takes too long.
pub struct Daemon {
    pub path: PathBuf,
    child: Child,
    /// What it and all its children have in their environment, and nobody else.
    mark: Vec<u8>,
}

/// The variable of that mark.
const MARK: &str = "FDHOLDER_TEST_DAEMON";

/// Daemons that this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);

impl Daemon {
    /// `s6-fdholderd` of a suite on a new socket, with options, ready.
    pub fn start(suite: Suite, path: &Path, options: &[&str]) -> Self {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut command = suite.command("s6-fdholderd");
        command.args(["-1", "-v0"]).args(options).stdin(Stdio::from(OwnedFd::from(listener)));
        Self::spawn(command, path)
    }

    /// A daemon with rules in a folder.
    pub fn with_rules(suite: Suite, path: &Path, rules: &Rules, options: &[&str]) -> Self {
        let rules = ["-i", rules.dir.to_str().unwrap()];
        Self::start(suite, path, &[&rules, options].concat())
    }

    /// A daemon by a command that has it say when it is ready (option -1).
    pub fn spawn(command: Command, path: &Path) -> Self {
        let (daemon, mut stdout) = Self::begin(command, path);
        let mut newline = [0];
        let ready = stdout.read(&mut newline).unwrap();
        assert_eq!(&newline[..ready], b"\n", "the daemon did not say that it is ready");
        daemon
    }

    /// One that is not waited for, with its standard output.
    pub fn begin(mut command: Command, path: &Path) -> (Self, ChildStdout) {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let value = format!("{}-{number}", std::process::id());
        let mark = format!("{MARK}={value}").into_bytes();
        let mut child = command.env(MARK, value).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        (Self { path: path.to_owned(), child, mark }, stdout)
    }

    /// It, and what it has started, as far as that is alive.
    pub fn processes(&self) -> Vec<u32> {
        let has_mark = |pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == self.mark)
        };
        processes().filter(has_mark).collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path, super::deadline()).unwrap()
    }

    /// How many descriptors it has open besides those of clients that have gone.
    pub fn open_fds(&self) -> usize {
        let mut client = self.client();
        // Whoever hung up before this one came is noticed no later than its second request.
        client.list(super::deadline()).unwrap();
        client.list(super::deadline()).unwrap();
        super::open_fds(self.pid()) - 1
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The exit code after SIGTERM.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Those that are killed may have started others; and one is there until it is gone.
        let start = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() || start.elapsed() >= PATIENCE {
                break;
            }
            for pid in left {
                signal(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.wait();
    }
}
