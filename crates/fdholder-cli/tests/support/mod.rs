//! What the tests of the whole programs share: suites of programs (ours, s6's), daemons,
//! and things to hold.
// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used)]

pub mod daemon;
pub mod family;
pub mod installed;
pub mod lingering;
pub mod logged;
pub mod proxy;
pub mod rights;
pub mod starving;
pub mod suite;
pub mod system;
pub mod systemd;
pub mod trial;

pub use daemon::{Daemon, Rules};
pub use family::Family;
pub use installed::Installed;
pub use lingering::lingering;
pub use logged::Logged;
pub use suite::Suite;

use fdholder::{Client, Deadline, Entry, Identifier, Limit};
use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// No test waits longer than this for what must happen; only a broken program reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn deadline() -> Deadline {
    Deadline::after(PATIENCE)
}

pub fn id(name: &str) -> Identifier {
    Identifier::new(name).unwrap()
}

/// Says that a part of a test is left out, as something is not installed; where everything
/// must be, that is a failure.
pub fn is_missing(what: &str) {
    let required = std::env::var_os("FDHOLDER_REQUIRE_PEERS").is_some();
    assert!(!required, "{what} is not installed: scripts/peers");
    eprintln!("left out: {what} is not installed");
}

/// Whether this kernel can confine a process; if not, a part of a test is left out.
pub fn has_landlock() -> bool {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let has_it = strict.handle_access(AccessFs::Execute).is_ok();
    if !has_it {
        eprintln!("left out: this kernel has no Landlock");
    }
    has_it
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file whose path tells descriptors of it from others.
pub fn marked_file(dir: &Path, name: &str) -> (File, PathBuf) {
    let path = dir.canonicalize().unwrap().join(name);
    (File::options().create(true).append(true).read(true).open(&path).unwrap(), path)
}

/// The path behind a descriptor, which says what it is.
pub fn path_of(fd: impl AsFd) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap()
}

/// The content of a holder: what is behind each identifier, and its limit.
pub type Content = BTreeMap<Identifier, (PathBuf, Limit)>;

pub fn content_of(dump: &[Entry<OwnedFd>]) -> Content {
    dump.iter().map(|entry| (entry.id.clone(), (path_of(&entry.fd), entry.limit))).collect()
}

/// The content of a holder, by our client.
pub fn content_at(path: &Path) -> Content {
    let mut client = Client::connect(path, deadline()).unwrap();
    content_of(&client.getdump(deadline()).unwrap())
}

/// The content of a holder whose dump nobody can read: identifiers, and what is behind.
pub fn paths_at(path: &Path) -> BTreeMap<Identifier, PathBuf> {
    let mut client = Client::connect(path, deadline()).unwrap();
    let ids = client.list(deadline()).unwrap();
    ids.into_iter()
        .map(|id| {
            let fd = client.retrieve(&id, deadline()).unwrap();
            (id, path_of(fd))
        })
        .collect()
}

pub fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Listening sockets of a process, those themselves; not what it listens on by an abstract name.
pub fn listeners_of(pid: u32) -> Vec<OwnedFd> {
    let process = Pid::from_raw(pid.cast_signed()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    fds.filter_map(|fd| fd.file_name().to_str()?.parse().ok())
        .filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok())
        .filter(|fd| socket_acceptconn(fd) == Ok(true) && !is_abstract(fd))
        .collect()
}

fn is_abstract(socket: &OwnedFd) -> bool {
    let name = rustix::net::getsockname(socket).unwrap();
    let name = rustix::net::SocketAddrUnix::try_from(name);
    name.is_ok_and(|name| name.abstract_name().is_some())
}

/// What a process has open, by number; nothing when it has ended.
pub fn open_files(pid: u32) -> BTreeMap<u32, PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// How many descriptors a process has open.
pub fn open_fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
