//! A program that another one becomes finds the process as it was: all that execve(2) keeps.

use crate::serve;
use crate::support::{assert_exit, deadline, id, stderr, stdout, suite, Daemon, Suite};
use fdholder::Limit;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What is different in each process, and not inherited.
const OWN: [&str; 14] = [
    "Pid",
    "Tgid",
    "NStgid",
    "NSpid",
    "Vm",
    "Rss",
    "Hugetlb",
    "Threads",
    "FDSize",
    "SigQ",
    "voluntary_",
    "nonvoluntary_",
    "x86_",
    "Core",
];

/// What is inherited, by proc(5). `cat` is run by no shell, which might change it.
const LOOK: [&str; 8] = [
    "cat",
    "/proc/self/status",
    "/proc/self/limits",
    "/proc/self/oom_score_adj",
    "/proc/self/timerslack_ns",
    "/proc/self/coredump_filter",
    "/proc/self/stat",
    "marker",
];

/// How a process can be before it becomes another: a script that runs "$@" so.
const STATES: [(&str, &str); 6] = [
    ("default", "exec env --default-signal \"$@\""),
    ("SIGPIPE ignored", "exec env --default-signal --ignore-signal=PIPE \"$@\""),
    ("SIGPIPE blocked", "exec env --default-signal --block-signal=PIPE,USR1,CHLD,RTMAX \"$@\""),
    ("all ignored and blocked", "exec env --ignore-signal --block-signal \"$@\""),
    (
        "everything else",
        "umask 0137; exec nice -n 5 choom -n 77 -- chrt --batch 0 setpriv --no-new-privs \
         --pdeathsig USR2 prlimit --nofile=300:700 --core=0:5 --memlock=65536:65536 \
         env --default-signal --ignore-signal=HUP,CHLD,SEGV,BUS,PIPE \"$@\"",
    ),
    ("a timer", "exec perl -e 'alarm 100000; exec @ARGV' \"$@\""),
];

/// A daemon that holds `x`, and every command that becomes another program.
fn becoming() -> (tempfile::TempDir, Daemon, Vec<Vec<PathBuf>>) {
    let (folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    let fdholder = PathBuf::from(env!("CARGO_BIN_EXE_fdholder"));
    let s6 = |program| Suite::Ours.words(program).remove(0);
    let path = daemon.path.to_str().unwrap().to_owned();
    let path = path.as_str();
    let commands: [(PathBuf, &[&str]); 9] = [
        (fdholder.clone(), &["exec", "--fd", "x", path, "--"]),
        (fdholder.clone(), &["exec", "--missing-ok", "--fd", "none", path, "--"]),
        (fdholder.clone(), &["exec", "--keep-all", "--fd-prefix", "x", "--no-pid", path, "--"]),
        (fdholder.clone(), &["exec", "--env-style", "s6", "--fd", "x=9", path, "--"]),
        (fdholder.clone(), &["exec", "--notify", "service", path, "--"]),
        (fdholder.clone(), &["retrieve", path, "x"]),
        (fdholder, &["getdump", path]),
        (s6("s6-fdholder-retrieve"), &[path, "x"]),
        (s6("s6-fdholder-getdump"), &[path]),
    ];
    let words = |(program, arguments): (PathBuf, &[&str])| {
        std::iter::once(program).chain(arguments.iter().map(PathBuf::from)).collect()
    };
    (folder, daemon, commands.into_iter().map(words).collect())
}

/// What a program prints that is started so.
fn run(state: &str, becoming: &[PathBuf], program: &[&str], folder: &std::path::Path) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", state, "sh"]).args(becoming).args(program);
    let child = command
        .current_dir(folder)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let output = child.wait_with_output().unwrap();
    assert_exit(&output, 0);
    // Its process group has its number.
    without_number(&stdout(&output), &pid)
}

/// The lines that are inherited. Of `stat` that is priority, niceness and policy.
fn inherited(text: &str) -> Vec<String> {
    let is_own = |line: &str| OWN.iter().any(|own| line.starts_with(own));
    let line = |line: &str| match line.split_once(") ") {
        Some((_, stat)) if line.starts_with("PID (") => {
            let fields: Vec<_> = stat.split(' ').collect();
            [15, 16, 37, 38].map(|at| fields[at]).join(" ")
        }
        _ => line.to_owned(),
    };
    text.lines().filter(|line| !is_own(line)).map(line).collect()
}

#[test]
fn exec_retrieve_and_getdump_leave_the_process_as_it_was() {
    let (folder, _daemon, commands) = becoming();
    fs::write(folder.path().join("marker"), "the working directory\n").unwrap();
    for (name, state) in STATES {
        let alone = inherited(&run(state, &[], &LOOK, folder.path()));
        for words in &commands {
            let after = inherited(&run(state, words, &LOOK, folder.path()));
            assert_eq!(after, alone, "{name}: {words:?}");
        }
    }
}

#[test]
fn a_timer_that_was_set_goes_on_in_the_next_program() {
    let (folder, _daemon, commands) = becoming();
    for words in &commands {
        let look = ["perl", "-e", "print alarm(0) > 1000 ? 'set' : 'gone'"];
        assert_eq!(run(STATES[5].1, words, &look, folder.path()), "set", "{words:?}");
    }
}

#[test]
fn standard_streams_that_were_closed_stay_closed() {
    let (folder, _daemon, commands) = becoming();
    let look =
        ["sh", "-c", "for n in 0 1 2; do test ! -e /proc/self/fd/$n || echo $n; done >marker"];
    // retrieve gives it a standard input.
    let is_retrieve = |words: &&Vec<PathBuf>| {
        words.iter().take(2).any(|word| word.to_str().unwrap().ends_with("retrieve"))
    };
    for words in commands.iter().filter(|words| !is_retrieve(words)) {
        for (state, open) in [
            ("exec \"$@\" <&-", "1\n2\n"),
            ("exec \"$@\" 2>&-", "0\n1\n"),
            // The shell opens its file as 1 there, and only later.
            ("exec \"$@\" <&- >&- 2>&-", "1\n"),
        ] {
            run(state, words, &look, folder.path());
            let seen = fs::read_to_string(folder.path().join("marker")).unwrap();
            assert_eq!(seen, open, "{state}: {words:?}");
        }
    }
}

#[test]
fn the_environment_stays_in_order_and_as_it_was() {
    let (folder, _daemon, commands) = becoming();
    let state = "exec env -i PATH=\"$PATH\" Z=1 A=2 'B=a=b' \"E=$(printf '\\377')\" F= \"$@\"";
    let look = ["cat", "/proc/self/environ"];
    let alone = run(state, &[], &look, folder.path());
    for words in &commands {
        let seen = run(state, words, &look, folder.path());
        assert!(seen.starts_with(&alone), "{words:?}: {seen:?} {alone:?}");
    }
}

/// The program's end by a signal is what it would have been.
#[test]
fn a_program_whose_reader_leaves_ends_by_sigpipe() {
    let (_folder, daemon, _) = becoming();
    let mut command = suite::fdholder(["exec", "--fd", "x"]);
    command.arg(&daemon.path).args(["--", "yes"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(13));
}

/// Nothing that stands in its place is taken for it.
#[test]
fn standard_input_that_is_closed_is_not_stored() {
    let (_folder, daemon) = serve(&[]);
    for words in
        ["store \"$1\" new", "store -d 0 \"$1\" new", "exec --keep 0 --fd x \"$1\" -- true"]
    {
        let script = format!("exec \"$0\" {words} <&-");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{words}: {output:?}");
        assert!(stderr(&output).contains("Bad file descriptor"), "{words}: {output:?}");
    }
    assert!(daemon.client().list(deadline()).unwrap().is_empty());
}

/// A text in which one number is written as PID, but not where it is a part of another.
fn without_number(text: &str, number: &str) -> String {
    let mut written = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let len = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let (digits, behind) = from.split_at(len);
        written.push_str(before);
        written.push_str(if digits == number { "PID" } else { digits });
        rest = behind;
    }
    written + rest
}
