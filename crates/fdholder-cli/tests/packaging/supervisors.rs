//! The service folders of supervisors: what they say of themselves, and of the standby, holds.

use crate::installed;
use crate::support::family::signal;
use crate::support::system::{comm, System};
use crate::support::{content_at, deadline, eventually, id, marked_file};
use fdholder::{Client, Limit};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;

/// One that looks after a process, and how it is told.
pub struct Supervisor {
    /// The name of the process whose child it is.
    name: &'static str,
    /// Returns once the service is ready.
    pub start: &'static str,
    upgrade: &'static str,
    stop: &'static str,
}

/// The options of s6-svwait hold when the service folder is known.
pub const S6: Supervisor = Supervisor {
    name: "s6-supervise",
    start: "cp -r /usr/share/doc/fdholder/examples/s6/fdholder /run/service/
            s6-svscanctl -a /run/service
            until s6-svwait -U -t 30000 /run/service/fdholder; do sleep 0.01; done",
    upgrade: "s6-svc -2 /run/service/fdholder",
    stop: "s6-svc -wD -d /run/service/fdholder",
};

pub fn s6() {
    S6.is_as_it_says();
}

/// s6-rc has s6-supervise run what is in the folder of a longrun. (Debian has no s6-rc.)
pub fn s6_rc() {
    let start = "cp -r /usr/share/doc/fdholder/examples/s6-rc/fdholder /run/service/
                 test \"$(cat /run/service/fdholder/type)\" = longrun
                 s6-svscanctl -a /run/service
                 until s6-svwait -U -t 30000 /run/service/fdholder; do sleep 0.01; done";
    Supervisor { start, ..S6 }.is_as_it_says();
}

pub const RUNIT: Supervisor = Supervisor {
    name: "runsv",
    start: "mkdir -p /etc/sv /run/sv
            cp -r /usr/share/doc/fdholder/examples/runit/fdholder /etc/sv/
            ln -s /etc/sv/fdholder /run/sv/
            runsvdir -P /run/sv >>/srv/log 2>&1 &
            until SVDIR=/run/sv sv -w 30 start fdholder; do sleep 0.01; done",
    upgrade: "SVDIR=/run/sv sv 2 fdholder",
    stop: "SVDIR=/run/sv sv -w 30 down fdholder",
};

pub fn runit() {
    RUNIT.is_as_it_says();
}

pub const OPENRC: Supervisor = Supervisor {
    name: "supervise-daemo",
    start: "mkdir /run/openrc; touch /run/openrc/softlevel; openrc default
            cp /usr/share/doc/fdholder/examples/openrc/fdholder /etc/init.d/
            cp /usr/share/doc/fdholder/examples/openrc/fdholder.confd /etc/conf.d/fdholder
            echo 'error_logger=\"cat >>/srv/log\"' >>/etc/conf.d/fdholder
            rc-service fdholder start",
    upgrade: "rc-service fdholder reload",
    stop: "rc-service fdholder stop",
};

pub fn openrc() {
    OPENRC.is_as_it_says();
}

impl Supervisor {
    fn is_as_it_says(&self) {
        let system = installed();
        system.run(self.start);
        let path = system.at("run/fdholder/holder");
        // It is ready, so it answers.
        let mut client = Client::connect(&path, deadline()).unwrap();
        for number in 0..50 {
            let (file, _) = marked_file(&system.share(), &format!("{number}"));
            client.store(&id(&format!("{number}")), Limit::never(), &file, deadline()).unwrap();
        }
        let before = content_at(&path);
        assert_eq!(before.len(), 50);
        let mut pid = self.settled(&system);
        assert!(is_unprivileged(pid));

        for _ in 0..2 {
            signal(pid, Signal::KILL);
            assert_eq!(content_at(&path), before, "{}", system.log());
            let next = self.settled(&system);
            assert_ne!(next, pid);
            pid = next;
            assert_eq!(content_at(&path), before);
        }

        let ready = || system.log().matches(": ready on ").count();
        let seen = ready();
        system.run(self.upgrade);
        eventually("it is another program", || ready() > seen);
        assert_eq!(self.settled(&system), pid);
        assert_eq!(content_at(&path), before);

        system.run(self.stop);
        eventually("all have ended", || system.pids("fdholder").is_empty());
        system.run(self.start_again());
        self.settled(&system);
        assert!(content_at(&path).is_empty());
        system.run(self.stop);
    }

    /// As `start` is for what is not installed yet.
    fn start_again(&self) -> &'static str {
        match self.name {
            "s6-supervise" => "s6-svc -wU -u /run/service/fdholder",
            "runsv" => "SVDIR=/run/sv sv -w 30 start fdholder",
            _ => "rc-service fdholder start",
        }
    }

    /// Waits until the supervised process serves, and has a standby that has everything. Returns
    /// its pid.
    fn settled(&self, system: &System) -> u32 {
        let mut settled = None;
        eventually("the supervised one serves, with a standby", || {
            let pids = system.pids("fdholder");
            let supervised = pids.iter().find(|&&pid| comm(parent(pid)).trim_end() == self.name);
            let log = system.log();
            let last = log.rfind(": ready on ").map(|at| &log[at..]);
            settled = supervised.copied().filter(|&pid| {
                let serves = System::inner(pid).map(|pid| format!("(pid {pid})"));
                let line = last.and_then(|last| last.lines().next()).unwrap_or_default();
                serves.is_some_and(|serves| line.contains(&serves))
            });
            pids.len() == 2
                && settled.is_some()
                && last.is_some_and(|last| last.contains(" has everything"))
        });
        settled.unwrap()
    }
}

fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(") ").next().unwrap_or_default();
    rest.split_whitespace().map(str::to_owned).collect()
}

fn parent(pid: u32) -> u32 {
    stat(pid).get(1).and_then(|parent| parent.parse().ok()).unwrap_or_default()
}

/// Whether it runs as another user, and has no capabilities.
fn is_unprivileged(pid: u32) -> bool {
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    let status = fs::read_to_string(status).unwrap();
    let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    !of("Uid:").starts_with("0\t") && of("CapEff:") == "0000000000000000"
}
