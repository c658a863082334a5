//! What is done while a call fails, and what must hold afterwards.

use crate::cared_for::CaredFor;
use crate::support::family::{is_alive, processes, signal};
use crate::support::{id, suite, Family, PATIENCE};
use fdholder::{Client, Deadline, Limit};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A call that fails once in each thread.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub call: &'static str,
    pub error: &'static str,
    pub time: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, error, time } = self;
        match *call {
            // It has no error but that the end of the heap stays where it is; libc takes a negative
            // number for a higher end.
            "brk" => write!(f, "brk:retval=0:when={time}"),
            _ => write!(f, "{call}:error={error}:when={time}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    Plain,
    Standby,
    TakeoverOld,
    TakeoverNew,
    Upgrade,
    Transfer,
    CaredFor,
}

/// How long anything may take whose call fails: it may be refused, but it must end.
pub const SHORT: Duration = Duration::from_secs(15);

/// What is known to be held, and what may be.
#[derive(Debug, Default)]
pub struct Known {
    held: BTreeSet<String>,
    unsure: BTreeSet<String>,
    cared_for: CaredFor,
}

impl Known {
    fn store(&mut self, path: &Path, name: &str) {
        let stored = store(path, name, &File::open("/dev/null").unwrap());
        let known = if stored { &mut self.held } else { &mut self.unsure };
        known.insert(name.to_owned());
    }

    fn delete(&mut self, path: &Path, name: &str) {
        let deadline = Deadline::after(SHORT);
        let deleted = Client::connect(path, deadline)
            .and_then(|mut client| client.delete(&id(name), deadline));
        self.held.remove(name);
        if deleted.is_err() {
            self.unsure.insert(name.to_owned());
        }
    }

    /// Whether that is what a holder says.
    fn check(&self, told: &BTreeSet<String>) -> Result<(), String> {
        let lost: Vec<_> = self.held.difference(told).collect();
        let may: BTreeSet<_> = self.held.union(&self.unsure).cloned().collect();
        let back: Vec<_> = told.difference(&may).collect();
        if lost.is_empty() && back.is_empty() {
            return Ok(());
        }
        Err(format!("lost: {lost:?}, came back: {back:?}"))
    }
}

/// Whether it is known to be held now.
pub fn store(path: &Path, name: &str, fd: &impl AsFd) -> bool {
    let deadline = Deadline::after(SHORT);
    Client::connect(path, deadline)
        .and_then(|mut client| client.store(&id(name), Limit::never(), fd, deadline))
        .is_ok()
}

pub fn list(path: &Path) -> Result<BTreeSet<String>, fdholder::Error> {
    let deadline = Deadline::after(SHORT);
    let ids = Client::connect(path, deadline)?.list(deadline)?;
    Ok(ids.iter().map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).collect())
}

/// Waits for a condition, and says what it was otherwise.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= until {
            return Err(format!("this never happened: {what}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub fn strace(trace: &str, more: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", trace]).args(more);
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    strace
}

/// Has calls of a process fail from now on.
pub fn attach(pid: u32, fault: Fault) -> Result<Child, String> {
    let (trace, inject) = (format!("trace={}", fault.call), format!("inject={fault}"));
    let pid_text = pid.to_string();
    let more = ["-o", "/dev/null", "-e", &inject, "-p", &pid_text];
    let mut strace = strace(&trace, &more).spawn().map_err(|error| error.to_string())?;
    let is_traced = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        tasks
            .map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default())
            .all(|status| !status.lines().any(|line| line == "TracerPid:\t0"))
    };
    let mut has_failed = false;
    wait("it is traced", || {
        // This kernel has no such call, or strace does not know it.
        has_failed = strace.try_wait().is_ok_and(|status| status.is_some());
        has_failed || is_traced()
    })?;
    Ok(strace)
}

/// The kernel releases what a tracer traced when that is killed; asked to end, strace(1) may wait
/// for ever for a thread that an execve has ended.
pub fn detach(mut strace: Child) {
    let _ = strace.kill();
    let _ = strace.wait();
}

/// The pids that answer, of many connections one after the other.
fn who_answers(path: &Path) -> BTreeSet<u32> {
    let mut pids = BTreeSet::new();
    for _ in 0..12 {
        let deadline = Deadline::after(SHORT);
        let Ok(mut client) = Client::connect_negotiated(path, deadline) else { continue };
        if let Ok(status) = client.status(deadline) {
            pids.insert(status.pid);
        }
    }
    pids
}

/// Plays a scene in which a call fails.
pub fn play(scene: Scene, fault: Fault) -> Result<(), String> {
    let mut options = vec!["-n", "200"];
    if matches!(scene, Scene::Standby | Scene::Upgrade) {
        options.push("--standby");
    }
    if scene == Scene::CaredFor {
        options.push("--drop-hung-up");
    }
    let mut family = Family::with(&options);
    let path = family.path.clone();
    let mut known = Known::default();
    for number in 0..5 {
        known.store(&path, &format!("before {number}"));
    }
    if options.contains(&"--standby") {
        family.pair();
    }
    let primary = family.primary();
    let result = act(scene, fault, &mut family, primary, &mut known);
    result
        .and_then(|()| check(scene, &mut family, &known))
        .map_err(|why| format!("{why}\n{}", family.log()))
}

fn act(
    scene: Scene,
    fault: Fault,
    family: &mut Family,
    primary: u32,
    known: &mut Known,
) -> Result<(), String> {
    let path = family.path.clone();
    let upgrade = || {
        let mut upgrade = suite::fdholder(["upgrade", "-t", "15000"]);
        upgrade.arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).status().map(drop)
    };
    let log = || File::options().append(true).open(family.log_path()).unwrap();
    match scene {
        Scene::TakeoverNew => {
            let (trace, inject) = (format!("trace={}", fault.call), format!("inject={fault}"));
            let mut command = strace(&trace, &["-D", "-o", "/dev/null", "-e", &inject]);
            command.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-n", "200"]).arg(&path);
            let mut new = command.stderr(log()).spawn().map_err(|error| error.to_string())?;
            use_it(&path, known);
            let is_over = |new: &mut Child| {
                new.try_wait().is_ok_and(|status| status.is_some()) || !is_alive(primary)
            };
            wait("the new daemon has taken over, or failed", || is_over(&mut new))?;
            let status = fs::read_to_string(format!("/proc/{}/status", new.id()));
            family.adopt(new);
            use_it(&path, known);
            // What is done next is done without failures.
            let tracer = status.unwrap_or_default();
            let tracer = tracer.lines().find_map(|line| line.strip_prefix("TracerPid:\t"));
            if let Some(tracer) = tracer.and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0) {
                signal(tracer, Signal::KILL);
                wait("it is not traced any more", || !is_alive(tracer))?;
            }
            return Ok(());
        }
        Scene::Transfer => {
            let to = Family::with(&["-n", "200"]);
            let strace = attach(primary, fault)?;
            for _ in 0..2 {
                let mut transfer = suite::fdholder(["transferdump", "-t", "15000"]);
                transfer.arg(&path).arg(&to.path).stdout(Stdio::null()).stderr(Stdio::null());
                let moved = transfer.status().map_err(|error| error.to_string())?;
                if moved.success() {
                    let there = list(&to.path).map_err(|error| error.to_string())?;
                    known.check(&there).map_err(|why| format!("at the destination: {why}"))?;
                }
            }
            use_it(&path, known);
            detach(strace);
            return Ok(());
        }
        _ => {}
    }
    let strace = attach(primary, fault)?;
    use_it(&path, known);
    match scene {
        Scene::Standby => {
            if let Some(standby) = children_of(primary).first() {
                signal(*standby, Signal::KILL);
            }
            use_it(&path, known);
        }
        Scene::TakeoverOld => {
            let mut command = suite::fdholder(["serve", "-n", "200"]);
            let mut new = command.arg(&path).stdout(Stdio::null()).stderr(log()).spawn().unwrap();
            let is_over = |new: &mut Child| {
                new.try_wait().is_ok_and(|status| status.is_some()) || !is_alive(primary)
            };
            wait("the new daemon has taken over, or failed", || is_over(&mut new))?;
            family.adopt(new);
        }
        Scene::CaredFor => {
            for number in 0..3 {
                let unsure = known.cared_for.store(&path, number);
                known.unsure.extend(unsure);
            }
        }
        Scene::Upgrade => {
            upgrade().map_err(|error| error.to_string())?;
        }
        _ => {}
    }
    use_it(&path, known);
    detach(strace);
    Ok(())
}

/// What clients do: each of it may be refused.
fn use_it(path: &Path, known: &mut Known) {
    let number = known.held.len() + known.unsure.len();
    known.store(path, &format!("kept {number}"));
    known.store(path, &format!("gone {number}"));
    known.delete(path, &format!("gone {number}"));
    let _ = list(path);
    let deadline = Deadline::after(SHORT);
    if let Ok(mut client) = Client::connect(path, deadline) {
        let _ = client.getdump(deadline);
        let _ = client.retrieve(&id("before 1"), deadline);
    }
}

/// What must hold when nothing fails any more.
fn check(scene: Scene, family: &mut Family, known: &Known) -> Result<(), String> {
    let path = family.path.clone();
    let listed = list(&path).map_err(|error| format!("it does not answer: {error}"))?;
    known.check(&listed)?;
    let mut answering = BTreeSet::new();
    wait("one daemon answers", || {
        answering = who_answers(&path);
        answering.len() == 1
    })
    .map_err(|why| format!("{why}, but {answering:?}"))?;
    known.cared_for.check(&path)?;
    // And everything works again.
    let deadline = Deadline::after(PATIENCE);
    let mut client = Client::connect(&path, deadline).map_err(|error| error.to_string())?;
    let null = File::open("/dev/null").unwrap();
    client.store(&id("after"), Limit::never(), &null, deadline).map_err(|e| e.to_string())?;
    client.delete(&id("after"), deadline).map_err(|error| error.to_string())?;
    if matches!(scene, Scene::Standby | Scene::Upgrade) {
        wait("there is a standby", || {
            Client::connect_negotiated(&path, deadline)
                .and_then(|mut client| client.status(deadline))
                .is_ok_and(|status| matches!(status.standby, fdholder::Standby::Ready(_)))
        })?;
    }
    let upgraded = suite::fdholder(["upgrade"]).arg(&path).output().unwrap();
    if !upgraded.status.success() {
        return Err(format!("it cannot be upgraded: {upgraded:?}"));
    }
    let listed = list(&path).map_err(|error| format!("it does not answer: {error}"))?;
    known.check(&listed).map_err(|why| format!("after an upgrade: {why}"))?;
    known.cared_for.check(&path).map_err(|why| format!("after an upgrade: {why}"))?;
    if family.log().contains("a bug in fdholder") {
        return Err("it says that it has a bug".to_owned());
    }
    Ok(())
}

fn children_of(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    processes().filter(|child| is_alive(*child) && parent(*child) == Some(pid)).collect()
}

/// The names of the calls that a daemon makes.
pub fn calls_made(scene: Scene) -> BTreeSet<String> {
    let mut options = vec!["-n", "200"];
    if scene == Scene::Standby {
        options.push("--standby");
    }
    let family = Family::with(&options);
    let primary = family.primary();
    let trace = family.folder.path().join("trace");
    let pid = primary.to_string();
    let mut strace =
        strace("trace=all", &["-o", trace.to_str().unwrap(), "-p", &pid]).spawn().unwrap();
    wait("it is traced", || {
        let status = fs::read_to_string(format!("/proc/{primary}/status")).unwrap_or_default();
        strace.try_wait().is_ok_and(|status| status.is_some())
            || !status.lines().any(|line| line == "TracerPid:\t0")
    })
    .unwrap();
    let mut known = Known::default();
    use_it(&family.path, &mut known);
    if scene == Scene::Standby {
        let standby = family.standby();
        signal(standby, Signal::KILL);
        wait("the next one is ready", || family.standby() != standby).unwrap();
    }
    detach(strace);
    let trace = fs::read_to_string(trace).unwrap();
    let calls = trace.lines().filter(|line| !line.contains("resumed>"));
    // Of the daemon and its threads: "PID call(…". What it starts begins with execve, and is another.
    let of_daemon = |line: &&str| {
        let task = line.split(' ').next().unwrap_or_default();
        task == pid || Path::new(&format!("/proc/{pid}/task/{task}")).exists()
    };
    let name =
        |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    calls.filter(of_daemon).filter_map(name).collect()
}
