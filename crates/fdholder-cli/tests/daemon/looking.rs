//! What is shown of a holder: `list --long`, `status`, `metrics`.

use crate::serve;
use crate::support::daemon::serve_under;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, stderr, stdout, suite, Daemon, Rules, Suite,
    PATIENCE,
};
use fdholder::{Client, Limit};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn run(program: &str, arguments: &[&str], path: &Path) -> Output {
    suite::fdholder([program]).args(arguments).arg(path).output().unwrap()
}

fn json(program: &str, arguments: &[&str], path: &Path) -> Value {
    let output = run(program, &[&["--json"], arguments].concat(), path);
    assert_exit(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Something of several kinds, with a client that waits, and unread bytes.
struct Things {
    listener: TcpListener,
    _client: TcpStream,
    socket: UnixStream,
    _other: UnixStream,
}

impl Things {
    fn stored_with(client: &mut Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, mut other) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut other, b"12345").unwrap();
        let never = Limit::never();
        client.store(&id("web/10"), never, &listener, deadline()).unwrap();
        client.store(&id("web/9"), never, &socket, deadline()).unwrap();
        let hour = Limit::after(Duration::from_secs(3600));
        client.store(&id("a:\n"), hour, File::open("/dev/null").unwrap(), deadline()).unwrap();
        Self { listener, _client: waiting, socket, _other: other }
    }
}

#[test]
fn everything_that_is_held_is_shown() {
    let (_folder, daemon) = serve(&[]);
    let before = now();
    let things = Things::stored_with(&mut daemon.client());
    let all = json("list", &["--long"], &daemon.path);
    let ids: Vec<_> = all.as_array().unwrap().iter().map(|it| it["quoted"].as_str()).collect();
    assert_eq!(ids, [Some("a:\\n"), Some("web/9"), Some("web/10")]);
    let (null, socket, listener) = (&all[0], &all[1], &all[2]);
    assert_eq!(listener["kind"], "TCP listener");
    let address = things.listener.local_addr().unwrap().to_string();
    assert_eq!(listener["address"], address);
    assert_eq!((&listener["listening"], &listener["queue"]), (&Value::Bool(true), &1.into()));
    assert!(listener["queue_max"].as_u64() > Some(1));
    assert_eq!(listener["owner_uid"], rustix::process::getuid().as_raw());
    let since = listener["held_since"].as_u64().unwrap();
    assert!((before..=now()).contains(&since), "{since}");
    assert!(listener["expires_at"].is_null());
    assert_eq!((&socket["kind"], &socket["queue"]), (&"Unix socket".into(), &5.into()));
    assert_eq!((&null["kind"], &null["address"]), (&"device".into(), &"/dev/null".into()));
    let expires = null["expires_at"].as_u64().unwrap();
    assert!((before + 3599..=now() + 3600).contains(&expires), "{expires}");

    let text = run("list", &["--long"], &daemon.path);
    assert_exit(&text, 0);
    let text = stdout(&text);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("ID      KIND          ADDRESS"), "{text}");
    assert!(lines[1].starts_with("a:\\n    device        /dev/null"), "{text}");
    assert!(lines[1].contains("in 59 min"), "{text}");
    assert!(lines[3].contains(&address) && lines[3].contains(" 1/"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    // Nothing of it was changed, nor is anything left open.
    let copy = daemon.client().retrieve(&id("web/9"), deadline()).unwrap();
    let same = rustix::fs::fstat(&copy).unwrap().st_ino;
    assert_eq!(same, rustix::fs::fstat(&things.socket).unwrap().st_ino);
}

/// Who may list but not retrieve sees identifiers; who may retrieve some sees those.
#[test]
fn only_what_may_be_retrieved_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", ".", "^web/9$")
        .may("uid/self", &["LIST"]);
    let path = folder.path().join("holder");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let _things = Things::stored_with(&mut daemon.client());
    let all = json("list", &["--long"], &path);
    assert_eq!(all[1]["kind"], "Unix socket");
    assert!(all[2]["kind"].is_null() && !all[2]["held_since"].is_null(), "{all}");
    let rules = rules.write("uid/self/env/S6_FDHOLDER_LIST", "");
    for program in ["status", "metrics"] {
        assert_exit(&run(program, &[], &path), 1);
    }
    let output = run("list", &["--long"], &path);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("do not grant this user that"), "{output:?}");
    drop(rules);
}

#[test]
fn more_can_be_shown_than_can_be_open_at_once() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let mut client = daemon.client();
    for number in 0..600 {
        client.store(&id(&format!("{number}")), Limit::never(), &null, deadline()).unwrap();
    }
    let script = "ulimit -n 300; exec \"$0\" list --long --json \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    let output = command.output().unwrap();
    assert_exit(&output, 0);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 600);
    assert!(all.as_array().unwrap().iter().all(|it| it["kind"] == "device"));
}

#[test]
fn it_can_be_watched() {
    let (_folder, daemon) = serve(&[]);
    let mut command = suite::fdholder(["list", "--watch", "--json", "--interval", "5"]);
    let mut child = command.arg(&daemon.path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap());
    assert_eq!(next().unwrap(), serde_json::json!([]));
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    while next().unwrap().as_array().unwrap().is_empty() {}
    // A holder that is not there may come again.
    drop(daemon);
    while next().is_ok() {}
    child.kill().unwrap();
    child.wait().unwrap();
    let output = run("list", &["--watch"], Path::new("/nowhere/holder"));
    assert_exit(&output, 111);
}

/// On a terminal it fits, and has colours.
#[test]
fn a_terminal_gets_what_fits() {
    let (folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let long = "x".repeat(100);
    for number in 0..40 {
        let name = id(&format!("{long}{number}"));
        daemon.client().store(&name, Limit::never(), &null, deadline()).unwrap();
    }
    let typescript = folder.path().join("typescript");
    let command = format!(
        "stty cols 80 rows 24; exec '{}' list --watch '{}'",
        env!("CARGO_BIN_EXE_fdholder"),
        daemon.path.display()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--command", &command]).arg(&typescript);
    let mut child = script
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut output = child.stdout.take().unwrap();
    while !seen.windows(6).any(|it| it == b" more)") {
        let mut part = [0; 4096];
        let len = output.read(&mut part).unwrap();
        assert!(len > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..len]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("\u{1b}[H\u{1b}[J\u{1b}[1mID\u{1b}[0m"), "{seen:?}");
    // A head and 21 rows, of 24 lines.
    assert!(seen.contains("(19 more)"), "{seen:?}");
    let plain = seen.replace("\u{1b}[H\u{1b}[J", "").replace("\u{1b}[0m", "");
    let plain = plain.replace("\u{1b}[1m", "").replace("\u{1b}[2m", "");
    let widest = plain.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{plain}");
    assert!(plain.contains("xxxx…xxx"), "{plain}");
}

#[test]
fn a_status_tells_what_was_done() {
    let (_folder, daemon) = serve(&["--standby", "-n", "50", "-c", "7"]);
    eventually("a standby that has everything", || {
        json("status", &[], &daemon.path)["standby"] == "ready"
    });
    let _things = Things::stored_with(&mut daemon.client());
    let mut client = daemon.client();
    client.delete(&id("nope"), deadline()).unwrap_err();
    client.retrieve(&id("web/9"), deadline()).unwrap();
    client.list(deadline()).unwrap();
    let status = json("status", &[], &daemon.path);
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["uid"], rustix::process::getuid().as_raw());
    assert_eq!((&status["held"], &status["capacity"]), (&3.into(), &50.into()));
    assert_eq!((&status["connections"], &status["connections_max"]), (&2.into(), &7.into()));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let counts = &status["counts"];
    for (name, count) in
        [("store.ok", 3), ("delete.ok", 0), ("delete.refused", 1), ("retrieve.ok", 1)]
    {
        assert_eq!(counts[name], count, "{name}: {counts}");
    }
    let started = status["started_at"].as_u64().unwrap();
    assert!((now() - PATIENCE.as_secs()..=now()).contains(&started));
    let text = stdout(&run("status", &[], &daemon.path));
    for line in ["held         3 of 50", "connections  2 of 7", "store        3     0"] {
        assert!(text.contains(line), "{text}");
    }
}

/// Any number of them, asked without waiting, take a turn each.
#[test]
fn many_who_ask_are_all_answered() {
    const COUNT: usize = 20_000;
    // Were one served within another, there would be no room for all of them.
    let (_folder, daemon) = serve_under("ulimit -s 512", &[]);
    let mut socket = UnixStream::connect(&daemon.path).unwrap();
    let mut writer = socket.try_clone().unwrap();
    let asker = std::thread::spawn(move || {
        // Hello in version 3, and then only "+9".
        let hello = b"\0\0\0\x06\0\0+\0\0\0\0\x03";
        std::io::Write::write_all(&mut writer, hello).unwrap();
        let ask = b"\0\0\0\x02\0\0+\x09".repeat(COUNT);
        std::io::Write::write_all(&mut writer, &ask).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut answers = 0;
    let mut head = [0; 6];
    while socket.read_exact(&mut head).is_ok() {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let mut payload = vec![0; len as usize];
        socket.read_exact(&mut payload).unwrap();
        assert_eq!(payload[0], 0);
        answers += 1;
    }
    asker.join().unwrap();
    assert_eq!(answers, 1 + COUNT);
    assert_eq!(json("status", &[], &daemon.path)["pid"], daemon.pid());
}

/// What others have named is shown as it is harmless.
#[test]
fn nothing_that_is_shown_acts_on_the_terminal() {
    let (_folder, daemon) = serve(&[]);
    let name = "a\u{1b}]0;x\u{7}\nb\u{202e}";
    let memfd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::empty()).unwrap();
    daemon.client().store(&id("x"), Limit::never(), &memfd, deadline()).unwrap();
    let text = stdout(&run("list", &["--long"], &daemon.path));
    assert!(text.contains("a\\u{1b}]0;x\\u{7}\\nb\\u{202e}"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    let mut bind = suite::fdholder(["bind"]);
    let error = bind.arg(&daemon.path).args(["x", "memfd:other"]).output().unwrap();
    assert_eq!(stderr(&error).lines().count(), 1, "{error:?}");
    assert!(!stderr(&error).contains('\u{1b}'), "{error:?}");
}

#[test]
fn what_expires_is_counted() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let soon = Limit::after(Duration::from_millis(1));
    daemon.client().store(&id("x"), soon, &null, deadline()).unwrap();
    eventually("it expires", || json("status", &[], &daemon.path)["counts"]["expired"] == 1);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let (folder, daemon) = serve(&[]);
    let _things = Things::stored_with(&mut daemon.client());
    let output = run("metrics", &[], &daemon.path);
    assert_exit(&output, 0);
    let text = stdout(&output);
    let labels = format!("path=\"{}\"", daemon.path.display());
    for line in [
        format!("fdholder_up{{{labels}}} 1"),
        format!("fdholder_held_fds{{{labels}}} 3"),
        format!("fdholder_requests_total{{{labels},operation=\"store\",result=\"ok\"}} 3"),
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    check_with_promtool(&text);
    // Into a file, which is there as a whole or not at all.
    let file = folder.path().join("fdholder.prom");
    let into = ["--output", file.to_str().unwrap()];
    assert_exit(&run("metrics", &into, &daemon.path), 0);
    check_with_promtool(&fs::read_to_string(&file).unwrap());
    let path = daemon.path.clone();
    drop(daemon);
    assert_exit(&run("metrics", &into, &path), 111);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.ends_with(&format!("fdholder_up{{{labels}}} 0\n")), "{text}");
    assert_exit(&run("metrics", &["--output", "/dev/null"], &path), 111);
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert!(left.iter().all(|it| !it.file_name().to_string_lossy().starts_with('.')), "{left:?}");
}

fn check_with_promtool(text: &str) {
    let child = Command::new(suite::peers().join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        return is_missing("promtool");
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_exit(&output, 0);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn s6s_daemon_is_shown_as_far_as_it_tells() {
    for suite in [Suite::S6V211, Suite::S6V213] {
        if !suite.is_installed() {
            is_missing("s6");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let rules = Rules::all(folder.path().join("rules"));
        let path = folder.path().join("holder");
        let daemon = Daemon::with_rules(suite, &path, &rules, &[]);
        let mut client = daemon.client();
        let _things = Things::stored_with(&mut client);
        let output = run("list", &["--long"], &path);
        assert_exit(&output, 0);
        assert!(stderr(&output).contains("does not tell owners and ages"), "{output:?}");
        let all = json("list", &["--long"], &path);
        assert_eq!(all[2]["kind"], "TCP listener");
        assert!(all[0]["owner_uid"].is_null() && all[0]["expires_at"].is_u64(), "{all}");
        // Debian 12's daemon breaks off a dump of more than fits into a message.
        let null = File::open("/dev/null").unwrap();
        for number in 0..260 {
            client.store(&id(&format!("x{number}")), Limit::never(), &null, deadline()).unwrap();
        }
        let all = json("list", &["--long"], &path);
        assert_eq!(all.as_array().unwrap().len(), 263);
        assert!(all.as_array().unwrap().iter().all(|it| !it["kind"].is_null()), "{all}");
        let status = json("status", &[], &path);
        assert_eq!((&status["is_fdholder"], &status["held"]), (&false.into(), &263.into()));
        assert_eq!(status["uid"], rustix::process::getuid().as_raw());
        assert!(stdout(&run("status", &[], &path)).contains("Its protocol does not tell more"));
        let text = stdout(&run("metrics", &[], &path));
        assert!(text.contains("} 263\n"), "{text}");
        check_with_promtool(&text);
    }
}
