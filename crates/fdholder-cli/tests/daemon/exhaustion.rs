//! Memory runs out (`RLIMIT_AS`, as `ulimit -v` and strict overcommit give), whatever takes it:
//! the daemon lives, nothing that it has acknowledged is lost, and afterwards everything works.

use crate::support::daemon::serve;
use crate::support::family::is_alive;
use crate::support::{assert_exit, deadline, eventually, id, suite, Daemon, Family, Rules};
use fdholder::{Client, Deadline, Identifier, Limit};
use rustix::process::{prlimit, Pid, Resource, Rlimit};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many clients attack at once.
const ATTACKERS: usize = 300;

/// What an attacker sends, and never reads the answer to.
type Attack = fn() -> Vec<u8>;

const ATTACKS: [(&str, Attack); 7] = [
    ("half-sent requests", half_a_request),
    ("connections that say nothing", Vec::new),
    ("lists that nobody reads", || requests(b"L", 100)),
    ("dumps that nobody reads", || requests(b"?", 100)),
    ("sets that are announced", || request(&[b"!".as_slice(), &900_u32.to_be_bytes()].concat())),
    ("snapshots that nobody reads", || {
        [request(b"+\0\0\0\0\x05"), requests(b"+\x01\x01", 100)].concat()
    }),
    ("states that nobody reads", || [request(b"+\0\0\0\0\x05"), requests(b"+\x09", 100)].concat()),
];

/// Bytes that the daemon may have besides those it has.
const SPARE: [u64; 3] = [1 << 20, 4 << 20, 16 << 20];

fn request(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&len.to_be_bytes(), &[0, 0][..], payload].concat()
}

fn requests(payload: &[u8], count: usize) -> Vec<u8> {
    request(payload).repeat(count)
}

fn half_a_request() -> Vec<u8> {
    let mut half = request(&vec![b'.'; 60_000]);
    half[..4].copy_from_slice(&68_000_u32.to_be_bytes());
    half
}

/// Lets a process have so much more address space than it has.
fn leave(pid: u32, spare: u64) {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = pages * 4096 + spare;
    let limit = Rlimit { current: Some(limit), maximum: None };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::As, limit).unwrap();
}

/// Stores something, if the holder can: whether it was acknowledged.
fn try_store(path: &Path, name: &Identifier) -> bool {
    let null = File::open("/dev/null").unwrap();
    let soon = || Deadline::after(Duration::from_secs(10));
    let client = Client::connect(path, soon());
    client.and_then(|mut client| client.store(name, Limit::never(), &null, soon())).is_ok()
}

/// Long enough that lists and dumps take something.
fn name(number: usize) -> Identifier {
    id(&format!("{number:0>200}"))
}

/// Has a holder attacked; returns what it has acknowledged meanwhile.
fn attack(path: &Path, sent: &[u8]) -> BTreeSet<Identifier> {
    let mut acknowledged = BTreeSet::new();
    let mut attackers = Vec::new();
    for number in 0..ATTACKERS {
        // The daemon is about to let it in, or it is not there any more.
        let Ok(mut attacker) = UnixStream::connect(path) else { break };
        attacker.set_nonblocking(true).unwrap();
        // It takes no more, or has hung up.
        let _ = attacker.write(sent);
        attackers.push(attacker);
        if number % 20 == 0 && try_store(path, &name(1000 + number)) {
            acknowledged.insert(name(1000 + number));
        }
    }
    acknowledged
}

fn assert_works(path: &Path, expected: &BTreeSet<Identifier>, what: &str) {
    let list = || Client::connect(path, deadline()).ok()?.list(deadline()).ok();
    eventually(&format!("{what}: it lists"), || list().is_some());
    let held: BTreeSet<_> = list().unwrap().into_iter().collect();
    let missing: Vec<_> = expected.difference(&held).collect();
    assert!(missing.is_empty(), "{what}: lost {missing:?}");
    eventually(&format!("{what}: it stores"), || try_store(path, &id("afterwards")));
    let mut client = Client::connect(path, deadline()).unwrap();
    client.retrieve(&id("afterwards"), deadline()).unwrap();
    assert!(client.getdump(deadline()).unwrap().len() > expected.len(), "{what}");
    client.delete(&id("afterwards"), deadline()).unwrap();
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
