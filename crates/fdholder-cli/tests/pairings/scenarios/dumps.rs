//! Dumps and transfers.

use crate::faults;
use crate::support::{
    assert_exit, content_at, deadline, id, marked_file, paths_at, stderr, Content, Daemon,
};
use crate::Pair;
use fdholder::{environ, Entry, Identifier, Limit, Timestamp};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

/// Set for the program that prints what a dump has brought it.
const PRINTER: &str = "FDHOLDER_TEST_PRINT_DUMP";

pub fn is_printer() -> bool {
    std::env::var_os(PRINTER).is_some()
}

/// Prints what the environment describes: identifier, limit, and what is behind it.
pub fn print_dump() {
    let dump = environ::parse(|name| std::env::var_os(name)).unwrap();
    for Entry { id, limit, fd } in dump {
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let limit = limit.moment().map_or_else(|| "never".to_owned(), |at| at.to_string());
        println!("{id} {limit} {}", path.display());
    }
}

/// Fills a holder with `count` descriptors of different files, every third with a limit.
fn fill(pair: &Pair, daemon: &Daemon, count: usize) -> Content {
    let files: Vec<_> =
        (0..7).map(|number| marked_file(&pair.folder(), &format!("file-{number}"))).collect();
    let mut client = daemon.client();
    let now = Timestamp::now();
    let mut content = Content::new();
    for number in 0..count {
        let name = Identifier::new(format!("tcp:127.0.0.1:{number:05}")).unwrap();
        let limit = if number % 3 == 0 {
            // Distinct, as s6 takes quadratic time for equal ones.
            let span = Duration::from_secs(86_400) + Duration::from_nanos(number as u64);
            Limit::at(now.saturating_add(span))
        } else {
            Limit::never()
        };
        let (file, path) = &files[number % files.len()];
        client.store(&name, limit, file.as_fd(), deadline()).unwrap();
        content.insert(name, (path.clone(), limit));
    }
    content
}

fn paths(content: &Content) -> BTreeMap<Identifier, PathBuf> {
    content.iter().map(|(id, (path, _))| (id.clone(), path.clone())).collect()
}

/// Runs until it does not fail for [`faults::room_for_one_message`], where that may be.
fn with_room(pair: &Pair, count: usize, run: impl Fn() -> Output) -> Output {
    for _ in 0..200 {
        let output = run();
        if !(faults::room_for_one_message(pair, count) && faults::lacked_room(&output)) {
            return output;
        }
    }
    panic!("it lacks room every time");
}

/// Whether a dump of so many cannot pass between these two, for
/// [`faults::counts_with_255`]; with the text of the failure.
fn counted_with_255(pair: &Pair, count: usize) -> Option<&'static str> {
    if count <= 253 {
        return None;
    }
    let agree = faults::messages_by_255(count) == count.div_ceil(253);
    match (faults::counts_with_255(pair.client), faults::counts_with_255(pair.daemon)) {
        (_, true) => Some("Broken pipe"), // It cannot send, and hangs up.
        (true, false) if !agree => Some("Protocol error"),
        _ => None,
    }
}

/// getdump hands a program everything that is held, as it is.
pub fn dump_of(pair: &Pair, count: usize) {
    let daemon = pair.start("holder", &["-n", "6000"]);
    let content = fill(pair, &daemon, count);
    let getdump = || {
        let mut command = pair.program("getdump");
        command.arg(&daemon.path).arg(std::env::current_exe().unwrap()).env(PRINTER, "1");
        command.output().unwrap()
    };
    let output = with_room(pair, count, getdump);
    if let Some(fault) = counted_with_255(pair, count) {
        assert_exit(&output, 1);
        return assert!(stderr(&output).contains(fault), "{output:?}");
    }
    assert_exit(&output, 0);
    let expected: Vec<_> = content
        .iter()
        .map(|(id, (path, limit))| {
            let limit = limit.moment().map_or_else(|| "never".to_owned(), |at| at.to_string());
            format!("{id} {limit} {}", path.display())
        })
        .collect();
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut printed: Vec<_> = printed.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, expected);
}

/// Everything comes over by transferdump, and by getdump becoming setdump.
pub fn transfer_of(pair: &Pair, count: usize) {
    let source = pair.start("source", &["-n", "6000"]);
    let content = fill(pair, &source, count);
    for way in ["transferdump", "getdump-setdump"] {
        let destination = pair.start(way, &["-n", "6000"]);
        let other = marked_file(&pair.folder(), "other");
        let mut client = destination.client();
        client.store(&id("other"), Limit::never(), &other.0, deadline()).unwrap();
        let transfer = || {
            let mut command = if way == "transferdump" {
                pair.program("transferdump")
            } else {
                pair.program("getdump")
            };
            command.arg(&source.path);
            if way == "getdump-setdump" {
                command.args(pair.words("setdump"));
            }
            command.arg(&destination.path).output().unwrap()
        };
        let output = with_room(pair, count, transfer);
        let fault = counted_with_255(pair, count).or_else(|| {
            // It cannot send messages of 255 either.
            let sends = faults::counts_with_255(pair.client) && count > 253;
            sends.then_some("Invalid argument")
        });
        if let Some(fault) = fault {
            assert_exit(&output, 1);
            assert!(stderr(&output).contains(fault), "{output:?}");
        } else {
            assert_exit(&output, 0);
            let mut expected = paths(&content);
            expected.insert(id("other"), other.1);
            assert_eq!(paths_at(&destination.path), expected);
        }
        assert_eq!(paths_at(&source.path), paths(&content), "the source keeps what it has");
    }
}

/// Limits come over to the nanosecond, "never" as never.
pub fn transfer_of_limits(pair: &Pair) {
    let (source, destination) = (pair.start("source", &[]), pair.start("destination", &[]));
    let content = fill(pair, &source, 30);
    let (from, to) = (source.path.to_str().unwrap(), destination.path.to_str().unwrap());
    assert_exit(&pair.run("transferdump", &["-t", "60000:60000", from, to]), 0);
    assert_eq!(content_at(&destination.path), content);
    assert_eq!(content_at(&source.path), content);
}

/// Under an identifier that both have, the source's descriptor wins; what only the
/// destination has stays.
pub fn overlapping_transfer(pair: &Pair) {
    let (source, destination) = (pair.start("source", &[]), pair.start("destination", &[]));
    let store = |daemon: &Daemon, names: &[&str], mark: &str| {
        let (file, path) = marked_file(&pair.folder(), mark);
        let mut client = daemon.client();
        for name in names {
            client.store(&id(name), Limit::never(), &file, deadline()).unwrap();
        }
        path
    };
    let theirs = store(&source, &["a", "b"], "source's");
    let ours = store(&destination, &["b", "c"], "destination's");
    let (from, to) = (source.path.to_str().unwrap(), destination.path.to_str().unwrap());
    for _ in 0..2 {
        assert_exit(&pair.run("transferdump", &[from, to]), 0);
        let expected =
            [(id("a"), theirs.clone()), (id("b"), theirs.clone()), (id("c"), ours.clone())];
        assert_eq!(paths_at(&destination.path), BTreeMap::from(expected));
    }
    let expected = [(id("a"), theirs.clone()), (id("b"), theirs)];
    assert_eq!(paths_at(&source.path), BTreeMap::from(expected));
}

/// Only new identifiers need room; and what does not fit changes nothing.
pub fn transfer_into_a_full_holder(pair: &Pair) {
    let source = pair.start("source", &[]);
    let destination = pair.start("destination", &["-n", "2"]);
    let mut client = source.client();
    let (theirs, theirs_path) = marked_file(&pair.folder(), "source's");
    let (ours, ours_path) = marked_file(&pair.folder(), "destination's");
    for name in ["a", "b"] {
        client.store(&id(name), Limit::never(), &theirs, deadline()).unwrap();
        destination.client().store(&id(name), Limit::never(), &ours, deadline()).unwrap();
    }
    let (from, to) = (source.path.to_str().unwrap(), destination.path.to_str().unwrap());
    let denied = if faults::exits_1_for_the_destination(pair.client) { 1 } else { 2 };

    let replaced = pair.run("transferdump", &[from, to]);
    let mut expected = BTreeMap::from([(id("a"), theirs_path.clone()), (id("b"), theirs_path)]);
    if faults::counts_replaced_ones(pair.daemon) {
        assert_exit(&replaced, denied);
        expected = BTreeMap::from([(id("a"), ours_path.clone()), (id("b"), ours_path)]);
    } else {
        assert_exit(&replaced, 0);
    }
    assert_eq!(paths_at(&destination.path), expected);

    client.store(&id("c"), Limit::never(), &theirs, deadline()).unwrap();
    let full = pair.run("transferdump", &[from, to]);
    assert_exit(&full, denied);
    assert!(stderr(&full).contains("Too many open files in system"), "{full:?}");
    assert_eq!(paths_at(&destination.path), expected);
}
