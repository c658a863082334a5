//! Under a real systemd: what it keeps for us, and who serves when. They need root and
//! systemd; without, they are reported as ignored, unless `FDHOLDER_REQUIRE_PEERS` is set.
#![allow(missing_docs, clippy::unwrap_used)]

mod lost;
#[path = "../support/mod.rs"]
mod support;

use fdholder::{Client, Entry, Limit, Timestamp};
use libtest_mimic::{Arguments, Trial};
use rustix::process::{prlimit, Pid, Resource, Rlimit, Signal};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::systemd::{Manager, Whom};
use support::{
    assert_exit, content_at, deadline, eventually, id, marked_file, path_of, stderr, suite,
};

fn main() {
    let trials = vec![
        trial("a_restart_loses_nothing", a_restart_loses_nothing),
        trial("killing_everything_loses_nothing", killing_everything_loses_nothing),
        trial("two_identifiers_of_one_file", two_identifiers_of_one_file),
        trial("what_has_hung_up_is_kept", what_has_hung_up_is_kept),
        trial("a_failed_upgrade_does_not_keep_the_next_start_away", failed_upgrade),
        trial("clients_wait_during_a_restart", clients_wait_during_a_restart),
        trial("systemd_is_not_filled_up", systemd_is_not_filled_up),
        trial("no_more_is_held_than_systemd_keeps", no_more_is_held_than_systemd_keeps),
        trial("readiness_and_status", readiness_and_status),
        trial("the_journal_gets_what_is_logged", the_journal_gets_what_is_logged),
        trial("a_standby_is_taken_over_from", a_standby_is_taken_over_from),
        trial("a_standby_and_the_store_of_systemd", a_standby_and_the_store_of_systemd),
        trial("a_standby_that_is_alone_is_taken_over_from", lonely_standby),
        trial("whoever_takes_over_may_die_before_it_serves", takeover_that_fails),
        trial("a_start_that_waits_may_be_stopped", start_that_waits),
        trial("what_was_deleted_elsewhere_does_not_come_back", older_than_what_was_held),
        trial("heir_of_a_daemon_that_took_over_is_taken_over_from", lost::an_heir_serves),
        trial("an_upgrade_keeps_the_main_process", an_upgrade_keeps_the_main_process),
        trial("a_socket_that_was_shut_down_is_made_anew", lost::a_socket_is_made_anew),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    support::trial::trial(name.to_owned(), Manager::missing(), run)
}

const UNIT: &str = "holder.service";

/// A holder that is a service.
struct Service {
    manager: Manager,
    path: PathBuf,
}

impl Service {
    fn start(options: &str, settings: &str) -> Self {
        let manager = Manager::start();
        let path = manager.folder().join("holder");
        let service = Self { manager, path };
        service.define(options, settings);
        service.manager.start_unit(UNIT);
        service
    }

    fn define(&self, options: &str, settings: &str) {
        self.define_by(env!("CARGO_BIN_EXE_fdholder"), options, settings);
    }

    fn define_by(&self, program: &str, options: &str, settings: &str) {
        let path = self.path.display();
        let unit = format!(
            "[Service]\nType=notify\nNotifyAccess=all\nRestart=always\nLimitNOFILE=20000\n\
             ExecStart={program} serve {options} {path}\n{settings}\n"
        );
        self.manager.unit(UNIT, &unit);
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, deadline()).unwrap()
    }

    fn main_pid(&self) -> u32 {
        self.manager.main_pid(UNIT).unwrap()
    }

    /// Kills processes of the service, and waits until it runs again.
    fn kill(&self, whom: Whom) {
        let old = self.main_pid();
        match whom {
            Whom::Main => self.manager.kill(UNIT, Signal::KILL, Whom::Main),
            Whom::All => self.manager.kill_at_once(UNIT),
        }
        self.manager.successor(UNIT, old);
    }

    fn store(&self, client: &mut Client, name: &str, limit: Limit) {
        let (file, _) = marked_file(self.manager.folder(), name);
        client.store(&id(name), limit, &file, deadline()).unwrap();
    }

    /// Takes over from the service by a daemon that has everything then, and never comes to
    /// serve. Returns once the service starts again.
    fn takeover_that_hangs(&self) -> Child {
        let main = self.main_pid();
        let mut strace = Command::new("strace");
        let never = "inject=epoll_create1:error=ENFILE";
        strace.args(["-qq", "-D", "-o", "/dev/null", "-e", "trace=epoll_create1", "-e", never]);
        strace.arg(env!("CARGO_BIN_EXE_fdholder")).arg("serve").arg(&self.path);
        let (mut said, stderr) = std::io::pipe().unwrap();
        let other = strace.stderr(stderr).spawn().unwrap();
        drop(strace);
        let mut text = Vec::new();
        while !text.ends_with(b"trying again\n") {
            let mut byte = [0];
            assert_eq!(said.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
            text.extend(byte);
        }
        eventually("there is another main process", || {
            self.manager.main_pid(UNIT).is_some_and(|pid| pid != main)
        });
        other
    }

    fn has_standby(&self) {
        eventually("a standby has everything", || {
            let output = self.manager.output();
            let last = |what: &str| output.rfind(what);
            last(" has everything") > last(": ready on ")
        });
    }
}

const KEPT: &str = "FileDescriptorStoreMax=2100";

fn a_restart_loses_nothing() {
    let service = Service::start("--fdstore", KEPT);
    let mut client = service.client();
    for number in 0..20 {
        service.store(&mut client, &format!("id {number}"), Limit::never());
    }
    let limit = Limit::at(Timestamp::now().saturating_add(Duration::from_secs(1000)));
    service.store(&mut client, "limited:\u{e4}\n", limit);
    client.delete(&id("id 3"), deadline()).unwrap();
    let before = content_at(&service.path);
    for _ in 0..3 {
        let old = service.main_pid();
        service.manager.restart(UNIT);
        assert_ne!(service.main_pid(), old);
        assert_eq!(content_at(&service.path), before);
    }
    // What was recovered can be deleted, and stays so.
    service.client().delete(&id("id 4"), deadline()).unwrap();
    service.manager.restart(UNIT);
    assert_eq!(content_at(&service.path).len(), before.len() - 1);
}

/// What was acknowledged is there whatever is killed right behind it.
fn killing_everything_loses_nothing() {
    let service = Service::start("--fdstore", KEPT);
    let never = Limit::never();
    for round in 0..12 {
        let before = content_at(&service.path);
        let name = format!("{round}");
        let (file, path) = marked_file(service.manager.folder(), &name);
        let mut client = service.client();
        let mut expected = before;
        match round % 4 {
            0 => service.store(&mut client, &name, never),
            1 => {
                // A set that replaces one, and adds one.
                let of = |name: &str| Entry { id: id(name), limit: never, fd: file.as_fd() };
                let first = format!("{}", round - 1);
                client.setdump(&[of(&first), of(&name)], deadline()).unwrap();
                expected.insert(id(&first), (path.clone(), never));
            }
            2 => {
                client.delete(&id(&format!("{}", round - 1)), deadline()).unwrap();
                expected.remove(&id(&format!("{}", round - 1)));
            }
            _ => {
                client.store(&id(&name), never, &file, deadline()).unwrap();
                client.delete(&id(&name), deadline()).unwrap();
            }
        }
        if round % 4 < 2 {
            expected.insert(id(&name), (path, never));
        }
        service.kill(Whom::All);
        assert_eq!(content_at(&service.path), expected, "round {round}");
    }
}

/// systemd takes an open file once, under whatever name came first.
fn two_identifiers_of_one_file() {
    let service = Service::start("--fdstore", KEPT);
    let (file, path) = marked_file(service.manager.folder(), "shared");
    let mut client = service.client();
    let names = ["a", "b", "c"];
    for name in names {
        client.store(&id(name), Limit::never(), &file, deadline()).unwrap();
    }
    service.kill(Whom::All);
    for gone in 0..names.len() {
        let content = content_at(&service.path);
        let left: Vec<_> = content.keys().cloned().collect();
        assert_eq!(left, names[gone..].iter().map(|name| id(name)).collect::<Vec<_>>());
        assert!(content.values().all(|(of, _)| *of == path));
        service.client().delete(&id(names[gone]), deadline()).unwrap();
        service.kill(Whom::All);
    }
    assert!(content_at(&service.path).is_empty());
    // The listening socket, the roll and a list.
    eventually("nothing else is left", || service.manager.stored(UNIT) == 3);
}

/// systemd drops what reports a hang-up, unless it is told not to look.
fn what_has_hung_up_is_kept() {
    let service = Service::start("--fdstore", KEPT);
    let mut client = service.client();
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    client.store(&id("socket"), Limit::never(), &socket, deadline()).unwrap();
    client.store(&id("pipe"), Limit::never(), &reader, deadline()).unwrap();
    drop((other, writer));
    for whom in [Whom::All, Whom::Main] {
        service.kill(whom);
        let mut held = service.client().list(deadline()).unwrap();
        held.sort();
        assert_eq!(held, [id("pipe"), id("socket")]);
    }
}

/// When the kernel refuses to let the daemon become another program, it had been followed by
/// then; the next start must not believe that somebody serves.
fn failed_upgrade() {
    let service = Service::start("--fdstore", KEPT);
    service.store(&mut service.client(), "x", Limit::never());
    let before = content_at(&service.path);
    // The one that is looked at stays the main process.
    let strace =
        "/usr/bin/strace -D -qq -o /dev/null -e trace=execve -e inject=execve:error=EACCES";
    let program = env!("CARGO_BIN_EXE_fdholder");
    service.define_by(&format!("{strace} {program}"), "--fdstore", KEPT);
    service.manager.restart(UNIT);
    let main = service.main_pid();
    let upgrade = suite::fdholder(["upgrade", service.path.to_str().unwrap()]).output().unwrap();
    assert_exit(&upgrade, 1);
    assert!(stderr(&upgrade).contains("Permission denied"), "{upgrade:?}");
    assert_eq!(service.main_pid(), main);
    // Until systemd has been told.
    service.store(&mut service.client(), "y", Limit::never());
    service.define("--fdstore", KEPT);
    service.kill(Whom::All);
    assert_eq!(content_at(&service.path).len(), before.len() + 1);
}

/// Nobody is refused: the listening socket is kept, too.
fn clients_wait_during_a_restart() {
    let service = Service::start("--fdstore", KEPT);
    service.store(&mut service.client(), "x", Limit::never());
    let done = AtomicBool::new(false);
    let visit = || {
        let mut visits = 0;
        while !done.load(Ordering::Relaxed) {
            // One that is hung up on, as the old one ends, comes again; but it can connect.
            if service.client().list(deadline()).is_ok_and(|list| list == [id("x")]) {
                visits += 1;
            }
        }
        visits
    };
    let visits: usize = std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..2).map(|_| scope.spawn(visit)).collect();
        for _ in 0..5 {
            service.manager.restart(UNIT);
        }
        done.store(true, Ordering::Relaxed);
        visitors.into_iter().map(|visitor| visitor.join().unwrap()).sum()
    });
    assert!(visits > 5);
}

/// What is deleted or replaced is not kept by systemd for ever, nor is what describes it.
fn systemd_is_not_filled_up() {
    let service = Service::start("--fdstore", KEPT);
    let mut client = service.client();
    for round in 0..400 {
        service.store(&mut client, "x", Limit::never());
        if round % 2 == 0 {
            service.store(&mut client, &format!("{round}"), Limit::never());
        }
        client.delete(&id("x"), deadline()).unwrap();
    }
    for round in (0..400).step_by(2).skip(10) {
        client.delete(&id(&format!("{round}")), deadline()).unwrap();
    }
    let most = 10 + fdholder_daemon::fdstore::BESIDE_MAX;
    eventually("systemd keeps what is held", || service.manager.stored(UNIT) <= most);
    let before = content_at(&service.path);
    assert_eq!(before.len(), 10);
    service.kill(Whom::All);
    assert_eq!(content_at(&service.path), before);
}

/// What systemd would drop without a word is refused.
fn no_more_is_held_than_systemd_keeps() {
    let most = 20 + fdholder_daemon::fdstore::BESIDE_MAX;
    // Since 254 it tells how many it keeps; before, the unit says so for it.
    let settings = format!("FileDescriptorStoreMax={most}\nEnvironment=FDSTORE={most}");
    let service = Service::start("--fdstore", &settings);
    let mut client = service.client();
    for number in 0..20 {
        service.store(&mut client, &format!("{number}"), Limit::never());
    }
    let (file, _) = marked_file(service.manager.folder(), "one more");
    let refused = client.store(&id("one more"), Limit::never(), &file, deadline());
    assert_eq!(refused.unwrap_err().errno(), fdholder::Errno::NFILE);
    service.kill(Whom::All);
    assert_eq!(content_at(&service.path).len(), 20);
    assert!(service.manager.output().contains("systemd keeps no more"));

    let path = service.manager.folder().join("other");
    let without = suite::fdholder(["serve", "--fdstore", path.to_str().unwrap()])
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert_exit(&without, 111);
    assert!(stderr(&without).contains("NOTIFY_SOCKET"), "{without:?}");
}

fn readiness_and_status() {
    let service = Service::start("", "");
    // systemctl has waited for it.
    service.client().list(deadline()).unwrap();
    let status = service.manager.property(UNIT, "StatusText");
    assert!(status.contains(service.path.to_str().unwrap()), "{status}");
}

/// With KillMode=process the standby survives the main process; the next one takes over.
/// Also from a standby that serves, which has a connection of its own.
fn the_journal_gets_what_is_logged() {
    let service = Service::start("--standby --audit --log-to journal", "KillMode=process");
    let uid = rustix::process::getuid().as_raw();
    let is_told = |name: &str| {
        let limit = Limit::after(Duration::from_millis(500));
        service.store(&mut service.client(), name, limit);
        let line = format!("audit: uid={uid} op=expire id=\"{name}\" result=ok");
        eventually(&line, || service.manager.log().contains(&line));
    };
    is_told("one");
    let has_everything = |line: &String| line.contains(" has everything");
    eventually("a standby", || service.manager.log().iter().any(has_everything));
    service.kill(Whom::Main);
    is_told("two");
    assert!(service.manager.log().iter().any(|line| line.starts_with("ready on ")));
    assert_eq!(service.manager.output(), "");
}

fn a_standby_is_taken_over_from() {
    let service = Service::start("--standby", "KillMode=process");
    for number in 0..30 {
        service.store(&mut service.client(), &format!("{number}"), Limit::never());
    }
    let before = content_at(&service.path);
    for _ in 0..5 {
        service.has_standby();
        service.kill(Whom::Main);
        assert_eq!(content_at(&service.path), before);
        eventually("two are left", || service.manager.pids(UNIT).len() == 2);
        assert!(service.manager.pids(UNIT).contains(&service.main_pid()));
    }
    // A stop is a stop for both.
    service.manager.stop(UNIT);
    eventually("both have ended", || Client::connect(&service.path, deadline()).is_err());
}

/// Both: whatever is killed, nothing is lost, and one of them serves.
fn a_standby_and_the_store_of_systemd() {
    let settings = format!("KillMode=process\n{KEPT}");
    let service = Service::start("--standby --fdstore", &settings);
    let mut expected = content_at(&service.path);
    for round in 0..9 {
        service.has_standby();
        let name = format!("{round}");
        let (file, path) = marked_file(service.manager.folder(), &name);
        let mut client = service.client();
        client.store(&id(&name), Limit::never(), &file, deadline()).unwrap();
        expected.insert(id(&name), (path.clone(), Limit::never()));
        if round % 3 == 2 {
            client.delete(&id(&format!("{}", round - 1)), deadline()).unwrap();
            expected.remove(&id(&format!("{}", round - 1)));
        }
        assert_eq!(path_of(client.retrieve(&id(&name), deadline()).unwrap()), path);
        service.kill(if round % 2 == 0 { Whom::Main } else { Whom::All });
        assert_eq!(content_at(&service.path), expected, "round {round}");
    }
}

/// Also when nobody follows that one: it has a standby no more than it has room for one.
fn lonely_standby() {
    let settings = format!("KillMode=process\nExecStartPre=sleep 1\n{KEPT}");
    let service = Service::start("--standby --fdstore", &settings);
    service.store(&mut service.client(), "a", Limit::never());
    service.has_standby();
    let main = service.main_pid();
    let standby = service.manager.pids(UNIT).into_iter().find(|pid| *pid != main).unwrap();
    let few = Rlimit { current: Some(100), maximum: Some(100) };
    prlimit(Pid::from_raw(standby.cast_signed()), Resource::Nofile, few).unwrap();
    service.manager.kill(UNIT, Signal::KILL, Whom::Main);
    service.store(&mut service.client(), "b", Limit::never());
    let before = content_at(&service.path);
    assert_eq!(before.len(), 2);
    let next = service.manager.successor(UNIT, main);
    let taken_over = format!("has taken over 2 from pid {standby}");
    eventually("it is taken over from", || service.manager.output().contains(&taken_over));
    eventually("it has gone", || !service.manager.pids(UNIT).contains(&standby));
    assert_eq!(service.main_pid(), next);
    assert_eq!(content_at(&service.path), before);
}

/// One that has everything, and then does not come to serve: what systemd has still counts.
fn takeover_that_fails() {
    let service = Service::start("--fdstore", KEPT);
    for number in 0..5 {
        service.store(&mut service.client(), &format!("{number}"), Limit::never());
    }
    let before = content_at(&service.path);
    let main = service.main_pid();
    let mut other = service.takeover_that_hangs();
    other.kill().unwrap();
    other.wait().unwrap();
    service.manager.successor(UNIT, main);
    assert_eq!(content_at(&service.path), before);
}

/// A start that waits for another daemon ends when it is asked to.
fn start_that_waits() {
    let service = Service::start("--fdstore", KEPT);
    service.store(&mut service.client(), "a", Limit::never());
    let mut other = service.takeover_that_hangs();
    service.manager.stop(UNIT);
    assert_ne!(service.manager.property(UNIT, "Result"), "timeout");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// A daemon that has nothing kept by systemd takes over, changes things, and is killed: what
/// systemd has is not what was held.
fn older_than_what_was_held() {
    let service = Service::start("--fdstore", &format!("ExecStartPre=sleep 1\n{KEPT}"));
    service.store(&mut service.client(), "a", Limit::never());
    service.store(&mut service.client(), "b", Limit::never());
    let main = service.main_pid();
    let mut other = suite::fdholder(["serve", "-1"]);
    let mut other = other.arg(&service.path).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(other.stdout.take().unwrap().read(&mut [0]).unwrap(), 1);
    service.client().delete(&id("a"), deadline()).unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    service.manager.successor(UNIT, main);
    assert!(content_at(&service.path).is_empty());
    assert!(service.manager.output().contains("older than what was held last, and is dropped"));
    service.store(&mut service.client(), "c", Limit::never());
    let before = content_at(&service.path);
    service.kill(Whom::All);
    assert_eq!(content_at(&service.path), before);
    eventually("nothing else is left", || service.manager.stored(UNIT) <= 5);
}

/// systemd sees the same main process before and after, and goes on keeping.
fn an_upgrade_keeps_the_main_process() {
    let service = Service::start("--fdstore", KEPT);
    let mut client = service.client();
    for number in 0..30 {
        service.store(&mut client, &format!("{number}"), Limit::never());
    }
    let main = service.main_pid();
    for _ in 0..3 {
        let upgraded = suite::fdholder(["upgrade", service.path.to_str().unwrap()]).output();
        assert_exit(&upgraded.unwrap(), 0);
        assert_eq!(service.main_pid(), main);
        client.list(deadline()).unwrap();
    }
    service.store(&mut client, "after", Limit::never());
    client.delete(&id("7"), deadline()).unwrap();
    let before = content_at(&service.path);
    assert_eq!(before.len(), 30);
    service.kill(Whom::All);
    assert_eq!(content_at(&service.path), before);
}
