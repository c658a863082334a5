//! A systemd of a test's own: a user manager with the units of the test and no others.
//!
//! It runs in namespaces of its own for mounts and cgroups. Without them a manager that root
//! starts takes every process of the machine into its scope, and two managers share the
//! cgroups of units with the same name. Nothing of it is seen outside, and nothing is left: a
//! shell keeps it, and ends all of it when its standard input ends, which happens also when
//! the test is killed.

use super::{eventually, PATIENCE};
use rustix::process::Signal;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Arguments: a folder, and the root of the system whose systemd it is (or nothing: this
/// one's). The name of the folder is that of the cgroup. In the environment: what systemd wants.
/// What is in the folder `tree` is seen on top of the system. What is at run/ is at a place that
/// services see also when they do not see /tmp.
const KEEPER: &str = r#"
set -eu
folder=$1 root=$2 name=$(basename "$1")
[ -z "$root" ] || mount --bind "$root/usr" /usr
for it in "$folder"/tree/*; do
    [ ! -d "$it" ] || mount -t overlay overlay -o "lowerdir=$it:/${it##*/}" "/${it##*/}"
done
# It refuses to run where there is no /run/systemd/system, and logs to a socket in journal.
mkdir -p /run/systemd
# Services that do not see all of the system get a new /run where there is no file system.
mount --rbind /run /run
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system /run/systemd/journal /run/systemd/run
# What services do not see is covered by these, which the first process makes elsewhere.
mkdir -m 700 /run/systemd/inaccessible
mkdir -m 0 /run/systemd/inaccessible/dir
mknod -m 0 /run/systemd/inaccessible/chr c 0 0
mkfifo -m 0 /run/systemd/inaccessible/fifo
: >/run/systemd/inaccessible/reg
mount --bind "$folder/run" /run/systemd/run
export XDG_RUNTIME_DIR=/run/systemd/run
mount --bind "$folder/journal" /run/systemd/journal
mount -t cgroup2 cgroup2 "$folder/cgroup"
group=$folder/cgroup/$name
mkdir "$group"
# The cgroup is the root of the cgroup namespace, and the only one that is mounted. (A tmpfs
# between: no file system is mounted on itself.)
sh -c '
    echo $$ >"$1/cgroup.procs"
    exec unshare --mount --cgroup sh -c "
        mount -t tmpfs tmpfs /sys/fs/cgroup &&
        mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
        exec /usr/lib/systemd/systemd --user --log-target=journal --show-status=no"
' sh "$group" </dev/null &
cat
# It may not be in its cgroup yet.
kill -9 $! || :
wait
echo 1 >"$group/cgroup.kill"
# A process that was killed is in its cgroup until the kernel is done with it.
until find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$group" ]; do
    sleep 0.01
done
"#;

/// What is there for units to refer to. Nothing else is: no sockets, no timers, no D-Bus.
const TARGETS: [&str; 3] = ["basic.target", "default.target", "shutdown.target"];

/// What holds for every service that does not say otherwise.
const DEFAULTS: &str = "\
[Unit]
StartLimitIntervalSec=0
[Service]
TimeoutSec=30
RestartSec=0
";

/// Which processes of a unit a signal is for.
#[derive(Clone, Copy)]
pub enum Whom {
    Main,
    All,
}

/// A running manager. It and all it started are killed when dropped.
pub struct Manager {
    folder: tempfile::TempDir,
    keeper: Child,
    log: Arc<Mutex<Vec<String>>>,
    logger: Option<JoinHandle<()>>,
}

impl Manager {
    /// What it takes to have one and is not there.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("root".to_owned());
        }
        let programs = ["/usr/lib/systemd/systemd", "/usr/bin/systemctl", "/usr/bin/unshare"];
        programs.iter().find(|program| !Path::new(program).exists()).map(|&it| it.to_owned())
    }

    /// This machine's systemd, ready.
    pub fn start() -> Self {
        Self::of(Path::new(""))
    }

    /// The same with files installed: what `install` puts into a folder is seen on top of the
    /// system.
    pub fn with(install: impl FnOnce(&Path)) -> Self {
        Self::of_with(Path::new(""), install)
    }

    /// The systemd of another system, which is installed in a folder; ready. Everything else is
    /// this machine's, except `/usr`.
    pub fn of(root: &Path) -> Self {
        Self::of_with(root, |_| ())
    }

    /// The same with files installed.
    pub fn of_with(root: &Path, install: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["run", "units", "units/service.d", "journal", "cgroup", "nothing", "tree"] {
            fs::create_dir(at(name)).unwrap();
        }
        install(&at("tree"));
        for target in TARGETS {
            fs::write(at("units").join(target), "[Unit]\nDescription=A target\n").unwrap();
        }
        let output = at("output");
        let output = output.display();
        let defaults = format!("{DEFAULTS}StandardOutput=append:{output}\nStandardError=inherit\n");
        fs::write(at("units/service.d/defaults.conf"), defaults).unwrap();

        let log = Arc::default();
        let logger = logger(&at("journal/socket"), Arc::clone(&log));
        let ready = UnixDatagram::bind(at("ready")).unwrap();
        ready.set_read_timeout(Some(PATIENCE)).unwrap();
        let keeper = Command::new("unshare")
            .args(["--mount", "sh", "-c", KEEPER, "keeper"])
            .args([folder.path(), root])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", at("nothing"))
            .env("NOTIFY_SOCKET", at("ready"))
            .env("SYSTEMD_UNIT_PATH", at("units"))
            .env("SYSTEMD_GENERATOR_PATH", at("nothing"))
            .env("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", at("nothing"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let manager = Self { folder, keeper, log, logger: Some(logger) };
        manager.is_ready(&ready);
        manager
    }

    /// Waits until the manager says so. It would wait for whoever does not read what else it
    /// says: the socket is closed then.
    fn is_ready(&self, socket: &UnixDatagram) {
        let mut message = [0; 4096];
        loop {
            let length = socket.recv(&mut message).unwrap_or_else(|error| {
                panic!("systemd did not get ready: {error}; it says {:#?}", self.log())
            });
            if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                return fs::remove_file(self.folder.path().join("ready")).unwrap();
            }
        }
    }

    /// A program that sees what the manager sees.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.manager_pid())).args(["--mount", program]);
        command
    }

    /// What `%t` is in units, as it is seen from outside.
    pub fn runtime(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Where there is room for sockets and files of units.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Defines a unit, or defines it anew. What runs goes on as it was started.
    pub fn unit(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join("units").join(name), content).unwrap();
        self.systemctl(&["daemon-reload"]);
    }

    /// A unit that nothing wants is forgotten when it stops, and its descriptors with it. This
    /// one is wanted, as any that is enabled.
    pub fn enable(&self, unit: &str) {
        let wants = self.folder.path().join("units/default.target.wants");
        fs::create_dir_all(&wants).unwrap();
        std::os::unix::fs::symlink(format!("../{unit}"), wants.join(unit)).unwrap();
        self.systemctl(&["daemon-reload"]);
    }

    /// Starts a unit, and waits until it is ready.
    pub fn start_unit(&self, unit: &str) {
        self.systemctl(&["start", unit]);
    }

    pub fn restart(&self, unit: &str) {
        self.systemctl(&["restart", unit]);
    }

    pub fn stop(&self, unit: &str) {
        self.systemctl(&["stop", unit]);
    }

    /// Sends a signal. The processes get it one after the other.
    pub fn kill(&self, unit: &str, signal: Signal, whom: Whom) {
        let signal = format!("--signal={}", signal.as_raw());
        let whom = match whom {
            Whom::Main => "--kill-whom=main",
            Whom::All => "--kill-whom=all",
        };
        self.systemctl(&["kill", &signal, whom, unit]);
    }

    /// Kills all processes of a unit in one instant.
    pub fn kill_at_once(&self, unit: &str) {
        fs::write(self.cgroup(unit).join("cgroup.kill"), "1").unwrap();
    }

    /// The processes of a unit.
    pub fn pids(&self, unit: &str) -> Vec<u32> {
        let pids = fs::read_to_string(self.cgroup(unit).join("cgroup.procs")).unwrap_or_default();
        pids.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// The main process of a unit; none while there is none.
    pub fn main_pid(&self, unit: &str) -> Option<u32> {
        let pid = self.property(unit, "MainPID").parse().unwrap();
        (pid != 0).then_some(pid)
    }

    /// Waits until a unit is ready with another main process than this.
    pub fn successor(&self, unit: &str, old: u32) -> u32 {
        let mut successor = None;
        eventually("another main process", || {
            successor = self.main_pid(unit).filter(|&pid| pid != old);
            successor.is_some() && self.property(unit, "ActiveState") == "active"
        });
        successor.unwrap()
    }

    pub fn property(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", "-P", property, unit])
    }

    /// The version, without what the distribution adds.
    pub fn version(&self) -> u32 {
        let version = self.systemctl(&["show", "-P", "Version"]);
        let end = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
        version[..end].parse().unwrap()
    }

    /// How many descriptors of a unit are stored.
    pub fn stored(&self, unit: &str) -> usize {
        self.property(unit, "NFileDescriptorStore").parse().unwrap()
    }

    /// What the manager has said. What it is about to say may be missing.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// What services have written to their standard output and error.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    /// What `systemctl` says. It must succeed.
    pub fn systemctl(&self, arguments: &[&str]) -> String {
        let output = self.try_systemctl(arguments);
        assert!(
            output.status.success(),
            "systemctl {arguments:?}: {output:?}\nsystemd: {:#?}\nservices: {}",
            self.log(),
            self.output()
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    pub fn try_systemctl(&self, arguments: &[&str]) -> Output {
        Command::new("systemctl")
            .args(["--user", "--no-pager"])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .output()
            .unwrap()
    }

    /// The cgroup of a unit, as the manager sees it.
    fn cgroup(&self, unit: &str) -> PathBuf {
        let group = self.property(unit, "ControlGroup");
        let manager = self.manager_pid();
        PathBuf::from(format!("/proc/{manager}/root/sys/fs/cgroup{group}"))
    }

    /// The only child of the keeper that is not its `cat`.
    fn manager_pid(&self) -> u32 {
        let keeper = self.keeper.id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children = children.unwrap();
        let comm = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        children.split_whitespace().find(|pid| comm(pid) == "systemd\n").unwrap().parse().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        // The logger ends with the first datagram that is empty.
        let socket = self.folder.path().join("journal/socket");
        let _ = UnixDatagram::unbound().and_then(|it| it.send_to(&[], socket));
        let _ = self.logger.take().map(JoinHandle::join);
    }
}

/// Reads what a manager says: it waits for whoever does not.
fn logger(path: &Path, log: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let socket = UnixDatagram::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65536];
        loop {
            let length = match socket.recv(&mut datagram) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{error}"),
            };
            let fields = String::from_utf8_lossy(&datagram[..length]).into_owned();
            let message = fields.lines().find_map(|field| field.strip_prefix("MESSAGE="));
            log.lock().unwrap().extend(message.map(str::to_owned));
        }
    })
}
