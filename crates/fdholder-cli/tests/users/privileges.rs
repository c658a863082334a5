//! What the daemon may do once it has become another user.

use super::{common_folder, run_as};
use crate::support::{self, assert_exit, deadline, id, stderr, stdout, Daemon, Rules};
use std::fs::{self, File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

fn status_of(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

pub fn ids_of(pid: u32, field: &str) -> Vec<u32> {
    status_of(pid, field).split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn assert_has_no_capabilities(pid: u32) {
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status_of(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status_of(pid, "NoNewPrivs:"), "1");
}

pub fn privileges_are_dropped() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let mut command = Command::new(&binary);
    command.args(["serve", "-1", "-v0", "-u", "1001", "-g", "1002", "-G", "1003,1004"]).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    assert_eq!(ids_of(daemon.pid(), "Uid:"), [1001; 4]);
    assert_eq!(ids_of(daemon.pid(), "Gid:"), [1002; 4]);
    assert_eq!(ids_of(daemon.pid(), "Groups:"), [1003, 1004]);
    assert_has_no_capabilities(daemon.pid());
    // Its own user may use it; root is nobody to it.
    let path = path.to_str().unwrap();
    assert_exit(&run_as(1001, 9, &binary, &["store", path, "x"]), 0);
    assert_eq!(stdout(&run_as(1001, 9, &binary, &["list", path])), "x\n");
    assert_exit(&run_as(0, 0, &binary, &["list", path]), 1);
}

/// A daemon of root's, which began in the groups 5 and 7, and with a standby.
fn start_in_groups(setpriv: &[&str], options: &[&str]) -> (tempfile::TempDir, Daemon) {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let mut command = Command::new("setpriv");
    command.args(["--groups", "5,7"]).args(setpriv).arg("--").arg(binary);
    command.args(["serve", "-1", "-v0", "--standby"]).args(options).arg(&path);
    (folder, Daemon::spawn(command, &path))
}

/// Root's groups, and capabilities that would stay when the user changes.
pub fn what_is_left_is_given_up() {
    let kept = ["--securebits", "+no_setuid_fixup"];
    let ambient = ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"];
    for setpriv in [&[][..], &kept, &ambient] {
        let (_folder, daemon) = start_in_groups(setpriv, &["-u", "1001", "-g", "1002"]);
        let standby = child_of(daemon.pid());
        for pid in [daemon.pid(), standby] {
            assert_eq!(ids_of(pid, "Uid:"), [1001; 4]);
            assert_eq!(ids_of(pid, "Gid:"), [1002; 4]);
            assert_eq!(ids_of(pid, "Groups:"), [0; 0]);
            assert_has_no_capabilities(pid);
        }
        daemon.terminate();
    }
    // Whoever stays root stays in its groups, and gains no more.
    let (_folder, daemon) = start_in_groups(&[], &[]);
    assert_eq!(ids_of(daemon.pid(), "Groups:"), [5, 7]);
    assert_eq!(status_of(daemon.pid(), "NoNewPrivs:"), "1");
    assert_ne!(status_of(daemon.pid(), "CapEff:"), "0000000000000000");
    daemon.terminate();
    // And so does an ordinary user who says who it is.
    let as_1001 = ["--reuid", "1001", "--regid", "1002"];
    let (folder, binary) = common_folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("holder");
    let mut command = Command::new("setpriv");
    command.args(as_1001).args(["--groups", "5,7"]).arg(binary);
    command.args(["serve", "-1", "-v0", "-u", "1001", "-g", "1002"]).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    assert_eq!(ids_of(daemon.pid(), "Groups:"), [5, 7]);
    assert_has_no_capabilities(daemon.pid());
}

fn child_of(pid: u32) -> u32 {
    let mut child = None;
    support::eventually("it has a child", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        child = tasks.into_iter().find_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        // It is that program by now.
        child.is_some_and(|child| status_of(child, "Name:") == "fdholder")
    });
    child.unwrap()
}

/// When the kernel says that it has done what it has not.
pub fn who_keeps_privileges_does_not_serve() {
    let (folder, binary) = common_folder();
    // So that whoever it is can remove its socket.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("holder");
    for (call, says) in [
        ("setuid", "its users are 0 0 0 0 (real, effective, saved, file system)"),
        ("setgid", "its groups are 0 0 0 0 (real, effective, saved, file system)"),
        ("setgroups", "its supplementary groups are 5 7"),
        ("capset", "it has capabilities"),
    ] {
        // strace starts where setpriv ends: some versions of that call capset, too.
        let mut command = Command::new("setpriv");
        command.args(["--securebits", "+no_setuid_fixup", "--groups", "5,7", "--"]);
        command.args(["strace", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
        command.arg(format!("inject={call}:retval=0:when=1")).arg(&binary);
        let output =
            command.args(["serve", "-u", "1001", "-g", "1002"]).arg(&path).output().unwrap();
        assert_exit(&output, 111);
        let said =
            format!("fdholder serve: fatal: privileges were not given up for good: {says}\n");
        assert_eq!(stderr(&output), said);
        assert!(!path.exists(), "{call}");
    }
    // Where it may not even try, it does not serve either.
    let refused = Command::new(&binary)
        .args(["serve", "-u", "1001"])
        .arg(folder.path().join("other"))
        .uid(1002)
        .output()
        .unwrap();
    assert_exit(&refused, 111);
}

/// What a configuration wants open may take privileges that the daemon gives up.
pub fn privileged_ports() {
    let (folder, binary) = common_folder();
    let (path, file) = (folder.path().join("holder"), folder.path().join("config"));
    // Nobody else has it; any other below 1024 would do.
    let config = "uid = 1001\ngid = 1002\n[sockets.web]\naddress = 'tcp:127.0.0.1:917'\n";
    fs::write(&file, config).unwrap();
    let mut command = Command::new(&binary);
    command.args(["serve", "-1", "-v0", "--config"]).arg(&file).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    assert_eq!(ids_of(daemon.pid(), "Uid:"), [1001; 4]);
    let path = path.to_str().unwrap();
    assert_eq!(stdout(&run_as(1001, 1002, &binary, &["list", path])), "web\n");
    TcpStream::connect("127.0.0.1:917").unwrap();
}

/// One that began to listen as root and is another user now: the next one becomes that user
/// as well, and takes over.
pub fn privileged_takeover() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let start = || {
        let mut command = Command::new(&binary);
        command.args(["serve", "-1", "-v0", "-u", "1001", "-g", "1002"]).arg(&path);
        Daemon::spawn(command, &path)
    };
    let mut first = start();
    let operand = path.to_str().unwrap();
    assert_exit(&run_as(1001, 9, &binary, &["store", operand, "x"]), 0);
    let second = start();
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(ids_of(second.pid(), "Uid:"), [1001; 4]);
    assert_eq!(stdout(&run_as(1001, 9, &binary, &["list", operand])), "x\n");
    // As itself it would be another user.
    assert_exit(&run_as(0, 0, &binary, &["serve", operand]), 111);
    assert_eq!(stdout(&run_as(1001, 9, &binary, &["list", operand])), "x\n");
}

/// Something that takes a place among the processes that a user may have.
struct Sleeper(Child);

impl Sleeper {
    fn of(uid: u32) -> Self {
        Self(Command::new("sleep").arg("600").uid(uid).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // The next who runs as that user has its place.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What takes long to close keeps nobody waiting for longer than there was no other thread.
pub fn threads_that_close_come_when_they_can() {
    let uid = 16_385;
    let (folder, binary) = common_folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("holder");
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/0")
        .regexes("uid/0", ".*", ".*")
        .may("uid/0", &["LIST", "GETDUMP", "SETDUMP"]);
    // The loop, the first who closes, the one that watches devices, the one that starts children,
    // and these, which take the places of others.
    let mut others: Vec<_> = (0..4).map(|_| Sleeper::of(uid)).collect();
    let script = "ulimit -u 6; exec \"$0\" serve -1 -i \"$1\" \"$2\"";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(&binary).arg(&rules.dir).arg(&path).uid(uid).gid(uid);
    // Who has nobody to close what clients give does not begin.
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_exit(&output, 111);
    assert!(said.contains("no thread can be started (see ulimit -u)"), "{said}");
    others.truncate(2);
    let daemon = Daemon::spawn(command, &path);
    let tasks = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    support::eventually("threads that it needs to start have ended", || tasks() == 4);
    let (ours, _theirs) = support::lingering();
    let null = File::open("/dev/null").unwrap();
    let mut client = daemon.client();
    client.store(&id("x"), fdholder::Limit::never(), &ours, deadline()).unwrap();
    drop(ours);
    let in_progress = |result: Result<(), fdholder::Error>| {
        assert_eq!(result.unwrap_err().errno(), fdholder::Errno::INPROGRESS);
    };
    in_progress(client.delete(&id("x"), deadline()));
    let mut store_and_delete = || {
        client.store(&id("y"), fdholder::Limit::never(), &null, deadline()).unwrap();
        client.delete(&id("y"), deadline())
    };
    in_progress(store_and_delete());
    assert_eq!(tasks(), 4);
    drop(others);
    store_and_delete().unwrap();
}
