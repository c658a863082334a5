//! A Debian of a test's own, which has several supervisors: what scripts/peers installs as
//! `supervisors`, with the test's changes on top of it that nobody else sees.
//!
//! It has a space of its own for mounts and for processes, whose first one is s6-svscan: that
//! lets go of whatever ends. A shell keeps it, and ends all of it when its standard input ends,
//! which happens also when the test is killed.

use super::eventually;
use super::suite::peers;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Arguments: a folder, and the root below everything.
const KEEPER: &str = r#"
set -eu
folder=$1 below=$2
mount -t tmpfs tmpfs "$folder/overlay"
cd "$folder/overlay"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$below,upperdir=upper,workdir=work" root
cd root
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$folder/share" srv
mkdir run/service
# What runs containers expects the root of the file system to be that.
pivot_root . mnt
cd /
umount -l /mnt
unshare --pid --fork --kill-child sh -c '
    mount -t proc proc /proc
    exec s6-svscan /run/service
' </dev/null >>/srv/log 2>&1 &
cat
kill -9 $! || :
wait
"#;

/// A running system. All its processes are killed when dropped.
pub struct System {
    folder: tempfile::TempDir,
    keeper: Child,
    first: u32,
}

impl System {
    /// What it takes to have one and is not there.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("root".to_owned());
        }
        let root = Self::below();
        let is_there =
            ["buildah", "python3"].iter().all(|it| root.join("usr/bin").join(it).exists());
        (!is_there).then(|| format!("{} (scripts/peers)", root.display()))
    }

    fn below() -> PathBuf {
        peers().join("supervisors")
    }

    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["overlay", "share"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let log = folder.path().join("share/log");
        fs::write(&log, "").unwrap();
        // For those who run as another user.
        fs::set_permissions(&log, Permissions::from_mode(0o666)).unwrap();
        let keeper = Command::new("unshare")
            .args(["--mount", "sh", "-c", KEEPER, "keeper"])
            .args([folder.path(), &Self::below()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = None;
        eventually("the system has a first process", || {
            let below = |pid| children(pid).into_iter().find(|&pid| comm(pid) != "cat\n");
            first = below(keeper.id()).and_then(below).filter(|&pid| comm(pid) == "s6-svscan\n");
            first.is_some()
        });
        let system = Self { folder, keeper, first: first.unwrap() };
        // It is ready when it has its own control.
        eventually("s6-svscan listens", || system.at("run/service/.s6-svscan/control").exists());
        system
    }

    /// A folder of the test that is `/srv` there.
    pub fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// A path there, as this process gets to it.
    pub fn at(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.first)).join(path)
    }

    /// What supervised programs have said, and whatever else was written to `/srv/log`.
    pub fn log(&self) -> String {
        fs::read_to_string(self.share().join("log")).unwrap_or_default()
    }

    /// A shell there, with a script to run.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first))
            .args(["--mount", "--pid", "sh", "-euc", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null());
        command
    }

    /// Runs a script there, which must succeed, and returns what it prints.
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert!(output.status.success(), "{script}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_run(&self, script: &str) -> Output {
        // Whatever it starts may keep these open for longer than it runs.
        let file = |name: &str| fs::File::create(self.folder.path().join(name)).unwrap();
        let mut command = self.command(script);
        let status = command.stdout(file("stdout")).stderr(file("stderr")).status().unwrap();
        let read = |name: &str| fs::read(self.folder.path().join(name)).unwrap();
        Output { status, stdout: read("stdout"), stderr: read("stderr") }
    }

    /// Its processes by the name of a program.
    pub fn pids(&self, name: &str) -> Vec<u32> {
        let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = space(self.first);
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| space(pid) == own && comm(pid).trim_end() == name)
            .filter(|&pid| super::family::is_alive(pid))
            .collect()
    }

    /// The pid that a process has there.
    pub fn inner(pid: u32) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        pids.split_whitespace().last()?.parse().ok()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The name of a process, with a newline.
pub fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The package that scripts/package has made; none if it has not.
pub fn package() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let package = target.join("debian/fdholder.deb");
    package.exists().then_some(package)
}
