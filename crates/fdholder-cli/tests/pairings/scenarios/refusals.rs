//! What is refused, with which exit code, and that nothing is lost by it.

use crate::faults;
use crate::support::{assert_exit, deadline, id, stderr, Daemon, Rules};
use crate::Pair;
use fdholder::Limit;
use std::os::unix::net::UnixListener;
use std::process::Output;

/// A daemon whose own user has these rights only, holding one descriptor, "held".
fn daemon_with(pair: &Pair, name: &str, rules: impl FnOnce(Rules) -> Rules) -> Daemon {
    let folder = pair.folder().join(format!("{name}.rules"));
    let daemon =
        Daemon::with_rules(pair.daemon, &pair.socket(name), &Rules::all(&folder), &["-n", "20"]);
    let null = std::fs::File::open("/dev/null").unwrap();
    daemon.client().store(&id("held"), Limit::never(), null, deadline()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    rules(Rules::none(&folder));
    daemon
}

fn assert_denied(output: &Output, text: &str) {
    assert_exit(output, 1);
    let stderr = stderr(output);
    assert!(stderr.contains(text), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("s6-fdholder-"), "{stderr}");
}

pub fn denied_operations(pair: &Pair) {
    // Not even let in.
    let closed = daemon_with(pair, "closed", |rules| rules);
    let denied = daemon_with(pair, "denied", |rules| rules.deny("uid/self").allow("uid/default"));
    for daemon in [&closed, &denied] {
        let path = daemon.path.to_str().unwrap();
        for arguments in [
            &["list", path][..],
            &["delete", path, "held"],
            &["store", path, "x"],
            &["retrieve", path, "held", "true"],
            &["getdump", path, "true"],
            &["transferdump", path, path],
        ] {
            let output = pair.run(arguments[0], &arguments[1..]);
            // The connection closes before the request, or under it.
            let reset = stderr(&output).contains("Connection reset by peer");
            assert_denied(&output, if reset { "Connection reset" } else { "Broken pipe" });
        }
    }
    // Let in, but allowed nothing.
    let idle = daemon_with(pair, "idle", |rules| rules.allow("uid/self"));
    let free = pair.start("free", &[]);
    let (path, free_path) = (idle.path.to_str().unwrap(), free.path.to_str().unwrap());
    let not_permitted = "Operation not permitted";
    assert_denied(&pair.run("list", &[path]), "unable to get fd list");
    assert_denied(&pair.run("store", &[path, "x"]), not_permitted);
    assert_denied(&pair.run("delete", &[path, "held"]), not_permitted);
    assert_denied(&pair.run("delete", &[path, "no such id"]), not_permitted);
    assert_denied(&pair.run("retrieve", &[path, "held", "true"]), not_permitted);
    assert_denied(&pair.run("retrieve", &[path, "no such id", "true"]), not_permitted);
    assert_denied(&pair.run("getdump", &[path, "true"]), "unable to get dump");
    assert_denied(&pair.run("transferdump", &[path, free_path]), "unable to get dump");
    let null = std::fs::File::open("/dev/null").unwrap();
    free.client().store(&id("a"), Limit::never(), null, deadline()).unwrap();
    let output = pair.run("transferdump", &[free_path, path]);
    let code = if faults::exits_1_for_the_destination(pair.client) { 1 } else { 2 };
    assert_exit(&output, code);
    assert!(stderr(&output).contains("unable to set dump: Operation not permitted"), "{output:?}");

    // Retrieving does not include deleting.
    let reader = daemon_with(pair, "reader", |rules| {
        rules.allow("uid/self").regexes("uid/self", "^other$", "^held$")
    });
    let path = reader.path.to_str().unwrap();
    assert_denied(&pair.run("retrieve", &["-D", path, "held", "true"]), not_permitted);
    assert_exit(&pair.run("retrieve", &[path, "held", "true"]), 0);
    assert_denied(&pair.run("store", &[path, "another"]), not_permitted);
    assert_exit(&pair.run("store", &[path, "other"]), 0);
}

pub fn no_daemon(pair: &Pair) {
    let (nothing, file, dead) = (pair.socket("nothing"), pair.socket("file"), pair.socket("dead"));
    std::fs::write(&file, "").unwrap();
    drop(UnixListener::bind(&dead).unwrap());
    let free = pair.start("free", &[]);
    let free = free.path.to_str().unwrap();
    for path in [&nothing, &file, &dead] {
        let path = path.to_str().unwrap();
        for arguments in [
            &["list", path][..],
            &["delete", path, "x"],
            &["store", path, "x"],
            &["retrieve", path, "x", "true"],
            &["getdump", path, "true"],
            &["transferdump", path, free],
            &["transferdump", free, path],
        ] {
            let output = pair.run(arguments[0], &arguments[1..]);
            assert_exit(&output, 111);
            let text = stderr(&output);
            assert!(text.contains("unable to connect to a"), "{text}");
            assert!(text.contains(path), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}

pub fn wrong_usage(pair: &Pair) {
    for arguments in [
        &["list"][..],
        &["list", "-z", "p"],
        &["list", "-t", "x", "p"],
        &["list", "-t"],
        &["delete", "p"],
        &["store", "p"],
        &["store", "-d", "-1", "p", "x"],
        &["store", "-d", "x", "p", "x"],
        &["retrieve", "p", "x"],
        &["getdump", "p"],
        &["transferdump", "p"],
        &["transferdump", "-t", "x:1", "p", "q"],
        &["transferdump", "-t", "1:x", "p", "q"],
        &["transferdump", "-t", "1:2:3", "p", "q"],
        &["transferdump", "-t", "", "p", "q"],
        &["list", "--timeout", "5", "p"],
    ] {
        let output = pair.run(arguments[0], &arguments[1..]);
        assert_exit(&output, 100);
        let start = format!("s6-fdholder-{0}: usage: s6-fdholder-{0} [ ", arguments[0]);
        assert!(stderr(&output).starts_with(&start), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    let daemon = pair.client.command("s6-fdholder-daemon").arg("p").output().unwrap();
    assert_exit(&daemon, 100);
    assert!(stderr(&daemon).contains("no access rights specified!"), "{daemon:?}");
    let null = std::fs::File::open("/dev/null").unwrap();
    let server =
        pair.client.command("s6-fdholderd").args(["-i", "/"]).stdin(null).output().unwrap();
    assert_exit(&server, 100);
    let free = pair.start("free", &[]);
    // Each of these is good, and stops at the operand.
    for timeouts in ["100000:200000", "100000:", ":200000", "100000", "0:0"] {
        let free = free.path.to_str().unwrap();
        assert_exit(&pair.run("transferdump", &["-t", timeouts, free, free]), 0);
    }
}

pub fn bad_environment(pair: &Pair) {
    let daemon = pair.start("holder", &[]);
    let run = |variables: &[(&str, &str)]| {
        let mut command = pair.program("setdump");
        command.arg(&daemon.path).envs(variables.iter().copied()).output().unwrap()
    };
    let one = [("S6_FD#", "1"), ("S6_FD_0", "0"), ("S6_FDID_0", "x")];
    let with = |name: &'static str, value: &'static str| {
        let mut variables = one.to_vec();
        variables.retain(|(other, _)| *other != name);
        variables.push((name, value));
        variables
    };
    for (variables, culprit) in [
        (vec![], "S6_FD#"),
        (vec![("S6_FD#", "x")], "S6_FD#"),
        (vec![("S6_FD#", "1")], "S6_FD_0"),
        (one[..2].to_vec(), "S6_FDID_0"),
        (with("S6_FD_0", "x"), "S6_FD_0"),
        (with("S6_FDID_0", ""), "S6_FDID_0"),
        (with("S6_FDLIMIT_0", "x"), "S6_FDLIMIT_0"),
    ] {
        let output = run(&variables);
        assert_exit(&output, 100);
        assert!(stderr(&output).contains(culprit), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    let closed = run(&with("S6_FD_0", "999"));
    assert_exit(&closed, 1);
    assert!(stderr(&closed).contains("Bad file descriptor"), "{closed:?}");
    let closed = pair.run("store", &["-d", "999", daemon.path.to_str().unwrap(), "x"]);
    assert_exit(&closed, 1);
    assert!(stderr(&closed).contains("Bad file descriptor"), "{closed:?}");
    assert_exit(&run(&[("S6_FD#", "0")]), 0);
    assert_exit(&run(&one), 0);
    assert_eq!(daemon.client().list(deadline()), Ok(vec![id("x")]));
}
