//! `exec --notify` and `--notify-fd`: what a program says reaches the service manager.

use crate::support::daemon::serve;
use crate::support::{assert_exit, deadline, eventually, id, stderr, stdout, suite};
use fdholder_daemon::datagram::receive;
use rustix::net::sockopt::set_socket_passcred;
use rustix::process::Signal;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;

/// Says everything that programs say, with a descriptor to store, and that it has no children.
const PROGRAM: &str = r#"
import array, os, socket, sys
address = os.environ["NOTIFY_SOCKET"]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    s.sendmsg([text.encode()], rights, 0, "\0" + address[1:] if address[0] == "@" else address)
r, w = os.pipe()
say("FDSTORE=1\nFDPOLL=0\nFDNAME=x", [r])
say(f"READY=1\nSTATUS=up\nMAINPID={os.getpid()}")
say("WATCHDOG=1")
say("RELOADING=1\nMONOTONIC_USEC=5")
say("EXTEND_TIMEOUT_USEC=5\nERRNO=2\nEXIT_STATUS=3")
b, c = os.pipe()
say("BARRIER=1", [c])
os.close(c)
assert os.read(b, 1) == b""
say("STOPPING=1")
try:
    os.wait()
    print("a child")
except ChildProcessError:
    print(os.getpid(), address, *sorted(os.listdir("/proc/self/fd"), key=int))
"#;

/// All that has been sent, with the process that has.
fn heard(supervisor: &UnixDatagram) -> Vec<(String, i32)> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(datagram) = receive(supervisor, &mut buffer) {
        assert!(datagram.fds.is_empty(), "descriptors are for the holder");
        let text = String::from_utf8(buffer[..datagram.len].to_vec()).unwrap();
        all.push((text, datagram.sender.and_then(|sender| sender.pid).unwrap()));
    }
    all
}

fn exec(path: &Path, address: &str) -> Command {
    let mut command = suite::fdholder(["exec", "--notify", "svc"]);
    command.arg(path).args(["--", "python3", "-c", PROGRAM]).env("NOTIFY_SOCKET", address);
    command
}

#[test]
fn readiness_reaches_the_supervisor_and_descriptors_the_holder() {
    let (folder, daemon) = serve(&[]);
    let at = folder.path().join("supervisor");
    let name = format!("fdholder-test-{}", std::process::id());
    let addresses = [
        (UnixDatagram::bind(&at).unwrap(), at.to_str().unwrap().to_owned()),
        (
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            format!("@{name}"),
        ),
    ];
    for (supervisor, address) in addresses {
        set_socket_passcred(&supervisor, true).unwrap();
        let output = exec(&daemon.path, &address).output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(stderr(&output), "");
        let said = stdout(&output);
        let words: Vec<_> = said.split_whitespace().collect();
        let pid: i32 = words[0].parse().unwrap();
        // Standard streams, what python opens to list them, its socket and pipes: nothing of ours.
        assert!(words.len() <= 2 + 3 + 5, "{said}");
        let mut all = Vec::new();
        eventually("the last word is heard", || {
            all.append(&mut heard(&supervisor));
            all.last().is_some_and(|(text, _)| text == "STOPPING=1\n")
        });
        let texts: Vec<_> = all.iter().map(|(text, _)| text.as_str()).collect();
        let ready = format!("READY=1\nSTATUS=up\nMAINPID={pid}\n");
        assert_eq!(
            texts,
            [
                ready.as_str(),
                "WATCHDOG=1\n",
                "RELOADING=1\nMONOTONIC_USEC=5\n",
                "EXTEND_TIMEOUT_USEC=5\nERRNO=2\nEXIT_STATUS=3\n",
                "STOPPING=1\n",
            ]
        );
        // Root can speak as the program, which is all that systemd hears with NotifyAccess=main.
        if rustix::process::geteuid().is_root() {
            let by_it = all.iter().filter(|(_, sender)| *sender == pid).count();
            assert!(by_it >= all.len() - 1, "the last may come when it has ended: {all:?}");
        }
        daemon.client().retrieve(&id("svc/x"), deadline()).unwrap();
        // The relay has ended with the program, and its folder has gone.
        let socket = Path::new(words[1]).to_owned();
        eventually("the relay ends", || !socket.exists());
        assert!(!socket.parent().unwrap().exists());
        daemon.client().delete(&id("svc/x"), deadline()).unwrap();
    }
}

#[test]
fn notification_fd_gets_one_newline() {
    let (_folder, daemon) = serve(&[]);
    let script = format!(
        r#""$0" exec --notify-fd 9 {} -- python3 -c "$1" 9>&1 >/dev/null"#,
        "--notify svc \"$2\""
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder"), PROGRAM]).arg(&daemon.path);
    let output = command.env_remove("NOTIFY_SOCKET").output().unwrap();
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "\n");
    daemon.client().retrieve(&id("svc/x"), deadline()).unwrap();
    // It takes no holder.
    let script = r#""$0" exec --notify-fd 9 -- python3 -c "$1" 9>&1 >/dev/null"#;
    let mut command = Command::new("sh");
    let output = command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder"), PROGRAM]).output();
    let output = output.unwrap();
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "\n");
}

#[test]
fn without_a_supervisor_there_is_no_relay() {
    let (_folder, daemon) = serve(&[]);
    let mut command = suite::fdholder(["exec", "--notify", "svc"]);
    command.arg(&daemon.path).args(["--", "sh", "-c", "echo $NOTIFY_SOCKET"]);
    let output = command.env_remove("NOTIFY_SOCKET").output().unwrap();
    assert_eq!(stdout(&output).trim(), format!("{}.svc.notify", daemon.path.display()));
}

#[test]
fn notification_fd_that_is_not_open_is_an_error() {
    let output = suite::fdholder(["exec", "--notify-fd", "77", "--", "true"]).output().unwrap();
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("descriptor 77 (--notify-fd): Bad file descriptor"));
}

#[test]
fn supervisor_that_has_gone_stops_nobody() {
    let (folder, daemon) = serve(&[]);
    let gone = folder.path().join("gone");
    drop(UnixDatagram::bind(&gone).unwrap());
    let output = exec(&daemon.path, gone.to_str().unwrap()).output().unwrap();
    assert_exit(&output, 0);
    daemon.client().retrieve(&id("svc/x"), deadline()).unwrap();
}

#[test]
fn notification_fd_that_is_not_open_is_none_of_our_own() {
    let (_folder, daemon) = serve(&[]);
    for number in 3..10 {
        let script = format!(
            r#"exec "$0" exec --notify-fd {number} --notify svc "$1" -- true {}"#,
            (3..10).map(|number| format!("{number}>&-")).collect::<Vec<_>>().join(" ")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
        let output = command.env_remove("NOTIFY_SOCKET").output().unwrap();
        assert_exit(&output, 111);
        assert!(stderr(&output).contains(&format!("descriptor {number} (--notify-fd)")));
    }
}

/// Stores so many, and ends.
const STORES: &str = r#"
import array, os, signal, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
os.kill(int(os.environ["HOLDER"]), signal.SIGSTOP)
for number in range(18):
    fds = array.array("i", [os.open("/dev/null", os.O_RDONLY)])
    s.sendmsg([b"FDSTORE=1\nFDPOLL=0\nFDNAME=n%d" % number], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
"#;

#[test]
fn what_is_stored_right_before_the_end_is_held() {
    let (folder, daemon) = serve(&[]);
    let supervisor = folder.path().join("supervisor");
    let _supervisor = UnixDatagram::bind(&supervisor).unwrap();
    let mut command = suite::fdholder(["exec", "--notify", "svc"]);
    command.arg(&daemon.path);
    // The holder stops when the program begins, and its queue has no room for all.
    command.args(["--", "python3", "-c", STORES]).env("HOLDER", daemon.pid().to_string());
    // The relay has what is standard error here.
    command.env("NOTIFY_SOCKET", &supervisor).stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    std::thread::sleep(std::time::Duration::from_millis(100));
    daemon.signal(Signal::CONT);
    eventually("all are held", || {
        let ids = daemon.client().list(deadline()).unwrap();
        ids.iter().filter(|id| id.as_bytes().starts_with(b"svc/n")).count() == 18
    });
}

#[test]
fn exec_without_room_for_a_relay_uses_the_socket_of_the_holder() {
    let (folder, daemon) = serve(&[]);
    let is_possible = Command::new("unshare").args(["-m", "true"]).output();
    if !is_possible.is_ok_and(|output| output.status.success()) {
        return crate::support::is_missing("unshare");
    }
    let supervisor = folder.path().join("supervisor");
    let _supervisor = UnixDatagram::bind(&supervisor).unwrap();
    let script = r#"mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /dev/shm && exec "$0" exec --notify svc "$1" -- sh -c 'echo $NOTIFY_SOCKET'"#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    // Nobody can make anything there.
    command.env("TMPDIR", "/proc/self").env("XDG_RUNTIME_DIR", "/proc/self");
    let output = command.env("NOTIFY_SOCKET", &supervisor).output().unwrap();
    assert_exit(&output, 0);
    assert_eq!(stdout(&output).trim(), format!("{}.svc.notify", daemon.path.display()));
    assert!(stderr(&output).contains("warning: unable to"), "{}", stderr(&output));
}

#[test]
fn relay_removes_only_its_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    for name in ["mine", "fdholder-run.mine"] {
        let at = folder.path().join(name);
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("lock"), "").unwrap();
        std::fs::write(at.join("precious"), "").unwrap();
        let script = r#"exec "$0" exec -- true 3</dev/null 4</dev/null"#;
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]);
        command.env("FDHOLDER_RELAY", format!("run {} 3 4", child.id()));
        command.env("FDHOLDER_RELAY_FOLDER", &at).output().unwrap();
        assert!(at.join("precious").exists() && at.join("lock").exists(), "{name}");
    }
}
