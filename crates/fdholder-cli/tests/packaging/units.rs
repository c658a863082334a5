//! The units, as they are, under a real systemd: a user manager that root runs, in which they do
//! all that they do under the first process. The package is installed there, with its user.

use crate::file;
use crate::support::family::is_alive;
use crate::support::system::package;
use crate::support::systemd::{Manager, Whom};
use crate::support::{
    assert_exit, content_at, deadline, eventually, has_landlock, id, marked_file, stdout,
};
use fdholder::{Client, Limit};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const UNIT: &str = "fdholder.service";
const SOCKET: &str = "fdholder.socket";
pub const EXAMPLE: &str = "example-web.service";

/// The holder for units that are tested by a newer systemd: as a user manager that gives each
/// service that is confined other users, where its rules do not hold.
const PLAIN: &str = "\
[Service]
Type=notify
NotifyAccess=all
ExecStartPre=/usr/bin/mkdir -p %t/fdholder
ExecStart=/usr/bin/fdholder serve --standby --fdstore -i /etc/fdholder/rules %t/fdholder/holder
Restart=always
KillMode=process
FileDescriptorStoreMax=1100
";

/// The holder as a service, by the unit of the package.
pub struct Holder {
    pub manager: Manager,
    pub path: PathBuf,
}

impl Holder {
    /// Not started. Settings beside those of the unit.
    fn prepared(settings: &str) -> Self {
        Self::prepared_under(Path::new(""), settings)
    }

    /// Under the systemd of another system (see `Manager::of`), if that is not empty; then the
    /// holder's unit is a plain one.
    pub fn prepared_under(root: &Path, settings: &str) -> Self {
        let manager = Manager::of_with(root, install);
        // Everybody gets to the first process, but nobody else to a user's manager.
        for (name, mode) in [("systemd", 0o755), ("systemd/notify", 0o777)] {
            let path = manager.runtime().join(name);
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let path = manager.runtime().join("fdholder/holder");
        let holder = Self { manager, path };
        let folder = holder.manager.folder().join("units").join(format!("{UNIT}.d"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("settings.conf"), format!("[Service]\n{settings}\n")).unwrap();
        for unit in [UNIT, SOCKET, EXAMPLE] {
            let text = fs::read_to_string(file("systemd").join(unit)).unwrap();
            let is_plain = unit == UNIT && !root.as_os_str().is_empty();
            holder.manager.unit(unit, if is_plain { PLAIN } else { &text });
        }
        holder
    }

    pub fn start(settings: &str) -> Self {
        let holder = Self::prepared(settings);
        holder.manager.start_unit(UNIT);
        holder
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path, deadline()).unwrap()
    }

    pub fn fill(&self, count: usize) {
        let mut client = self.client();
        for number in 0..count {
            let (file, _) = marked_file(self.manager.folder(), &format!("{number}"));
            client.store(&id(&format!("{number}")), Limit::never(), &file, deadline()).unwrap();
        }
    }

    pub fn main_pid(&self) -> u32 {
        self.manager.main_pid(UNIT).unwrap()
    }

    /// Waits until a standby has everything, and returns its pid.
    pub fn standby(&self) -> u32 {
        eventually("a standby has everything", || {
            let output = self.manager.output();
            let last = |what: &str| output.rfind(what);
            last(" has everything") > last(": ready on ")
        });
        let main = self.manager.main_pid(UNIT);
        let pids = || self.manager.pids(UNIT).into_iter().filter(|pid| Some(*pid) != main);
        let mut standby = Vec::new();
        eventually("it is the only other process", || {
            standby = pids().collect();
            standby.len() == 1
        });
        standby[0]
    }
}

/// The package, and its user, as its postinst has systemd make it.
fn install(tree: &Path) {
    let run = |program: &str, arguments: &[&Path]| {
        assert_exit(&Command::new(program).args(arguments).output().unwrap(), 0);
    };
    run("dpkg-deb", &[Path::new("--extract"), &package().unwrap(), tree]);
    for name in ["passwd", "group", "shadow", "gshadow"] {
        fs::copy(Path::new("/etc").join(name), tree.join("etc").join(name)).unwrap();
    }
    run("systemd-sysusers", &[Path::new(&format!("--root={}", tree.display()))]);
    // What the example says is to be done.
    let rules = tree.join("etc/fdholder/rules/uid/33");
    fs::create_dir_all(rules.join("env")).unwrap();
    fs::write(rules.join("allow"), "").unwrap();
    for right in ["STORE", "RETRIEVE"] {
        let name = format!("env/S6_FDHOLDER_{right}_REGEX");
        fs::write(rules.join(name), "^web(/|$)\n").unwrap();
    }
    // A version of the server can take the place of another.
    let folder = tree.parent().unwrap();
    let server = tree.join("usr/local/lib/example-web.py");
    fs::create_dir_all(server.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(folder.join("server.py"), server).unwrap();
    // That user gets to its folder.
    for folder in [folder, &folder.join("run")] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
}

pub fn verified() {
    let holder = Holder::prepared("");
    let files = [UNIT, SOCKET, EXAMPLE].map(|unit| file("systemd").join(unit));
    let mut verify = holder.manager.command("systemd-analyze");
    let verified = verify.args(["verify", "--man=no"]).args(files).output().unwrap();
    assert_exit(&verified, 0);
    // Other units of this machine may have mistakes.
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let own = file("systemd").display().to_string();
    assert!(!said.lines().any(|line| line.contains(&own)), "{said}");
}

/// The unit says how safe it is.
pub fn is_safe() {
    let holder = Holder::prepared("");
    let unit = file("systemd").join(UNIT);
    let mut analyze = holder.manager.command("systemd-analyze");
    let said = analyze.args(["security", "--offline=yes"]).arg(&unit).output().unwrap();
    assert_exit(&said, 0);
    let said = stdout(&said);
    let level = said.split("exposure level for fdholder.service: ").nth(1).unwrap();
    let level: f64 = level.split_whitespace().next().unwrap().parse().unwrap();
    // Another systemd may weigh things otherwise; worse than it is said to be it is not.
    for text in [unit, file("../docs/least-privilege.md")] {
        let says = fs::read_to_string(text).unwrap();
        let claim = says.split(" says ").find_map(|rest| rest.split_once(", SAFE")).unwrap().0;
        assert!(level <= claim.parse().unwrap(), "{level} is worse than {claim}");
    }
    assert!(level <= 0.5, "{level}");
}

/// What the unit allows is enough for it to give up more by itself.
pub fn is_confined() {
    if !has_landlock() {
        return;
    }
    let options = "-v2 --landlock --fdstore -i /etc/fdholder/rules";
    let serve = format!("/usr/bin/fdholder serve {options} %t/fdholder/holder");
    let holder = Holder::start(&format!("ExecStart=\nExecStart={serve}"));
    let output = holder.manager.output();
    assert!(output.contains("from here on (Landlock)"), "{output}");
}

/// What README.md says happens.
pub fn survives() {
    let holder = Holder::start("");
    let (manager, path) = (&holder.manager, &holder.path);
    holder.fill(30);
    let before = content_at(path);
    let user = fs::metadata(format!("/proc/{}", holder.main_pid())).unwrap().uid();
    let users = fs::read_to_string(manager.folder().join("tree/etc/passwd")).unwrap();
    assert!(users.contains(&format!("\nfdholder:x:{user}:")), "{user}");
    // Also the limits of the unit leave room for what is held.
    assert!(manager.output().contains("holding up to 1000 descriptors"), "{}", manager.output());

    for _ in 0..2 {
        let standby = holder.standby();
        let main = holder.main_pid();
        manager.kill(UNIT, Signal::KILL, Whom::Main);
        assert_eq!(content_at(path), before);
        manager.successor(UNIT, main);
        assert_eq!(content_at(path), before);
        assert!(manager.output().contains(&format!("has taken over 30 from pid {standby}")));
    }
    let main = holder.main_pid();
    manager.kill_at_once(UNIT);
    manager.successor(UNIT, main);
    assert_eq!(content_at(path), before);
    manager.restart(UNIT);
    assert_eq!(content_at(path), before);

    holder.standby();
    let pids = manager.pids(UNIT);
    manager.stop(UNIT);
    eventually("both have ended", || !pids.iter().any(|&pid| is_alive(pid)));
    manager.start_unit(UNIT);
    assert!(content_at(path).is_empty());
}

pub fn reloads() {
    let holder = Holder::start("");
    holder.fill(30);
    let before = content_at(&holder.path);
    let main = holder.main_pid();
    let ready = || holder.manager.output().matches(": ready on ").count();
    for _ in 0..2 {
        let seen = ready();
        holder.manager.systemctl(&["reload", UNIT]);
        assert_eq!(ready(), seen + 1);
        assert_eq!(holder.main_pid(), main);
        assert_eq!(content_at(&holder.path), before);
        holder.standby();
    }
}

/// The first client starts it; its socket stays where it is, whoever listens.
pub fn socket() {
    let holder = Holder::prepared("");
    let (manager, path) = (&holder.manager, &holder.path);
    manager.start_unit(SOCKET);
    assert_eq!(manager.property(UNIT, "ActiveState"), "inactive");
    let inode = || fs::metadata(path).unwrap().ino();
    let before = inode();
    holder.fill(3);
    let held = content_at(path);
    manager.restart(UNIT);
    assert_eq!(content_at(path), held);
    manager.stop(UNIT);
    assert_eq!(manager.property(SOCKET, "ActiveState"), "active");
    // The next client starts it anew.
    assert!(content_at(path).is_empty());
    assert_eq!(inode(), before);
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o777);
}

/// A socket that systemd has made anew is where clients come in, not the one before.
pub fn new_socket() {
    let holder = Holder::prepared("");
    let (manager, path) = (&holder.manager, &holder.path);
    manager.start_unit(SOCKET);
    holder.fill(3);
    let held = content_at(path);
    // It depends on whether the service stops before the socket does. If not, systemd refuses to
    // listen again, as the service has not stopped; the path leads nowhere, and the service
    // makes its own socket.
    let mut outcomes = BTreeSet::new();
    for _ in 0..20 {
        manager.try_systemctl(&["restart", SOCKET, UNIT]);
        manager.restart(UNIT);
        assert_eq!(content_at(path), held);
        outcomes.insert(manager.property(SOCKET, "ActiveState") == "active");
        // Whichever it is, it is kept from now on.
        let main = holder.main_pid();
        manager.kill_at_once(UNIT);
        manager.successor(UNIT, main);
        assert_eq!(content_at(path), held);
        if outcomes.len() == 2 {
            break;
        }
    }
}

/// Without a manager: the program that systemd has for trying it out.
pub fn systemd_socket_activate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg(format!("--listen={}", path.display())).arg(env!("CARGO_BIN_EXE_fdholder"));
    let mut activated = activate.arg("serve").arg(&path).spawn().unwrap();
    eventually("there is a socket", || path.exists());
    let inode = fs::metadata(&path).unwrap().ino();
    // It becomes the holder when somebody connects. Before it listens, all are refused.
    let mut client = None;
    eventually("systemd listens", || {
        client = Client::connect(&path, deadline()).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    assert!(client.list(deadline()).unwrap().is_empty());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    let comm = fs::read_to_string(format!("/proc/{}/comm", activated.id())).unwrap();
    assert_eq!(comm, "fdholder\n");
    activated.kill().unwrap();
    activated.wait().unwrap();
}
