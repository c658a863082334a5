//! A daemon that others have filled is still there for root and for the next user.

use crate::support::suite;
use crate::support::{assert_exit, stderr, Daemon, Rules};
use crate::{common_folder, run_as};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Has as many of something as it gets, says how many, and keeps them. `half` sends half of a
/// request with a descriptor over each connection.
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
    let root = |arguments: &[&str]| {
        let mut command = suite::fdholder(&arguments[..1]);
        command.args(["--timeout", "20000"]).arg(&path).args(&arguments[1..]);
        command.stdin(Stdio::null()).output().unwrap()
    };
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
