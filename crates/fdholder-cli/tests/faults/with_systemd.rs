//! Calls that fail while systemd is told something.

use crate::scene::{attach, detach, list, store, strace, wait, Fault, SHORT};
use crate::support::family::signal;
use crate::support::{id, suite, Family};
use fdholder::transport::{receive, Wait};
use fdholder::{Client, Deadline, Entry, Limit};
use fdholder_daemon::fdstore::recover;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What ends the one that reads: nobody else says that.
const END: &[u8] = b"END=1";

/// What it has been told, and what it keeps.
#[derive(Debug, Default)]
struct Told {
    messages: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

/// A systemd as far as services see it that tell it something.
struct Systemd {
    address: PathBuf,
    told: Arc<Mutex<Told>>,
    reader: Option<JoinHandle<()>>,
}

impl Systemd {
    fn at(address: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&address).unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let reader = std::thread::spawn({
            let told = Arc::clone(&told);
            move || while hear(&socket, &told) {}
        });
        Self { address, told, reader: Some(reader) }
    }

    fn has_heard(&self, message: &str) -> bool {
        let told = self.told.lock().unwrap();
        told.messages.iter().any(|told| told.lines().any(|line| line == message))
    }

    /// The descriptors that it keeps of what is held, by their numbers: it may have one wrapped, too.
    fn numbers_kept(&self) -> BTreeSet<String> {
        let told = self.told.lock().unwrap();
        let number =
            |(name, _): &(String, OwnedFd)| name.strip_prefix(['h', 'b']).map(str::to_owned);
        told.kept.iter().filter_map(number).collect()
    }

    /// What it gives to the next process, once it has read everything.
    fn give(&mut self) -> Vec<(String, OwnedFd)> {
        self.end();
        std::mem::take(&mut self.told.lock().unwrap().kept)
    }

    fn end(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        UnixDatagram::unbound().unwrap().send_to(END, &self.address).unwrap();
        reader.join().unwrap();
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads one message. Returns whether there may be more.
fn hear(socket: &UnixDatagram, told: &Mutex<Told>) -> bool {
    let mut buffer = [0; 512];
    let received = receive(socket, &mut buffer, Wait::Yes).unwrap();
    if &buffer[..received.len] == END {
        return false;
    }
    let text = std::str::from_utf8(&buffer[..received.len]).unwrap();
    let mut told = told.lock().unwrap();
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key));
    if let Some(name) = value("FDNAME=") {
        if value("FDSTOREREMOVE=").is_some() {
            told.kept.retain(|(kept, _)| kept != name);
        }
        told.kept.extend(received.fds.into_iter().map(|fd| (name.to_owned(), fd)));
    }
    told.messages.push(text.to_owned());
    true
}

/// Stores, stores a second descriptor of the same file, stores a set, and deletes one of that.
/// Returns what is held then, and what may be, as the answers say.
fn change_things(path: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let [one, two, three] = [(); 3].map(|()| File::open("/dev/null").unwrap());
    let (mut held, mut unsure) = (BTreeSet::new(), BTreeSet::new());
    for name in ["one", "twin"] {
        let known = if store(path, name, &one) { &mut held } else { &mut unsure };
        known.insert(name.to_owned());
    }
    let deadline = Deadline::after(SHORT);
    let entry = |name, fd| Entry { id: id(name), limit: Limit::never(), fd };
    let set = [entry("kept", two), entry("gone", three)];
    let is_stored = Client::connect(path, deadline)
        .and_then(|mut client| client.setdump(&set, deadline))
        .is_ok();
    let known = if is_stored { &mut held } else { &mut unsure };
    known.extend(["kept", "gone"].map(str::to_owned));
    let is_deleted = Client::connect(path, deadline)
        .and_then(|mut client| client.delete(&id("gone"), deadline))
        .is_ok();
    if held.remove("gone") && !is_deleted {
        unsure.insert("gone".to_owned());
    }
    (held, unsure)
}

/// Plays that, kills the daemon, and compares what systemd has with what was answered.
fn play(fault: Fault) -> Result<(), String> {
    let mut family = Family::new();
    let mut systemd = Systemd::at(family.folder.path().join("notify"));
    let mut command = suite::fdholder(["serve", "-1", "--fdstore", "-n", "100"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &systemd.address).env("FDSTORE", "500");
    let pid = family.spawn(command);
    wait("it is ready", || systemd.has_heard("READY=1"))?;
    let strace = attach(pid, fault)?;
    let (held, unsure) = change_things(&family.path);
    detach(strace);
    family.kill(pid);
    let given = systemd.give();
    let names: Vec<_> = given.iter().map(|(name, _)| name.clone()).collect();
    // systemd drops a second descriptor of a file without a word.
    if held.contains("one") && held.contains("twin") && !names.iter().any(|it| it.starts_with('b'))
    {
        return Err(format!("two of one file, and none is wrapped: {names:?}"));
    }
    let all = recover(given, 100).store.all();
    let there = all.iter().map(|it| String::from_utf8_lossy(it.id.as_bytes()).into_owned());
    let there: BTreeSet<_> = there.collect();
    let lost: Vec<_> = held.difference(&there).collect();
    let back: Vec<_> =
        there.iter().filter(|it| !held.contains(*it) && !unsure.contains(*it)).collect();
    if lost.is_empty() && back.is_empty() {
        return Ok(());
    }
    Err(format!("lost: {lost:?}, came back: {back:?}, of {names:?}\n{}", family.log()))
}

/// What was answered is with systemd, and nothing else, whatever fails once.
#[test]
fn what_systemd_keeps_is_what_was_answered() {
    let mut failed = Vec::new();
    let calls: [(&str, &[&str]); 6] = [
        ("sendmsg", &["ENOBUFS", "ENFILE", "ENOMEM"]),
        ("memfd_create", &["ENFILE", "EMFILE"]),
        ("pwrite64", &["ENOMEM"]),
        ("fcntl", &["ENOMEM"]),
        ("socketpair", &["ENFILE"]),
        ("statx", &["ENOMEM"]),
    ];
    for (call, errors) in calls {
        for error in errors {
            for time in 1..=if call == "sendmsg" { 14 } else { 2 } {
                let fault = Fault { call, error, time };
                if let Err(why) = play(fault) {
                    failed.push(format!("{fault}: {why}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}

/// What cannot pass is said, and what is held is with systemd later.
#[test]
fn systemd_is_told_of_everything_anew_after_an_error_that_does_not_pass() {
    for (call, error) in [("sendmsg", "EPERM"), ("memfd_create", "EPERM")] {
        let mut family = Family::new();
        let mut systemd = Systemd::at(family.folder.path().join("notify"));
        let mut command = suite::fdholder(["serve", "-1", "--fdstore", "-n", "100"]);
        command.arg(&family.path).env("NOTIFY_SOCKET", &systemd.address).env("FDSTORE", "500");
        let pid = family.spawn(command);
        wait("it is ready", || systemd.has_heard("READY=1")).unwrap();
        let strace = attach(pid, Fault { call, error, time: 1 }).unwrap();
        let (held, _) = change_things(&family.path);
        detach(strace);
        let is_said = || family.log().contains("is told of everything");
        wait("it is told anew", is_said).unwrap();
        assert!(family.log().contains("unable to have systemd keep"), "{}", family.log());
        assert!(store(&family.path, "last", &File::open("/dev/null").unwrap()));
        let expected = held.len() + 1;
        let all_are_kept = || systemd.numbers_kept().len() == expected;
        wait("everything is with systemd", all_are_kept).unwrap();
        family.kill(pid);
        let store = recover(systemd.give(), 100).store;
        assert_eq!(store.len(), expected, "{call} {}", family.log());
    }
}

/// The first calls of a start are among those that fail.
fn start_with(fault: Fault, trace: &str) -> Command {
    let (call, inject) = (format!("trace={}", fault.call), format!("inject={fault}"));
    let mut command = strace(&call, &["-D", "-o", trace, "-e", &inject]);
    command.args([env!("CARGO_BIN_EXE_fdholder"), "serve", "-1", "-n", "100"]);
    command
}

/// Or it would be ended, as one that is not ready, or does not go on.
#[test]
fn systemd_hears_of_a_daemon_that_serves_whatever_fails_once() {
    let cases = [
        ("socket", "ENFILE"),
        ("socket", "ENOBUFS"),
        ("connect", "ENOMEM"),
        ("connect", "EAGAIN"),
        ("sendmsg", "ENOBUFS"),
        ("sendmsg", "EAGAIN"),
    ];
    for (call, error) in cases {
        let mut family = Family::new();
        let systemd = Systemd::at(family.folder.path().join("notify"));
        let mut command = start_with(Fault { call, error, time: 1 }, "/dev/null");
        command.arg(&family.path).env("NOTIFY_SOCKET", &systemd.address);
        command.env("WATCHDOG_USEC", "1000000");
        family.spawn(command);
        for message in ["READY=1", "WATCHDOG=1"] {
            let is_heard = || systemd.has_heard(message);
            wait(message, is_heard).unwrap_or_else(|why| panic!("{call} {error}: {why}"));
        }
    }
}

/// A thread of the standard library ends the process when there is no memory for its signal stack.
#[test]
fn daemon_starts_no_thread_that_could_end_it() {
    let mut family = Family::new();
    let systemd = Systemd::at(family.folder.path().join("notify"));
    let trace = family.folder.path().join("trace");
    let mut command = strace("trace=sigaltstack", &["-o", trace.to_str().unwrap()]);
    command.args([env!("CARGO_BIN_EXE_fdholder"), "serve", "-1", "-n", "100"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &systemd.address);
    let strace = family.spawn(command);
    wait("it is ready", || systemd.has_heard("READY=1")).unwrap();
    let daemon = family.primary();
    signal(daemon, Signal::TERM);
    assert_eq!(family.wait(strace), Some(0), "{}", family.log());
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: Vec<_> = trace.lines().filter(|line| line.contains("sigaltstack(")).collect();
    let is_of_main = |line: &&str| line.starts_with(&daemon.to_string());
    assert!(!calls.is_empty() && calls.iter().all(is_of_main), "{calls:?}");
}

/// It serves with all of that, or not at all.
#[test]
fn what_systemd_gives_back_is_not_left_out_for_a_failing_call() {
    let mut family = Family::new();
    let mut systemd = Systemd::at(family.folder.path().join("notify"));
    let mut command = suite::fdholder(["serve", "-1", "--fdstore", "-n", "100"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &systemd.address).env("FDSTORE", "500");
    let pid = family.spawn(command);
    assert!(store(&family.path, "one", &File::open("/dev/null").unwrap()));
    family.kill(pid);
    let given = systemd.give();
    let number_of = |name: &str| {
        let fd = given.iter().find(|(given, _)| given == name).map(|(_, fd)| fd).unwrap();
        format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
    };
    let (held, about) = (number_of("h1"), number_of("m0"));
    let script = format!("exec 3<{held} 4<{about}; LISTEN_PID=$$ LISTEN_FDNAMES=h1:m0 exec \"$@\"");
    for (error, count) in [("ENOMEM", "2"), ("EMFILE", "2"), ("ENOMEM", "60")] {
        for time in 1..=6 {
            let mut family = Family::new();
            let traced = start_with(Fault { call: "fcntl", error, time }, "/dev/null");
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(traced.get_program()).args(traced.get_args());
            command.arg(&family.path).env("LISTEN_FDS", count);
            let log = File::options().append(true).open(family.log_path()).unwrap();
            let mut child = command.stderr(log).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = [0];
            let is_ready = child.stdout.take().unwrap().read(&mut said).unwrap() == 1;
            family.adopt(child);
            // Most of these are not there.
            assert!(!(is_ready && count == "60"), "{}", family.log());
            if is_ready {
                let held = list(&family.path).unwrap();
                assert!(held.contains("one"), "{error}, {time}: {held:?} {}", family.log());
            }
        }
    }
}
