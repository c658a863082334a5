//! A daemon that others have filled is still there for root and for the next user.

use crate::support::suite;
use crate::support::{assert_exit, deadline, eventually, id, stderr, stdout, Daemon, Rules};
use crate::{common_folder, run_as};
use fdholder_daemon::claim::{claimant, Claimed};
use rustix::process::Signal;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Has as many of something as it gets, says how many, and keeps them. `half` sends half of a
/// request with a descriptor over each connection; `idle` connects without an answer, and `waiting`
/// waits on ten connections until `go` is held.
const GREEDY: &str = r"
import array, os, signal, socket, struct, sys
path, what = sys.argv[1:]
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(path); return s
def answer(s):
    try: return (s.recv(7) + b'\1' * 7)[6]
    except OSError: return 1
kept = []
if what == 'connections':
    while True:
        s = connect()
        try: s.sendall(b'\0\0\0\1\0\0L')
        except OSError: break
        if answer(s): break
        kept.append(s)
elif what == 'idle':
    kept = [connect() for _ in range(40)]
elif what == 'waiting':
    while len(kept) < 10:
        s = connect()
        # Its connections are taken until the daemon has seen that those before wait.
        try: s.sendall(b'\0\0\0\x06\0\0+\0\0\0\0\6')
        except OSError: continue
        if answer(s): continue
        s.sendall(b'\0\0\0\x07\0\0+\x0c\0\2go\0')
        kept.append(s)
elif what == 'half':
    null = array.array('i', [os.open('/dev/null', os.O_RDONLY)])
    for _ in range(20):
        s = connect()
        try: s.sendmsg([b'\0\0\0\x20\0\1S'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, null)])
        except OSError: break
        kept.append(s)
else:
    s = connect()
    null = array.array('i', [os.open('/dev/null', os.O_RDONLY)])
    while True:
        id = b'%d-%d' % (os.getuid(), len(kept))
        body = b'S' + struct.pack('>QI', (1 << 62) + (1 << 61) + 37, 0) + bytes([len(id)]) + id + b'\0'
        s.sendmsg([struct.pack('>IH', len(body), 1) + body],
                  [(socket.SOL_SOCKET, socket.SCM_RIGHTS, null)])
        if answer(s): break
        kept.append(id)
print(len(kept), flush=True)
signal.pause()
";

struct Greedy(Child);

impl Greedy {
    fn new(uid: u32, path: &Path, what: &str) -> (Self, usize) {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", GREEDY]).arg(path).arg(what).current_dir("/").uid(uid).gid(uid);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(child), line.trim().parse().unwrap())
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn rules(folder: &Path, limit: Option<&str>) -> Rules {
    let rules = ["uid/self", "uid/default"].into_iter().fold(
        Rules::none(folder.join("rules")),
        |rules, key| {
            rules.allow(key).regexes(key, ".", ".").may(key, &["LIST", "GETDUMP", "SETDUMP"])
        },
    );
    let Some(limit) = limit else { return rules };
    rules
        .write("uid/default/env/FDHOLDER_MAXCONN", limit)
        .write("uid/default/env/FDHOLDER_MAXFDS", limit)
}

/// Runs a program of ours as root, without patience for a daemon that lets nobody in.
fn root(path: &Path, arguments: &[&str]) -> Output {
    let mut command = suite::fdholder(&arguments[..1]);
    command.args(["--timeout", "20000"]).arg(path).args(&arguments[1..]);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Who has waited takes nobody's connection, however many are answered at once.
pub fn many_who_are_answered_at_once_keep_nobody_out() {
    let (folder, binary) = common_folder();
    let rules = rules(folder.path(), None);
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "-1", "-v0", "-c", "40", "-i"]);
    command.arg(&rules.dir).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let greedy: Vec<_> =
        (0..6).map(|number| Greedy::new(2001 + number, &path, "waiting")).collect();
    eventually("all wait", || {
        let status = stdout(&root(&path, &["status"]));
        status.lines().any(|line| line.starts_with("waiting") && line.contains(" 60 for ids"))
    });
    assert_exit(&root(&path, &["store", "go"]), 0);
    let next = run_as(2999, 2999, &binary, &["list", "--timeout", "20000", path.to_str().unwrap()]);
    assert_exit(&next, 0);
    for program in ["list", "status", "upgrade", "list"] {
        assert_exit(&root(&path, &[program]), 0);
    }
    drop((greedy, daemon));
}

pub fn root_gets_in_when_there_may_be_fewer_connections_than_others_have() {
    let (folder, _) = common_folder();
    let rules = rules(folder.path(), None);
    let (path, file) = (folder.path().join("holder"), folder.path().join("fdholder.toml"));
    let write = |connections: usize| {
        let (path, rules) = (path.display(), rules.dir.display());
        let text = format!(
            "path = \"{path}\"\nrules_dir = \"{rules}\"\nmax_connections = {connections}\n"
        );
        fs::write(&file, text).unwrap();
    };
    let serve = || {
        let mut command = suite::fdholder(["serve", "-1", "-v0", "--config"]);
        command.arg(&file);
        Daemon::spawn(command, &path)
    };
    write(200);
    let mut daemon = serve();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let (greedy, got) = Greedy::new(2001, &path, "connections");
    assert!(got > 32, "{got}");
    write(20);
    daemon.signal(Signal::HUP);
    eventually("it has read that", || stdout(&root(&path, &["status"])).contains(" of 20"));
    assert_exit(&root(&path, &["list"]), 0);
    let new = serve();
    assert!(daemon.wait().success());
    assert_exit(&root(&path, &["list"]), 0);
    drop((greedy, new));
}

/// It gets in itself, as well, in the place of what it has left idle or half done.
pub fn own_user_that_has_taken_all_keeps_nobody_out() {
    const OWN: u32 = 2100;
    for (what, greedy) in [("idle", OWN), ("half", OWN), ("idle", 0), ("half", 0)] {
        let case = format!("{what} connections of uid {greedy}");
        let (folder, binary) = common_folder();
        let rules = rules(folder.path(), None);
        let folder = folder.path();
        fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
        let path = folder.join("holder");
        let serve = || {
            let mut command = Command::new(&binary);
            command.args(["serve", "-1", "-v0", "-c", "10", "-i"]).arg(&rules.dir).arg(&path);
            command.uid(OWN).gid(OWN).current_dir("/");
            Daemon::spawn(command, &path)
        };
        let mut daemon = serve();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        let greedy = Greedy::new(greedy, &path, what);
        for uid in [0, OWN] {
            for program in ["list", "status"] {
                let arguments = [program, "--timeout", "20000", path.to_str().unwrap()];
                let output = run_as(uid, uid, &binary, &arguments);
                assert!(output.status.success(), "{case}: {program} by {uid}: {output:?}");
            }
        }
        let new = serve();
        assert!(daemon.wait().success(), "{case}");
        drop((greedy, new));
    }
}

/// Has the abstract name by which a daemon is found, as soon as that is free.
const STRANGER: &str = r"
import signal, socket, sys
s = socket.socket(socket.AF_UNIX)
while True:
    try: s.bind('\0' + sys.argv[1]); break
    except OSError: pass
s.listen(1)
print(1, flush=True)
signal.pause()
";

/// No daemon begins with nothing while one lives, even if a stranger has the name by which it is found.
pub fn daemon_whose_abstract_name_a_stranger_has_is_no_second_one() {
    let (folder, _) = common_folder();
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "-1"]);
    let log = folder.path().join("log");
    command.arg(&path).stderr(fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command, &path);
    assert_exit(&root(&path, &["store", "precious"]), 0);
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let names = table.lines().filter_map(|line| line.split_once('@')).map(|(_, name)| name);
    let is_its =
        |name: &&str| name.starts_with("fdholder/") && name.ends_with(path.to_str().unwrap());
    let name = names.into_iter().find(is_its).unwrap();
    let mut stranger = Command::new("/usr/bin/python3");
    stranger.args(["-c", STRANGER, name]).current_dir("/").uid(2001).gid(2001);
    let _stranger = Greedy(stranger.stdout(Stdio::piped()).spawn().unwrap());
    // The name is free for a moment in each.
    eventually("the stranger has it", || {
        assert_exit(&root(&path, &["upgrade"]), 0);
        let owner = claimant(&path, 0, Duration::from_secs(20)).unwrap();
        matches!(owner, Claimed::ByStranger(_))
    });
    eventually("that is said", || {
        fs::read_to_string(&log).unwrap().contains("another user (uid 2001)")
    });
    // Stopped, it does not make its file again.
    daemon.signal(Signal::STOP);
    fs::remove_file(&path).unwrap();
    let refused = suite::fdholder(["serve", "-1"]).arg(&path).output().unwrap();
    assert_exit(&refused, 111);
    assert!(stderr(&refused).contains("a daemon serves there whose file is gone"), "{refused:?}");
    daemon.signal(Signal::CONT);
    // Then it does, and is found by that.
    let mut next = suite::fdholder(["serve", "-1", "-v0"]);
    next.arg(&path);
    let next = Daemon::spawn(next, &path);
    assert!(daemon.wait().success());
    assert_eq!(next.client().list(deadline()), Ok(vec![id("precious")]));
    // The stranger, whose queue is full by now, keeps nobody from beginning where none lives.
    next.terminate();
    let mut first = suite::fdholder(["serve", "-1", "-v0"]);
    first.arg(&path);
    assert_eq!(Daemon::spawn(first, &path).client().list(deadline()), Ok(vec![]));
}

/// However small the holder is, and whether users have shares or what rules grant.
pub fn root_is_served_by_a_full_daemon() {
    for (size, limit) in [("1", None), ("4", None), ("256", None), ("40", Some("1000\n"))] {
        for what in ["connections", "descriptors", "half"] {
            root_is_served(size, limit, what);
        }
    }
}

fn root_is_served(size: &str, limit: Option<&str>, what: &str) {
    let case = format!("{what} of {size}, by {limit:?}");
    let (folder, binary) = common_folder();
    let rules = rules(folder.path(), limit);
    let path = folder.path().join("holder");
    let (connections, held) = if what == "descriptors" { ("100", size) } else { (size, "100") };
    let serve = || {
        let mut command = suite::fdholder(["serve", "-1", "-v0", "-c", connections, "-n", held]);
        command.arg("-i").arg(&rules.dir).arg(&path);
        Daemon::spawn(command, &path)
    };
    let mut daemon = serve();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let greedy: Vec<_> = (0..9).map(|number| Greedy::new(2001 + number, &path, what)).collect();
    let got: Vec<_> = greedy.iter().map(|(_, count)| *count).collect();
    assert!(got[0] > 0, "{case}: {got:?}");
    if size == "256" {
        assert!(got.iter().all(|&count| count > 0), "{case}: {got:?}");
    }
    let root = |arguments: &[&str]| root(&path, arguments);
    for program in ["list", "status", "metrics"] {
        assert_exit(&root(&[program]), 0);
    }
    // A single place that there is somebody has.
    if (what, size) != ("descriptors", "1") {
        assert_exit(&root(&["store", "roots"]), 0);
        assert_exit(&root(&["delete", "roots"]), 0);
    }
    assert_exit(&root(&["upgrade"]), 0);
    // The next user is served, or told at once.
    let next = run_as(2999, 2999, &binary, &["list", "--timeout", "20000", path.to_str().unwrap()]);
    match (what, size, limit) {
        ("connections", "256", None) | ("descriptors", _, _) => assert_exit(&next, 0),
        ("connections", _, _) => {
            assert_exit(&next, 1);
            assert!(stderr(&next).contains("quota"), "{case}: {next:?}");
        }
        _ => {}
    }
    // Another daemon takes over, and then this ends.
    let new = serve();
    assert!(daemon.wait().success(), "{case}");
    assert_exit(&root(&["list"]), 0);
    // It waits for requests that have begun.
    drop(greedy);
    assert!(new.terminate().is_some(), "{case}");
}
