//! A daemon becomes another program.

use crate::second_copy::writes_to_roll;
use crate::support::family::{is_alive, signal};
use crate::support::{
    assert_exit, deadline, eventually, id, lingering, open_files, path_of, stderr, stdout, suite,
    Family, Installed, PATIENCE,
};
use crate::{content, fill};
use fdholder::extension::Extension;
use fdholder::frame::Decoder;
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::{Entry, Limit, Request};
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A daemon that was started from a file of its own.
struct Upgradable {
    family: Family,
    installed: Installed,
    pid: u32,
}

impl Upgradable {
    fn new(options: &[&str]) -> Self {
        let mut family = Family::new();
        let installed = Installed::in_folder(family.folder.path());
        let pid = family.serve_by(&installed.path, options);
        Self { family, installed, pid }
    }

    /// One that executes scripts, too: these need a shell, which a confined one does not.
    fn by_scripts(options: &[&str]) -> Self {
        Self::new(&[&["--no-landlock"], options].concat())
    }

    fn upgrade(&self) -> Output {
        suite::fdholder(["upgrade", self.family.path.to_str().unwrap()]).output().unwrap()
    }
}

/// Same pid, other program; everything is still held, by its clients nothing is noticed, and
/// nobody else is left.
#[test]
fn the_pid_stays_and_so_do_clients() {
    let it = Upgradable::new(&["-n", "2000"]);
    let mut idle = it.family.client();
    fill(&mut idle, it.family.folder.path(), 600);
    let before = content(&mut idle);
    let program = || fs::read_link(format!("/proc/{}/exe", it.pid)).unwrap();
    for _ in 0..3 {
        it.installed.replace();
        assert_ne!(program(), it.installed.path, "that file has been replaced");
        let upgraded = it.upgrade();
        assert_exit(&upgraded, 0);
        assert!(stdout(&upgraded).contains(env!("CARGO_PKG_VERSION")), "{upgraded:?}");
        assert_eq!(program(), it.installed.path);
        assert_eq!(content(&mut idle), before);
        assert_eq!(content(&mut it.family.client()), before);
        eventually("nobody else is left", || it.family.alive() == [it.pid]);
    }
    eventually("nothing is left of those that have ended", || zombies_of(it.pid) == 0);
}

/// What takes long to close is left to the next program, which could not begin before.
#[test]
fn what_is_not_closed_yet_keeps_no_program_from_beginning() {
    let it = Upgradable::new(&[]);
    let mut client = it.family.client();
    let null = fs::File::open("/dev/null").unwrap();
    let (mut theirs, mut paths, mut set) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..6 {
        let (ours, other) = lingering();
        let id = id(&format!("id{number}"));
        client.store(&id, Limit::never(), &ours, deadline()).unwrap();
        theirs.push(other);
        paths.push(path_of(&ours));
        set.push(Entry { id, limit: Limit::never(), fd: null.as_fd() });
    }
    client.setdump(&set, deadline()).unwrap();
    let open = || open_files(it.pid).values().filter(|path| paths.contains(path)).count();
    // What is being closed has no number any more.
    eventually("two are being closed", || open() == 4);
    it.installed.replace();
    assert_exit(&it.upgrade(), 0);
    let program = fs::read_link(format!("/proc/{}/exe", it.pid)).unwrap();
    assert_eq!(program, it.installed.path);
    // Those two were closed as their threads were ended.
    eventually("two others are being closed", || open() == 2);
    drop(theirs);
    eventually("all is closed", || open() == 0);
}

/// By a signal it is the same.
#[test]
fn a_signal_does_it_too() {
    let it = Upgradable::new(&["-v2"]);
    let mut idle = it.family.client();
    fill(&mut idle, it.family.folder.path(), 10);
    let before = content(&mut idle);
    it.installed.replace();
    signal(it.pid, Signal::USR2);
    eventually("it is another program", || {
        fs::read_link(format!("/proc/{}/exe", it.pid)).unwrap() == it.installed.path
    });
    assert_eq!(content(&mut idle), before);
}

/// A program that does not start changes nothing, and it is said why.
#[test]
fn a_program_that_does_not_start_changes_nothing() {
    let it = Upgradable::by_scripts(&[]);
    let mut idle = it.family.client();
    fill(&mut idle, it.family.folder.path(), 300);
    let before = content(&mut idle);
    let mut fails = |install: &dyn Fn(), why: &str| {
        install();
        let refused = it.upgrade();
        assert_exit(&refused, 1);
        assert!(stderr(&refused).contains(why), "{refused:?}");
        assert_eq!(stderr(&refused).lines().count(), 1);
        assert!(it.family.log().contains(why), "{}", it.family.log());
        assert_eq!(content(&mut idle), before);
        assert_eq!(content(&mut it.family.client()), before);
        eventually("it is alone", || it.family.alive() == [it.pid]);
    };
    fails(&|| it.installed.replace_by_script("exit 3"), "exit status: 3");
    fails(&|| it.installed.replace_by_script("kill -9 $$"), "signal: 9");
    fails(&|| fs::remove_file(&it.installed.path).unwrap(), "No such file");
    fails(&|| fs::write(&it.installed.path, "no program").unwrap(), "Permission denied");
    it.installed.replace();
    assert_exit(&it.upgrade(), 0);
    assert_eq!(content(&mut idle), before);
}

/// A client that leaves with its reply unread, while others are told that an upgrade failed.
#[test]
fn a_client_may_leave_when_an_upgrade_fails() {
    let it = Upgradable::by_scripts(&[]);
    fill(&mut it.family.client(), it.family.folder.path(), 3);
    let mut asks = UnixStream::connect(&it.family.path).unwrap();
    let upgrade = Request::<OwnedFd>::Extension(Extension::Upgrade).into_message();
    let closed = it.family.folder.path().join("closed");
    // dash closes no number of two digits.
    let hangs_up = format!("eval \"exec $FDHOLDER_FOLLOW>&-\"; : > {}; sleep 1", closed.display());
    let script = format!("exec bash -c '{hangs_up}'");
    it.installed.replace_by_script(&script);
    // It is let in after the one that asks for the upgrade.
    it.family.client().list(deadline()).unwrap();
    asks.write_all(Request::<OwnedFd>::List.into_message().bytes()).unwrap();
    assert_ne!(asks.read(&mut [0; 64]).unwrap(), 0);
    let mut leaves = UnixStream::connect(&it.family.path).unwrap();
    let retrieve = Request::<OwnedFd>::Retrieve { id: id("0"), delete: true };
    leaves.write_all(retrieve.into_message().bytes()).unwrap();
    eventually("it is lent", || it.family.client().list(deadline()).unwrap().len() == 2);
    asks.write_all(upgrade.bytes()).unwrap();
    // Within the moment in which the daemon waits for the end of the new program.
    let began = Instant::now();
    while !closed.exists() {
        assert!(began.elapsed() < PATIENCE);
    }
    drop(leaves);
    assert_ne!(asks.read(&mut [0; 256]).unwrap(), 0);
    assert_eq!(it.family.client().list(deadline()).unwrap().len(), 3);
    assert_eq!(it.family.alive(), [it.pid]);
}

/// Whoever asks for many upgrades at once, while there is no program, gets as many answers.
#[test]
fn many_upgrades_may_fail() {
    const COUNT: usize = 2000;
    let it = Upgradable::new(&[]);
    fill(&mut it.family.client(), it.family.folder.path(), 3);
    fs::remove_file(&it.installed.path).unwrap();
    let mut asks = UnixStream::connect(&it.family.path).unwrap();
    let upgrade = Request::<OwnedFd>::Extension(Extension::Upgrade).into_message();
    asks.write_all(&upgrade.bytes().repeat(COUNT)).unwrap();
    let mut decoder = Decoder::<OwnedFd>::new(REQUEST_PAYLOAD_MAX);
    let (mut answers, mut buffer) = (0, vec![0; 65536]);
    while answers < COUNT {
        let len = asks.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "the daemon has gone after {answers} answers");
        decoder.push(&buffer[..len], [], false);
        while decoder.next().unwrap().is_some() {
            answers += 1;
        }
    }
    assert_eq!(it.family.client().list(deadline()).unwrap().len(), 3);
}

/// One that starts beside the old one, but then does not take over from the keeper: the
/// keeper serves.
#[test]
fn the_keeper_serves_when_nobody_comes() {
    let mut it = Upgradable::by_scripts(&[]);
    let mut idle = it.family.client();
    fill(&mut idle, it.family.folder.path(), 300);
    let before = content(&mut idle);
    let ours = env!("CARGO_BIN_EXE_fdholder");
    it.installed.replace_by_script(&format!(
        "[ -z \"$FDHOLDER_TAKE_OVER\" ] && exec {ours} \"$@\"\nexit 7"
    ));
    // The keeper answers for the program that it is.
    assert_exit(&it.upgrade(), 0);
    assert_eq!(it.family.wait(it.pid), Some(7));
    assert_eq!(content(&mut idle), before);
    assert_eq!(content(&mut it.family.client()), before);
    // A supervisor starts the next one, which takes over.
    it.family.serve(&[]);
    assert_eq!(content(&mut idle), before);
    eventually("one is left", || it.family.alive().len() == 1);
}

/// One that stands still for longer than the keeper waits does not serve beside it.
#[test]
fn a_slow_program_does_not_serve_beside_the_keeper() {
    let mut it = Upgradable::by_scripts(&[]);
    fill(&mut it.family.client(), it.family.folder.path(), 30);
    let before = content(&mut it.family.client());
    let ours = env!("CARGO_BIN_EXE_fdholder");
    // Between "synced" and "take over", as its third message.
    let slow = "inject=sendmsg:delay_enter=11000000:when=3";
    it.installed.replace_by_script(&format!(
        "[ -z \"$FDHOLDER_TAKE_OVER\" ] && exec {ours} \"$@\"\n\
         exec strace -D -qq -o /dev/null -e trace=sendmsg -e {slow} {ours} \"$@\""
    ));
    signal(it.pid, Signal::USR2);
    assert_eq!(it.family.wait(it.pid), Some(111), "{}", it.family.log());
    assert_eq!(content(&mut it.family.client()), before);
    eventually("one is left", || it.family.alive().len() == 1);
}

/// Signals that come while one program becomes the other are for the next.
#[test]
fn no_signal_is_lost_in_between() {
    let mut it = Upgradable::by_scripts(&[]);
    let ours = env!("CARGO_BIN_EXE_fdholder");
    it.installed.replace_by_script(&format!(
        "[ -z \"$FDHOLDER_TAKE_OVER\" ] && exec {ours} \"$@\"\n\
         kill -HUP $$; kill -USR2 $$; kill -TERM $$\n\
         exec {ours} \"$@\""
    ));
    signal(it.pid, Signal::USR2);
    assert_eq!(it.family.wait(it.pid), Some(0), "{}", it.family.log());
    assert!(it.family.log().contains("has taken over 0 from pid"), "{}", it.family.log());
    eventually("nobody is left", || it.family.alive().is_empty());
}

/// A daemon whose own execve(2) fails in this way, in the eyes of strace(1).
fn unable_to_exec(family: &mut Family, inject: &str, options: &[&str]) -> u32 {
    let mut strace = Command::new("strace");
    // Its own start is not counted.
    strace.args(["-qq", "-o", "/dev/null", "-e", "trace=execve", "-e", inject]);
    strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1"]).args(options);
    strace.arg(&family.path);
    family.spawn(strace)
}

/// When the kernel refuses in the last moment, the old program goes on.
#[test]
fn the_old_program_goes_on_when_it_cannot_become_another() {
    let mut family = Family::new();
    unable_to_exec(&mut family, "inject=execve:error=EACCES", &["--standby"]);
    let mut idle = family.client();
    fill(&mut idle, family.folder.path(), 300);
    let before = content(&mut idle);
    let primary = family.primary();
    let upgrade = || suite::fdholder(["upgrade", family.path.to_str().unwrap()]).output().unwrap();
    for _ in 0..2 {
        family.standby();
        let refused = upgrade();
        assert_exit(&refused, 1);
        assert!(stderr(&refused).contains("Permission denied"), "{refused:?}");
        assert_eq!(content(&mut idle), before);
        assert_eq!(family.primary(), primary);
    }
    // It is followed as before.
    let standby = family.standby();
    signal(primary, Signal::KILL);
    assert_eq!(content(&mut family.client()), before);
    assert_eq!(family.primary(), standby);
}

/// Unless that takes so long that the keeper serves by then: what that one has acknowledged
/// must not be lost.
#[test]
fn the_old_program_ends_when_the_keeper_serves() {
    let mut family = Family::new();
    let slow = "inject=execve:error=EACCES:delay_enter=11000000";
    let strace = unable_to_exec(&mut family, slow, &[]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 3);
    signal(family.primary(), Signal::USR2);
    // Whoever asks before it is handed over is answered by the old one.
    eventually("a keeper serves", || {
        client.delete(&id("0"), deadline()).ok();
        family.log().contains("does not:")
    });
    client.delete(&id("1"), deadline()).unwrap();
    assert_eq!(family.wait(strace), Some(111), "{}", family.log());
    assert_eq!(family.client().list(deadline()).unwrap(), [id("2")]);
    assert_eq!(family.alive().len(), 1);
}

/// The old program has stopped the keeper, to take the lease back, and is killed before it does.
#[test]
fn stopped_keeper_serves_when_the_old_program_is_killed() {
    let mut family = Family::new();
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", "trace=execve,kill"]);
    strace.args(["-e", "inject=execve:error=EACCES"]);
    // The first of its kills is the stop.
    strace.args(["-e", "inject=kill:error=EPERM:signal=SIGKILL:when=2"]);
    strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1"]).arg(&family.path);
    let strace = family.spawn(strace);
    fill(&mut family.client(), family.folder.path(), 30);
    let before = content(&mut family.client());
    let old = family.primary();
    signal(old, Signal::USR2);
    family.wait(strace);
    assert_eq!(content(&mut family.client()), before, "{}", family.log());
    assert_eq!(family.alive(), [family.primary()]);
}

/// A call of the keeper that fails for a moment does not end the new program, which is the one that
/// a supervisor watches.
#[test]
fn new_program_serves_although_a_call_of_the_keeper_fails() {
    let calls = ["memfd_create", "eventfd2", "fcntl", "sendmsg", "recvmsg", "pwrite64"];
    for call in calls {
        let it = Upgradable::by_scripts(&[]);
        fill(&mut it.family.client(), it.family.folder.path(), 30);
        let before = content(&mut it.family.client());
        let ours = env!("CARGO_BIN_EXE_fdholder");
        let log = it.family.folder.path().join("strace");
        it.installed.replace_by_script(&format!(
            "[ -n \"$FDHOLDER_TAKE_OVER\" ] && exec {ours} \"$@\"\n\
             exec strace -D -qq -o {log} -e trace={call} -e inject={call}:error=ENOMEM:when=1+3 \
             {ours} \"$@\"",
            log = log.display(),
        ));
        // It may fail before anything is handed over.
        let upgraded = it.upgrade();
        assert!(is_alive(it.pid), "{call}: {upgraded:?} {}", it.family.log());
        assert_eq!(it.family.primary(), it.pid, "{call}: {}", it.family.log());
        assert_eq!(content(&mut it.family.client()), before, "{call}");
        let injected = fs::read_to_string(&log).unwrap();
        assert!(injected.contains("(INJECTED)"), "{call}: {injected}");
    }
}

/// The keeper waits for a new program that has the lease and is slow to serve; asked to end, it does.
#[test]
fn keeper_of_a_slow_program_ends_when_it_is_asked_to() {
    let it = Upgradable::by_scripts(&[]);
    fill(&mut it.family.client(), it.family.folder.path(), 30);
    let before = content(&mut it.family.client());
    let ours = env!("CARGO_BIN_EXE_fdholder");
    let keeper = it.family.folder.path().join("keeper");
    // The new program has written that it follows, and goes on later.
    it.installed.replace_by_script(&format!(
        "[ -z \"$FDHOLDER_TAKE_OVER\" ] && echo $$ > {keeper} && exec {ours} \"$@\"\n\
         exec strace -D -qq -o /dev/null -e trace=pwrite64 \
         -e inject=pwrite64:delay_exit=3000000:when=1 {ours} \"$@\"",
        keeper = keeper.display()
    ));
    signal(it.pid, Signal::USR2);
    eventually("the new program has the lease", || writes_to_roll(it.pid));
    let keeper = fs::read_to_string(&keeper).unwrap().trim().parse().unwrap();
    assert!(is_alive(keeper));
    signal(keeper, Signal::TERM);
    eventually("it has ended before the new program serves", || !is_alive(keeper));
    assert!(it.family.log().matches(": ready on").count() == 1, "{}", it.family.log());
    assert_eq!(content(&mut it.family.client()), before, "{}", it.family.log());
    assert_eq!(it.family.primary(), it.pid);
}

/// With a standby it is the same, and the new program has one.
#[test]
fn a_daemon_with_a_standby_is_upgraded() {
    let it = Upgradable::new(&["--standby"]);
    let mut idle = it.family.client();
    fill(&mut idle, it.family.folder.path(), 300);
    let before = content(&mut idle);
    for _ in 0..3 {
        let standby = it.family.standby();
        assert_exit(&it.upgrade(), 0);
        assert_eq!(it.family.primary(), it.pid);
        assert_ne!(it.family.standby(), standby);
        eventually("two are left", || it.family.alive().len() == 2);
        eventually("nothing is left of the others", || zombies_of(it.pid) == 0);
    }
    signal(it.pid, Signal::KILL);
    assert_eq!(content(&mut it.family.client()), before);
    assert!(is_alive(it.family.primary()));
}

/// While one program becomes the other, the standby is still there: if the keeper is killed, and
/// the new program finds nobody to take over from, the standby serves.
#[test]
fn the_keeper_may_be_killed_when_there_is_a_standby() {
    let mut it = Upgradable::by_scripts(&["--standby"]);
    fill(&mut it.family.client(), it.family.folder.path(), 30);
    let before = content(&mut it.family.client());
    let standby = it.family.standby();
    let ours = env!("CARGO_BIN_EXE_fdholder");
    let keeper = it.family.folder.path().join("keeper");
    it.installed.replace_by_script(&format!(
        "if [ -z \"$FDHOLDER_TAKE_OVER\" ]; then echo $$ > {keeper}; else kill -KILL $(cat {keeper}); fi\n\
         exec {ours} \"$@\"",
        keeper = keeper.display()
    ));
    signal(it.pid, Signal::USR2);
    assert_eq!(it.family.wait(it.pid), Some(111), "{}", it.family.log());
    assert_eq!(content(&mut it.family.client()), before);
    assert_eq!(it.family.primary(), standby);
    it.family.pair();
}

/// How many children of a process have ended and were not waited for.
fn zombies_of(pid: u32) -> usize {
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&format!(") Z {pid} "))).count()
}

/// One that is about to end becomes nothing else.
#[test]
fn a_lame_duck_is_not_upgraded() {
    let mut it = Upgradable::new(&["-T", "60000"]);
    let file = fs::File::open("/dev/null").unwrap();
    let mut client = it.family.client();
    let entry = |name| [Entry { id: id(name), limit: Limit::never(), fd: &file }];
    let mut set = client.begin_setdump(2, deadline()).unwrap();
    set.send_entries(&entry("a"), deadline()).unwrap();
    let mut asking = fdholder::Client::connect_negotiated(&it.family.path, deadline());
    let asking = asking.as_mut().unwrap();
    signal(it.pid, Signal::TERM);
    eventually("it is a lame duck", || {
        let soon = fdholder::Deadline::after(Duration::from_millis(20));
        it.family.client().list(soon).is_err()
    });
    let refused = asking.upgrade(deadline()).unwrap();
    assert!(refused.unwrap_err().contains("about to end"));
    set.send_entries(&entry("b"), deadline()).unwrap();
    assert_eq!(it.family.wait(it.pid).map(|code| code & 1), Some(1));
    assert!(it.family.alive().is_empty());
}
