//! A daemon and whoever follows it: processes that come and go at one path.

use super::{deadline, eventually, suite};
use fdholder::Client;
use rustix::process::{kill_process, Pid, Signal};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// All daemons that serve, or would, at one path. Killed when dropped.
pub struct Family {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
    log: PathBuf,
    children: Vec<Child>,
}

impl Family {
    /// Nobody yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("holder"), folder.path().join("log"));
        File::create(&log).unwrap();
        Self { folder, path, log, children: Vec::new() }
    }

    /// With a daemon that serves.
    pub fn with(options: &[&str]) -> Self {
        let mut family = Self::new();
        family.serve(options);
        family
    }

    /// Starts one more daemon, and waits until it serves. Returns its pid.
    pub fn serve(&mut self, options: &[&str]) -> u32 {
        let mut command = suite::fdholder(["serve", "-1"]);
        command.args(options).arg(&self.path);
        self.spawn(command)
    }

    /// The same from another file.
    pub fn serve_by(&mut self, program: &Path, options: &[&str]) -> u32 {
        let mut command = Command::new(program);
        command.args(["serve", "-1"]).args(options).arg(&self.path);
        self.spawn(command)
    }

    /// The same by a command.
    pub fn spawn(&mut self, mut command: Command) -> u32 {
        let log = File::options().append(true).open(&self.log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut newline = [0];
        let ready = child.stdout.take().unwrap().read(&mut newline).unwrap();
        assert_eq!(&newline[..ready], b"\n", "it is not ready: {}", self.log());
        let pid = child.id();
        self.children.push(child);
        pid
    }

    /// Starts one more, and does not wait for it. Returns its pid.
    pub fn begin(&mut self, options: &[&str]) -> u32 {
        let log = File::options().append(true).open(&self.log).unwrap();
        let mut command = suite::fdholder(["serve", "-1"]);
        command.args(options).arg(&self.path).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    /// Takes one in that was started elsewhere.
    pub fn adopt(&mut self, child: Child) {
        self.children.push(child);
    }

    /// Where they all log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What they have all logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The one that has begun to serve last.
    pub fn primary(&self) -> u32 {
        let log = self.log();
        let ready = log.lines().rfind(|line| line.contains(": ready on "));
        ready.and_then(pid_in).unwrap_or_else(|| panic!("nobody serves: {log}"))
    }

    /// The standby of the one that serves, once it has everything.
    pub fn standby(&self) -> u32 {
        let mut standby = None;
        eventually("a standby has everything", || {
            let log = self.log();
            // Whatever was said before the last one has begun to serve, or a standby was
            // lost, or dismissed, is of no use.
            let is_over = |line: &str| {
                line.contains(": ready on ")
                    || line.contains(": the standby (") && line.contains(") has gone")
            };
            let mut now = log.lines().rev().take_while(|line| !is_over(line));
            let line = now.find(|line| line.contains(" has everything"));
            standby = line.and_then(pid_in).filter(|pid| is_alive(*pid));
            standby.is_some()
        });
        standby.unwrap()
    }

    /// The one that serves, and its standby, once they are all there is and the standby has
    /// everything: now either may be killed.
    pub fn pair(&self) -> (u32, u32) {
        let mut pair = (0, 0);
        eventually("two are left, and in order", || {
            let primary = self.primary();
            if !is_alive(primary) {
                return false;
            }
            pair = (primary, self.standby());
            let mut expected = [pair.0, pair.1];
            let mut alive = self.alive();
            expected.sort_unstable();
            alive.sort_unstable();
            alive == expected && self.primary() == primary
        });
        pair
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path, deadline()).unwrap()
    }

    /// Every process of the family that is alive.
    pub fn alive(&self) -> Vec<u32> {
        processes()
            .filter(|pid| is_alive(*pid) && command_line(*pid).ends_with(&argument(&self.path)))
            .collect()
    }

    /// Waits for the end of one that this process has started, and returns its exit code.
    pub fn wait(&mut self, pid: u32) -> Option<i32> {
        let index = self.children.iter().position(|child| child.id() == pid).unwrap();
        self.children.swap_remove(index).wait().unwrap().code()
    }

    /// Kills a process of the family, and waits until it has gone.
    pub fn kill(&mut self, pid: u32) {
        signal(pid, Signal::KILL);
        match self.children.iter().position(|child| child.id() == pid) {
            Some(index) => {
                self.children.swap_remove(index).wait().unwrap();
            }
            None => eventually("it has gone", || !is_alive(pid)),
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // Those that are killed may have started others.
        for _ in 0..100 {
            let alive = self.alive();
            if alive.is_empty() {
                break;
            }
            for pid in alive {
                signal(pid, Signal::KILL);
            }
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process, if there is one.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Whether a process runs: it is there, and no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Every process there is.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_line(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn argument(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    [path.as_os_str().as_bytes(), b"\0"].concat()
}

/// The number behind "(pid ".
fn pid_in(line: &str) -> Option<u32> {
    line.split("(pid ").nth(1)?.split(')').next()?.parse().ok()
}
