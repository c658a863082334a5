//! A listening socket that is of no use any more.

use crate::support::family::is_alive;
use crate::support::{deadline, eventually, id, is_missing, listeners_of, Daemon, Logged};
use fdholder::{Client, Errno, Limit};
use rustix::net::{getsockname, shutdown, Shutdown, SocketAddrUnix};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

/// A daemon on a socket that this process has, too.
struct Shared {
    logged: Logged,
    listener: OwnedFd,
}

impl Shared {
    fn with(options: &[&str]) -> Self {
        let logged = Logged::start(options);
        // Not the one of its abstract name.
        let mut listeners = listeners_of(logged.daemon.pid()).into_iter();
        let has_path = |socket: &OwnedFd| {
            let name = SocketAddrUnix::try_from(getsockname(socket).unwrap());
            name.is_ok_and(|name| name.path().is_some())
        };
        let listener = listeners.find(has_path).unwrap();
        Self { logged, listener }
    }

    fn assert_ends(mut self) {
        assert_eq!(self.logged.daemon.wait().code(), Some(111), "{}", self.logged.log());
        let log = self.logged.log();
        assert!(log.contains("the listening socket is lost: it was shut down"), "{log}");
        assert!(log.contains("fatal: unable to go on: the listening socket is lost"), "{log}");
    }
}

/// Whoever has come before is still served, and may finish what it has begun.
#[test]
fn a_daemon_that_nobody_can_come_to_ends() {
    for how in [Shutdown::Read, Shutdown::Both] {
        let shared = Shared::with(&[]);
        let mut stream = UnixStream::connect(&shared.logged.daemon.path).unwrap();
        stream.write_all(b"\0\0").unwrap();
        shared.logged.daemon.client().list(deadline()).unwrap();
        shutdown(&shared.listener, how).unwrap();
        eventually("it is said", || shared.logged.log().contains("is lost"));
        let refused = Client::connect(&shared.logged.daemon.path, deadline()).unwrap_err();
        assert_eq!(refused.errno(), Errno::CONNREFUSED);
        assert!(is_alive(shared.logged.daemon.pid()));
        stream.write_all(b"\0\x01\0\0L").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"\0\0\0\x05\0\0\0\0\0\0\0");
        shared.assert_ends();
    }
}

/// Also when it lets nobody in at that moment, and it does not turn in circles until it does.
#[test]
fn a_full_daemon_that_nobody_can_come_to_ends() {
    let shared = Shared::with(&["-c", "1"]);
    let mut client = shared.logged.daemon.client();
    client.list(deadline()).unwrap();
    shutdown(&shared.listener, Shutdown::Both).unwrap();
    shared.assert_ends();
    client.list(deadline()).unwrap_err();
}

/// Nobody could come to its standby, either.
#[test]
fn its_standby_ends_as_well() {
    let shared = Shared::with(&["--standby"]);
    let null = File::open("/dev/null").unwrap();
    shared.logged.daemon.client().store(&id("x"), Limit::never(), null, deadline()).unwrap();
    eventually("a standby has everything", || shared.logged.log().contains(" has everything"));
    let processes = shared.logged.daemon.processes();
    assert_eq!(processes.len(), 2);
    shutdown(&shared.listener, Shutdown::Read).unwrap();
    eventually("both have ended", || !processes.iter().any(|pid| is_alive(*pid)));
    assert!(shared.logged.log().contains("ended with 1 descriptors"), "{}", shared.logged.log());
    shared.assert_ends();
}

/// What is wrong with it may also be told by accept(2).
#[test]
fn a_socket_that_is_none_is_not_tried_again() {
    if !Path::new("/usr/bin/strace").exists() {
        return is_missing("strace");
    }
    for error in ["EBADF", "EINVAL", "ENOTSOCK", "EOPNOTSUPP"] {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("holder"), folder.path().join("log"));
        let mut command = Command::new("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", "trace=accept4", "-e"]);
        command.arg(format!("inject=accept4:error={error}"));
        command.args([env!("CARGO_BIN_EXE_fdholder"), "serve", "-1"]).arg(&path);
        command.stderr(File::create(&log).unwrap());
        let mut daemon = Daemon::spawn(command, &path);
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(daemon.wait().code(), Some(111), "{error}");
        assert!(fs::read_to_string(log).unwrap().contains("the listening socket is lost: "));
    }
}
