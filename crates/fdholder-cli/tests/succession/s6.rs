//! Under s6's supervisor, which knows nothing of standbys.

use crate::support::family::{is_alive, signal};
use crate::support::{eventually, Family, Suite};
use crate::{content, fill};
use rustix::process::Signal;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A holder in a service folder, supervised.
struct Supervised {
    family: Family,
    suite: Suite,
    service: PathBuf,
    supervise: Child,
}

impl Supervised {
    fn new(suite: Suite) -> Self {
        let family = Family::new();
        let service = family.folder.path().join("service");
        fs::create_dir(&service).unwrap();
        let (program, path) = (env!("CARGO_BIN_EXE_fdholder"), family.path.display());
        let log = family.folder.path().join("log");
        let run =
            format!("#!/bin/sh\nexec {program} serve --standby {path} 2>>{}\n", log.display());
        fs::write(service.join("run"), run).unwrap();
        fs::set_permissions(service.join("run"), Permissions::from_mode(0o755)).unwrap();
        let mut command = suite.command("s6-supervise");
        let supervise = command.arg(&service).stdin(Stdio::null()).spawn().unwrap();
        Self { family, suite, service, supervise }
    }

    fn control(&self, command: &str) {
        let mut svc = self.suite.command("s6-svc");
        // The supervisor may just be starting.
        eventually("the supervisor listens", || {
            svc.arg(command).arg(&self.service).stderr(Stdio::null()).status().unwrap().success()
        });
    }

    /// The process that the supervisor looks after.
    fn pid(&self) -> Option<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.supervise.id());
        let children = fs::read_to_string(children).unwrap();
        let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        children.find(|pid| self.family.alive().contains(pid))
    }

    /// Waits until the supervised process serves, and has a standby.
    fn is_settled(&self) -> u32 {
        let mut pid = None;
        eventually("the supervised one serves", || {
            pid = self.pid().filter(|pid| {
                self.family.log().contains(": ready on ") && self.family.primary() == *pid
            });
            pid.is_some()
        });
        self.family.standby();
        eventually("two are left", || self.family.alive().len() == 2);
        pid.unwrap()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.supervise.kill();
        let _ = self.supervise.wait();
    }
}

fn suites() -> impl Iterator<Item = Suite> {
    let suites = [Suite::S6V211, Suite::S6V213];
    suites.into_iter().filter(|suite| {
        let required = std::env::var_os("FDHOLDER_REQUIRE_PEERS").is_some();
        suite.is_installed() || required
    })
}

/// Killed, it is restarted, and takes over from its own standby.
#[test]
fn a_supervised_holder_is_killed() {
    for suite in suites() {
        let it = Supervised::new(suite);
        it.is_settled();
        let mut client = it.family.client();
        fill(&mut client, it.family.folder.path(), 100);
        let before = content(&mut client);
        for _ in 0..3 {
            let pid = it.is_settled();
            signal(pid, Signal::KILL);
            assert_eq!(content(&mut it.family.client()), before);
            assert_ne!(it.is_settled(), pid);
            assert_eq!(content(&mut it.family.client()), before);
        }
        // Down is down: the standby does not go on by itself.
        it.control("-d");
        eventually("all have ended", || it.family.alive().is_empty());
    }
}

/// SIGUSR2 through the supervisor: it sees the same process before and after.
#[test]
fn a_supervised_holder_is_upgraded() {
    for suite in suites() {
        let it = Supervised::new(suite);
        let pid = it.is_settled();
        let mut client = it.family.client();
        fill(&mut client, it.family.folder.path(), 100);
        let before = content(&mut client);
        let ready = |log: String| log.matches(": ready on ").count();
        for _ in 0..3 {
            let seen = ready(it.family.log());
            it.control("-2");
            eventually("it is another program", || ready(it.family.log()) > seen);
            assert_eq!(it.is_settled(), pid);
            assert_eq!(content(&mut client), before);
        }
        assert!(is_alive(pid));
        let mut upgrade = Command::new(env!("CARGO_BIN_EXE_fdholder"));
        let upgrade = upgrade.arg("upgrade").arg(&it.family.path).output().unwrap();
        crate::support::assert_exit(&upgrade, 0);
        assert_eq!(it.is_settled(), pid);
    }
}
