//! The example unit, whose server `run` keeps running: under this machine's systemd, which knows
//! `Type=notify`, and one that knows `Type=notify-reload`.

use crate::example::{pid_from, served_by, Clients, Server, COMPLAINT};
use crate::support::family::{is_alive, signal};
use crate::support::suite::peers;
use crate::support::systemd::{Manager, Whom};
use crate::support::{deadline, eventually, id};
use crate::units::{Holder, EXAMPLE, UNIT};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Other ways to reload than the unit's.
const HANGUP: &str = "ExecReload=\nExecReload=/bin/sh -c 'kill -HUP $MAINPID'";
const NOTIFY_RELOAD: &str = "Type=notify-reload\nExecReload=";

/// The first that has `Type=notify-reload`.
const VERSION_WITH_RELOAD: u32 = 253;

/// A systemd of Debian 13.
fn newer() -> PathBuf {
    peers().join("supervisors")
}

fn newer_is_missing() -> Option<String> {
    let program = newer().join("usr/lib/systemd/systemd");
    let is_missing =
        || (!program.exists()).then(|| format!("{} (scripts/peers)", program.display()));
    Manager::missing().or_else(is_missing)
}

type Run = fn(&Path);

pub fn trials() -> Vec<Trial> {
    let all: [(&str, Run); 6] = [
        ("a_unit_starts_when_its_server_is_ready", starts),
        ("a_reload_of_a_unit_is_not_noticed", |root| reloads(root, "")),
        ("a_hangup_of_a_unit_is_not_noticed", |root| reloads(root, HANGUP)),
        ("a_reload_to_a_bad_version_fails", bad_version),
        ("a_kill_of_run_is_not_noticed", run_is_killed),
        ("a_server_that_hangs_is_ended", watchdog),
    ];
    let newer_only: [(&str, Run); 2] = [
        ("a_notify_reload_is_not_noticed", |root| reloads(root, NOTIFY_RELOAD)),
        ("a_notify_reload_to_a_bad_version_leaves_the_old_one", bad_notify_reload),
    ];
    let own =
        all.map(|(name, run)| crate::trial(name, Manager::missing(), move || run(Path::new(""))));
    let newer = all.into_iter().chain(newer_only).map(|(name, run)| {
        let name = format!("{name}_by_newer_systemd");
        crate::trial(&name, newer_is_missing(), move || run(&newer()))
    });
    own.into_iter().chain(newer).collect()
}

/// The example, ready, and the holder that it has its socket from.
struct Example {
    holder: Holder,
    server: Server,
}

impl Deref for Example {
    type Target = Manager;

    fn deref(&self) -> &Manager {
        &self.holder.manager
    }
}

impl Example {
    /// Not started. Settings beside those of the unit.
    fn prepared(root: &Path, settings: &str) -> Self {
        let holder = Holder::prepared_under(root, "");
        let folder = holder.manager.folder();
        let server = Server::install(folder.join("server.py"), folder, folder);
        let settings = format!("[Service]\nEnvironment=ADDRESS=tcp:127.0.0.1:0\n{settings}\n");
        let units = folder.join("units").join(format!("{EXAMPLE}.d"));
        fs::create_dir(&units).unwrap();
        fs::write(units.join("settings.conf"), settings).unwrap();
        holder.manager.systemctl(&["daemon-reload"]);
        holder.manager.start_unit(UNIT);
        Self { holder, server }
    }

    fn start(root: &Path, settings: &str) -> Self {
        let example = Self::prepared(root, settings);
        example.start_unit(EXAMPLE);
        example
    }

    fn address(&self) -> SocketAddr {
        let web = self.holder.client().retrieve(&id("web"), deadline()).unwrap();
        TcpListener::from(web).local_addr().unwrap()
    }

    fn main(&self) -> u32 {
        self.main_pid(EXAMPLE).unwrap()
    }

    fn state(&self) -> String {
        self.property(EXAMPLE, "ActiveState")
    }

    /// What `systemctl` does and waits for, while the test goes on.
    fn begin(&self, verb: &str) -> Child {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["--user", verb, EXAMPLE]).env("XDG_RUNTIME_DIR", self.runtime());
        systemctl.env_remove("DBUS_SESSION_BUS_ADDRESS").spawn().unwrap()
    }

    /// The processes of the unit that are servers, or will be.
    fn servers(&self) -> Vec<u32> {
        let is_server = |pid: &u32| crate::support::system::comm(*pid) == "python3\n";
        self.pids(EXAMPLE).into_iter().filter(is_server).collect()
    }

    /// The program says which process it is, and systemd shows it.
    fn shows(&self, server: u32) {
        let text = format!("served by process {server}");
        eventually("systemd shows what the server says", || {
            self.property(EXAMPLE, "StatusText") == text
        });
    }

    fn stops_cleanly(&self) {
        let pids = self.pids(EXAMPLE);
        let seen = self.log().len();
        self.stop(EXAMPLE);
        assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
        let is_about_end = |line: &&String| line.contains("SIGKILL") || line.contains("timed out");
        let log = self.log().split_off(seen);
        assert_eq!(log.iter().find(is_about_end), None, "{log:#?}");
        assert_eq!(self.property(EXAMPLE, "Result"), "success");
        assert!(!self.output().contains("does not stop"), "{}", self.output());
    }
}

/// Also after it was stopped: clients that come meanwhile wait.
fn starts(root: &Path) {
    let example = Example::prepared(root, "");
    example.server.gated();
    let mut starting = example.begin("start");
    eventually("the server is there", || example.servers().len() == 1);
    assert_eq!((example.state().as_str(), starting.try_wait().unwrap()), ("activating", None));
    example.server.open_gate();
    assert!(starting.wait().unwrap().success());
    assert_eq!(example.state(), "active");

    example.server.good();
    let address = example.address();
    example.shows(served_by(address));
    for _ in 0..2 {
        example.stops_cleanly();
        let waits = TcpStream::connect(address).unwrap();
        example.start_unit(EXAMPLE);
        let server = pid_from(waits).unwrap();
        assert_eq!(example.servers(), [server]);
        // Nor does it matter when the holder goes meanwhile.
        example.restart(UNIT);
    }
}

fn reloads(root: &Path, settings: &str) {
    let example = Example::start(root, settings);
    let (main, address) = (example.main(), example.address());
    let clients = Clients::of(address);
    let mut server = served_by(address);
    // The signal alone is no question that is answered.
    let waits = settings != HANGUP;
    for _ in 0..3 {
        example.server.gated();
        let mut reloading = example.begin("reload");
        eventually("the next server is there", || example.servers().len() == 2);
        if waits {
            assert_eq!(reloading.try_wait().unwrap(), None);
        }
        eventually("it is reloading", || example.state() == "reloading");
        clients.wait_for_more();
        assert_eq!(served_by(address), server);
        example.server.open_gate();
        assert!(reloading.wait().unwrap().success());
        eventually("it has been reloaded", || example.state() == "active");
        server = clients.wait_for_successor(server);
        example.shows(server);
        eventually("the last server has ended", || example.servers() == [server]);
        assert_eq!(example.main(), main);
    }
    clients.all_were_served();
    assert_eq!(example.property(EXAMPLE, "NRestarts"), "0");
    example.stops_cleanly();
}

/// As the unit has it, the reload itself fails.
fn bad_version(root: &Path) {
    let example = Example::start(root, "");
    let (main, address) = (example.main(), example.address());
    let clients = Clients::of(address);
    let server = served_by(address);
    example.server.bad();
    for round in 1..=2 {
        assert!(!example.begin("reload").wait().unwrap().success());
        // By restart, with what the program has written; run's own line may follow.
        let output = example.output();
        let (_, said) = output.rsplit_once("fdholder restart: fatal: web: ").unwrap();
        assert!(said.contains("exited with code 1") && said.contains(COMPLAINT), "{output}");
        eventually("run says it, too", || {
            example.output().matches(" warning: web: generation ").count() == round
        });
        assert_eq!((example.state().as_str(), example.main()), ("active", main));
        assert_eq!(served_by(address), server);
    }
    example.server.good();
    example.systemctl(&["reload", EXAMPLE]);
    clients.wait_for_successor(server);
    clients.all_were_served();
    example.stops_cleanly();
}

/// systemd has no way to be told that a reload has failed, but it goes on.
fn bad_notify_reload(root: &Path) {
    let example = Example::start(root, NOTIFY_RELOAD);
    assert!(example.version() >= VERSION_WITH_RELOAD);
    let (main, address) = (example.main(), example.address());
    let clients = Clients::of(address);
    let server = served_by(address);
    example.server.bad();
    example.systemctl(&["reload", EXAMPLE]);
    assert!(example.output().contains(COMPLAINT), "{}", example.output());
    assert_eq!((example.state().as_str(), example.main()), ("active", main));
    assert_eq!(served_by(address), server);
    example.server.good();
    example.systemctl(&["reload", EXAMPLE]);
    clients.wait_for_successor(server);
    clients.all_were_served();
}

fn run_is_killed(root: &Path) {
    let example = Example::start(root, "");
    let address = example.address();
    let clients = Clients::of(address);
    for _ in 0..3 {
        let (main, server) = (example.main(), served_by(address));
        example.kill(EXAMPLE, Signal::KILL, Whom::Main);
        example.successor(EXAMPLE, main);
        let successor = clients.wait_for_successor(server);
        eventually("only the next server is left", || example.servers() == [successor]);
        clients.wait_for_more();
    }
    // systemd kills what run leaves behind (KillMode=mixed), and so breaks off an answer.
    clients.none_was_refused();
    example.stops_cleanly();
}

/// `run` passes on that the server lives, and nothing of its own.
fn watchdog(root: &Path) {
    let example = Example::start(root, "WatchdogSec=2\nTimeoutAbortSec=1");
    let (main, address) = (example.main(), example.address());
    let said = || example.property(EXAMPLE, "WatchdogTimestampMonotonic");
    let is_said_again = || {
        for _ in 0..3 {
            let before = said();
            eventually("the server says that it lives", || said() != before);
        }
    };
    is_said_again();
    example.systemctl(&["reload", EXAMPLE]);
    is_said_again();
    let server = served_by(address);
    assert_eq!((example.main(), example.servers()), (main, vec![server]));
    assert_eq!(example.property(EXAMPLE, "NRestarts"), "0");

    signal(server, Signal::STOP);
    let waits = TcpStream::connect(address).unwrap();
    let successor = example.successor(EXAMPLE, main);
    assert!(example.log().iter().any(|line| line.contains("Watchdog timeout")));
    let served_by = pid_from(waits).unwrap();
    assert_ne!(served_by, server);
    assert_eq!((example.main(), example.servers()), (successor, vec![served_by]));
}
