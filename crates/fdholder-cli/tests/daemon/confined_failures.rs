//! System calls that fail while a starting daemon finds out what it will need: nothing is left out
//! of its rules.

use crate::support::{deadline, has_landlock, id, Daemon, Rules};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

/// As when descriptors, memory or a disk fail for a moment.
const ERRORS: [&str; 3] = ["ENFILE", "ENOMEM", "EIO"];

/// Those by which it looks, and those that make and apply the rules.
const CALLS: [&str; 10] = [
    "openat",
    "read",
    "readlink",
    "getdents64",
    "fstat",
    "statx",
    "newfstatat",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// Rules of which a part is elsewhere.
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        Rules::all(place.at("shared/rules"));
        fs::create_dir_all(place.at("etc/rules")).unwrap();
        symlink(place.at("shared/rules/uid"), place.at("etc/rules/uid")).unwrap();
        fs::create_dir(place.at("run")).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// Starts a daemon whose calls fail as strace is told; whether it serves.
    fn serve(&self, inject: Option<String>) -> (Daemon, bool) {
        let mut command = Command::new("strace");
        command.args(["-qq", "-y", "-o"]).arg(self.at("trace"));
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.arg(env!("CARGO_BIN_EXE_fdholder")).args([
            "serve",
            "-1",
            "-v2",
            "--landlock",
            "-i",
        ]);
        command.arg(self.at("etc/rules")).arg(self.at("run/holder"));
        command.stderr(File::create(self.at("log")).unwrap());
        let (daemon, mut stdout) = Daemon::begin(command, &self.at("run/holder"));
        let mut newline = Vec::new();
        stdout.read_to_end(&mut newline).unwrap();
        (daemon, newline == b"\n")
    }

    /// What the rules allow that were applied last, by path; `None` if none were.
    fn rules(&self) -> Option<BTreeMap<String, String>> {
        let trace = self.read("trace");
        let applied = trace
            .lines()
            .any(|line| line.starts_with("landlock_restrict_self(") && line.ends_with("= 0"));
        let mut all = BTreeMap::new();
        for line in trace.lines() {
            if line.starts_with("landlock_create_ruleset({") {
                all.clear();
            }
            let Some((access, path)) = line.split_once(", parent_fd=") else { continue };
            let path = path.split_once('<').unwrap().1.split_once('>').unwrap().0;
            let access = access.split_once("allowed_access=").unwrap().1;
            all.insert(path.to_owned(), access.to_owned());
        }
        applied.then_some(all)
    }

    /// The numbers of the calls from the first look to the last rule, by name.
    fn calls(&self) -> BTreeMap<&'static str, Vec<usize>> {
        let mut counts = BTreeMap::new();
        let mut window = BTreeMap::<_, Vec<_>>::new();
        let mut is_looking = false;
        for line in self.read("trace").lines() {
            let name = line.split('(').next().unwrap();
            let known = CALLS.into_iter().find(|call| *call == name);
            let nth = counts.entry(name.to_owned()).and_modify(|count| *count += 1).or_insert(1);
            is_looking |= line.starts_with("prctl(PR_SET_NO_NEW_PRIVS");
            if let Some(name) = known.filter(|_| is_looking) {
                window.entry(name).or_default().push(*nth);
                if name == "landlock_restrict_self" {
                    return window;
                }
            }
        }
        panic!("it was not confined: {}", self.read("log"));
    }
}

#[test]
fn rules_are_whole_when_one_call_fails() {
    if !has_landlock() {
        return;
    }
    let place = Place::new();
    let (daemon, serves) = place.serve(None);
    assert!(serves, "{}", place.read("log"));
    let (expected, calls) = (place.rules().unwrap(), place.calls());
    drop(daemon);
    let shared = place.at("shared/rules/uid");
    assert!(expected.contains_key(shared.to_str().unwrap()), "{expected:?}");
    let mut failed = Vec::new();
    let cases = calls.iter().flat_map(|(call, all)| all.iter().map(move |nth| (call, nth)));
    for (number, (call, nth)) in cases.enumerate() {
        let error = ERRORS[number % ERRORS.len()];
        let case = format!("{call}:error={error}:when={nth}");
        let (_daemon, serves) = place.serve(Some(case.clone()));
        if !serves || place.rules().as_ref() != Some(&expected) {
            failed.push(format!("{case}: {} {:?}", place.read("log"), place.rules()));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Nothing is taken over by one that could not open its rules later.
#[test]
fn failure_that_stays_ends_the_start_before_takeover() {
    if !has_landlock() {
        return;
    }
    let place = Place::new();
    let (first, serves) = place.serve(None);
    assert!(serves);
    let calls = place.calls();
    let file = File::open("/dev/null").unwrap();
    first.client().store(&id("x"), fdholder::Limit::never(), &file, deadline()).unwrap();
    for (call, error) in [
        ("openat", "ENFILE"),
        ("openat", "EMFILE"),
        ("readlink", "ENOMEM"),
        ("read", "EIO"),
        ("landlock_create_ruleset", "ENOMEM"),
        ("landlock_add_rule", "ENOMEM"),
        ("landlock_restrict_self", "ENOMEM"),
    ] {
        // The kernel still says that it knows Landlock.
        let skipped = if call == "landlock_create_ruleset" { 2 } else { 0 };
        let from = calls[call][skipped];
        let (mut next, serves) = place.serve(Some(format!("{call}:error={error}:when={from}+")));
        let log = place.read("log");
        assert!(!serves && next.wait().code() == Some(111), "{call}, {error}: {log}");
        assert!(log.contains("fatal: unable to restrict file access"), "{call}, {error}: {log}");
        assert_eq!(first.client().list(deadline()), Ok(vec![id("x")]), "{call}, {error}");
    }
}

/// Too many layers, or a filter that forbids it: it is said, and the daemon serves.
#[test]
fn refusal_of_the_kernel_is_said_and_served_with() {
    if !has_landlock() {
        return;
    }
    for (call, errno) in [
        ("landlock_restrict_self", "E2BIG"),
        ("landlock_restrict_self", "EPERM"),
        ("landlock_add_rule", "EPERM"),
    ] {
        let place = Place::new();
        let (daemon, serves) = place.serve(Some(format!("{call}:error={errno}")));
        assert!(serves, "{}", place.read("log"));
        assert!(place.read("log").contains("warning: may open whatever its user may"));
        daemon.client().list(deadline()).unwrap();
    }
}
