//! Storing, listing, retrieving, deleting.

use crate::support::{assert_exit, id, marked_file, paths_at, stderr, stdout};
use crate::Pair;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// The lines of a list, sorted: its order means nothing.
fn listed(pair: &Pair, path: &str) -> Vec<String> {
    let output = pair.run("list", &[path]);
    assert_exit(&output, 0);
    let mut lines: Vec<_> = stdout(&output).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

pub fn store_and_list(pair: &Pair) {
    let daemon = pair.start("holder", &["-n", "3"]);
    let path = daemon.path.to_str().unwrap();
    assert_eq!(listed(pair, path), [""; 0]);
    let (first, first_path) = marked_file(&pair.folder(), "first");
    let (second, second_path) = marked_file(&pair.folder(), "second");
    let by_stdin = pair.program("store").args([path, "a"]).stdin(first).output().unwrap();
    assert_exit(&by_stdin, 0);
    // Descriptor 0 by its number, in every spelling that getopt knows.
    let store = |arguments: &[&str]| {
        let stdin = second.try_clone().unwrap();
        pair.program("store").args(arguments).stdin(stdin).output().unwrap()
    };
    assert_exit(&store(&["-d", "0", "-t10000", path, "b"]), 0);
    assert_eq!(listed(pair, path), ["a", "b"]);
    let held = paths_at(&daemon.path);
    assert_eq!(held[&id("a")], first_path);
    assert_eq!(held[&id("b")], second_path);

    let taken = store(&[path, "a"]);
    assert_exit(&taken, 1);
    let expected = "s6-fdholder-store: fatal: unable to store fd: Device or resource busy";
    assert!(stderr(&taken).starts_with(expected), "{taken:?}");
    assert_exit(&store(&["-T0", path, "c"]), 0);
    let full = store(&[path, "d"]);
    assert_exit(&full, 1);
    assert!(stderr(&full).contains("Too many open files in system"), "{full:?}");
    assert_eq!(paths_at(&daemon.path)[&id("a")], first_path, "what was held still is");
}

pub fn odd_bytes(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    let every_byte: Vec<u8> = (1..=255).collect();
    let odd = std::ffi::OsStr::from_bytes(&every_byte);
    let stored = pair.program("store").arg(path).arg(odd).output().unwrap();
    assert_exit(&stored, 0);
    let output = pair.run("list", &[path]);
    let mut expected = String::new();
    for &byte in &every_byte {
        match byte {
            7..=13 => {
                expected.push('\\');
                expected.push(b"abtnvfr"[usize::from(byte) - 7] as char);
            }
            b'\\' => expected.push_str("\\\\"),
            b' '..=b'~' => expected.push(byte as char),
            _ => write!(expected, "\\0x{byte:02x}").unwrap(),
        }
    }
    expected.push('\n');
    assert_eq!(stdout(&output), expected);
    let deleted = pair.program("delete").arg(path).arg(odd).output().unwrap();
    assert_exit(&deleted, 0);

    let too_long = pair.run("store", &[path, &"x".repeat(256)]);
    assert_exit(&too_long, 1);
    assert!(stderr(&too_long).contains("File name too long"), "{too_long:?}");
    assert_exit(&pair.run("store", &[path, ""]), 1);
    assert_eq!(listed(pair, path), [""; 0]);
}

/// What `retrieve` makes the standard input of a program.
fn retrieved(pair: &Pair, arguments: &[&str]) -> String {
    let command = ["readlink", "/proc/self/fd/0"];
    let output = pair.run("retrieve", &[arguments, &command].concat());
    assert_exit(&output, 0);
    stdout(&output).trim_end().to_owned()
}

pub fn retrieve(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    let (file, file_path) = marked_file(&pair.folder(), "file");
    assert_exit(&pair.program("store").args([path, "a"]).stdin(file).output().unwrap(), 0);
    for _ in 0..3 {
        assert_eq!(retrieved(pair, &[path, "a"]), file_path.to_str().unwrap());
    }
    assert_eq!(listed(pair, path), ["a"]);
    let missing = pair.run("retrieve", &[path, "b", "true"]);
    assert_exit(&missing, 1);
    let expected = "s6-fdholder-retrieve: fatal: unable to retrieve fd for id b: \
                    No such file or directory";
    assert!(stderr(&missing).starts_with(expected), "{missing:?}");
}

pub fn retrieve_and_delete(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    let (file, file_path) = marked_file(&pair.folder(), "file");
    assert_exit(&pair.program("store").args([path, "a"]).stdin(file).output().unwrap(), 0);
    assert_eq!(retrieved(pair, &["-D", "-t", "10000", path, "a"]), file_path.to_str().unwrap());
    assert_eq!(listed(pair, path), [""; 0]);
    assert_exit(&pair.run("retrieve", &["-D", path, "a", "true"]), 1);
}

pub fn delete(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    assert_exit(&pair.run("store", &[path, "a"]), 0);
    assert_exit(&pair.run("store", &[path, "b"]), 0);
    assert_exit(&pair.run("delete", &[path, "a"]), 0);
    assert_eq!(listed(pair, path), ["b"]);
    let missing = pair.run("delete", &["-t", "10000", path, "a"]);
    assert_exit(&missing, 1);
    assert!(stderr(&missing).contains("No such file or directory"), "{missing:?}");
    assert_exit(&pair.run("store", &[path, "a"]), 0);
}

pub fn programs_to_become(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let path = daemon.path.to_str().unwrap();
    assert_exit(&pair.run("store", &[path, "a"]), 0);
    let run = |program: &[&str]| {
        let (retrieve, getdump) = ([&[path, "a"], program].concat(), [&[path], program].concat());
        [pair.run("retrieve", &retrieve), pair.run("getdump", &getdump)]
    };
    for output in run(&["/nowhere/at/all"]) {
        assert_exit(&output, 127);
    }
    for output in run(&["/etc/passwd"]) {
        assert_exit(&output, 126);
    }
    for output in run(&["sh", "-c", "exit 42", "-t", "--"]) {
        assert_exit(&output, 42);
    }
    for output in run(&["echo", "-D", "--", "-x"]) {
        assert_eq!(stdout(&output), "-D -- -x\n", "its options are its own");
    }
    // Nothing is inherited but what was there before.
    let open = ["sh", "-c", "ls /proc/self/fd"];
    let before = std::process::Command::new(open[0]).args(&open[1..]).output().unwrap();
    let after = pair.run("retrieve", &[&[path, "a"], &open[..]].concat());
    assert_eq!(stdout(&after), stdout(&before));
}
