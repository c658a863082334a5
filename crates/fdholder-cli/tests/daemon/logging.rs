//! What a daemon logs, and as what.

use crate::hung_up::{open_terminal, terminal};
use crate::support::{assert_exit, deadline, eventually, id, stderr, suite, Daemon, Logged};
use fdholder::{Identifier, Limit};
use rustix::net::sockopt::set_socket_passcred;
use rustix::process::{getgid, getuid, Signal};
use serde_json::Value;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

impl Logged {
    /// All lines, each of which must be an object with what every line has.
    fn objects(&self) -> Vec<Value> {
        let log = self.log();
        // The last may be on its way.
        let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(object).collect()
    }

    /// The lines of the audit, when one of an operation is there.
    fn audit_until(&self, op: &str) -> Vec<Value> {
        let audit = || {
            let lines = self.objects().into_iter();
            lines.filter(|line| line["message"] == "audit").collect::<Vec<_>>()
        };
        eventually(op, || audit().iter().any(|line| line["op"] == op));
        audit()
    }

    fn store(&self, id: &Identifier, limit: Limit, fd: impl Into<OwnedFd>) {
        self.daemon.client().store(id, limit, fd.into(), deadline()).unwrap();
    }

    /// A door that is held for a service.
    fn door(&self, service: &[u8]) -> PathBuf {
        let path = self.folder.path().join("door");
        let id = Identifier::new([service, b"/.notify"].concat()).unwrap();
        let door = UnixDatagram::bind(&path).unwrap();
        // What comes before the daemon reads has its sender, too.
        set_socket_passcred(&door, true).unwrap();
        self.store(&id, Limit::never(), door);
        path
    }
}

fn object(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let time = value["ts"].as_str().unwrap();
    let shape: String = time.chars().map(|it| if it.is_ascii_digit() { '0' } else { it }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    let level = value["level"].as_str().unwrap();
    assert!(["fatal", "warning", "info", "debug"].contains(&level), "{line}");
    assert!(value["message"].is_string(), "{line}");
    value
}

fn send(door: &Path, text: &str, fds: &[BorrowedFd<'_>]) {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(door).unwrap();
    fdholder::transport::send(&socket, text.as_bytes(), fds, fdholder::transport::Wait::Yes)
        .unwrap();
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

/// Long enough that what expires then has been held.
const SOON: Duration = Duration::from_millis(500);

/// Terminal escapes, an end of line, quotes, no UTF-8.
const HOSTILE: &[u8] = b"e\x1b]0;vil\n\" result=ok \\\xff\x07";

#[test]
fn every_line_is_an_object() {
    let logged = Logged::start(&["-v2", "--audit", "--log-format", "json"]);
    let hostile = Identifier::new(HOSTILE).unwrap();
    logged.store(&hostile, Limit::after(SOON), null());
    let lines = logged.audit_until("expire");
    let line = lines.iter().find(|line| line["op"] == "expire").unwrap();
    assert_eq!(Identifier::from_quoted(line["id"].as_str().unwrap()).unwrap(), hostile);
    assert_eq!((&line["uid"], &line["result"]), (&getuid().as_raw().into(), &"ok".into()));
    assert!(line.get("pid").is_none() && line.get("gid").is_none(), "nobody does it: {line}");

    let door = logged.door(HOSTILE);
    let (held, peer) = UnixStream::pair().unwrap();
    send(&door, "FDSTORE=1\nFDNAME=x", &[held.as_fd()]);
    let stored = logged.audit_until("notify_store");
    let line = stored.iter().find(|line| line["op"] == "notify_store").unwrap();
    let stored_id = Identifier::new([HOSTILE, b"/x"].concat()).unwrap();
    assert_eq!(line["id"], stored_id.to_string());
    assert_eq!(line["uid"], getuid().as_raw());
    assert_eq!(line["gid"], getgid().as_raw());
    assert_eq!(line["pid"], std::process::id());
    drop(peer);
    let gone = logged.audit_until("hang_up");
    let line = gone.iter().find(|line| line["op"] == "hang_up").unwrap();
    assert_eq!((&line["id"], &line["result"]), (&stored_id.to_string().into(), &"ok".into()));

    // A daemon that cannot start says so in the same way.
    let mut command = suite::fdholder(["serve", "-D", "--log-format", "json"]);
    let output = command.arg(&logged.daemon.path).output().unwrap();
    assert_exit(&output, 111);
    let said: Vec<_> = stderr(&output).lines().map(object).collect();
    assert_eq!((said.len(), &said[0]["level"]), (1, &"fatal".into()));
    let mut command = suite::fdholder(["serve", "--log-format", "json", "--config", "/nowhere/x"]);
    let output = command.output().unwrap();
    assert_exit(&output, 111);
    assert_eq!(object(stderr(&output).trim_end())["level"], "fatal");
}

#[test]
fn what_doors_refuse_and_do_is_told() {
    let logged = Logged::start(&["-v0", "--audit", "--log-format", "json", "-n", "3"]);
    let door = logged.door(b"db");
    send(&door, "FDSTORE=1\nFDNAME=a", &[null().as_fd()]);
    send(&door, "FDSTOREREMOVE=1\nFDNAME=a", &[]);
    send(&door, "READY=1\nSTATUS=up", &[]);
    let files: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let fds: Vec<_> = files.iter().map(|(file, _)| file.as_fd()).collect();
    send(&door, "FDSTORE=1\nFDNAME=b", &fds);
    send(&door, "FDSTORE=1\nFDNAME=.notify", &fds);
    send(&door, &"X=".repeat(3000), &[]);
    let lines = logged.audit_until("notify");
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            [text("op"), text("id"), text("result"), text("reason")].join(" ")
        })
        .collect();
    let expected = [
        "notify_store db/a ok -",
        "notify_remove db/a ok -",
        "notify_status db/.status ok -",
        "notify_store db/b ok -",
        "notify_store db/b:2 ENFILE -",
        "notify_store - EINVAL -",
        "notify - refused more than 4096 bytes at once",
    ];
    // What comes by clients is told elsewhere.
    let told: Vec<_> = told.iter().filter(|it| it.starts_with("notify")).collect();
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    assert_eq!(logged.objects().len(), lines.len(), "quiet but for the audit");
}

#[test]
fn a_line_of_text_can_be_searched_for() {
    let logged = Logged::start(&["-v0", "--audit"]);
    let hostile = Identifier::new(HOSTILE).unwrap();
    logged.store(&hostile, Limit::after(SOON), null());
    eventually("it expires", || logged.log().contains("op=expire"));
    let log = logged.log();
    let line = log.lines().find(|line| line.contains("op=expire")).unwrap();
    let uid = getuid().as_raw();
    let expected = format!(
        "fdholder serve: audit: uid={uid} op=expire id=\"{}\" result=ok",
        r"e\0x1b]0;vil\n\0x22 result=ok \\\0xff\a"
    );
    assert_eq!(line, expected);
    assert!(log.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
}

#[test]
fn without_audit_nothing_is_told() {
    let logged = Logged::start(&["-v2"]);
    logged.store(&id("x"), Limit::after(SOON), null());
    eventually("it expires", || logged.daemon.client().list(deadline()) == Ok(vec![]));
    assert!(!logged.log().contains("audit"), "{}", logged.log());
}

/// The audit begins and ends with a word in the file.
#[test]
fn a_file_turns_it_on_and_off() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let write = |text: &str| fs::write(&config, format!("log_format = 'json'\n{text}")).unwrap();
    write("");
    let logged = Logged::start(&["--config", config.to_str().unwrap()]);
    let reload = |count| {
        logged.daemon.signal(Signal::HUP);
        let said = |line: &Value| line["message"].as_str().unwrap().contains("again");
        eventually("it is read", || logged.objects().iter().filter(|it| said(it)).count() == count);
    };
    let store = || logged.store(&id("x"), Limit::after(SOON), null());
    let expire = || {
        store();
        eventually("it expires", || logged.daemon.client().list(deadline()) == Ok(vec![]));
        logged.objects().iter().filter(|line| line["op"] == "expire").count()
    };
    assert_eq!(expire(), 0);
    write("audit = true");
    reload(1);
    store();
    logged.audit_until("expire");
    write("log_to = 'journal'");
    reload(2);
    assert_eq!(expire(), 1);
    assert!(logged.log().contains("log_to as before, until the daemon is upgraded"));
}

/// A flood is cut short, and in the end it is told how much there was of it, of lines and of
/// warnings.
#[test]
fn what_is_left_out_is_told_in_the_end() {
    const DATAGRAMS: u64 = 1000;
    let logged = Logged::start(&["--audit", "--log-format", "json"]);
    let door = logged.door(b"db");
    for _ in 0..DATAGRAMS {
        send(&door, &"X=".repeat(3000), &[]);
    }
    let notify = |line: &Value| line["op"] == "notify";
    let told = |line: &Value| line["left_out"].as_u64().unwrap_or(0);
    eventually("all are told of", || {
        let lines = logged.objects();
        let refused = lines.iter().filter(|line| notify(line)).count() as u64;
        assert!(refused < DATAGRAMS);
        refused + lines.iter().map(told).sum::<u64>() >= DATAGRAMS
    });
    let warned = |text: &str| {
        let lines = logged.objects();
        let warnings = lines.iter().filter(|line| line["level"] == "warning");
        warnings.filter(|line| line["message"].as_str().unwrap().contains(text)).count()
    };
    eventually("so are the warnings", || warned("were left out") > 0);
    assert!(warned("has sent more than 4096 bytes") < 100);
}

#[test]
fn a_journal_must_be_there() {
    if Path::new("/run/systemd/journal/socket").exists() {
        return eprintln!("left out: there is a journal here");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "--log-to", "journal"]);
    let output = command.arg(&path).output().unwrap();
    assert_exit(&output, 111);
    let said = stderr(&output);
    assert!(said.contains("unable to log to /run/systemd/journal/socket: "), "{said}");
    assert!(!path.exists());
}

/// Each change and each refusal of a client, with what it was and why.
#[test]
fn what_clients_do_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let rules = crate::support::Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", "^(a|web)", "^a")
        .may("uid/self", &["GETDUMP", "SETDUMP"])
        .write("uid/self/env/FDHOLDER_MAXFDS", "3\n");
    let dir = rules.dir.to_str().unwrap();
    let logged = Logged::start(&["-v0", "--audit", "--log-format", "json", "-i", dir]);
    let mut client = logged.daemon.client();
    let (never, deadline) = (Limit::never(), deadline());
    client.store(&id("a"), never, null(), deadline).unwrap();
    client.store(&id("a"), never, null(), deadline).unwrap_err();
    client.store(&id("b"), never, null(), deadline).unwrap_err();
    client.retrieve(&id("a"), deadline).unwrap();
    client.retrieve(&id("web"), deadline).unwrap_err();
    client.list(deadline).unwrap_err();
    client.delete(&id("a1"), deadline).unwrap_err();
    drop(client.retrieve_maybe_delete(&id("a"), true, deadline).unwrap());
    let entry = |name: &str| fdholder::Entry { id: id(name), limit: never, fd: null() };
    client.setdump(&[entry("x"), entry("y")], deadline).unwrap();
    client.setdump(&[entry("x"), entry("z"), entry("v")], deadline).unwrap_err();
    // After a set that was refused nothing more is said on that connection.
    let mut client = logged.daemon.client();
    client.getdump(deadline).unwrap();
    client.store(&id("web"), never, null(), deadline).unwrap();
    client.store(&id("web2"), never, null(), deadline).unwrap_err();
    client.delete(&id("web"), deadline).unwrap();
    eventually("all", || logged.audit_until("delete").len() >= 13);
    let lines = logged.audit_until("delete");
    let own = |line: &Value| {
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        assert_eq!(line["uid"], getuid().as_raw());
        assert_eq!(line["gid"], getgid().as_raw());
        assert_eq!(line["pid"], std::process::id());
        [text("op"), text("id"), text("result")].join(" ")
    };
    let told: Vec<_> = lines.iter().map(own).collect();
    assert_eq!(
        told,
        [
            "store a ok",
            "store a EBUSY",
            "store b EPERM",
            "retrieve web EPERM",
            "list - EPERM",
            "delete a1 ENOENT",
            "take a ok",
            "setdump x ok",
            "setdump y ok",
            "setdump - ENFILE",
            "store web ok",
            "store web2 ENFILE",
            "delete web ok",
        ]
    );
    let why = lines.iter().find(|line| line["id"] == "web2").unwrap()["reason"].to_string();
    assert!(why.contains("FDHOLDER_MAXFDS"), "{why}");
}

/// That another process, or nobody, reads what it says is no reason to wait.
#[test]
fn terminal_that_nobody_reads_keeps_no_client_waiting() {
    let (_master, name) = terminal();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "-1", "-v2"]);
    command.arg(&path).stderr(open_terminal(&name));
    let daemon = Daemon::spawn(command, &path);
    // Far more lines than a terminal has room for.
    for _ in 0..8000 {
        daemon.client();
    }
    assert_eq!(daemon.client().list(deadline()), Ok(vec![]));
}
