//! What goes, what becomes of conflicts, what is said.

use crate::support::proxy::{Misdeed, Proxy, Seems};
use crate::support::{assert_exit, content_at, deadline, id, stderr, stdout, Daemon, Rules};
use crate::Suite;
use crate::{fill, ids, pair, s6, transferdump, Test};
use fdholder::{Identifier, Limit};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

pub const TESTS: &[Test] = &[
    ("only_and_prefix_choose", false, only_and_prefix_choose),
    ("only_and_prefix_choose_from_s6", true, only_and_prefix_choose_from_s6),
    ("conflicts_are_replaced_kept_or_fail", false, conflicts),
    ("conflicts_in_s6", true, conflicts_in_s6),
    ("a_move_deletes_what_was_confirmed", false, a_move),
    ("a_move_deletes_only_what_was_sent", false, a_move_deletes_only_what_was_sent),
    ("a_move_into_itself_deletes_nothing", false, a_move_into_itself),
    ("a_move_of_s6_into_itself_is_refused", true, a_move_of_s6_into_itself),
    ("a_source_that_grows_is_read_again", false, a_source_that_grows),
    ("a_move_from_s6", true, a_move_from_s6),
    ("move_that_s6_would_refuse_carries_nothing", true, move_that_s6_would_refuse),
    ("a_move_that_fails_deletes_nothing", false, a_move_that_fails),
    ("a_dry_run_says_what_would_be", false, a_dry_run),
    ("a_dry_run_into_s6", true, a_dry_run_into_s6),
    ("a_verification_finds_what_is_missing", false, a_verification),
    ("s6_is_verified_too", true, s6_is_verified_too),
    ("what_s6_2_11_cannot_dump_is_verified_by_its_list", true, s6_2_11_is_verified),
    ("quiet_unless_seen", false, quiet_unless_seen),
    ("what_lasts_shows_how_far_it_is", false, what_lasts_shows_how_far_it_is),
    ("a_bad_choice_is_wrong_usage", false, a_bad_choice),
];

fn json(output: &Output) -> Value {
    assert_exit(output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn these(names: &[&str]) -> Vec<Identifier> {
    names.iter().map(|name| id(name)).collect()
}

/// Both ways.
const WAYS: [&[&str]; 2] = [&[], &["--relay"]];

fn with<'a>(way: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    [way, options].concat()
}

fn only_and_prefix_choose() {
    for way in WAYS {
        let choose = |options: &[&str]| {
            let (_from_folder, from, _to_folder, to) = pair(600);
            let report = json(&transferdump(&with(way, options), &from.path, &to.path));
            assert_eq!(report["descriptors"], ids(&to).len(), "{report}");
            let all = content_at(&from.path);
            for (id, held) in content_at(&to.path) {
                assert_eq!(Some(&held), all.get(&id));
            }
            ids(&to)
        };
        let five = these(&["id5", "id55", "id555"]);
        assert_eq!(choose(&["--json", "--only", "^id5{1,3}$"]), five);
        assert_eq!(choose(&["--json", "--prefix", "id5"]).len(), 111);
        assert_eq!(choose(&["--json", "--prefix", "id5", "--only", "[^5]$"]).len(), 99);
        assert_eq!(choose(&["--json", "--prefix", "5"]), []);
        assert_eq!(choose(&["--json", "--only", "[02468]$"]).len(), 300);
    }
}

fn only_and_prefix_choose_from_s6() {
    let folder = tempfile::tempdir().unwrap();
    let from = s6(folder.path(), &[]);
    fill(&from, 600);
    let (_to_folder, to) = crate::serve(&[]);
    let report = json(&transferdump(&["--json", "--prefix", "id5"], &from.path, &to.path));
    assert_eq!((&report["descriptors"], &report["path"]), (&111.into(), &"relay".into()));
    assert_eq!(ids(&to).len(), 111);
}

/// The path behind what is held under `id0`, for which `fill` has /dev/null.
fn is_null(holder: &Daemon) -> bool {
    content_at(&holder.path)[&id("id0")].0 == Path::new("/dev/null")
}

/// Holds something else under `id0`.
fn hold_other(holder: &Daemon) {
    let other = std::fs::File::open("/dev/zero").unwrap();
    let mut client = holder.client();
    let _ = client.delete(&id("id0"), deadline());
    client.store(&id("id0"), Limit::never(), &other, deadline()).unwrap();
}

fn conflicts() {
    for way in WAYS {
        let (_from_folder, from, _to_folder, to) = pair(300);
        let transfer = |options: &[&str]| {
            transferdump(&with(way, &with(&["--json"], options)), &from.path, &to.path)
        };
        hold_other(&to);
        let failed = transfer(&["--on-conflict", "fail"]);
        assert_exit(&failed, 2);
        assert_eq!(
            stderr(&failed),
            "fdholder transferdump: fatal: unable to set dump: File exists (it holds some of these \
             ids: see --dry-run; the destination has taken nothing)\n"
        );
        assert_eq!(ids(&to), these(&["id0"]));
        let kept = json(&transfer(&["--on-conflict", "keep"]));
        assert_eq!((&kept["added"], &kept["kept"]), (&299.into(), &1.into()));
        assert!(!is_null(&to));
        let replaced = json(&transfer(&[]));
        assert_eq!((&replaced["added"], &replaced["replaced"]), (&0.into(), &300.into()));
        assert!(is_null(&to));
        let (_empty_folder, empty) = crate::serve(&[]);
        let fails = with(way, &["--on-conflict", "fail"]);
        assert_exit(&transferdump(&fails, &from.path, &empty.path), 0);
        assert_eq!(ids(&empty).len(), 300);
    }
}

/// s6's daemon always replaces, so what it holds is not sent.
fn conflicts_in_s6() {
    let folder = tempfile::tempdir().unwrap();
    let (_from_folder, from) = crate::serve(&[]);
    fill(&from, 300);
    for way in WAYS {
        let to = s6(folder.path(), &[]);
        hold_other(&to);
        let fails = with(way, &["--on-conflict", "fail"]);
        assert_exit(&transferdump(&fails, &from.path, &to.path), 2);
        assert_eq!(ids(&to), these(&["id0"]));
        let keeps = with(way, &["--json", "--on-conflict", "keep"]);
        let kept = json(&transferdump(&keeps, &from.path, &to.path));
        assert_eq!((&kept["descriptors"], &kept["kept"]), (&299.into(), &1.into()));
        assert!(!is_null(&to));
        assert_eq!(ids(&to).len(), 300);
        std::fs::remove_file(&to.path).unwrap();
    }
}

fn a_move() {
    for way in WAYS {
        let (_from_folder, from, _to_folder, to) = pair(300);
        hold_other(&to);
        let options = with(way, &["--json", "--move", "--on-conflict", "keep", "--only", "0$"]);
        let report = json(&transferdump(&options, &from.path, &to.path));
        assert_eq!((&report["kept"], &report["deleted_from_source"]), (&1.into(), &29.into()));
        // What the destination did not take stays.
        assert!(is_null(&from) && !is_null(&to));
        assert_eq!(ids(&from).len(), 271);
        assert_eq!(ids(&to).len(), 30);
    }
}

/// Something else is stored under the same identifier while a move is under way.
fn a_move_deletes_only_what_was_sent() {
    for way in WAYS {
        let (_from_folder, from, to_folder, to) = pair(300);
        let misdeed = Misdeed::WaitsForLeave;
        let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, misdeed, 1);
        let transfer = {
            let (from, to) = (from.path.clone(), proxy.path.clone());
            std::thread::spawn(move || transferdump(&with(way, &["--json", "--move"]), &from, &to))
        };
        proxy.wait_until_it_waits();
        hold_other(&from);
        proxy.give_leave();
        let report = json(&transfer.join().unwrap());
        assert_eq!(report["deleted_from_source"], 299);
        assert_eq!(ids(&from), these(&["id0"]));
        assert!(!is_null(&from) && is_null(&to));
    }
}

fn a_move_into_itself() {
    let (_folder, holder) = crate::serve(&[]);
    fill(&holder, 300);
    for way in WAYS {
        let options = with(way, &["--json", "--move"]);
        let report = json(&transferdump(&options, &holder.path, &holder.path));
        assert_eq!(report["deleted_from_source"], 0);
        assert_eq!(ids(&holder).len(), 300);
    }
}

fn a_move_of_s6_into_itself() {
    let folder = tempfile::tempdir().unwrap();
    let holder = s6(folder.path(), &[]);
    fill(&holder, 3);
    let other_path = folder.path().join("link");
    std::os::unix::fs::symlink(&holder.path, &other_path).unwrap();
    let output = transferdump(&["--move"], &holder.path, &other_path);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("unable to move what a holder has into itself"));
    assert_eq!(ids(&holder).len(), 3);
}

/// Between the look at what is there and the dump something is stored: the transfer begins
/// anew, as the set would be of two instants.
fn a_source_that_grows() {
    let (from_folder, from, _to_folder, to) = pair(253);
    let misdeed = Misdeed::GrowsBeforeDump;
    let proxy = Proxy::new(from_folder.path(), &from.path, Seems::S6, misdeed, 0);
    assert_exit(&transferdump(&["--only", "."], &proxy.path, &to.path), 0);
    assert_eq!(ids(&to).len(), 254);
    let asked = proxy.asked.lock().unwrap();
    assert_eq!(*asked, [&b"+"[..], b"L?", b"+", b"L?"]);
}

fn a_move_from_s6() {
    let folder = tempfile::tempdir().unwrap();
    let from = s6(folder.path(), &[]);
    fill(&from, 300);
    let (_to_folder, to) = crate::serve(&[]);
    let report = json(&transferdump(&["--json", "--move", "--verify"], &from.path, &to.path));
    assert_eq!(report["deleted_from_source"], 300);
    assert_eq!(report["verification"]["source_changed"], Value::Array(vec![]));
    assert_eq!((ids(&from).len(), ids(&to).len()), (0, 300));
}

/// s6's daemon says only by refusing to store whether it would delete.
fn move_that_s6_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", "^other", ".")
        .may("uid/self", &["LIST", "GETDUMP", "SETDUMP"]);
    let from = Daemon::with_rules(Suite::S6V213, &folder.path().join("s6"), &rules, &[]);
    fill(&from, 3);
    let (_to_folder, to) = crate::serve(&[]);
    let output = transferdump(&["--move"], &from.path, &to.path);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("unable to delete fd for id id"), "{output:?}");
    assert!(stderr(&output).contains("the destination has taken nothing)"), "{output:?}");
    assert_eq!((ids(&from).len(), ids(&to).len()), (3, 0));
}

fn a_move_that_fails() {
    let (_from_folder, from, to_folder, to) = pair(600);
    for way in WAYS {
        let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, Misdeed::Closes, 2);
        assert_exit(&transferdump(&with(way, &["--move"]), &from.path, &proxy.path), 2);
        assert_eq!((ids(&from).len(), ids(&to).len()), (600, 0));
    }
    // Who may not delete there does not begin.
    let rules = Rules::none(to_folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", "^id[0-4]", ".")
        .may("uid/self", &["LIST", "GETDUMP", "SETDUMP"]);
    let rules = rules.dir.to_str().unwrap();
    let (_guarded_folder, guarded) = crate::serve(&["-i", rules]);
    let set = from.client().getdump(deadline()).unwrap();
    guarded.client().setdump(&set, deadline()).unwrap();
    let output = transferdump(&["--move"], &guarded.path, &to.path);
    assert_exit(&output, 1);
    assert!(
        stderr(&output).contains("unable to delete what was transferred: Operation not permitted")
    );
    assert_eq!((ids(&guarded).len(), ids(&to).len()), (600, 0));
    assert_exit(&transferdump(&["--move", "--prefix", "id4"], &guarded.path, &to.path), 0);
    assert_eq!((ids(&guarded).len(), ids(&to).len()), (489, 111));
}

fn a_dry_run() {
    let (_from_folder, from, _to_folder, to) = pair(3);
    hold_other(&to);
    let output = transferdump(&["--dry-run"], &from.path, &to.path);
    assert_exit(&output, 0);
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "ID   EXPIRES    AT DESTINATION");
    assert_eq!(lines[1], "id0  never      held");
    assert_eq!(lines[2], "id1  never      -");
    assert!(lines[3].starts_with("id2  in 59 min"), "{text}");
    assert_eq!(
        lines[4],
        "3 to carry (direct), 1 of them under ids that the destination holds; it holds 1 of 12100: \
         it fits"
    );
    assert_eq!(ids(&to), these(&["id0"]));
    let plan =
        json(&transferdump(&["--dry-run", "--json", "--only", "[01]"], &from.path, &to.path));
    assert_eq!(plan["entries"].as_array().unwrap().len(), 2);
    assert_eq!(plan["entries"][0]["conflicts"], true);
    assert_eq!((&plan["fits"], &plan["destination_capacity"]), (&true.into(), &12_100.into()));
    let fails = transferdump(&["--dry-run", "--on-conflict", "fail"], &from.path, &to.path);
    assert_exit(&fails, 2);
    assert!(stdout(&fails).ends_with("the destination would refuse it: File exists\n"));
    let (_small_folder, small) = crate::serve(&["-n", "2"]);
    let full = transferdump(&["--dry-run"], &from.path, &small.path);
    assert_exit(&full, 2);
    assert!(stdout(&full).ends_with("it holds 0 of 2: it does not fit\n"));
    // What is only replaced needs no room.
    hold_other(&small);
    let replaces = transferdump(&["--dry-run", "--only", "[01]"], &from.path, &small.path);
    assert_exit(&replaces, 0);
}

fn a_dry_run_into_s6() {
    let folder = tempfile::tempdir().unwrap();
    let (_from_folder, from) = crate::serve(&[]);
    fill(&from, 3);
    let to = s6(folder.path(), &["-n", "3"]);
    let plan = json(&transferdump(&["--dry-run", "--json"], &from.path, &to.path));
    assert_eq!((&plan["fits"], &plan["destination_capacity"]), (&true.into(), &Value::Null));
    hold_other(&to);
    let full = transferdump(&["--dry-run"], &from.path, &to.path);
    assert_exit(&full, 2);
    assert_eq!(ids(&to), these(&["id0"]));
}

fn a_verification() {
    for way in WAYS {
        let (_from_folder, from, to_folder, to) = pair(300);
        let verify = with(way, &["--json", "--verify"]);
        let good = json(&transferdump(&verify, &from.path, &to.path));
        assert_eq!(good["verification"]["good"], true);
        assert_eq!(good["verification"]["limits_compared"], true);
        // A destination that confirms everything and holds nothing.
        let proxy = Proxy::new(to_folder.path(), &to.path, Seems::S6, Misdeed::Lies, 0);
        to.client().delete(&id("id7"), deadline()).unwrap();
        to.client().delete(&id("id299"), deadline()).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        to.client().store(&id("id299"), Limit::never(), &null, deadline()).unwrap();
        let bad = transferdump(&verify, &from.path, &proxy.path);
        assert_exit(&bad, 2);
        assert!(
            stderr(&bad).contains(
                "the transfer was confirmed, but now the holders differ: 1 missing from the \
                 destination (id7); 1 held there until another time (id299)"
            ),
            "{bad:?}"
        );
    }
}

fn s6_is_verified_too() {
    let folder = tempfile::tempdir().unwrap();
    let (_from_folder, from) = crate::serve(&[]);
    fill(&from, 300);
    let to = s6(folder.path(), &[]);
    let good = json(&transferdump(&["--json", "--verify"], &from.path, &to.path));
    assert_eq!((&good["verification"]["good"], &good["path"]), (&true.into(), &"direct".into()));
    assert_eq!(good["verification"]["limits_compared"], true);
}

/// s6 2.11's daemon hangs up instead of dumping more than 253; what it holds can be listed.
fn s6_2_11_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (_from_folder, from) = crate::serve(&[]);
    fill(&from, 300);
    let rules = Rules::all(folder.path().join("rules"));
    let to = Daemon::with_rules(Suite::S6V211, &folder.path().join("s6"), &rules, &[]);
    let report = json(&transferdump(&["--json", "--verify"], &from.path, &to.path));
    assert_eq!(report["verification"]["good"], true);
    assert_eq!(report["verification"]["limits_compared"], false);
    let plan = json(&transferdump(&["--json", "--dry-run"], &from.path, &to.path));
    assert_eq!(plan["entries"].as_array().unwrap().len(), 300);
    assert_eq!(plan["entries"][0]["conflicts"], true);
}

/// On a terminal one line on stderr, by our own name; else nothing.
fn quiet_unless_seen() {
    let (_from_folder, from, _to_folder, to) = pair(3);
    let output = transferdump(&[], &from.path, &to.path);
    assert_exit(&output, 0);
    assert_eq!((stdout(&output), stderr(&output)), (String::new(), String::new()));
    let on_terminal = |command: String| {
        let script = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_exit(&script, 0);
        stdout(&script)
    };
    let (from, to) = (from.path.display(), to.path.display());
    let ours = env!("CARGO_BIN_EXE_fdholder");
    let seen = on_terminal(format!("{ours} transferdump --verify {from} {to}"));
    assert!(seen.starts_with("fdholder transferdump: 3 descriptors (3 replaced), "), "{seen}");
    assert!(seen.ends_with(" ms, direct, verified\r\n"), "{seen}");
    let s6_name = Suite::Ours.words("s6-fdholder-transferdump");
    assert_eq!(on_terminal(format!("{} {from} {to}", s6_name[0].display())), "");
}

/// A bar on a terminal, which is gone when it is over.
fn what_lasts_shows_how_far_it_is() {
    let (_from_folder, from, to_folder, to) = pair(600);
    let misdeed = Misdeed::WaitsForLeave;
    let proxy = Proxy::new(to_folder.path(), &to.path, Seems::S6, misdeed, 2);
    let (from, to) = (from.path.display(), proxy.path.display());
    let command = format!("{} transferdump {from} {to}", env!("CARGO_BIN_EXE_fdholder"));
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut terminal = script.stdout.take().unwrap();
    let mut seen = String::new();
    while !seen.contains("506 of 600 descriptors") {
        let mut buffer = [0; 4096];
        let len = terminal.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    proxy.give_leave();
    terminal.read_to_string(&mut seen).unwrap();
    assert!(script.wait().unwrap().success());
    let last = seen.trim_end().rsplit('\r').next().unwrap();
    assert!(last.contains("fdholder transferdump: 600 descriptors, "), "{seen:?}");
}

fn a_bad_choice() {
    for options in [&["--only", "("][..], &["--on-conflict", "maybe"], &["--prefix"]] {
        let output = transferdump(options, Path::new("/nowhere"), Path::new("/nowhere"));
        assert_exit(&output, 100);
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
}
