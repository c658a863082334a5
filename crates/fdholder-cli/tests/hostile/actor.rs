//! Processes that play a role as some user: told what to do by lines, and each answered by one.

use crate::{attacks, victim};
use rustix::thread::{sched_setaffinity, CpuSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The user of good will.
pub const VICTIM: u32 = 1001;

/// Those of bad will.
pub const ATTACKERS: [u32; 2] = [1002, 1003];

/// The first argument of a process that plays one.
const ROLE: &str = "--role";

/// Its roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Does what there is to do, and measures.
    Victim,
    /// Does what must not matter to others.
    Attacker,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Victim => "victim",
            Self::Attacker => "attacker",
        }
    }

    /// On which processor: those of bad will leave the victim its own, as what is measured is
    /// the daemon and not who gets a processor.
    fn processor(self) -> usize {
        match self {
            Self::Victim => 0,
            Self::Attacker => 1,
        }
    }
}

/// A process with a role. Killed when dropped.
pub struct Actor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Actor {
    /// One who connects to `path` as a user.
    pub fn new(role: Role, uid: u32, path: &Path) -> Self {
        // Through /proc: other users may not enter the folder in which this program is.
        let mut child = Command::new("/proc/self/exe")
            .args([ROLE, role.name()])
            .arg(path)
            .arg(uid.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(uid)
            .gid(uid)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let actor = Self { child, input, output };
        if role == Role::Attacker {
            actor.leave_processors_to_others();
        }
        actor
    }

    /// It runs whenever nobody else does, which is as much as anybody could have. Otherwise the
    /// daemon's threads wait a few milliseconds for their turn while it spins, and so they would
    /// whatever the daemon does.
    fn leave_processors_to_others(&self) {
        let pid = self.child.id().to_string();
        let status = Command::new("chrt").args(["--idle", "--pid", "0", &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Has it do something, and returns what it says when it has.
    pub fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.answer(what)
    }

    /// Has it begin to do something.
    pub fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    /// What it says when it has done what it was told.
    pub fn answer(&mut self, what: &str) -> String {
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "{what}: it has ended; see above");
        answer.trim_end().to_owned()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process is to play a role; then it has done so.
pub fn plays_a_role() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, role, path, uid] = &arguments[..] else { return false };
    if first != ROLE {
        return false;
    }
    let role = if role == Role::Victim.name() { Role::Victim } else { Role::Attacker };
    let mut processors = CpuSet::new();
    processors.set(role.processor());
    // Where there is one only, everybody shares it.
    let _ = sched_setaffinity(None, &processors);
    raise_limit();
    match role {
        Role::Victim => play(&mut victim::Victim::new(path, uid), victim::Victim::act),
        Role::Attacker => play(&mut attacks::Attacker::new(path, uid), attacks::Attacker::act),
    }
    true
}

fn play<R>(actor: &mut R, act: impl Fn(&mut R, &str, &[&str]) -> String) {
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let what = words.next().unwrap();
        let answer = act(actor, what, &words.collect::<Vec<_>>());
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}").unwrap();
        output.flush().unwrap();
    }
}

/// Some have thousands of connections.
pub fn raise_limit() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
