//! A daemon gives up what it does not need; so do all that come after it.

use crate::support::family::signal;
use crate::support::{
    assert_exit, deadline, eventually, has_landlock, id, open_files, stderr, suite, Family,
    Installed, Rules,
};
use crate::{content, fill};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn upgrade(family: &Family) -> std::process::Output {
    suite::fdholder(["upgrade", family.path.to_str().unwrap()]).output().unwrap()
}

fn gains_none(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("\nNoNewPrivs:\t1\n")
}

/// The kernel confines a process no more than 16 times; one is enough.
#[test]
fn upgrades_go_on_for_ever() {
    let mut family = Family::new();
    let bin = family.folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let installed = Installed::in_folder(&bin);
    let pid = family.serve_by(&installed.path, &["-v2", "--standby"]);
    fill(&mut family.client(), family.folder.path(), 30);
    let before = content(&mut family.client());
    for _ in 0..20 {
        installed.replace();
        assert_exit(&upgrade(&family), 0);
        assert_eq!(family.primary(), pid);
    }
    let standby = family.standby();
    assert_eq!(content(&mut family.client()), before);
    assert!(gains_none(pid) && gains_none(standby));
    assert!(!family.log().contains("may open whatever"), "{}", family.log());
    if !has_landlock() {
        return;
    }
    // Once, by the first; each of the others says that it need not.
    assert_eq!(family.log().matches("from here on (Landlock)").count(), 1, "{}", family.log());
    let refused = |family: &Family| {
        let refused = upgrade(family);
        assert_exit(&refused, 1);
        let said = stderr(&refused);
        assert!(said.contains("unable to start it: Permission denied"), "{said}");
        assert!(said.contains("Start the daemon anew"), "{said}");
    };
    // A script needs a shell, which is none of its business.
    installed.replace_by_script("exit 0");
    refused(&family);
    // And so it is to the standby, which serves when this one is killed.
    signal(pid, Signal::KILL);
    assert_eq!(content(&mut family.client()), before);
    eventually("it serves", || family.primary() == standby);
    refused(&family);
}

/// Nobody could execute it, confined or not.
#[test]
fn program_that_lost_its_mode_is_not_blamed_on_landlock() {
    let mut family = Family::new();
    let bin = family.folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let installed = Installed::in_folder(&bin);
    family.serve_by(&installed.path, &[]);
    fs::set_permissions(&installed.path, Permissions::from_mode(0o644)).unwrap();
    let refused = upgrade(&family);
    assert_exit(&refused, 1);
    assert!(stderr(&refused).contains("unable to start it: Permission denied"), "{refused:?}");
    assert!(!stderr(&refused).contains("landlock"), "{refused:?}");
    // The daemon it was goes on.
    family.client().list(deadline()).unwrap();
}

/// A daemon that takes over is a new one: it opens what it was started for.
#[test]
fn who_takes_over_is_not_confined_by_the_one_before() {
    let mut family = Family::new();
    let first = family.serve(&["-v2"]);
    fill(&mut family.client(), family.folder.path(), 3);
    let rules = tempfile::tempdir().unwrap();
    let rules = Rules::all(rules.path().join("etc/rules"));
    let second = family.serve(&["-v2", "-i", rules.dir.to_str().unwrap()]);
    assert_eq!(family.wait(first), Some(0));
    assert_eq!(family.client().list(deadline()).unwrap().len(), 3);
    assert!(gains_none(second));
    if has_landlock() {
        assert_eq!(family.log().matches("from here on (Landlock)").count(), 2);
    }
}

/// What a program that it executed would have.
fn passed_on(pid: u32) -> BTreeSet<u32> {
    let stays = |number: &u32| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.map(|flags| u32::from_str_radix(flags.trim(), 8).unwrap());
        flags.is_some_and(|flags| flags & libc::O_CLOEXEC.cast_unsigned() == 0)
    };
    open_files(pid).into_keys().filter(stays).collect()
}

/// The standard streams; and what a daemon got from this process, as that did from another.
fn meant() -> BTreeSet<u32> {
    &passed_on(std::process::id()) | &BTreeSet::from([0, 1, 2])
}

/// Nothing that a daemon has open is for a program that it becomes or starts.
#[test]
fn nothing_is_passed_on() {
    let mut family = Family::new();
    let meant = meant();
    let pid = family.serve(&["--standby"]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 300);
    let memory = rustix::fs::memfd_create("passed", rustix::fs::MemfdFlags::empty()).unwrap();
    client.store(&id("memory"), fdholder::Limit::never(), &memory, deadline()).unwrap();
    let (primary, standby) = family.pair();
    assert_eq!(primary, pid);
    assert!(open_files(primary).len() > 300 && open_files(standby).len() > 300);
    // A child does not even get what its parent had been left by others.
    let of_child: BTreeSet<u32> = (0..=2).collect();
    assert_eq!((passed_on(primary), passed_on(standby)), (meant.clone(), of_child.clone()));
    // Nor by one that got it from another, or was another before.
    assert_exit(&upgrade(&family), 0);
    family.pair();
    assert_eq!(passed_on(pid), meant);
    signal(pid, Signal::KILL);
    eventually("another one serves", || family.primary() != pid);
    let (primary, standby) = family.pair();
    assert_eq!((passed_on(primary), passed_on(standby)), (of_child.clone(), of_child));
    drop(client);
}

/// A program in the daemon's place says what it was given: a socket to follow by, and the
/// standard streams. Beside it that socket is one of them.
#[test]
fn a_program_gets_what_it_is_meant_to_have() {
    let mut family = Family::new();
    let (installed, meant) = (Installed::in_folder(family.folder.path()), meant());
    let pid = family.serve_by(&installed.path, &["--no-landlock"]);
    fill(&mut family.client(), family.folder.path(), 300);
    let said = |name: &str| family.folder.path().join(name);
    let ours = env!("CARGO_BIN_EXE_fdholder");
    // Of the shell, by another one, which opens things of its own for that.
    let listing = |name: &str| {
        let file = said(name);
        format!(
            "(exec > {}; for it in /proc/$$/fd/*; do echo \"$it $(readlink $it)\"; done)",
            file.display()
        )
    };
    let script = format!(
        "if [ -z \"$FDHOLDER_TAKE_OVER\" ]; then echo $FDHOLDER_FOLLOW > {}; {}\n\
         else echo $FDHOLDER_TAKE_OVER > {}; {}; fi\nexec {ours} \"$@\"",
        said("follow").display(),
        listing("beside"),
        said("take-over").display(),
        listing("instead"),
    );
    installed.replace_by_script(&script);
    assert_exit(&upgrade(&family), 0);
    assert_eq!(family.primary(), pid);
    for (number, list) in [("follow", "beside"), ("take-over", "instead")] {
        let list_is_of_child = list == "beside";
        let number: u32 = fs::read_to_string(said(number)).unwrap().trim().parse().unwrap();
        let list = fs::read_to_string(said(list)).unwrap();
        let numbers: BTreeSet<u32> = list.lines().filter_map(number_in).collect();
        let meant =
            if number == 0 { (0..=2).collect() } else { &meant | &BTreeSet::from([number]) };
        assert_eq!((numbers, number == 0), (meant, list_is_of_child), "{list}");
        assert!(list.contains(&format!("/fd/{number} socket:")), "{list}");
    }
}

/// Of a line such as `/proc/5/fd/3 socket:[7]`. The shell has its script open.
fn number_in(line: &str) -> Option<u32> {
    let (path, target) = line.split_once(' ')?;
    let number = Path::new(path).file_name()?.to_str()?.parse().ok()?;
    (!target.ends_with("/fdholder")).then_some(number)
}
