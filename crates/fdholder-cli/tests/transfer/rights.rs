//! Transfers with every set of rights on both sides, from holders with nothing, something and much:
//! the exit code is what the page says, and a dry run has the same.

use crate::support::rights::{Guarded, Rights};
use crate::support::stderr;
use crate::{ids, transferdump, Suite, Test};

pub const TESTS: &[Test] = &[
    ("every_right_from_ours_to_ours_has_its_exit_code", false, || {
        every_right(Suite::Ours, Suite::Ours);
    }),
    ("every_right_from_ours_to_s6_has_its_exit_code", true, || {
        every_right(Suite::Ours, Suite::S6V213);
    }),
    ("every_right_from_s6_to_ours_has_its_exit_code", true, || {
        every_right(Suite::S6V213, Suite::Ours);
    }),
    ("every_right_from_s6_to_s6_has_its_exit_code", true, || {
        every_right(Suite::S6V213, Suite::S6V213);
    }),
    ("dry_run_with_conflicts_and_little_room_has_the_exit_code_of_the_transfer", true, little_room),
];

/// Options, and what they ask for.
const OPTIONS: [&[&str]; 11] = [
    &[],
    &["--relay"],
    &["--move"],
    &["--move", "--relay"],
    &["--move", "--only", "^none$"],
    &["--verify"],
    &["--json", "--prefix", "none"],
    &["--relay", "--only", "^none$"],
    &["--on-conflict", "keep"],
    &["--on-conflict", "fail"],
    &["--on-conflict", "fail", "--relay", "--only", "^none$"],
];

/// The code of the page: 1 the source said no, 2 the destination did.
fn expected(options: &[&str], count: u32, source: Rights, destination: Rights) -> i32 {
    let has = |option| options.contains(&option);
    let carried = if has("--only") || has("--prefix") { 0 } else { count };
    let may_look = destination.list || destination.getdump;
    let looks = has("--verify") || has("--on-conflict");
    if !source.getdump {
        1
    } else if looks && !may_look {
        2
    } else if has("--move") && carried > 0 && !source.store {
        1
    } else if !destination.setdump {
        2
    } else {
        0
    }
}

/// Those that differ in what matters to a transfer, on this side.
fn of(matters: fn(Rights) -> Rights) -> Vec<Rights> {
    let mut found: Vec<Rights> = Vec::new();
    for rights in Rights::subsets().map(matters) {
        if !found.contains(&rights) {
            found.push(rights);
        }
    }
    found
}

fn every_right(from: Suite, to: Suite) {
    let none = Rights { connect: true, ..Rights::default() };
    let as_source = |may: Rights| Rights { setdump: false, retrieve: false, ..may };
    let as_destination = |may: Rights| Rights { store: false, retrieve: false, ..may };
    let some_sources =
        [Rights::ALL, none, Rights { store: false, ..Rights::ALL }, Rights::default()];
    let some_destinations =
        [Rights::ALL, none, Rights { setdump: true, ..none }, Rights::default()];
    for count in [0, 1, 300] {
        let (source, destination) = (Guarded::holding(from, count), Guarded::holding(to, 0));
        let few = count == 300;
        for may_source in if few { some_sources.to_vec() } else { of(as_source) } {
            let destinations = if may_source == as_source(Rights::ALL) {
                of(as_destination)
            } else {
                some_destinations.to_vec()
            };
            for may_destination in destinations {
                for options in OPTIONS {
                    source.grant(may_source);
                    destination.grant(may_destination);
                    let paths = (&source.daemon.path, &destination.daemon.path);
                    let what = format!(
                        "{from} to {to}, {count} held, {options:?}, {may_source:?}, \
                         {may_destination:?}"
                    );
                    let code = expected(options, count, may_source, may_destination);
                    let dry = transferdump(&[&["--dry-run"], options].concat(), paths.0, paths.1);
                    assert_eq!(dry.status.code(), Some(code), "{what}: {dry:?}");
                    let output = transferdump(options, paths.0, paths.1);
                    assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
                    if code == 0 {
                        check_and_put_right(&source, &destination, options, count);
                    } else {
                        let text = stderr(&output);
                        assert_eq!(text.lines().count(), 1, "{what}: {output:?}");
                        assert!(text.contains("nothing"), "{what}: {output:?}");
                    }
                }
                destination.grant(Rights::ALL);
                assert_eq!(ids(&destination.daemon), []);
            }
        }
        source.grant(Rights::ALL);
        assert_eq!(ids(&source.daemon).len(), count as usize);
    }
}

/// What should have gone has gone; then both hold what they did.
fn check_and_put_right(source: &Guarded, destination: &Guarded, options: &[&str], count: u32) {
    let has = |option| options.contains(&option);
    source.grant(Rights::ALL);
    destination.grant(Rights::ALL);
    let carried = if has("--only") || has("--prefix") { 0 } else { count as usize };
    assert_eq!(ids(&destination.daemon).len(), carried, "{options:?}");
    if has("--move") {
        assert_eq!(ids(&source.daemon).len(), count as usize - carried);
        source.fill(count);
    }
    destination.fill(0);
}

/// A destination with room for three, which may have one of what comes already.
fn little_room() {
    let options: [&[&str]; 9] = [
        &[],
        &["--relay"],
        &["--move"],
        &["--verify"],
        &["--on-conflict", "keep"],
        &["--on-conflict", "keep", "--move"],
        &["--on-conflict", "fail"],
        &["--on-conflict", "fail", "--prefix", "x1"],
        &["--prefix", "x0"],
    ];
    let suites = [Suite::Ours, Suite::S6V211, Suite::S6V213];
    for (from, to) in suites.into_iter().flat_map(|from| suites.map(|to| (from, to))) {
        let destination = Guarded::with(to, 0, &["-n", "3"]);
        for count in [0, 1, 3, 4, 300] {
            let source = Guarded::holding(from, count);
            for held in [0, 1, 3] {
                for options in options {
                    destination.fill(held);
                    let paths = (&source.daemon.path, &destination.daemon.path);
                    let dry = transferdump(&[&["--dry-run"], options].concat(), paths.0, paths.1);
                    assert_eq!(ids(&destination.daemon).len(), held as usize);
                    assert_eq!(ids(&source.daemon).len(), count as usize);
                    let output = transferdump(options, paths.0, paths.1);
                    let what = format!("{from} to {to}, {count} to {held}, {options:?}");
                    if source.can_dump(count) {
                        assert_eq!(dry.status, output.status, "{what}: {dry:?} {output:?}");
                    } else {
                        // Both sides are at fault: which is found first is luck.
                        assert!(!dry.status.success() && !output.status.success(), "{what}");
                    }
                    if options.contains(&"--move") {
                        source.fill(count);
                    }
                }
            }
        }
    }
}
