//! From the start of the daemon to its end.

use crate::serve;
use crate::support::daemon::serve_under;
use crate::support::family::is_alive;
use crate::support::{
    assert_exit, deadline, eventually, id, marked_file, stderr, suite, Daemon, Rules, Suite,
};
use fdholder::{Client, Entry, Limit};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

fn null() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn without_rules_the_socket_is_for_the_owner() {
    let (_folder, daemon) = serve(&[]);
    let metadata = fs::metadata(&daemon.path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    daemon.client().store(&id("x"), Limit::never(), null(), deadline()).unwrap();
    daemon.client().getdump(deadline()).unwrap();
}

#[test]
fn with_rules_they_decide_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let rules = Rules::all(folder.path().join("rules"));
    let mut command = Suite::Ours.command("s6-fdholder-daemon");
    command.args(["-1", "-v0", "-i", rules.dir.to_str().unwrap(), path.to_str().unwrap()]);
    let daemon = Daemon::spawn(command, &path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
    daemon.client().list(deadline()).unwrap();
}

#[test]
fn a_changed_rule_holds_for_the_next_connection() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::all(folder.path().join("rules"));
    let path = folder.path().join("holder");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let list = rules.dir.join("uid/self/env/S6_FDHOLDER_LIST");
    let mut connected_before = daemon.client();
    connected_before.list(deadline()).unwrap();
    for _ in 0..100 {
        fs::write(&list, "").unwrap();
        assert!(daemon.client().list(deadline()).is_err());
        fs::write(&list, "\n").unwrap();
        daemon.client().list(deadline()).unwrap();
    }
    fs::remove_file(&list).unwrap();
    connected_before.list(deadline()).expect("rights are decided once, at accept");
}

#[test]
fn readiness_is_one_newline_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "-1", "-v0"]);
    command.arg(&path);
    let (daemon, mut stdout) = Daemon::begin(command, &path);
    let mut said = Vec::new();
    stdout.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"\n");
    let mut client = Client::connect(&path, deadline()).unwrap();
    let (file, _) = marked_file(folder.path(), "file");
    for number in 0..10 {
        client.store(&id(&number.to_string()), Limit::never(), &file, deadline()).unwrap();
    }
    for number in 0..=1 {
        let behind = fs::read_link(format!("/proc/{}/fd/{number}", daemon.pid())).unwrap();
        assert_eq!(behind.to_str().unwrap(), "/dev/null", "what is held gets no standard number");
    }
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let refused = suite::fdholder(["serve", file.to_str().unwrap()]).output().unwrap();
    assert_exit(&refused, 111);
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    let nowhere = folder.path().join("no/such/folder");
    let refused = suite::fdholder(["serve", nowhere.to_str().unwrap()]).output().unwrap();
    assert_exit(&refused, 111);
    assert_eq!(stderr(&refused).lines().count(), 1, "{refused:?}");
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let (_folder, mut daemon) = serve(&[]);
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(daemon.path.exists());
    let kept = suite::fdholder(["serve", "-D", daemon.path.to_str().unwrap()]).output().unwrap();
    assert_exit(&kept, 111);
    let mut command = suite::fdholder(["serve", "-1", "-v0"]);
    command.arg(&daemon.path);
    let next = Daemon::spawn(command, &daemon.path);
    assert_eq!(next.client().list(deadline()), Ok(vec![]));
}

#[test]
fn the_exit_code_says_what_was_left() {
    let (_folder, daemon) = serve(&[]);
    assert_eq!(daemon.terminate(), Some(0));
    let (_folder, daemon) = serve(&[]);
    daemon.client().store(&id("x"), Limit::never(), null(), deadline()).unwrap();
    assert_eq!(daemon.terminate(), Some(1));
    let (_folder, mut daemon) = serve(&[]);
    daemon.client().store(&id("x"), Limit::never(), null(), deadline()).unwrap();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(1), "Ctrl-C is no worse");
    let (_folder, daemon) = serve(&["-T", "1"]);
    // In the middle of a request, for ever.
    let mut stuck = UnixStream::connect(&daemon.path).unwrap();
    stuck.write_all(&[0]).unwrap();
    daemon.client().store(&id("x"), Limit::never(), null(), deadline()).unwrap();
    assert_eq!(daemon.terminate(), Some(3));
}

#[test]
fn a_lame_duck_lets_clients_finish() {
    let (_folder, mut daemon) = serve(&["-T", "600000"]);
    let null = null();
    let mut client = daemon.client();
    let mut set = client.begin_setdump(2, deadline()).unwrap();
    let entry = |name| [Entry { id: id(name), limit: Limit::never(), fd: null.as_fd() }];
    set.send_entries(&entry("a"), deadline()).unwrap();
    let idle = daemon.client();
    daemon.signal(Signal::TERM);
    // From when it is one, nobody is accepted any more: they wait in the queue.
    eventually("the lame duck begins", || {
        let mut late = daemon.client();
        let soon = fdholder::Deadline::after(std::time::Duration::from_millis(20));
        late.list(soon).is_err()
    });
    set.send_entries(&entry("b"), deadline()).unwrap();
    drop((client, idle));
    assert_eq!(daemon.wait().code().map(|code| code & 1), Some(1), "it held what came last");
}

/// Nor do clients one of whom is always in the middle of something, and makes progress.
#[test]
fn a_lame_duck_does_not_wait_for_ever() {
    let (_folder, mut daemon) = serve(&["-t", "1000"]);
    let request = b"\0\0\0\x04\0\0D\x01x\0";
    let connect = || UnixStream::connect(&daemon.path).unwrap();
    let clients: Vec<_> = (0..2).map(|_| connect()).collect();
    let has_begun = std::sync::Barrier::new(clients.len() + 1);
    let ask = |mut client: UnixStream| {
        client.write_all(&request[..1]).unwrap();
        has_begun.wait();
        let next = [&request[1..], &request[..1]].concat();
        while client.write_all(&next).and_then(|()| client.read_exact(&mut [0; 7])).is_ok() {}
    };
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| ask(client));
        }
        has_begun.wait();
        daemon.client().list(deadline()).unwrap();
        daemon.signal(Signal::TERM);
        eventually("it has ended", || !is_alive(daemon.pid()));
    });
    daemon.wait();
}

#[test]
fn a_client_that_takes_too_long_is_dropped() {
    let (_folder, daemon) = serve(&["-t", "100"]);
    let mut idle = daemon.client();
    idle.list(deadline()).unwrap();
    // One says nothing at all, one stops half-way; both are hung up on.
    let mut silent = UnixStream::connect(&daemon.path).unwrap();
    let mut slow = UnixStream::connect(&daemon.path).unwrap();
    slow.write_all(&[0, 0]).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(slow.read(&mut [0]).unwrap(), 0);
    idle.list(deadline()).expect("one that is in the middle of nothing may stay");
}

#[test]
fn clients_beyond_the_limit_wait() {
    // More than what the daemon's own user may have in any case.
    let (_folder, daemon) = serve(&["-c", "10"]);
    let mut clients: Vec<_> = (0..10).map(|_| daemon.client()).collect();
    for client in &mut clients {
        client.list(deadline()).unwrap();
    }
    let mut one_more = daemon.client();
    let soon = fdholder::Deadline::after(std::time::Duration::from_millis(50));
    assert!(one_more.list(soon).is_err());
    drop((clients, one_more));
    daemon.client().list(deadline()).unwrap();
}

/// s6's daemon stops at 256.
#[test]
fn three_hundred_clients_at_once() {
    let (_folder, daemon) = serve(&["-c", "300"]);
    let mut clients: Vec<_> = (0..300).map(|_| daemon.client()).collect();
    for client in &mut clients {
        client.list(deadline()).unwrap();
    }
}

/// A daemon that cannot start leaves nothing behind.
#[test]
fn a_failed_start_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let script = "ulimit -n 200; exec \"$0\" \"$@\"";
    let rules = folder.path().join("no rules");
    for options in [&["-v1"][..], &["-x", rules.to_str().unwrap()]] {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder"), "serve"]);
        let output = command.args(options).arg(&path).output().unwrap();
        assert_exit(&output, 111);
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
        assert!(!path.exists());
    }
}

#[test]
fn the_soft_limit_on_open_files_is_raised() {
    let (_folder, daemon) = serve_under("ulimit -Sn 64", &["-n", "500"]);
    let (mut client, null) = (daemon.client(), null());
    for number in 0..500 {
        client.store(&id(&number.to_string()), Limit::never(), &null, deadline()).unwrap();
    }
}

#[test]
fn it_says_how_many_it_can_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = Command::new("sh");
    let script = "ulimit -n 600; exec \"$0\" serve -1 -c 4 -n 1000 \"$1\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&path);
    let log = File::create(folder.path().join("log")).unwrap();
    let daemon = Daemon::spawn(
        {
            command.stderr(log);
            command
        },
        &path,
    );
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    let said = log.split("holding up to ").nth(1).and_then(|rest| rest.split(' ').next());
    let capacity: usize = said.unwrap().parse().unwrap();
    assert!((100..600).contains(&capacity), "{log}");
    // It holds as many, and the next one is refused with what was held still there.
    let (mut client, null) = (daemon.client(), null());
    for number in 0..capacity {
        client.store(&id(&number.to_string()), Limit::never(), &null, deadline()).unwrap();
    }
    let full = client.store(&id("one too many"), Limit::never(), &null, deadline());
    assert_eq!(full.unwrap_err().errno(), fdholder::Errno::NFILE);
    assert_eq!(client.list(deadline()).unwrap().len(), capacity);
}

/// What has arrived before SIGTERM is answered: many requests, or one of a client that has
/// just come.
#[test]
fn a_lame_duck_answers_what_it_was_asked() {
    for (count, connected_before) in [(2048, true), (1, false)] {
        let (_folder, mut daemon) = serve(&[]);
        let connect = || UnixStream::connect(&daemon.path).unwrap();
        let connected = connected_before.then(connect);
        daemon.client().list(deadline()).unwrap();
        let request: fdholder::Request<std::os::fd::OwnedFd> =
            // 64 bytes, so that a read of any power of two ends with a whole request.
            fdholder::Request::Retrieve { id: id(&"x".repeat(54)), delete: false };
        daemon.signal(Signal::STOP);
        let mut stream = connected.unwrap_or_else(connect);
        stream.write_all(&request.into_message().bytes().repeat(count)).unwrap();
        daemon.signal(Signal::TERM);
        daemon.signal(Signal::CONT);
        let mut replies = Vec::new();
        // Hung up on behind the last one.
        let _ = stream.read_to_end(&mut replies);
        assert!(replies == b"\0\0\0\x01\0\0\x02".repeat(count), "ENOENT for each of {count}");
        daemon.wait();
    }
}

/// Not of the daemon: of these tests, as its standby would serve when it is killed.
#[test]
fn nothing_outlives_its_test() {
    let (_folder, daemon) = serve(&["--standby"]);
    eventually("a standby has everything", || {
        let output = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["standby"] == "ready"
    });
    let processes = daemon.processes();
    assert_eq!(processes.len(), 2, "{processes:?}");
    drop(daemon);
    assert!(!processes.into_iter().any(is_alive));
}

/// A daemon whose log nobody reads goes on.
#[test]
fn a_log_that_cannot_be_written_harms_nobody() {
    for closed in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = suite::fdholder(["serve", "-1", "-v1"]);
        command.arg(&path).stderr(writer);
        let daemon = Daemon::spawn(command, &path);
        daemon.client().store(&id("x"), Limit::never(), null(), deadline()).unwrap();
        // Either the reader has gone, or it does not read.
        let reader = (!closed).then_some(reader);
        // More warnings than a pipe has room for.
        for _ in 0..1500 {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"\0\0\0\x01\0\0Z").unwrap();
            // Until the daemon has hung up.
            let _ = stream.read(&mut [0]);
        }
        assert_eq!(daemon.client().list(deadline()), Ok(vec![id("x")]));
        drop(reader);
    }
}
