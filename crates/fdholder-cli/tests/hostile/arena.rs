//! A daemon, a victim and two attackers, each of these a user of its own.

use crate::actor::{Actor, Role, ATTACKERS, VICTIM};
use crate::support::family::is_alive;
use crate::support::{deadline, eventually, open_fds, Family, Rules};
use fdholder::Client;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the victim has held.
pub const KEPT: usize = 100;

/// How many attackers there are.
pub const COUNT: usize = ATTACKERS.len();

pub struct Arena {
    pub family: Family,
    /// Who serves.
    pub pid: u32,
    pub victim: Actor,
    pub attackers: [Actor; COUNT],
    /// Descriptors that are open in the daemon when nobody attacks.
    quiet_fds: usize,
}

/// What attackers may do besides storing and retrieving under their own prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Nothing.
    OwnPrefix,
    /// List, take dumps, and give them.
    Dumps,
    /// As many connections as they like.
    ManyConnections,
}

/// The rules of an arena. They are made once and for all: what has just been written is read
/// again for each client, which is not what is measured here.
fn rules(rights: Rights) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-rules-{rights:?}"));
    if !dir.exists() {
        // Another one may do the same.
        let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let rules = own_prefixes(made.path());
        ATTACKERS.iter().fold(rules, |rules, uid| match rights {
            Rights::OwnPrefix => rules,
            Rights::Dumps => rules.may(&format!("uid/{uid}"), &["LIST", "GETDUMP", "SETDUMP"]),
            Rights::ManyConnections => {
                rules.write(&format!("uid/{uid}/env/FDHOLDER_MAXCONN"), "10000\n")
            }
        });
        let _ = fs::rename(made.path(), &dir);
    }
    dir
}

/// Everybody may store and retrieve under its own prefix, root everything.
pub fn own_prefixes(dir: &Path) -> Rules {
    [VICTIM].iter().chain(&ATTACKERS).fold(Rules::all(dir), |rules, uid| {
        let prefix = format!("^{uid}/");
        rules.allow(&format!("uid/{uid}")).regexes(&format!("uid/{uid}"), &prefix, &prefix)
    })
}

impl Arena {
    pub fn new(rights: Rights, options: &[&str]) -> Self {
        Self::with_rules(&rules(rights), options)
    }

    /// The same with other rules.
    pub fn with_rules(rules: &Path, options: &[&str]) -> Self {
        let mut family = Family::new();
        fs::set_permissions(family.folder.path(), Permissions::from_mode(0o755)).unwrap();
        let pid = family.serve(&[&["-i", rules.to_str().unwrap()], options].concat());
        if options.contains(&"--standby") {
            family.standby();
        }
        let path = family.path.clone();
        let mut victim = Actor::new(Role::Victim, VICTIM, &path);
        let attackers = ATTACKERS.map(|uid| Actor::new(Role::Attacker, uid, &path));
        victim.ask(&format!("keep {KEPT}"));
        // Threads and what the first clients leave behind come with the first closes.
        victim.ask("measure 10");
        let mut arena = Self { family, pid, victim, attackers, quiet_fds: 0 };
        arena.quiet_fds = arena.settled_fds();
        arena
    }

    /// How many descriptors the daemon has open, when that does not change any more.
    fn settled_fds(&self) -> usize {
        let mut last = 0;
        eventually("the daemon has closed what it has to close", || {
            let now = open_fds(self.pid);
            std::mem::replace(&mut last, now) == now
        });
        last
    }

    /// The victim has so many held from now on.
    pub fn keep(&mut self, count: usize) {
        assert_eq!(self.victim.ask(&format!("keep {count}")), "done");
        self.quiet_fds += count - KEPT;
    }

    pub fn client(&self) -> Client {
        self.family.client()
    }

    pub fn fds(&self) -> usize {
        open_fds(self.pid)
    }

    /// A line of the daemon's status in /proc, in kB where that is what it says.
    pub fn status(&self, field: &str) -> usize {
        status_of(self.pid, field)
    }

    /// Has both attackers do the same, at once.
    pub fn attackers(&mut self, what: &str) -> Vec<String> {
        self.attackers.iter_mut().for_each(|attacker| attacker.tell(what));
        self.attackers.iter_mut().map(|attacker| attacker.answer(what)).collect()
    }

    /// It is over: nothing of the victim's is lost, and nothing of the others' is left.
    pub fn end(mut self) {
        self.clean_up();
    }

    /// Deletes what is the attackers', and fails unless that is all that is to be undone.
    pub fn clean_up(&mut self) {
        assert_eq!(self.victim.ask("verify"), "done");
        // Whoever waits for them goes on.
        self.attackers("release");
        let mut client = self.client();
        // What they have sent may be carried out only now, and what is there may linger for a
        // moment, or have expired meanwhile.
        let own = format!("{VICTIM}/");
        let mut delete_others = || {
            for id in client.list(deadline()).unwrap() {
                if !id.as_bytes().starts_with(own.as_bytes()) {
                    let _ = client.delete(&id, deadline());
                }
            }
        };
        eventually("everything of the attackers is closed", || {
            delete_others();
            // Its own connection is there, too.
            self.fds() <= self.quiet_fds + 1
        });
        drop(client);
        eventually("everything of the attackers is closed", || self.fds() <= self.quiet_fds);
        assert!(is_alive(self.pid), "{}", self.family.log());
        assert_eq!(self.victim.ask("verify"), "done");
    }
}

/// A line of a process's status in /proc, in kB where that is what it says.
pub fn status_of(pid: u32, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}
