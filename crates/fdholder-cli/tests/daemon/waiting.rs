//! `exec --wait`: for what is not held yet, and for a holder that is not there.

use crate::serve;
use crate::support::family::Family;
use crate::support::proxy::{Misdeed, Proxy, Seems};
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, stderr, suite, Daemon, Rules, Suite,
};
use fdholder::{Client, Limit};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn waiting(path: &Path, options: &[&str]) -> Child {
    let mut command = suite::fdholder(["exec", "--wait", "100000"]);
    command.args(options).arg(path).args(["--", "true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn store(path: &Path, name: &str) {
    let null = File::open("/dev/null").unwrap();
    let mut client = Client::connect(path, deadline()).unwrap();
    client.store(&id(name), Limit::never(), &null, deadline()).unwrap();
}

fn status(path: &Path) -> serde_json::Value {
    let mut command = suite::fdholder(["status", "--json", "--timeout", "20000"]);
    let output = command.arg(path).output().unwrap();
    assert_exit(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn wait_until_they_wait(path: &Path, count: usize) {
    eventually("all wait", || status(path)["waiting"] == count);
}

fn all_end(waiting: Vec<Child>) {
    for child in waiting {
        assert_exit(&child.wait_with_output().unwrap(), 0);
    }
}

/// Neither the socket nor its folder.
#[test]
fn exec_that_waits_waits_for_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/holder");
    let notify = ["--notify", "db"];
    let mut children = vec![waiting(&path, &["--fd", "web"]), waiting(&path, &notify)];
    let dead = folder.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    children.push(waiting(&dead, &["--fd-prefix", "w"]));
    // They have looked, and found nothing.
    let has_slept = |child: &Child| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        !status.contains("State:\tZ") && count.unwrap().trim().parse::<u32>().unwrap() > 10
    };
    eventually("they look again and again", || children.iter().all(has_slept));
    fs::create_dir(folder.path().join("run")).unwrap();
    let mut daemons = Vec::new();
    for path in [&path, &dead] {
        let mut command = suite::fdholder(["serve", "-1", "-v0"]);
        command.arg(path);
        daemons.push(Daemon::spawn(command, path));
        store(path, "web");
    }
    all_end(children);
}

/// One that ends hangs up on the first question, which is also s6's daemon's way to answer it.
#[test]
fn exec_that_waits_takes_no_fdholder_that_hangs_up_for_another() {
    let folder = tempfile::tempdir().unwrap();
    for options in [&["--notify", "db"][..], &["--notify", "db", "--fd", "web"]] {
        let path = folder.path().join("holder");
        let _ = fs::remove_file(&path);
        let ending = UnixListener::bind(&path).unwrap();
        let child = waiting(&path, options);
        drop(ending.accept().unwrap());
        drop(ending.accept().unwrap());
        fs::remove_file(&path).unwrap();
        drop(ending);
        let mut command = suite::fdholder(["serve", "-1", "-v0"]);
        command.arg(&path);
        let _daemon = Daemon::spawn(command, &path);
        store(&path, "web");
        all_end(vec![child]);
    }
}

#[test]
fn exec_that_waits_says_what_is_missing_when_the_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let exec = |path: &Path| {
        let mut command = suite::fdholder(["exec", "--wait", "60", "--fd", "web"]);
        command.arg(path).args(["--", "true"]).output().unwrap()
    };
    let output = exec(&path);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("no such socket"), "{output:?}");
    let (_folder, daemon) = serve(&[]);
    let output = exec(&daemon.path);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("retrieve fd for id web"), "{output:?}");
}

/// More than there are connections; and they look at nothing meanwhile.
#[test]
fn waiters_leave_the_connections_to_others() {
    for (connections, count) in [("1", 3), ("4", 12)] {
        let (_folder, daemon) = serve(&["-c", connections]);
        let mut children: Vec<_> =
            (0..count).map(|_| waiting(&daemon.path, &["--fd", "web"])).collect();
        children.extend((0..count).map(|_| waiting(&daemon.path, &["--fd-prefix", "we"])));
        wait_until_they_wait(&daemon.path, children.len());
        let before = status(&daemon.path);
        assert_eq!(before["connections"], 1, "the one that asks: {before}");
        let mut bind = suite::fdholder(["bind", "--timeout", "20000"]);
        bind.arg(&daemon.path).args(["web", "tcp:127.0.0.1:0"]);
        assert_exit(&bind.output().unwrap(), 0);
        all_end(children);
        let after = status(&daemon.path);
        assert_eq!(after["waiting"], 0);
        // Each has looked once, as bind has, and then been told.
        let refused = |status: &serde_json::Value| status["counts"]["retrieve.refused"].clone();
        assert_eq!((refused(&before), refused(&after)), (count.into(), (count + 1).into()));
    }
}

#[test]
fn waiters_go_on_waiting_for_the_next_daemon() {
    for next in ["upgrade", "takeover", "kill", "end"] {
        let mut family = Family::new();
        let pid = family.serve(&[]);
        let children = vec![
            waiting(&family.path, &["--fd", "web"]),
            waiting(&family.path, &["--fd-prefix", "web"]),
        ];
        wait_until_they_wait(&family.path, 2);
        match next {
            "upgrade" => {
                let output = suite::fdholder(["upgrade"]).arg(&family.path).output().unwrap();
                assert_exit(&output, 0);
            }
            "takeover" => drop(family.serve(&[])),
            "kill" => {
                family.kill(pid);
                family.serve(&[]);
            }
            _ => {
                crate::support::family::signal(pid, Signal::TERM);
                family.wait(pid);
                family.serve(&[]);
            }
        }
        store(&family.path, "web");
        all_end(children);
    }
}

/// Of a group that is made meanwhile a program gets all, or goes on waiting.
#[test]
fn exec_that_waits_for_a_group_gets_the_whole_group() {
    let (_folder, daemon) = serve(&[]);
    for turn in 0..10 {
        let group = format!("g{turn}");
        let mut command = suite::fdholder(["exec", "--wait", "100000", "--fd-prefix"]);
        command.arg(format!("{group}/")).arg(&daemon.path);
        command.args(["--", "sh", "-c", "echo $LISTEN_FDS"]).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_until_they_wait(&daemon.path, 1);
        let mut bind = suite::fdholder(["bind"]);
        bind.arg(&daemon.path).arg(&group).args(["tcp:127.0.0.1:0"; 3]);
        assert_exit(&bind.output().unwrap(), 0);
        assert_eq!(child.wait_with_output().unwrap().stdout, b"3\n", "{turn}");
    }
}

/// One of an earlier version, and s6's: they are looked at again and again, over connections that
/// others may have in between.
#[test]
fn exec_that_waits_looks_again_where_nobody_tells() {
    let (folder, daemon) = serve(&[]);
    for seems in [Seems::S6, Seems::KnowsNothing] {
        let at = folder.path().join(format!("{seems:?}"));
        fs::create_dir(&at).unwrap();
        let proxy = Proxy::new(&at, &daemon.path, seems, Misdeed::Lies, 0);
        let name = format!("late-{seems:?}");
        let child = waiting(&proxy.path, &["--fd", &name]);
        store(&daemon.path, &name);
        all_end(vec![child]);
    }
    if !Suite::S6V213.is_installed() {
        return is_missing("s6");
    }
    let path = folder.path().join("s6");
    let rules = Rules::all(folder.path().join("rules"));
    let daemon = Daemon::with_rules(Suite::S6V213, &path, &rules, &["-c", "2"]);
    let children: Vec<_> = (0..5).map(|_| waiting(&path, &["--fd", "web"])).collect();
    let mut bind: Command = suite::fdholder(["bind", "--timeout", "60000"]);
    assert_exit(&bind.arg(&daemon.path).args(["web", "tcp:127.0.0.1:0"]).output().unwrap(), 0);
    all_end(children);
}
