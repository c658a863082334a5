//! Signals that a limit or a write raises, and limits on the size of files.

use crate::support::daemon::serve_under;
use crate::support::family::{is_alive, signal};
use crate::support::{assert_exit, deadline, eventually, id, suite, Family};
use fdholder::{Client, Limit, Standby};
use rustix::process::{prlimit, Pid, Resource, Rlimit, Signal};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// What ends or stops a process by default, without anybody having meant to end it.
const HARMLESS: [Signal; 11] = [
    Signal::PIPE,
    Signal::XFSZ,
    Signal::XCPU,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
    Signal::TTOU,
    Signal::USR1,
    Signal::POWER,
    Signal::STKFLT,
];

fn store(client: &mut Client, name: &str) {
    let null = File::open("/dev/null").unwrap();
    client.store(&id(name), Limit::never(), &null, deadline()).unwrap();
}

fn no_file_size(pid: u32) {
    let limit = Rlimit { current: Some(0), maximum: Some(0) };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::Fsize, limit).unwrap();
}

/// A service that tells that it is ready, through its front door.
fn tell_ready(path: &Path) {
    let tell = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
                s.connect(os.environ['NOTIFY_SOCKET']); s.send(b'READY=1\\nSTATUS=fine')";
    let path = path.to_str().unwrap();
    let arguments = ["exec", "--notify", "svc", path, "--", "python3", "-c", tell];
    assert_exit(&suite::fdholder(arguments).output().unwrap(), 0);
}

#[test]
fn signals_that_limits_raise_end_neither_primary_nor_standby() {
    let family = Family::with(&["--standby"]);
    store(&mut family.client(), "kept");
    let pair = family.pair();
    for which in HARMLESS {
        signal(pair.0, which);
        signal(pair.1, which);
    }
    for real_time in 34..=64 {
        for pid in [pair.0, pair.1] {
            // By name the C libraries differ in which they keep for themselves.
            let sent =
                Command::new("kill").args([format!("-{real_time}"), pid.to_string()]).status();
            assert!(sent.unwrap().success());
        }
    }
    // What has come before is dealt with by the time that this is answered, here and there.
    store(&mut family.client(), "later");
    assert_eq!(family.pair(), pair, "{}", family.log());
}

#[test]
fn signals_stay_ignored_after_an_upgrade_and_a_promotion() {
    let mut family = Family::with(&["--standby"]);
    store(&mut family.client(), "kept");
    let (primary, _) = family.pair();
    assert_exit(&suite::fdholder(["upgrade", family.path.to_str().unwrap()]).output().unwrap(), 0);
    let (upgraded, standby) = family.pair();
    assert_eq!(upgraded, primary);
    for which in HARMLESS {
        signal(upgraded, which);
    }
    store(&mut family.client(), "upgraded");
    family.kill(upgraded);
    eventually("the standby serves", || family.primary() == standby);
    for which in HARMLESS {
        signal(standby, which);
    }
    store(&mut family.client(), "promoted");
    assert_eq!(family.client().list(deadline()).unwrap().len(), 3);
}

/// Whatever the limit is, and whatever is written to files in memory.
#[test]
fn daemon_with_a_limit_on_file_size_serves() {
    for limit in ["ulimit -f 0", "ulimit -Sf 0", "ulimit -f 1", "ulimit -f 8"] {
        let (_folder, daemon) = serve_under(limit, &["--standby", "-n", "100"]);
        let mut client = daemon.client();
        store(&mut client, "kept");
        tell_ready(&daemon.path);
        let upgraded = suite::fdholder(["upgrade", daemon.path.to_str().unwrap()]).output();
        let upgraded = upgraded.unwrap();
        let is_too_low = ["ulimit -f 0", "ulimit -f 1"].contains(&limit);
        assert_eq!(upgraded.status.success(), !is_too_low, "{limit}: {upgraded:?}");
        let held = daemon.client().list(deadline()).unwrap();
        assert!(held.contains(&id("kept")), "{limit}");
        assert!(is_alive(daemon.pid()), "{limit}");
    }
}

/// Each process loses the limit while it serves, or follows: the roll can be written to.
#[test]
fn file_size_limit_that_comes_later_loses_nothing() {
    let mut family = Family::with(&["--standby"]);
    store(&mut family.client(), "kept");
    let (primary, standby) = family.pair();
    no_file_size(primary);
    // It is told of as given up, where nothing may be written any more.
    family.kill(standby);
    store(&mut family.client(), "later");
    assert!(is_alive(primary), "{}", family.log());
    // The next one inherits the limit, and cannot write to the log.
    let next = || family.alive().into_iter().find(|pid| *pid != primary);
    eventually("there is another standby", || next().is_some());
    eventually("it has everything", || has_standby(&family.path));
    family.kill(primary);
    eventually("it serves", || Client::connect(&family.path, deadline()).is_ok());
    assert_eq!(family.client().list(deadline()).unwrap(), [id("kept"), id("later")]);
}

fn has_standby(path: &Path) -> bool {
    let mut client = Client::connect_negotiated(path, deadline()).unwrap();
    matches!(client.status(deadline()).unwrap().standby, Standby::Ready(_))
}
