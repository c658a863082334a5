//! How `exec` tells of descriptors: variables of servers, `{ID}` in arguments, standard streams.

use crate::serve;
use crate::support::{assert_exit, deadline, id, stderr, stdout, suite, Daemon};
use fdholder::Limit;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const STYLES: [&str; 10] = [
    "systemd",
    "nginx",
    "angie",
    "einhorn",
    "server-starter",
    "unicorn",
    "puma",
    "php-fpm",
    "s6",
    "uvicorn-fd",
];

/// What tells of descriptors, in every style.
const TELLS: [&str; 11] = [
    "LISTEN_",
    "NGINX",
    "ANGIE",
    "EINHORN_",
    "SERVER_STARTER_PORT",
    "SERVER_STARTER_GENERATION",
    "UNICORN_FD",
    "PUMA_INHERIT_",
    "FPM_SOCKETS",
    "S6_FD",
    "UVICORN_FD",
];

/// A daemon that holds a listener as `web`, and its port.
fn listening() -> (tempfile::TempDir, Daemon, u16) {
    let (folder, daemon) = serve(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    daemon.client().store(&id("web"), Limit::never(), listener.as_fd(), deadline()).unwrap();
    let port = listener.local_addr().unwrap().port();
    (folder, daemon, port)
}

/// Runs a script of bash in which `$F` is our program, and `$H` where the daemon listens.
fn bash(script: &str, daemon: &Daemon, folder: &Path) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
    command.env("F", env!("CARGO_BIN_EXE_fdholder")).env("H", &daemon.path);
    command.output().unwrap()
}

fn told(output: &Output) -> Vec<String> {
    assert_exit(output, 0);
    let tells = |line: &&str| TELLS.iter().any(|name| line.starts_with(name));
    stdout(output).lines().filter(tells).map(str::to_owned).collect()
}

#[test]
fn servers_are_told_of_a_held_listener_and_of_nothing_else() {
    let (folder, daemon, port) = listening();
    let address = format!("127.0.0.1:{port}");
    for (style, expected) in [
        ("angie", vec!["ANGIE=3;".to_owned()]),
        (
            "server-starter",
            vec![
                format!("SERVER_STARTER_PORT={address}=3"),
                "SERVER_STARTER_GENERATION=1".to_owned(),
            ],
        ),
        ("unicorn", vec!["UNICORN_FD=3".to_owned()]),
        ("puma", vec![format!("PUMA_INHERIT_0=3:tcp://{address}")]),
        ("php-fpm", vec![format!("FPM_SOCKETS={address}=3")]),
    ] {
        // What others were told, open or not, is not mixed with it.
        let before = "export ANGIE=9 NGINX=9 PUMA_INHERIT_1=39:tcp://x FPM_SOCKETS_1=x=39 \
                      UNICORN_FD=39 SERVER_STARTER_PORT=1=39";
        let script = format!("{before}; \"$F\" exec --env-style {style} --fd web \"$H\" -- env");
        assert_eq!(told(&bash(&script, &daemon, folder.path())), expected, "{style}");
    }
    let script = "export SERVER_STARTER_GENERATION=5 PUMA_INHERIT_1=8:tcp://x; \
                  \"$F\" exec --env-style server-starter --fd web \"$H\" -- env 8</dev/null";
    let mut said = told(&bash(script, &daemon, folder.path()));
    said.sort();
    let port = format!("SERVER_STARTER_PORT={address}=3");
    // The latter names what is open: another's, and passed on.
    assert_eq!(said, ["PUMA_INHERIT_1=8:tcp://x", "SERVER_STARTER_GENERATION=5", &port]);
    // In its own style it would be taken for ours.
    let script =
        "export PUMA_INHERIT_1=8:tcp://x; \"$F\" exec --env-style puma --fd web \"$H\" -- \
                  sh -c 'env; ls /proc/$$/fd | grep -c ^8$; true' 8</dev/null";
    let output = bash(script, &daemon, folder.path());
    assert_eq!(told(&output), [format!("PUMA_INHERIT_0=3:tcp://{address}")]);
    assert!(stdout(&output).ends_with("\n0\n"), "{output:?}");
}

#[test]
fn descriptor_that_a_style_cannot_name_is_an_error_with_its_id() {
    let (_folder, daemon, _) = listening();
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("odd"), Limit::never(), &null, deadline()).unwrap();
    for style in ["server-starter", "puma", "php-fpm"] {
        let mut command = suite::fdholder(["exec", "--fd", "web", "--fd", "odd"]);
        command.args(["--env-style", style]).arg(&daemon.path).args(["--", "true"]);
        let output = command.output().unwrap();
        assert_exit(&output, 100);
        let says = format!("--env-style {style} cannot name odd (device /dev/null): ");
        assert!(stderr(&output).contains(&says), "{output:?}");
    }
}

/// A daemon that holds files: `a` and `b` to be read, `out` to be written.
fn holding() -> (tempfile::TempDir, Daemon) {
    let (folder, daemon) = serve(&[]);
    for name in ["a", "b", "out"] {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        let file = File::options().read(true).append(true).open(path).unwrap();
        daemon.client().store(&id(name), Limit::never(), &file, deadline()).unwrap();
    }
    (folder, daemon)
}

#[test]
fn ids_in_braces_stand_for_numbers() {
    let (folder, daemon) = holding();
    for (script, expected) in [
        (
            "\"$F\" exec --fd b --fd a=name --fd out=17 \"$H\" -- printf '%s\\n' {b} fd@{a} \
             --fds={b},{name} {out} '{\"a\":{a}}' {{a}}",
            "3\nfd@4\n--fds=3,4\n17\n{\"a\":4}\n{a}\n",
        ),
        (
            "\"$F\" exec --fd a \"$H\" -- printf '%s\\n' {} {b} '${a}' {a,b} '{ a }' {a '%{a'",
            "{}\n{b}\n${a}\n{a,b}\n{ a }\n{a\n%{a\n",
        ),
        // A shell's and awk's braces beside ours.
        (
            "\"$F\" exec --fd a --fd b \"$H\" -- \
             bash -c 'a=x; f() { echo ${a} \"$1\"; }; f {b}; cat <&{a}; awk \"{print}\" /dev/fd/{b}'",
            "x 4\nab\n",
        ),
        ("\"$F\" exec --fd a=0 \"$H\" -- printf '%s' {a}", "0"),
        // Those that are inherited have names; nothing else has.
        (
            "\"$F\" exec --fd a=first \"$H\" -- \
             \"$F\" exec --inherited --fd-prefix b \"$H\" -- printf '%s %s %s' {{first}} {b} {out}",
            "3 4 {out}",
        ),
        // The program is what it is called.
        ("cp /bin/echo {a}; \"$F\" exec --fd a \"$H\" -- ./{a} {a}", "3\n"),
    ] {
        let script = script.replace("{a,b}", "'{a,b}'").replace("={b},{name}", "='{b},{name}'");
        let output = bash(&script, &daemon, folder.path());
        assert_exit(&output, 0);
        assert_eq!(stdout(&output), expected, "{script}");
    }
}

/// In each style, whether that stream was open before or not.
#[test]
fn descriptor_can_be_a_standard_stream() {
    for style in STYLES {
        let (folder, daemon) = holding();
        let run = |streams: &str, options: &str, program: &str| {
            let script =
                format!("\"$F\" exec --env-style {style} {options} \"$H\" -- {program} {streams}");
            bash(&script, &daemon, folder.path())
        };
        for streams in ["", "<&-", "<&- 2>&-"] {
            let output = run(streams, "--fd a=0", "readlink /proc/self/fd/0");
            assert!(stdout(&output).ends_with("/a\n"), "{style} {streams}: {output:?}");
            let told = told(&run(streams, "--fd a=0", "env"));
            let counts: &[&str] = if style == "s6" { &["S6_FD#=0"] } else { &[] };
            assert_eq!(told, counts, "{style}");
        }
        let out = folder.path().join("out");
        for (number, streams) in [(1, ""), (1, ">&-"), (1, "<&- >&-"), (2, ""), (2, "2>&- <&-")] {
            fs::write(&out, "").unwrap();
            let program = format!("sh -c 'echo hi >&{number}'");
            let output = run(streams, &format!("--fd out={number}"), &program);
            assert_exit(&output, 0);
            assert_eq!(fs::read_to_string(&out).unwrap(), "hi\n", "{style} {number} {streams}");
        }
        // Beside one that is counted.
        if !["server-starter", "puma", "php-fpm"].contains(&style) {
            let told = |options| {
                let mut told = told(&run("", options, "env"));
                told.retain(|line| !line.contains("_PID="));
                told
            };
            let alone = told("--fd b");
            assert!(!alone.is_empty(), "{style}");
            assert_eq!(told("--fd a=0 --fd b"), alone, "{style}");
        }
    }
    // Why there is no program is not written into what is held.
    let (folder, daemon) = holding();
    let output = bash("\"$F\" exec --fd out=2 \"$H\" -- nowhere", &daemon, folder.path());
    assert_exit(&output, 127);
    assert!(stderr(&output).contains("unable to exec nowhere"), "{output:?}");
    assert_eq!(fs::read_to_string(folder.path().join("out")).unwrap(), "out");
}
