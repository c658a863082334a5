//! The second copy of what is held: it is there all the time, also right after an upgrade or a
//! takeover has answered.

use crate::support::family::{is_alive, signal};
use crate::support::{assert_exit, eventually, open_files, suite, Family, Installed};
use crate::{content, fill};
use rustix::process::Signal;
use std::fs::File;
use std::process::{Child, Command};

/// The daemon is killed in the very moment in which the upgrade has answered.
#[test]
fn upgrade_answers_when_a_standby_has_everything() {
    let mut family = Family::new();
    let installed = Installed::in_folder(family.folder.path());
    family.serve_by(&installed.path, &["--standby", "-n", "500"]);
    fill(&mut family.client(), family.folder.path(), 200);
    let before = content(&mut family.client());
    for _ in 0..10 {
        let (primary, _) = family.pair();
        let upgraded =
            suite::fdholder(["upgrade", family.path.to_str().unwrap()]).output().unwrap();
        signal(primary, Signal::KILL);
        assert_exit(&upgraded, 0);
        assert_eq!(content(&mut family.client()), before, "{}", family.log());
        eventually("the standby serves", || family.primary() != primary);
    }
}

/// The same, when a daemon that takes over is ready.
#[test]
fn takeover_is_ready_when_a_standby_has_everything() {
    let mut family = Family::with(&["--standby", "-n", "500"]);
    fill(&mut family.client(), family.folder.path(), 200);
    let before = content(&mut family.client());
    for _ in 0..10 {
        let new = family.serve(&["--standby", "-n", "500"]);
        family.kill(new);
        assert_eq!(content(&mut family.client()), before, "{}", family.log());
    }
}

/// A daemon at the path of a family, whose calls take as long as these options of strace(1) say.
fn slow_daemon(family: &Family, strace: &[&str], options: &[&str]) -> Child {
    let mut command = Command::new("strace");
    // As its parent, strace would have its number.
    command.args(["-D", "-qq", "-o", "/dev/null", "-e", "trace=execve,pwrite64"]).args(strace);
    command.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-n", "500"]).args(options);
    let log = File::options().append(true).open(family.log_path()).unwrap();
    command.arg(&family.path).stderr(log).spawn().unwrap()
}

/// Before that its predecessor goes on, as if nothing had been.
#[test]
fn takeover_that_ends_before_it_serves_is_undone() {
    let mut family = Family::with(&["-n", "500"]);
    let old = family.primary();
    let mut idle = family.client();
    fill(&mut idle, family.folder.path(), 50);
    let before = content(&mut idle);
    // Its standby cannot become what it is to be for so long that there is time to kill it.
    let slow = "inject=execve:delay_enter=3000000:when=2+";
    let mut new = slow_daemon(&family, &["-f", "-e", slow], &["--standby"]);
    eventually("it has taken over, and starts a standby", || {
        family.log().matches("a standby is started").count() == 1
    });
    signal(new.id(), Signal::KILL);
    new.wait().unwrap();
    assert_eq!(content(&mut idle), before, "{}", family.log());
    assert_eq!(content(&mut family.client()), before);
    assert!(is_alive(old));
    // It is taken over from, the next time.
    let next = family.serve(&["-n", "500"]);
    assert_eq!(content(&mut idle), before);
    assert_eq!(family.primary(), next);
    assert_eq!(family.wait(old), Some(0));
}

/// It has the lease, and does not serve for longer than anything else is waited for: its predecessor
/// is silent, and still there. If it ends then, that one goes on.
#[test]
fn predecessor_of_a_daemon_that_is_slow_to_serve_stays() {
    for is_killed in [false, true] {
        let mut family = Family::with(&["-n", "500"]);
        let old = family.primary();
        fill(&mut family.client(), family.folder.path(), 50);
        let before = content(&mut family.client());
        // It has written that it follows, and goes on later.
        let slow = "inject=pwrite64:delay_exit=13000000:when=1";
        let mut new = slow_daemon(&family, &["-e", slow], &[]);
        eventually("it is waited for", || family.log().contains("is slow to serve"));
        assert!(is_alive(old));
        if !is_killed {
            assert_eq!(content(&mut family.client()), before, "{}", family.log());
            assert_eq!(family.wait(old), Some(0), "{}", family.log());
        }
        signal(new.id(), Signal::KILL);
        new.wait().unwrap();
        if is_killed {
            assert_eq!(content(&mut family.client()), before, "{}", family.log());
            assert!(is_alive(old), "{}", family.log());
        }
        assert_eq!(family.log().matches(": ready on ").count(), 2 - usize::from(is_killed));
    }
}

/// Whether a process is in the middle of pwrite(2) to a roll's first byte: see proc(5), "syscall".
pub fn writes_to_roll(pid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let fields: Vec<_> = call.split(' ').collect();
    let [_, fd, _, "0x1", "0x0", ..] = fields[..] else { return false };
    let Ok(fd) = u32::from_str_radix(fd.trim_start_matches("0x"), 16) else { return false };
    open_files(pid).get(&fd).is_some_and(|file| file.to_string_lossy().contains("fdholder roll"))
}

/// When its standby has everything, too, either that serves then or the predecessor does, and an
/// upgrade that is asked for in this moment changes nothing of it.
#[test]
fn predecessor_and_standby_of_a_daemon_that_ends_before_it_serves_do_not_both_serve() {
    for asks_for_upgrade in [false, true] {
        let family = Family::with(&["-n", "500"]);
        let old = family.primary();
        fill(&mut family.client(), family.folder.path(), 50);
        let before = content(&mut family.client());
        // Each write to a roll takes long: also that which says that it serves.
        let slow = "inject=pwrite64:delay_enter=1000000";
        let mut new = slow_daemon(&family, &["-e", slow], &["--standby"]);
        eventually("it is about to say that it serves", || {
            family.log().matches("a standby is started").count() == 1 && writes_to_roll(new.id())
        });
        let is_standby = |pid: &&u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ![old, new.id()].contains(pid) && name == "fdholder\n"
        };
        let standby = *family.alive().iter().find(is_standby).unwrap();
        if asks_for_upgrade {
            signal(new.id(), Signal::USR2);
        }
        signal(new.id(), Signal::KILL);
        new.wait().unwrap();
        eventually("one of them ends", || !is_alive(old) || !is_alive(standby));
        assert!(is_alive(old) || is_alive(standby), "{}", family.log());
        assert_eq!(content(&mut family.client()), before, "{}", family.log());
    }
}
