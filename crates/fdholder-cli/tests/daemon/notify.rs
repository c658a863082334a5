//! Programs that were written for systemd store by way of `exec --notify`.

use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, open_files, path_of, stderr, stdout, suite,
    Daemon, Rules, Suite,
};
use fdholder::{Identifier, Limit};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::fstat;
use rustix::process::Signal;
use sd_notify::NotifyState;
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a program is told that `exec --notify` becomes, and by which it talks.
pub struct Door {
    pub socket: PathBuf,
    names: String,
    numbers: u32,
}

fn exec(path: &Path, arguments: &[&str], program: &[&str]) -> Output {
    let mut command = suite::fdholder(["exec", "--notify", "db"]);
    command.args(arguments).arg(path).arg("--").args(program).output().unwrap()
}

/// Starts the service once, which does nothing but look.
pub fn start(path: &Path, arguments: &[&str]) -> Door {
    let look = "echo $NOTIFY_SOCKET; echo $LISTEN_FDNAMES; echo ${LISTEN_FDS:-0}";
    let output = exec(path, arguments, &["sh", "-c", look]);
    assert_exit(&output, 0);
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    Door { socket: lines[0].into(), names: lines[1].to_owned(), numbers: lines[2].parse().unwrap() }
}

impl Door {
    pub fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(&self.socket).unwrap();
        let wait = fdholder::transport::Wait::Yes;
        fdholder::transport::send(&socket, text.as_bytes(), fds, wait).unwrap();
    }

    /// Sends, and waits until it is carried out.
    pub fn send_all(&self, text: &str, fds: &[BorrowedFd<'_>]) {
        self.send(text, fds);
        self.barrier();
    }

    /// `sd_notify_barrier(3)`.
    fn barrier(&self) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        self.send("BARRIER=1", &[writer.as_fd()]);
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

/// What is held for the service.
fn held(daemon: &Daemon) -> Vec<Identifier> {
    let mut ids = daemon.client().list(deadline()).unwrap();
    ids.retain(|id| !id.to_string().starts_with("db/."));
    ids.sort();
    ids
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).unwrap().st_ino
}

fn status(path: &Path) -> Value {
    let output = suite::fdholder(["status", "--json"]).arg(path).output().unwrap();
    assert_exit(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn service(path: &Path) -> Value {
    status(path)["services"][0].clone()
}

#[test]
fn what_is_stored_comes_back_at_the_next_start() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    assert_eq!((door.names.as_str(), door.numbers), ("", 0));
    let (a, b) = UnixStream::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    door.send("FDSTORE=1\nFDNAME=conn", &[a.as_fd(), b.as_fd()]);
    door.send_all("FDSTORE=1\nFDNAME=null", &[null.as_fd()]);
    assert_eq!(held(&daemon), [id("db/conn"), id("db/conn:2"), id("db/null")]);
    // Beside it something else is passed on, first.
    let other = File::open("/dev/zero").unwrap();
    daemon.client().store(&id("other"), Limit::never(), &other, deadline()).unwrap();
    let again = start(&daemon.path, &["--fd", "other"]);
    assert_eq!((again.names.as_str(), again.numbers), ("other:conn:conn:null", 4));
    assert_eq!(again.socket, door.socket);
    let copy = daemon.client().retrieve(&id("db/conn:2"), deadline()).unwrap();
    assert_eq!(inode(copy), inode(&b));
    door.send_all("FDSTOREREMOVE=1\nFDNAME=conn", &[]);
    assert_eq!(start(&daemon.path, &[]).names, "null");
}

#[test]
fn what_hangs_up_is_let_go_unless_it_is_said_otherwise() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    let (a, a_peer) = UnixStream::pair().unwrap();
    let (b, b_peer) = UnixStream::pair().unwrap();
    door.send("FDSTORE=1\nFDNAME=polled", &[a.as_fd()]);
    door.send_all("FDSTORE=1\nFDNAME=kept\nFDPOLL=0", &[b.as_fd()]);
    assert_eq!(held(&daemon), [id("db/kept"), id("db/polled")]);
    drop((a_peer, b_peer));
    eventually("it is let go", || held(&daemon) == [id("db/kept")]);
}

#[test]
fn what_it_says_of_itself_is_shown() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    let said = service(&daemon.path);
    assert_eq!((&said["name"], &said["ready"]), (&"db".into(), &false.into()));
    door.send("READY=1\nSTATUS=serving 5 clients", &[]);
    door.send_all("MAINPID=5", &[]);
    let said = service(&daemon.path);
    assert_eq!((&said["ready"], &said["status"]), (&true.into(), &"serving 5 clients".into()));
    assert_eq!(said["pid"], std::process::id());
    let text = stdout(&suite::fdholder(["status"]).arg(&daemon.path).output().unwrap());
    assert!(text.contains("serving 5 clients"), "{text}");
    let metrics = stdout(&suite::fdholder(["metrics"]).arg(&daemon.path).output().unwrap());
    assert!(metrics.contains(",service=\"db\"} 1\n"), "{metrics}");
    // The next start is not ready before it says so.
    start(&daemon.path, &[]);
    assert_eq!(service(&daemon.path)["ready"], false);
}

/// A program with the crate that Rust programs use, which finds everything in its environment.
#[test]
fn the_crate_of_other_programs_can_store() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    std::env::set_var("NOTIFY_SOCKET", &door.socket);
    let (a, _peer) = UnixStream::pair().unwrap();
    let store = [NotifyState::FdStore, NotifyState::FdName("conn")];
    sd_notify::notify_with_fds(&store, &[a.as_fd()]).unwrap();
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("up")]).unwrap();
    door.barrier();
    assert_eq!(held(&daemon), [id("db/conn")]);
    assert_eq!(service(&daemon.path)["status"], "up");
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName("conn")]).unwrap();
    door.barrier();
    assert_eq!(held(&daemon), []);
}

/// Python without any library.
#[test]
fn a_python_program_keeps_its_state() {
    const PROGRAM: &str = r#"
import array, os, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
def say(text, fds=()):
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    notify.sendmsg([text.encode()], [rights] if fds else [])
if os.environ.get("LISTEN_FDNAMES") == "state" and int(os.environ["LISTEN_PID"]) == os.getpid():
    state = 3
else:
    state = os.memfd_create("state")
    say("FDSTORE=1\nFDNAME=state\nFDPOLL=0", [state])
starts = len(os.pread(state, 100, 0)) + 1
os.pwrite(state, b"x" * starts, 0)
read, write = os.pipe()
say("BARRIER=1", [write])
os.close(write)
os.read(read, 1)
print(starts)
"#;
    let (_folder, daemon) = serve(&[]);
    for starts in 1..4 {
        let output = exec(&daemon.path, &[], &["python3", "-c", PROGRAM]);
        assert_exit(&output, 0);
        assert_eq!(stdout(&output), format!("{starts}\n"));
    }
}

/// A door, and what came through it, outlives the daemon in all the ways that there are.
#[test]
fn doors_outlive_daemons() {
    let (_folder, daemon) = serve(&["--standby"]);
    let door = start(&daemon.path, &[]);
    let (a, a_peer) = UnixStream::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    door.send("FDSTORE=1\nFDNAME=conn", &[a.as_fd()]);
    door.send_all("READY=1\nSTATUS=before", &[]);
    let upgrade = suite::fdholder(["upgrade"]).arg(&daemon.path).output().unwrap();
    assert_exit(&upgrade, 0);
    assert_eq!(service(&daemon.path)["status"], "before");
    eventually("the standby has everything", || status(&daemon.path)["standby"] == "ready");
    let (b, b_peer) = UnixStream::pair().unwrap();
    door.send_all("FDSTORE=1\nFDNAME=upgraded", &[null.as_fd()]);
    let standby = u32::try_from(status(&daemon.path)["standby_pid"].as_u64().unwrap()).unwrap();
    door.send_all("FDSTORE=1\nFDNAME=gone", &[b.as_fd()]);
    let gone = path_of(&b);
    let has_it = || open_files(standby).values().any(|open| *open == gone);
    eventually("the standby has it", has_it);
    drop((b, b_peer));
    eventually("it is let go", || held(&daemon) == [id("db/conn"), id("db/upgraded")]);
    eventually("there, too", || !has_it());
    daemon.signal(Signal::KILL);
    let zero = File::open("/dev/zero").unwrap();
    // It waits in the socket until somebody serves again.
    door.send_all("FDSTORE=1\nFDNAME=promoted", &[zero.as_fd()]);
    assert_eq!(held(&daemon), [id("db/conn"), id("db/promoted"), id("db/upgraded")]);
    assert_eq!(service(&daemon.path)["ready"], true);
    // It is also known there what goes with its peer.
    drop((a, a_peer));
    eventually("it is let go", || held(&daemon) == [id("db/promoted"), id("db/upgraded")]);
    end(&daemon);
}

/// Ends whatever serves now.
fn end(daemon: &Daemon) {
    let pid = i32::try_from(status(&daemon.path)["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    eventually("it ends", || UnixStream::connect(&daemon.path).is_err());
}

#[test]
fn what_is_refused_is_counted_and_hurts_nobody() {
    let (_folder, daemon) = serve(&["-n", "3"]);
    let door = start(&daemon.path, &[]);
    let files: Vec<_> = (0..5).map(|_| File::open("/dev/null").unwrap()).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    door.send_all("FDSTORE=1\nFDNAME=x", &fds);
    door.send_all(&"STATUS=".repeat(1000), &[]);
    door.send_all("FDSTORE=1\nFDNAME=.notify", &fds[4..]);
    assert_eq!(held(&daemon), [id("db/x"), id("db/x:2")]);
    assert_eq!(status(&daemon.path)["counts"]["notify.refused"], 3);
    let before = daemon.open_fds();
    for _ in 0..10 {
        door.send_all("FDSTORE=1\nFDNAME=y", &fds);
    }
    assert_eq!(daemon.open_fds(), before);
}

/// Nothing that is stored under the name of a door makes the daemon wait.
#[test]
fn what_is_no_door_is_left_alone() {
    let (_folder, daemon) = serve(&[]);
    let (a, peer) = UnixStream::pair().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let things: [(&str, OwnedFd); 3] = [("a", a.into()), ("b", reader.into()), ("c", null.into())];
    let mut client = daemon.client();
    for (name, fd) in things {
        client.store(&id(&format!("{name}/.notify")), Limit::never(), &fd, deadline()).unwrap();
        client.store(&id(&format!("{name}/.status")), Limit::never(), &fd, deadline()).unwrap();
    }
    std::io::Write::write_all(&mut &peer, b"READY=1").unwrap();
    let status = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
    assert_exit(&status, 0);
    assert_eq!(client.list(deadline()).unwrap().len(), 6);
    // What it sent is still there to be read.
    let copy = client.retrieve(&id("a/.notify"), deadline()).unwrap();
    let mut bytes = [0; 7];
    UnixStream::from(copy).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"READY=1");
}

/// Whoever waits for a barrier knows that the standby has been told of all before.
#[test]
fn a_barrier_waits_for_the_standby() {
    let (_folder, daemon) = serve(&["--standby"]);
    eventually("the standby has everything", || status(&daemon.path)["standby"] == "ready");
    let door = start(&daemon.path, &[]);
    let files: Vec<_> = (0..250).map(|_| File::open("/dev/null").unwrap()).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    door.send("FDSTORE=1\nFDNAME=precious", &fds[..1]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    door.send("BARRIER=1", &[writer.as_fd()]);
    drop(writer);
    // What comes behind it takes its time, and all of it is read in one turn.
    for part in 0..6 {
        let many = &fds[1 + part * 40..][..40];
        door.send(&format!("FDSTORE=1\nFDNAME=other{part}"), many);
    }
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    daemon.signal(Signal::KILL);
    assert!(held(&daemon).contains(&id("db/precious")));
    end(&daemon);
}

/// And that it has closed what is not held any more.
#[test]
fn a_barrier_waits_until_the_standby_has_closed() {
    let (_folder, daemon) = serve(&["--standby"]);
    eventually("the standby has everything", || status(&daemon.path)["standby"] == "ready");
    let door = start(&daemon.path, &[]);
    let null = File::open("/dev/null").unwrap();
    door.send_all("FDSTORE=1\nFDNAME=x", &[null.as_fd()]);
    let standby = i32::try_from(status(&daemon.path)["standby_pid"].as_i64().unwrap()).unwrap();
    let standby = rustix::process::Pid::from_raw(standby).unwrap();
    // For less long than it may take before it is given up.
    rustix::process::kill_process(standby, Signal::STOP).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    door.send("FDSTOREREMOVE=1\nFDNAME=x", &[]);
    door.send("BARRIER=1", &[writer.as_fd()]);
    drop(writer);
    let mut polled = [PollFd::new(&reader, PollFlags::IN)];
    let passed = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 300_000_000 }));
    assert_eq!(passed, Ok(0));
    rustix::process::kill_process(standby, Signal::CONT).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    daemon.terminate();
}

/// Somebody who shares a door can shut it, and ask for descriptors of processes with each
/// datagram: neither costs the daemon more than that door.
#[test]
fn a_shared_door_does_no_harm() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    let shared = daemon.client().retrieve(&id("db/.notify"), deadline()).unwrap();
    let program = "import socket, sys\n\
        door = socket.socket(fileno=3)\n\
        try:\n\
        \x20   door.setsockopt(socket.SOL_SOCKET, 76, 1)\n\
        except OSError:\n\
        \x20   pass\n";
    let mut command = suite::fdholder(["exec", "--fd", "db/.notify"]);
    command.arg(&daemon.path).args(["--", "python3", "-c", program]);
    assert_exit(&command.output().unwrap(), 0);
    let before = daemon.open_fds();
    for _ in 0..50 {
        door.send_all("X=y", &[]);
    }
    assert_eq!(daemon.open_fds(), before);
    rustix::net::shutdown(&shared, rustix::net::Shutdown::Both).unwrap();
    let turns = || {
        let path = format!("/proc/{}/status", daemon.pid());
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    // One that spins is put aside again and again, and never sleeps.
    eventually("it sleeps", || {
        let state = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let before = turns();
        std::thread::sleep(std::time::Duration::from_millis(20));
        state.rsplit(") ").next().unwrap().starts_with('S') && turns() == before
    });
    assert_eq!(held(&daemon), []);
}

/// What was written into a status by others is not believed, and not written to.
#[test]
fn a_status_is_never_shared() {
    let (_folder, daemon) = serve(&[]);
    let door = start(&daemon.path, &[]);
    door.send_all("STATUS=one", &[]);
    let first = daemon.client().retrieve(&id("db/.status"), deadline()).unwrap();
    assert!(rustix::io::pwrite(&first, b"READY=1\n", 0).is_err());
    door.send_all("STATUS=two", &[]);
    let second = daemon.client().retrieve(&id("db/.status"), deadline()).unwrap();
    assert_ne!(inode(&first), inode(&second));
    assert_eq!(service(&daemon.path)["status"], "two");
    let other = rustix::fs::memfd_create("mine", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::pwrite(&other, b"READY=1\nSTATUS=mine\n", 0).unwrap();
    let mut client = daemon.client();
    client.delete(&id("db/.status"), deadline()).unwrap();
    client.store(&id("db/.status"), Limit::never(), &other, deadline()).unwrap();
    assert_eq!(service(&daemon.path)["status"], "");
    door.send_all("STATUS=three", &[]);
    assert_eq!(service(&daemon.path)["status"], "three");
}

/// What was sent before anybody asked who sends is from a user that everybody could be.
#[test]
fn senders_that_nobody_knows_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let rules =
        Rules::all(folder.path().join("rules")).allow("uid/65534").regexes("uid/65534", ".", ".");
    let daemon = Daemon::with_rules(Suite::Ours, &folder.path().join("holder"), &rules, &[]);
    let path = folder.path().join("door");
    let door = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(&path).unwrap();
    sender.send(b"READY=1\nSTATUS=forged").unwrap();
    daemon.client().store(&id("db/.notify"), Limit::never(), &door, deadline()).unwrap();
    eventually("it is looked at", || status(&daemon.path)["counts"]["notify.refused"] == 1);
    assert_eq!(service(&daemon.path)["ready"], false);
    sender.send(b"READY=1").unwrap();
    eventually("it is looked at", || status(&daemon.path)["counts"]["notify.ok"] == 1);
    assert_eq!(service(&daemon.path)["ready"], true);
}

/// Each service gets what is its own.
#[test]
fn services_within_services_are_apart() {
    let (folder, daemon) = serve(&[]);
    let outer = start(&daemon.path, &[]);
    let mut command = suite::fdholder(["exec", "--notify", "db/inner"]);
    let look = ["--", "sh", "-c", "echo $NOTIFY_SOCKET $LISTEN_FDNAMES"];
    let inner = |command: &mut Command| {
        stdout(&command.arg(&daemon.path).args(look).output().unwrap()).trim().to_owned()
    };
    let socket = inner(&mut command);
    assert_eq!(socket, folder.path().join("holder.db%2Finner.notify").to_str().unwrap());
    let inner_door = Door { socket: socket.into(), names: String::new(), numbers: 0 };
    let (null, zero) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
    outer.send_all("FDSTORE=1\nFDNAME=outer", &[null.as_fd()]);
    inner_door.send_all("FDSTORE=1\nFDNAME=state\nSTATUS=x", &[zero.as_fd()]);
    assert_eq!(start(&daemon.path, &[]).names, "outer");
    assert_eq!(start(&daemon.path, &["--fd-prefix", "db/"]).names, "db/inner/state:db/outer");
    let mut command = suite::fdholder(["exec", "--notify", "db/inner"]);
    assert!(inner(&mut command).ends_with(" state"));
}

#[test]
fn a_door_that_is_deleted_is_shut() {
    let (_folder, daemon) = serve(&[]);
    let before = daemon.open_fds();
    let door = start(&daemon.path, &[]);
    door.send_all("READY=1", &[]);
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(&door.socket).unwrap();
    let mut client = daemon.client();
    for name in ["db/.notify", "db/.status"] {
        client.delete(&id(name), deadline()).unwrap();
    }
    drop(client);
    assert_eq!(daemon.open_fds(), before);
    assert!(socket.send(b"READY=1").is_err());
}

#[test]
fn doors_are_where_they_are_wanted() {
    let (folder, daemon) = serve(&[]);
    let first = start(&daemon.path, &[]);
    assert_eq!(first.socket, folder.path().join("holder.db.notify"));
    let elsewhere = folder.path().join("elsewhere");
    let wanted = ["--notify-socket", elsewhere.to_str().unwrap()];
    assert_eq!(start(&daemon.path, &wanted).socket, elsewhere);
    // It stays there.
    let third = start(&daemon.path, &[]);
    assert_eq!(third.socket, elsewhere);
    third.send_all("READY=1", &[]);
    // One that was removed is made again.
    fs::remove_file(&elsewhere).unwrap();
    let fourth = start(&daemon.path, &[]);
    assert_eq!(fourth.socket, first.socket);
    fourth.send_all("READY=1", &[]);
    assert_eq!(service(&daemon.path)["ready"], true);
    let output = exec(&daemon.path, &["--notify-socket", "/nowhere/door"], &["true"]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("--notify-socket says where else"), "{output:?}");
}

#[test]
fn s6s_daemon_has_no_doors() {
    if !Suite::S6V213.is_installed() {
        return is_missing("s6");
    }
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::all(folder.path().join("rules"));
    let path = folder.path().join("holder");
    let daemon = Daemon::with_rules(Suite::S6V213, &path, &rules, &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_fdholder"));
    command.args(["exec", "--notify", "db"]).arg(&path).args(["--", "true"]);
    let output = command.output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("takes a fdholder"), "{output:?}");
    assert_eq!(daemon.client().list(deadline()).unwrap(), []);
}

/// Whatever systemd allows in an FDNAME; and what is removed under that name is removed.
#[test]
fn names_with_percent_signs_come_back_byte_for_byte() {
    let (_folder, daemon) = serve(&[]);
    let names = ["10.0.0.1%3A443", "100%", "%", "%25", "%zz", "a b", "a=b;c", "~!@#$^&*()", "x/y"];
    let door = start(&daemon.path, &[]);
    let null = File::open("/dev/null").unwrap();
    for name in names {
        // Each is an open file of its own.
        let fd = File::open("/dev/null").unwrap();
        door.send_all(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd.as_fd()]);
    }
    // A second one under the same name.
    door.send_all("FDSTORE=1\nFDPOLL=0\nFDNAME=100%", &[null.as_fd()]);
    let passed = start(&daemon.path, &[]);
    let mut expected = [&names[..], &["100%"]].concat();
    expected.sort_unstable();
    let mut came: Vec<_> = passed.names.split(':').collect();
    came.sort_unstable();
    assert_eq!(came, expected);
    for name in came {
        door.send_all(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }
    assert_eq!(start(&daemon.path, &[]).names, "");
    // What was not stored by the service may have a name that cannot stand there.
    daemon.client().store(&id("db/\n:"), Limit::never(), &null, deadline()).unwrap();
    assert_eq!(start(&daemon.path, &[]).names, "%0A%3A");
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Also of a socket that is there.
#[test]
fn mode_of_a_socket_that_is_there_becomes_what_is_asked_for() {
    let (folder, daemon) = serve(&[]);
    let socket = start(&daemon.path, &[]).socket;
    assert_eq!(mode_of(&socket), 0o600);
    for (options, mode) in [
        (&["--notify-mode", "0660"][..], 0o660),
        (&[], 0o660),
        (&["--notify-mode", "0666"], 0o666),
        (&["--notify-mode", "0600"], 0o600),
    ] {
        let door = start(&daemon.path, options);
        assert_eq!((&door.socket, mode_of(&socket)), (&socket, mode), "{options:?}");
        door.send_all("READY=1", &[]);
    }
    // What can be sent to is not made anew: nothing that was sent is lost.
    let inode = fs::symlink_metadata(&socket).unwrap().ino();
    start(&daemon.path, &["--notify-mode", "0600"]);
    assert_eq!(fs::symlink_metadata(&socket).unwrap().ino(), inode);
    // What leads nowhere is, and what it leads to from elsewhere stays.
    fs::remove_file(&socket).unwrap();
    drop(UnixDatagram::bind(&socket).unwrap());
    start(&daemon.path, &[]).send_all("READY=1", &[]);
    fs::remove_file(&socket).unwrap();
    let precious = folder.path().join("precious");
    fs::write(&precious, "").unwrap();
    fs::set_permissions(&precious, Permissions::from_mode(0o604)).unwrap();
    std::os::unix::fs::symlink(&precious, &socket).unwrap();
    let output = exec(&daemon.path, &["--notify-mode", "0666"], &["true"]);
    assert_exit(&output, 111);
    assert_eq!(mode_of(&precious), 0o604);
    // One that is wanted elsewhere is not left where it was.
    fs::remove_file(&socket).unwrap();
    start(&daemon.path, &[]);
    let other = folder.path().join("other");
    start(&daemon.path, &["--notify-socket", other.to_str().unwrap()]).send_all("READY=1", &[]);
    assert!(!socket.exists() && other.exists());
}
