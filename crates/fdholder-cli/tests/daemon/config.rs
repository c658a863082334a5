//! `serve --config`, and `config check`.

use crate::support::{assert_exit, deadline, eventually, id, stderr, stdout, suite, Daemon, Rules};
use fdholder::{Client, Limit};
use rustix::fs::{fcntl_getfl, OFlags};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;

/// A folder with a configuration in it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn with(config: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write(config);
        place
    }

    /// `PLACE` stands for the folder.
    pub fn write(&self, config: &str) {
        let folder = self.folder.path().to_str().unwrap();
        fs::write(self.file(), config.replace("PLACE", folder)).unwrap();
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn file(&self) -> PathBuf {
        self.at("fdholder.toml")
    }

    pub fn serve(&self, more: &[&str]) -> Daemon {
        let mut command = suite::fdholder(["serve", "-1", "--config"]);
        command.arg(self.file()).args(more);
        command.stderr(File::create(self.at("log")).unwrap());
        Daemon::spawn(command, &self.at("holder"))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    fn check(&self) -> Output {
        suite::fdholder(["config", "check"]).arg(self.file()).output().unwrap()
    }
}

fn status(path: &Path) -> Value {
    let output = suite::fdholder(["status", "--json"]).arg(path).output().unwrap();
    assert_exit(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

pub const SERVING: &str = "path = 'PLACE/holder'\nmax_fds = 20\nmax_connections = 9\n";

const WEB: &str = "[sockets.'web/1']\naddress = 'unix:PLACE/web'\nmode = '0640'\nnonblock = true\n";

#[test]
fn a_file_says_all_there_is_to_say() {
    let place = Place::with(&[SERVING, "standby = true\n", WEB].concat());
    let daemon = place.serve(&["-c", "5"]);
    let status = status(&daemon.path);
    assert_eq!((&status["capacity"], &status["connections_max"]), (&20.into(), &5.into()));
    assert_ne!(status["standby"], "none");
    let held = daemon.client().retrieve(&id("web/1"), deadline()).unwrap();
    assert!(fcntl_getfl(held).unwrap().contains(OFlags::NONBLOCK));
    UnixStream::connect(place.at("web")).unwrap();
    assert_eq!(fs::metadata(place.at("web")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(&daemon.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_changes_holds_after_sighup() {
    let place = Place::with(&[SERVING, WEB].concat());
    let daemon = place.serve(&[]);
    let before = daemon.client().retrieve(&id("web/1"), deadline()).unwrap();
    let rules = Rules::all(place.at("rules"));
    let changed = SERVING.replace("connections = 9", "connections = 4").replace("20", "30");
    let rules = format!("rules_dir = '{}'\n", rules.dir.display());
    let new = "[sockets.state]\naddress = 'memfd:state'\n";
    place.write(&[&changed, &rules, WEB, new].concat());
    daemon.signal(Signal::HUP);
    eventually("the new one is held", || daemon.client().list(deadline()).unwrap().len() == 2);
    let status = status(&daemon.path);
    assert_eq!((&status["capacity"], &status["connections_max"]), (&20.into(), &4.into()));
    // Rules decide now.
    assert_eq!(fs::metadata(&daemon.path).unwrap().permissions().mode() & 0o777, 0o777);
    let log = place.log();
    assert!(log.contains("max_fds as before, until the daemon is upgraded"), "{log}");
    let after = daemon.client().retrieve(&id("web/1"), deadline()).unwrap();
    let inode = |fd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(before), inode(after));
    // There is no room for more than there was at the start.
    place.write(&[&changed.replace("= 4", "= 400"), &rules, WEB, new].concat());
    daemon.signal(Signal::HUP);
    eventually("it is read", || place.log().contains("at most 9 clients at once"));
    assert_eq!(self::status(&daemon.path)["connections_max"], 9);
    // One that is wrong changes nothing, and neither does one with other addresses.
    place.write("max_fd = 5");
    daemon.signal(Signal::HUP);
    eventually("it is said", || {
        place.log().contains("the configuration in force stays") && place.log().contains("did you")
    });
    place.write(&[SERVING, "[sockets.state]\naddress = 'memfd:other'\n"].concat());
    daemon.signal(Signal::HUP);
    eventually("it is said", || place.log().contains("held under it is memfd state"));
    assert_eq!(daemon.client().list(deadline()).unwrap().len(), 2);
}

/// The standby has it, too.
#[test]
fn what_is_new_outlives_the_daemon() {
    let standby = [SERVING, "standby = true\n"].concat();
    let place = Place::with(&standby);
    let daemon = place.serve(&[]);
    eventually("a standby has everything", || status(&daemon.path)["standby"] == "ready");
    place.write(&[&standby, WEB].concat());
    daemon.signal(Signal::HUP);
    eventually("the new one is held", || !daemon.client().list(deadline()).unwrap().is_empty());
    let inode = || {
        let held = daemon.client().retrieve(&id("web/1"), deadline()).unwrap();
        rustix::fs::fstat(held).unwrap().st_ino
    };
    let before = inode();
    daemon.signal(Signal::KILL);
    assert_eq!(inode(), before);
    let pid = i32::try_from(status(&daemon.path)["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    eventually("it ends", || UnixStream::connect(&daemon.path).is_err());
}

#[test]
fn what_is_taken_over_is_not_opened_again() {
    let place = Place::with(&[SERVING, WEB].concat());
    let first = place.serve(&[]);
    let web = UnixStream::connect(place.at("web")).unwrap();
    let null = File::open("/dev/null").unwrap();
    first.client().store(&id("other"), Limit::never(), null, deadline()).unwrap();
    let second = place.serve(&[]);
    assert_eq!(second.client().list(deadline()).unwrap().len(), 2);
    assert!(!place.log().contains("unable"), "{}", place.log());
    drop(web);
    UnixStream::connect(place.at("web")).unwrap();
}

/// A daemon that does not hold what it should does not begin.
#[test]
fn what_cannot_be_opened_is_said_at_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = format!("[sockets.web]\naddress = 'tcp:{}'\n", listener.local_addr().unwrap());
    let place = Place::with(&[SERVING, &socket].concat());
    let output = suite::fdholder(["serve", "--config"]).arg(place.file()).output().unwrap();
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("for web: unable to bind: Address already"), "{output:?}");
    assert!(Client::connect(place.at("holder"), deadline()).is_err());
}

#[test]
fn files_are_checked() {
    let place = Place::with(&[SERVING, WEB].concat());
    let output = place.check();
    assert_exit(&output, 0);
    let table = format!("ID     ADDRESS\nweb/1  unix:{}\n", place.at("web").display());
    assert!(stdout(&output).ends_with(&table), "{output:?}");
    let file = place.file();
    let json = suite::fdholder(["config", "check", "--json"]).arg(&file).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["sockets"][0]["id"], "web/1");

    place.write("path = 'x'\nstandbye = true\n");
    let output = place.check();
    assert_exit(&output, 1);
    let said = format!(
        "fdholder config check: fatal: {}:2:1: unknown key 'standbye': did you mean 'standby'?\n",
        file.display()
    );
    assert_eq!(stderr(&output), said);
    // The daemon says the same.
    let output = suite::fdholder(["serve", "--config"]).arg(&file).output().unwrap();
    assert_exit(&output, 100);
    assert_eq!(stderr(&output), said.replace("config check", "serve"));

    let _broken = Rules::none(place.at("rules")).allow("uid/5").regexes("uid/5", "(", "x");
    place.write("rules_dir = 'PLACE/rules'\n");
    let output = place.check();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("is not a regular expression"), "{output:?}");
    fs::remove_file(&file).unwrap();
    assert_exit(&place.check(), 111);
    // Nobody writes into it.
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
    let output = place.check();
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("it is no file"), "{output:?}");
}

#[test]
fn a_place_to_listen_is_needed() {
    let place = Place::with("max_fds = 5\n");
    let output = suite::fdholder(["serve", "--config"]).arg(place.file()).output().unwrap();
    assert_exit(&output, 100);
    assert!(stderr(&output).contains("say where to listen"), "{output:?}");
    // The command line can say it.
    let path = place.at("holder");
    let daemon = place.serve(&[path.to_str().unwrap()]);
    assert_eq!(status(&daemon.path)["capacity"], 5);
}
