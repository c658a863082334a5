//! Memory runs out (`RLIMIT_AS`, as `ulimit -v` and strict overcommit give), whatever takes it:
//! the daemon lives, nothing that it has acknowledged is lost, and afterwards everything works.

use crate::support::daemon::serve;
use crate::support::family::is_alive;
use crate::support::starving::{assert_works, attack, half_a_request, name, try_store, ATTACKS};
use crate::support::{assert_exit, suite, Daemon, Family, Rules};
use fdholder::Identifier;
use rustix::process::{prlimit, Pid, Resource, Rlimit};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Bytes that the daemon may have besides those it has.
const SPARE: [u64; 3] = [1 << 20, 4 << 20, 16 << 20];

/// Lets a process have so much more address space than it has.
fn leave(pid: u32, spare: u64) {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = pages * 4096 + spare;
    let limit = Rlimit { current: Some(limit), maximum: None };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::As, limit).unwrap();
}

fn filled(options: &[&str], count: usize) -> (tempfile::TempDir, Daemon, BTreeSet<Identifier>) {
    let (folder, daemon) = serve(&[&["-n", "1000", "-c", "400"], options].concat());
    let held: BTreeSet<_> = (0..count).map(name).collect();
    assert!(held.iter().all(|name| try_store(&daemon.path, name)));
    (folder, daemon, held)
}

/// One daemon bears them all, one after the other.
fn bears_all(spare: u64) {
    let (_folder, daemon, mut held) = filled(&[], 250);
    for (what, sent) in ATTACKS {
        leave(daemon.pid(), spare);
        held.append(&mut attack(&daemon.path, &sent()));
        assert!(is_alive(daemon.pid()), "{what}, {spare}: it has ended");
        assert_works(&daemon.path, &held, &format!("{what}, {spare}"));
    }
}

#[test]
fn daemon_without_memory_loses_nothing_1_mib() {
    bears_all(SPARE[0]);
}

#[test]
fn daemon_without_memory_loses_nothing_4_mib() {
    bears_all(SPARE[1]);
}

#[test]
fn daemon_without_memory_loses_nothing_16_mib() {
    bears_all(SPARE[2]);
}

/// Compiled rules take memory of the C library's, which is had without the reserve.
#[test]
fn daemon_without_memory_for_rules_has_clients_wait() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("({})", ["a{1,40}b*"; 2].join("|"));
    let rules = Rules::all(folder.path().join("rules")).regexes("uid/self", ".*", &long);
    let (_holder, daemon, mut held) = filled(&["-i", rules.dir.to_str().unwrap()], 20);
    // It takes a part of this, which others have.
    leave(daemon.pid(), SPARE[1]);
    for round in 0..3 {
        // What has changed is read and compiled again.
        let rules = Rules { dir: rules.dir.clone() };
        rules.regexes("uid/self", ".*", &format!("{long}|{round}|.*"));
        if try_store(&daemon.path, &name(2000 + round)) {
            held.insert(name(2000 + round));
        }
        held.append(&mut attack(&daemon.path, &half_a_request()));
        assert!(is_alive(daemon.pid()), "round {round}");
    }
    assert_works(&daemon.path, &held, "rules");
}

/// Services that tell much, each through its front door, while clients take all memory.
#[test]
fn daemon_without_memory_bears_what_services_say() {
    let (_folder, daemon, mut held) = filled(&[], 20);
    let path = daemon.path.to_str().unwrap();
    let door = |service: usize| PathBuf::from(format!("{path}.s{service}.notify"));
    for service in 0..20 {
        let service = format!("s{service}");
        let made = suite::fdholder(["exec", "--notify", &service, path, "--", "true"]).output();
        assert_exit(&made.unwrap(), 0);
    }
    leave(daemon.pid(), SPARE[0]);
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    for round in 0..20 {
        for service in 0..20 {
            let status = "x".repeat(400 + round);
            // There may be no room in its queue.
            let _ = sender.send_to(format!("READY=1\nSTATUS={status}").as_bytes(), door(service));
        }
        held.append(&mut attack(&daemon.path, &half_a_request()));
        assert!(is_alive(daemon.pid()), "round {round}");
    }
    assert_works(&daemon.path, &held, "services");
}

/// The primary lacks memory while a standby follows it, which has everything afterwards.
#[test]
fn primary_without_memory_keeps_its_standby() {
    let mut family = Family::with(&["--standby", "-n", "1000", "-c", "400"]);
    let mut held: BTreeSet<_> = (0..100).map(name).collect();
    assert!(held.iter().all(|name| try_store(&family.path, name)));
    let (primary, _) = family.pair();
    leave(primary, SPARE[1]);
    for (what, sent) in ATTACKS {
        held.append(&mut attack(&family.path, &sent()));
        assert!(is_alive(primary), "{what}: {}", family.log());
    }
    assert_works(&family.path, &held, "pair");
    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(Pid::from_raw(primary.cast_signed()), Resource::As, unlimited).unwrap();
    let (primary, _) = family.pair();
    family.kill(primary);
    assert_works(&family.path, &held, "after the primary");
}
