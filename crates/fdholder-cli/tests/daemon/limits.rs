//! Processes with little room for descriptors.

use crate::serve;
use crate::support::daemon::serve_under;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, open_files, stderr, Daemon, Rules, Suite,
};
use fdholder::{Client, Entry, Errno, Limit};
use rustix::process::{getrlimit, prlimit, Pid, Resource, Rlimit, Signal};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Output};

/// A set of so many copies of a descriptor.
fn set_of(fd: &File, count: u32) -> Vec<Entry<BorrowedFd<'_>>> {
    let entry =
        |number: u32| Entry { id: id(&number.to_string()), limit: Limit::never(), fd: fd.as_fd() };
    (0..count).map(entry).collect()
}

/// A daemon that holds so many.
fn filled(count: u32) -> (tempfile::TempDir, Daemon) {
    let (folder, daemon) = serve(&["-n", "6000"]);
    let null = File::open("/dev/null").unwrap();
    let set = set_of(&null, count);
    daemon.client().setdump(&set, deadline()).unwrap();
    (folder, daemon)
}

/// Runs our binary with a hard limit on open files.
fn with_open_files(limit: u32, arguments: &[&str]) -> Output {
    let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]);
    command.args(arguments).output().unwrap()
}

#[test]
fn a_dump_that_does_not_fit_is_enfile() {
    let (_folder, daemon) = filled(600);
    let path = daemon.path.to_str().unwrap();
    for limit in [20, 300, 500] {
        let output = with_open_files(limit, &["getdump", path, "true"]);
        assert_exit(&output, 1);
        assert!(stderr(&output).contains("Too many open files in system"), "{output:?}");
        assert!(stderr(&output).contains("ulimit -n"), "{output:?}");
    }
    assert_exit(&with_open_files(700, &["getdump", path, "true"]), 0);
    assert_eq!(daemon.client().list(deadline()).unwrap().len(), 600);
}

#[test]
fn getdump_raises_its_soft_limit() {
    let (_folder, daemon) = filled(600);
    let script = "ulimit -Sn 64; exec \"$0\" getdump \"$1\" sh -c 'echo \"$S6_FD_599\"'";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    let output = command.output().unwrap();
    assert_exit(&output, 0);
    assert!(!output.stdout.is_empty());

    // A program that can do with less gets what it would have had.
    let (_folder, daemon) = filled(10);
    let script = "ulimit -Sn 64; exec \"$0\" getdump \"$1\" sh -c 'ulimit -Sn'";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    assert_eq!(command.output().unwrap().stdout, b"64\n");
}

/// A set for which the daemon has no descriptors left is refused, not half taken, and
/// everybody else goes on.
#[test]
fn a_set_that_does_not_fit_the_process_is_enfile() {
    let (_folder, daemon) = serve_under("ulimit -n 816", &["-c", "4", "-n", "440"]);
    let null = File::open("/dev/null").unwrap();
    let set = set_of(&null, 440);
    daemon.client().setdump(&set, deadline()).unwrap();
    // It replaces what is held, so the store would take it; but until it is whole both
    // are open.
    let mut other = daemon.client();
    let error = daemon.client().setdump(&set, deadline()).unwrap_err();
    assert_eq!(error.errno(), Errno::NFILE);
    assert_eq!(other.list(deadline()).unwrap().len(), 440);
    other.retrieve(&id("439"), deadline()).unwrap();
    other.delete(&id("0"), deadline()).unwrap();
    other.store(&id("0"), Limit::never(), &null, deadline()).unwrap();
}

/// A client that asks faster than it is answered, and reads: what waits is in the socket.
#[test]
fn a_flood_of_requests_takes_no_memory() {
    use std::io::{Read, Write};
    let (_folder, daemon) = serve(&[]);
    let peak = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u32>().unwrap()
    };
    daemon.client().list(deadline()).unwrap();
    let before = peak();
    let mut stream = std::os::unix::net::UnixStream::connect(&daemon.path).unwrap();
    let request = b"\0\0\0\x04\0\0D\x01x\0";
    let count = 500_000;
    let mut writer = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for _ in 0..count / 1000 {
            writer.write_all(&request.repeat(1000)).unwrap();
        }
    });
    // Each is answered by seven bytes.
    let mut answers = vec![0; 70_000];
    for _ in 0..count / 10_000 {
        stream.read_exact(&mut answers).unwrap();
    }
    writer.join().unwrap();
    let grown = peak() - before;
    assert!(grown < 1500, "{grown} kB for {} kB of requests", count * 10 / 1000);
}

/// Leaves a process so many descriptors that it may open, by the limit on their numbers; or, with
/// `None`, as many as there may be.
fn leave_room(pid: u32, for_fds: Option<usize>) {
    let open = open_files(pid);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let free = |count| (0..).filter(|number| !open.contains_key(number)).nth(count);
    let current = for_fds.map_or(maximum, |count| free(count).map(u64::from));
    let pid = Pid::from_raw(pid.cast_signed());
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// Who comes when there is a descriptor for it, and none to read the rules, waits: nothing says
/// that it may not come in. So do those behind it, and an upgrade takes them along.
#[test]
fn who_comes_when_rules_cannot_be_read_waits() {
    for upgrades in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let rules = Rules::all(folder.path().join("rules"));
        let log = folder.path().join("log");
        let mut command = Suite::Ours.command("s6-fdholder-daemon");
        command.args(["-1", "-i", rules.dir.to_str().unwrap()]).arg(&path);
        command.stderr(File::create(&log).unwrap());
        let daemon = Daemon::spawn(command, &path);
        // Once it has served somebody it has opened what there was to open.
        let mut served = daemon.client();
        served.list(deadline()).unwrap();
        // And what it remembers of the rules is of no use.
        fs::write(rules.dir.join("uid/self/env/S6_FDHOLDER_LIST"), "yes\n").unwrap();
        leave_room(daemon.pid(), Some(1));
        std::thread::scope(|scope| {
            let list = || Client::connect(&path, deadline()).unwrap().list(deadline());
            let first = scope.spawn(list);
            let waits =
                || fs::read_to_string(&log).unwrap().contains("Too many open files; client");
            eventually("it waits", waits);
            let second = scope.spawn(list);
            assert!(!first.is_finished());
            leave_room(daemon.pid(), None);
            if upgrades {
                daemon.signal(Signal::USR2);
            }
            assert_eq!(first.join().unwrap(), Ok(vec![]));
            assert_eq!(second.join().unwrap(), Ok(vec![]));
        });
        served.list(deadline()).unwrap();
        drop(served);
        assert_eq!(daemon.terminate(), Some(0));
    }
}

/// The same when it is the system that has none.
#[test]
fn rules_that_cannot_be_read_for_now_refuse_nobody() {
    for error in ["ENFILE", "EMFILE", "ENOMEM"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("holder");
        let rules = Rules::all(folder.path().join("rules"));
        let file = rules.dir.join("uid/self/env/S6_FDHOLDER_RETRIEVE_REGEX");
        let trace = folder.path().join("trace");
        let mut command = Command::new("strace");
        command.args(["-qq", "-o"]).arg(&trace).arg("-P").arg(&file);
        // Not every architecture has both.
        command.args(["-e", "trace=/^open(at)?$", "-e"]);
        command.arg(format!("inject=/^open(at)?$:error={error}:when=1+3"));
        command.args([env!("CARGO_BIN_EXE_fdholder"), "serve", "-1", "-v0", "-i"]);
        command.arg(&rules.dir).arg(&path);
        if !Path::new("/usr/bin/strace").exists() {
            return is_missing("strace");
        }
        let daemon = Daemon::spawn(command, &path);
        for _ in 0..5 {
            assert_eq!(daemon.client().list(deadline()), Ok(vec![]), "{error}");
        }
        assert!(fs::read_to_string(trace).unwrap().contains("(INJECTED)"));
    }
}

/// While there are several threads the kernel has to wait for all processors to make it larger.
#[test]
fn the_table_of_descriptors_is_grown_before_anybody_is_served() {
    let (_folder, daemon) = serve(&["-n", "5000", "-c", "500"]);
    let status = |field: &str| -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().parse().unwrap()
    };
    let size = status("FDSize");
    assert!(size >= 5500, "{size}");
    let null = File::open("/dev/null").unwrap();
    let mut client = daemon.client();
    for number in 0..3 {
        let id = id(&number.to_string());
        client.store(&id, Limit::never(), &null, deadline()).unwrap();
        client.delete(&id, deadline()).unwrap();
    }
    assert!(status("Threads") > 1 && status("FDSize") == size);
}
