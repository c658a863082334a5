//! What the programs say, beyond what s6's do.

use crate::serve;
use crate::support::{
    assert_exit, deadline, id, is_missing, stderr, stdout, suite, Daemon, Rules, Suite,
};
use fdholder::Limit;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

#[test]
fn wrong_usage_is_one_line_and_100() {
    for arguments in [
        &["list"][..],
        &["store", "p"],
        &["retrieve", "p", "x"],
        &["nope"],
        &[],
        &["list", "--nope", "p"],
        &["serve", "-n", "x", "p"],
        &["serve"],
        &["rules"],
        &["rules", "check"],
        &["rules", "check", "--uid", "1", "."],
        &["transferdump", "a"],
    ] {
        let output = suite::fdholder(arguments).output().unwrap();
        assert_exit(&output, 100);
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
        assert!(stderr(&output).starts_with("fdholder"), "{output:?}");
    }
}

#[test]
fn options_may_follow_operands_under_our_own_name() {
    let (_folder, daemon) = serve(&[]);
    let path = daemon.path.to_str().unwrap();
    let run =
        |arguments: &[&str]| suite::fdholder(arguments).stdin(Stdio::null()).output().unwrap();
    assert_exit(&run(&["store", path, "x", "--expire", "3600000", "--timeout", "10000"]), 0);
    assert_exit(&run(&["list", path, "-t", "10000"]), 0);
    let list = run(&["list", path, "--json"]);
    assert_eq!(stdout(&list), "[{\"id\":\"x\",\"quoted\":\"x\"}]\n");
    assert_exit(&run(&["retrieve", "--delete", path, "x", "sh", "-c", "true", "--help"]), 0);
    assert_eq!(stdout(&run(&["list", path, "--json"])), "[]\n");
}

/// A socket that takes connections and never answers.
#[test]
fn silence_is_a_refusal_of_that_side() {
    let (folder, daemon) = serve(&[]);
    daemon
        .client()
        .store(&id("x"), Limit::never(), File::open("/dev/null").unwrap(), deadline())
        .unwrap();
    let silent = folder.path().join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let (silent, path) = (silent.to_str().unwrap(), daemon.path.to_str().unwrap());
    for (arguments, code) in [
        (&["list", "-t", "50", silent][..], 1),
        (&["store", "-t", "50", silent, "x"], 1),
        (&["retrieve", "-t", "50", silent, "x", "true"], 1),
        (&["getdump", "-t", "50", silent, "true"], 1),
        (&["delete", "-t", "50", silent, "x"], 1),
        (&["transferdump", "-t", "50:", silent, path], 1),
        (&["transferdump", "-t", ":50", path, silent], 2),
        (&["transferdump", "-t", "50", silent, silent], 1),
    ] {
        let output = suite::fdholder(arguments).stdin(Stdio::null()).output().unwrap();
        assert_exit(&output, code);
        assert!(stderr(&output).contains("timed out"), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    assert_eq!(daemon.client().list(deadline()).unwrap(), [id("x")]);
}

/// What answers speaks something else.
#[test]
fn nonsense_is_a_refusal_of_that_side() {
    let (folder, daemon) = serve(&[]);
    daemon
        .client()
        .store(&id("x"), Limit::never(), File::open("/dev/null").unwrap(), deadline())
        .unwrap();
    let nonsense = folder.path().join("nonsense");
    let listener = UnixListener::bind(&nonsense).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::Write;
            let _ = stream.unwrap().write_all(b"220 mail.example.org ESMTP\r\n");
        }
    });
    let (nonsense, path) = (nonsense.to_str().unwrap(), daemon.path.to_str().unwrap());
    for (arguments, code) in [
        (&["list", nonsense][..], 1),
        (&["getdump", nonsense, "true"], 1),
        (&["transferdump", nonsense, path], 1),
        (&["transferdump", path, nonsense], 2),
    ] {
        let output = suite::fdholder(arguments).stdin(Stdio::null()).output().unwrap();
        assert_exit(&output, code);
        assert!(
            stderr(&output).contains("rotocol error") || stderr(&output).contains("roken pipe"),
            "{output:?}"
        );
    }
}

#[test]
fn messages_say_what_to_do() {
    let (_folder, daemon) = serve(&[]);
    let path = daemon.path.to_str().unwrap();
    let store = |name: &str| {
        Suite::Ours.command("s6-fdholder-store").args([path, name]).stdin(Stdio::null()).output()
    };
    store("x").unwrap();
    let taken = store("x").unwrap();
    assert_eq!(
        stderr(&taken),
        "s6-fdholder-store: fatal: unable to store fd: Device or resource busy \
         (the id is in use: delete it first, or take another)\n"
    );
    assert_eq!(
        stderr(&store("").unwrap()),
        "s6-fdholder-store: fatal: unable to store fd: Invalid argument \
         (an id has at least one byte)\n"
    );
    let typo = suite::fdholder(["list", "--tiemout", "5", path]).output().unwrap();
    assert_eq!(
        stderr(&typo),
        "fdholder list: usage: unexpected argument '--tiemout' found: a similar argument exists: \
         '--timeout' (see 'fdholder list --help')\n"
    );
    let missing = suite::fdholder(["store"]).output().unwrap();
    assert_eq!(
        stderr(&missing),
        "fdholder store: usage: missing <PATH> <ID> (see 'fdholder store --help')\n"
    );
    let nowhere = suite::fdholder(["list", "/nowhere/holder"]).output().unwrap();
    assert_eq!(
        stderr(&nowhere),
        "fdholder list: fatal: unable to connect to a fd-holder daemon at /nowhere/holder: \
         No such file or directory (no such socket: is the daemon running, is the path right?)\n"
    );
}

#[test]
fn stdout_that_is_closed_is_said() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("x"), Limit::never(), null, deadline()).unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = suite::fdholder(["list", "--json", daemon.path.to_str().unwrap()]);
    let output = command.stdout(full).output().unwrap();
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("unable to write to stdout"), "{output:?}");
    let path = &daemon.path;
    for how in [">&-", "1</dev/null", ">/dev/full"] {
        for command in ["list H", "list --json H", "status H", "metrics H", "--help", "--version"] {
            let script = format!("exec \"$0\" {} {how}", command.replace('H', "\"$1\""));
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]).arg(path);
            let output = shell.output().unwrap();
            assert_exit(&output, 111);
            let says = "unable to write to stdout";
            assert!(stderr(&output).contains(says), "{command} {how}: {output:?}");
        }
    }
}

/// What s6's programs do not look at; those that become a program take all of it.
#[test]
fn further_arguments_are_passed_over_under_s6s_names() {
    for suite in [Suite::Ours, Suite::S6V213] {
        if !suite.is_installed() {
            is_missing("s6");
            continue;
        }
        let (folder, daemon) = serve(&[]);
        let path = daemon.path.to_str().unwrap();
        let run = |name: &str, arguments: &[&str]| {
            let mut command = suite.command(&format!("s6-fdholder-{name}"));
            // A dump of nothing.
            command.env("S6_FD#", "0");
            let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
            assert_exit(&output, 0);
            stdout(&output)
        };
        run("store", &[path, "x", "more", "-z"]);
        assert_eq!(run("list", &[path, "more"]), "x\n");
        run("setdump", &["-t", "0", path, "more"]);
        run("transferdump", &[path, path, "more"]);
        run("delete", &["--", path, "x", "more"]);
        assert!(daemon.client().list(deadline()).unwrap().is_empty());
        let other = folder.path().join("other");
        let rules = Rules::all(folder.path().join("rules"));
        let more = ["-i", rules.dir.to_str().unwrap(), "more"];
        Daemon::start(suite, &other, &more).client().list(deadline()).unwrap();
    }
}

/// What is no option is said where it stands, with what helps there.
#[test]
fn value_that_begins_with_a_dash_is_said_how_to_give() {
    for (arguments, says) in [
        (&["exec", "--fd", "-x=", "h", "--", "true"][..], "if it is a value, say --fd=-x= ("),
        (
            &["exec", "--fd-prefix", "-x", "h", "--", "true"],
            "if it is a value, say --fd-prefix=-x (",
        ),
        (&["exec", "--fd", "x", "-x", "h", "--", "true"], "found: put -- before PROG ("),
        (&["exec", "--fdd", "x", "h", "--", "true"], "a similar argument exists: '--fd' ("),
        (&["store", "h", "-x"], "use '-- -x' ("),
    ] {
        let output = suite::fdholder(arguments).output().unwrap();
        assert_exit(&output, 100);
        assert!(stderr(&output).contains(says), "{output:?}");
    }
}

#[test]
fn rules_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let good = Rules::all(folder.path().join("good")).deny("uid/default");
    let check = |dir: &std::path::Path, more: &[&str]| {
        suite::fdholder(["rules", "check", dir.to_str().unwrap()]).args(more).output().unwrap()
    };
    let output = check(&good.dir, &[]);
    assert_exit(&output, 0);
    assert_eq!(
        stdout(&output),
        "RULE         CONNECT  LIST  GETDUMP  SETDUMP  STORE  RETRIEVE\n\
         uid/default  deny     -     -        -        -      -\n\
         uid/self     allow    yes   yes      yes      .*     .*\n"
    );
    let as_daemon = ["--uid", "7", "--gid", "7", "--daemon-uid", "7", "--daemon-gid", "1"];
    let output = check(&good.dir, &as_daemon);
    assert_exit(&output, 0);
    assert!(stdout(&output).starts_with("uid 7 gid 7: may connect, by rule uid/self"));
    let output = check(&good.dir, &["--uid", "8", "--gid", "7", "--daemon-uid", "7"]);
    assert_exit(&output, 1);
    assert_eq!(stdout(&output), "uid 8 gid 7: may not connect: denied by rule uid/default\n");
    let bad = Rules::none(folder.path().join("bad")).allow("uid/5").regexes("uid/5", "(", "x");
    let output = check(&bad.dir, &[]);
    assert_exit(&output, 1);
    assert!(stdout(&output).contains("S6_FDHOLDER_STORE_REGEX: '(' is not a regular expression"));
    let output = check(&bad.dir, &["--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["rules"][0]["connect"], "broken");
    assert_exit(&check(&folder.path().join("nothing"), &[]), 111);
}

#[test]
fn the_demo_is_good() {
    let output = suite::fdholder(["demo", "--json"]).output().unwrap();
    assert_exit(&output, 0);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["connections_refused"], 0);
    assert_eq!(value["transferred"].as_array().unwrap().len(), 4);
    assert_eq!(value["good"], true);
}

#[test]
fn stderr_that_is_closed_does_not_change_the_exit_code() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let run = |arguments: &[&str]| {
        suite::fdholder(arguments).stderr(full()).stdout(Stdio::null()).status().unwrap().code()
    };
    assert_eq!(run(&["list", "/nowhere/holder"]), Some(111));
    assert_eq!(run(&["list"]), Some(100));
    assert_eq!(run(&["--help"]), Some(0));
}
