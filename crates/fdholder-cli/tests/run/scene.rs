//! A service under `run`: its program, which tests replace by other versions, its clients, and what
//! it and `run` say.

use crate::support::daemon::serve;
use crate::support::family::{is_alive, processes, signal};
use crate::support::{eventually, suite, Daemon, PATIENCE};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable that all processes of one scene have, and nobody else.
const MARK: &str = "FDHOLDER_TEST_SCENE";

static SCENES: AtomicU32 = AtomicU32::new(0);

/// A version that serves until it is told to stop.
pub const GOOD: &str = "serve()";

/// A service called `web`, its program, and perhaps a holder. All its processes are killed when
/// dropped.
pub struct Scene {
    pub folder: tempfile::TempDir,
    holder: Option<(tempfile::TempDir, Daemon)>,
    /// Where a holder of somebody else's listens.
    pub path: Option<PathBuf>,
    mark: String,
}

impl Scene {
    /// Without a holder.
    pub fn alone() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let scene = Self { folder, holder: None, path: None, mark };
        fs::write(scene.at("served.py"), include_str!("served.py")).unwrap();
        scene.version(GOOD);
        scene
    }

    /// With a holder.
    pub fn new() -> Self {
        let mut scene = Self::alone();
        scene.holder = Some(serve(&[]));
        scene
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// Waits for a file, and returns what is in it.
    pub fn wait_for(&self, name: &str) -> String {
        eventually(&format!("there is {name}"), || self.at(name).exists());
        self.read(name)
    }

    /// Makes a file that a program waits for.
    pub fn touch(&self, name: &str) {
        File::create(self.at(name)).unwrap();
    }

    pub fn holder(&self) -> &Daemon {
        &self.holder.as_ref().unwrap().1
    }

    fn path(&self) -> Option<&PathBuf> {
        self.holder.as_ref().map(|(_, holder)| &holder.path).or(self.path.as_ref())
    }

    /// With another holder from now on.
    pub fn replace_holder(&mut self, holder: Daemon) {
        self.holder = Some((tempfile::tempdir().unwrap(), holder));
    }

    /// What the service's program does from its next start on, in Python.
    pub fn version(&self, text: &str) {
        let new = self.at("program.new");
        fs::write(&new, format!("from served import *\n{text}\n")).unwrap();
        fs::rename(new, self.at("program")).unwrap();
    }

    /// The words that start the program.
    pub fn program(&self) -> [String; 2] {
        ["/usr/bin/python3".to_owned(), self.at("program").display().to_string()]
    }

    /// Where the service listens.
    pub fn socket(&self) -> PathBuf {
        self.at("socket")
    }

    /// A command of ours with the environment of this scene.
    pub fn fdholder(&self, arguments: &[&str]) -> Command {
        let mut command = suite::fdholder(arguments);
        self.furnish(&mut command);
        command
    }

    /// Sets the environment of a process of this scene.
    pub fn furnish(&self, command: &mut Command) {
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_PID", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        command.env(MARK, &self.mark).env("FOLDER", self.folder.path());
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("XDG_RUNTIME_DIR", self.folder.path());
        command.stdin(Stdio::null());
    }

    /// `run` of these words, with a listener called web, and options.
    pub fn command_of(&self, options: &[&str], words: &[&str]) -> Command {
        let bind = format!("web=unix:{}", self.socket().display());
        let mut command = self.fdholder(&["run", "--name", "web", "--bind", &bind]);
        command.args(options);
        command.args(self.path());
        command.arg("--").args(words);
        command
    }

    /// `run` of the program.
    pub fn command(&self, options: &[&str]) -> Command {
        let program = self.program();
        self.command_of(options, &program.each_ref().map(String::as_str))
    }

    /// Starts it; what it and the program write goes to a file.
    pub fn spawn(&self, mut command: Command) -> Run {
        let log = self.at("log");
        let file = || File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdout(Stdio::null()).stderr(file()).spawn().unwrap();
        Run { child, log, folder: self.folder.path().to_owned() }
    }

    /// Starts it; what it and the program write goes there.
    pub fn spawn_with(&self, mut command: Command, stderr: OwnedFd) -> Run {
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Run { child, log: self.at("log"), folder: self.folder.path().to_owned() }
    }

    /// Starts it and waits until the first generation is ready.
    pub fn ready(&self, options: &[&str]) -> Run {
        let run = self.spawn(self.command(options));
        run.logged("generation 1 is ready");
        run
    }

    /// `restart` of the service.
    pub fn restart(&self) -> Output {
        self.restart_command(&[]).output().unwrap()
    }

    pub fn restart_command(&self, options: &[&str]) -> Command {
        let mut command = self.fdholder(&["restart"]);
        command.args(options).args(self.path()).arg("web");
        command
    }

    /// What `status` says of the service, once it has registered.
    pub fn status(&self) -> Value {
        let mut status = None;
        eventually("it has registered", || {
            let runs = self.runs();
            status = runs.into_iter().find(|run| run["name"] == "web" && run["error"].is_null());
            status.is_some()
        });
        status.unwrap()
    }

    /// What `status` says of all services.
    pub fn runs(&self) -> Vec<Value> {
        let output = self.fdholder(&["status", "--json"]).args(self.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value["runs"].as_array().unwrap().clone()
    }

    /// The generations that `status` shows: their numbers and states.
    pub fn generations(&self) -> Vec<(u64, String)> {
        let status = self.status();
        let generations = status["generations"].as_array().unwrap();
        let one =
            |it: &Value| (it["number"].as_u64().unwrap(), it["state"].as_str().unwrap().to_owned());
        generations.iter().map(one).collect()
    }

    /// For how long a generation has been what it is, in milliseconds.
    pub fn since(&self, number: u64) -> u64 {
        let status = self.status();
        let mut all = status["generations"].as_array().unwrap().iter();
        let one = all.find(|it| it["number"] == number);
        one.map_or(u64::MAX, |it| it["since_ms"].as_u64().unwrap())
    }

    /// All processes of this scene that are alive.
    pub fn processes(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let has_mark = |pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        processes().filter(|pid| is_alive(*pid)).filter(has_mark).collect()
    }

    /// A client, connected.
    pub fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.socket()).unwrap())
    }

    /// Waits until a generation answers: the last one may still have accepted a client before.
    pub fn is_answered_by(&self, generation: u64) {
        eventually(&format!("generation {generation} answers"), || self.ask().0 == generation);
    }

    /// The generation and the process that answer a client.
    pub fn ask(&self) -> (u64, u32) {
        self.connect().ask("now")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log:\n{}", self.read("log"));
        }
        for _ in 0..1000 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                signal(pid, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A connection to the service.
pub struct Client<S: Read + Write = UnixStream>(pub S);

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn send(&mut self, request: &str) {
        writeln!(self.0, "{request}").unwrap();
    }

    /// Which generation answers, and its pid.
    pub fn answer(&mut self) -> (u64, u32) {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        let (generation, pid) = text.trim().split_once(' ').unwrap_or_else(|| {
            panic!("an answer: {text:?}");
        });
        (generation.parse().unwrap(), pid.parse().unwrap())
    }

    pub fn ask(mut self, request: &str) -> (u64, u32) {
        self.send(request);
        self.answer()
    }
}

/// A process of `run`. It is killed when dropped.
pub struct Run {
    child: Child,
    log: PathBuf,
    folder: PathBuf,
}

impl Run {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, it: Signal) {
        signal(self.pid(), it);
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until something is logged.
    pub fn logged(&self, text: &str) {
        eventually(&format!("the log has: {text}"), || {
            let log = self.log();
            let has_it = log.contains(text);
            assert!(has_it || is_alive(self.pid()) || self.log().contains(text), "it ended: {log}");
            has_it
        });
    }

    /// How often something was logged.
    pub fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("run ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn code(&mut self) -> Option<i32> {
        self.wait().code()
    }

    /// Its exit code after SIGTERM.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.code()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The folders that processes of `run` have made.
    pub fn folders(&self) -> Vec<PathBuf> {
        folders(&self.folder)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folders in a folder that processes of `run` have made.
pub fn folders(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).unwrap().map(|entry| entry.map(|it| it.path()));
    let entries: io::Result<Vec<_>> = entries.collect();
    let is_ours =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("fdholder-run.");
    entries.unwrap().into_iter().filter(is_ours).collect()
}
