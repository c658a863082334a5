//! Rules that are not what rules are: nobody is kept waiting by them, and nobody gains.

use crate::actor::{Actor, Role, ATTACKERS};
use crate::arena::{own_prefixes, Arena};
use crate::case;
use crate::support::Rules;
use libtest_mimic::Trial;
use rustix::fs::{mknodat, FileType, Mode, CWD};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{symlink, FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file of an attacker's rule is made into something else, and what it is told then.
type Odd = (&'static str, &'static str, fn(&Path), &'static str);

const REGEX: &str = "env/S6_FDHOLDER_STORE_REGEX";

const ODD: [Odd; 13] = [
    ("a_symlink_to_itself", REGEX, |path| symlink(path, path).unwrap(), "hung up"),
    ("a_symlink_to_nothing", REGEX, |path| symlink("nothing", path).unwrap(), "hung up"),
    ("a_symlink_to_zeros", REGEX, |path| symlink("/dev/zero", path).unwrap(), "hung up"),
    ("a_symlink_to_a_terminal", REGEX, |path| symlink("/dev/ptmx", path).unwrap(), "hung up"),
    (
        "a_symlink_to_the_memory_of_the_daemon",
        REGEX,
        |path| symlink("/proc/self/mem", path).unwrap(),
        "hung up",
    ),
    ("a_fifo", REGEX, fifo, "hung up"),
    ("a_folder", REGEX, |path| fs::create_dir(path).unwrap(), "hung up"),
    ("a_huge_one", REGEX, |path| File::create(path).unwrap().set_len(1 << 40).unwrap(), "hung up"),
    ("a_long_expression", REGEX, |path| fs::write(path, "a".repeat(4096)).unwrap(), "hung up"),
    ("unreadable", REGEX, unreadable, "hung up"),
    ("an_unreadable_deny", "deny", unreadable, "hung up"),
    ("an_allow_that_is_a_fifo", "allow", fifo, "done"),
    ("an_env_that_is_a_file", "env", |path| fs::write(path, "x").unwrap(), "hung up"),
];

pub fn cases(trials: &mut Vec<Trial>) {
    for odd in ODD {
        case(trials, format!("rights::{}", odd.0), move || odd_rule(odd));
    }
    case(trials, "rights::changing_while_they_are_read", changing);
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::ROTH, 0).unwrap();
}

fn unreadable(path: &Path) {
    fs::write(path, ".*").unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
}

/// The daemon is an ordinary user here, so that there is something that it may not read.
fn odd_rule((name, file, make, expected): Odd) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let rules =
        own_prefixes(&folder.path().join("rules")).allow("uid/0").regexes("uid/0", ".", ".");
    let rules = rules.may("uid/0", &["LIST"]);
    let rule = rules.dir.join("uid/1002");
    let path = rule.join(file);
    if file == "deny" {
        // It would be allowed by its group.
        fs::remove_file(rule.join("allow")).unwrap();
        fs::create_dir_all(rules.dir.join("gid/1002")).unwrap();
        File::create(rules.dir.join("gid/1002/allow")).unwrap();
    }
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    make(&path);
    let mut arena = Arena::with_rules(&rules.dir, &["-u", "1004", "-g", "1004"]);
    let said = arena.attackers[0].ask("try 1002/x 20");
    // It is in use after the first time.
    let done = r#"{"EBUSY": 19, "done": 1}"#.to_owned();
    let expected = if expected == "done" { done } else { format!("{{{expected:?}: 20}}") };
    assert_eq!(said, expected, "{name}");
    // Whoever else is about goes on.
    assert_eq!(arena.attackers[1].ask("store 1"), "1 done");
    assert_eq!(arena.victim.ask("reconnect"), "done");
    arena.victim.ask("measure 20");
    arena.end();
}

/// Two expressions take turns in the same file. A part of the one and a part of the other would
/// allow what neither does.
fn changing() {
    let folder = tempfile::tempdir().unwrap();
    let rules: Rules = own_prefixes(folder.path());
    // What does not know how long a file is reads 32 bytes first. Begun like the first of these
    // and ended like the second, an expression has all that makes them narrow be optional.
    let values = [
        format!("^1002/any-other{}b{}$", "a*".repeat(8), "z".repeat(23)),
        format!("^{}?{}$", "q".repeat(31), "x*".repeat(11)),
    ];
    assert_eq!(values[0].len(), values[1].len());
    let path = rules.dir.join("uid/1002").join(REGEX);
    fs::write(&path, &values[0]).unwrap();
    let mut arena = Arena::with_rules(&rules.dir, &[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                for value in &values {
                    file.write_all_at(value.as_bytes(), 0).unwrap();
                }
            }
        });
        let mut others: Vec<_> =
            (0..2).map(|_| Actor::new(Role::Attacker, ATTACKERS[0], &arena.family.path)).collect();
        for other in &mut others {
            other.tell("try 1002/any-other 3000");
        }
        arena.victim.ask("measure 50");
        let said: Vec<_> = others.iter_mut().map(|other| other.answer("try")).collect();
        is_over.store(true, Ordering::Relaxed);
        println!("{said:?}");
        assert!(
            said.iter().all(|said| !said.contains("done") && !said.contains("EBUSY")),
            "{said:?}"
        );
    });
    arena.end();
}
