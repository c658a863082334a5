//! A holder that is stopped is given up by every command, unless it is told to wait for ever.

use crate::support::rights::Guarded;
use crate::support::{deadline, is_missing, stderr, stdout, suite, Suite, PATIENCE};
use fdholder::Client;
use rustix::net::{bind, listen, socket, AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::Signal;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// STOPPED is where the holder listens that does not answer, OTHER one that does.
const COMMANDS: &[(&[&str], i32)] = &[
    (&["list", "STOPPED"], 1),
    (&["list", "--json", "STOPPED"], 1),
    (&["list", "--long", "STOPPED"], 1),
    (&["list", "--watch", "STOPPED"], 1),
    (&["status", "STOPPED"], 1),
    (&["metrics", "STOPPED"], 1),
    (&["store", "STOPPED", "x"], 1),
    (&["delete", "STOPPED", "x"], 1),
    (&["retrieve", "STOPPED", "x", "true"], 1),
    (&["getdump", "STOPPED", "true"], 1),
    (&["setdump", "STOPPED"], 1),
    (&["exec", "--fd", "x", "STOPPED", "--", "true"], 1),
    (&["exec", "--missing-ok", "--fd-prefix", "x", "STOPPED", "--", "true"], 1),
    (&["exec", "--notify", "x", "STOPPED", "--", "true"], 1),
    (&["bind", "STOPPED", "x", "tcp:127.0.0.1:0"], 1),
    (&["upgrade", "STOPPED"], 1),
    (&["transferdump", "STOPPED", "OTHER"], 1),
    (&["transferdump", "OTHER", "STOPPED"], 2),
    (&["transferdump", "--relay", "OTHER", "STOPPED"], 2),
    (&["transferdump", "--dry-run", "STOPPED", "OTHER"], 1),
    (&["transferdump", "--dry-run", "OTHER", "STOPPED"], 2),
];

fn start(words: &[&str], stopped: &str, other: &str) -> Child {
    let words = words.iter().map(|word| match *word {
        "STOPPED" => stopped,
        "OTHER" => other,
        word => word,
    });
    let mut command = suite::fdholder(words);
    command.env("S6_FD#", "1").env("S6_FD_0", "0").env("S6_FDID_0", "new");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What came of it; it ends, although the holder does nothing.
fn end(mut child: Child, what: &str) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it goes on waiting: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn every_command_gives_up_a_stopped_holder() {
    for suite in [Suite::Ours, Suite::S6V211, Suite::S6V213] {
        if !suite.is_installed() {
            is_missing(&suite.to_string());
            continue;
        }
        let (stopped, other) = (Guarded::holding(suite, 1), Guarded::holding(Suite::Ours, 1));
        stopped.daemon.signal(Signal::STOP);
        let start = |words| start(words, stopped.path(), other.path());
        let children: Vec<_> = COMMANDS.iter().map(|(words, _)| start(words)).collect();
        // Unless that is what is wanted.
        let patient: [&[&str]; 3] = [
            &["list", "-t", "0", "STOPPED"],
            &["status", "-t", "0", "STOPPED"],
            &["transferdump", "-t", ":", "STOPPED", "OTHER"],
        ];
        let mut patient = patient.map(start);
        for ((words, code), child) in COMMANDS.iter().zip(children) {
            let what = format!("{suite}: {words:?}");
            let output = end(child, &what);
            assert_eq!(output.status.code(), Some(*code), "{what}: {output:?}");
            assert!(stderr(&output).contains("is it stopped"), "{what}: {output:?}");
            let is_down = words[0] != "metrics" || stdout(&output).trim_end().ends_with(" 0");
            assert!(is_down, "{what}: {output:?}");
        }
        for child in &mut patient {
            assert!(child.try_wait().unwrap().is_none(), "{suite}");
        }
        stopped.daemon.signal(Signal::CONT);
        for child in patient {
            assert!(end(child, "it goes on").status.success(), "{suite}");
        }
    }
}

/// Its queue is full, so that even the connection waits.
#[test]
fn commands_give_up_a_holder_that_accepts_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full");
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    // There is room for one more than was asked for.
    let _waiting = Client::connect(&path, deadline()).unwrap();
    let other = Guarded::holding(Suite::Ours, 0);
    let path = path.to_str().unwrap();
    let children: Vec<_> =
        COMMANDS.iter().map(|(words, _)| start(words, path, other.path())).collect();
    for ((words, _), child) in COMMANDS.iter().zip(children) {
        let output = end(child, &format!("{words:?}"));
        assert_eq!(output.status.code(), Some(111), "{words:?}: {output:?}");
        assert!(stderr(&output).contains("is it stopped, is it full?"), "{output:?}");
    }
}

/// The names of s6's programs wait as those do.
#[test]
fn s6_names_wait_for_a_stopped_holder() {
    let stopped = Guarded::holding(Suite::Ours, 0);
    stopped.daemon.signal(Signal::STOP);
    let mut command = Suite::Ours.command("s6-fdholder-list");
    let mut waiting = command.arg(stopped.path()).spawn().unwrap();
    // Another one that began later has given up by now.
    end(start(&["list", "STOPPED"], stopped.path(), ""), "it waits");
    assert!(waiting.try_wait().unwrap().is_none());
    stopped.daemon.signal(Signal::CONT);
    assert!(waiting.wait().unwrap().success());
}
