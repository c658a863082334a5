//! `exec --bind` opens and stores what is not held yet, as `bind` does, and passes it on.

use crate::rebind::{free_port, held, ids, inode, says};
use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, stderr, stdout, suite, Daemon, Rules, Suite,
};
use fdholder::Limit;
use rustix::fs::{fcntl_getfl, OFlags};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// PROG: writes the names that it is told, and what it has open.
const LOOK: &str = "echo \"names $LISTEN_FDNAMES\"; find /proc/$$/fd -type l -printf '%f %l\\n'";

const TCP: &str = "tcp:127.0.0.1:0";

fn exec(path: &Path, arguments: &[&str]) -> Command {
    let mut command = suite::fdholder(["exec"]);
    command.args(arguments).arg(path).args(["--", "sh", "-c", LOOK]).stdin(Stdio::null());
    command
}

/// What PROG was given.
#[derive(Debug, PartialEq)]
struct Given {
    names: String,
    /// The number of each socket, by that of the descriptor; 0 for what is none.
    sockets: BTreeMap<u32, u64>,
    /// What `exec` wrote.
    said: String,
}

impl Given {
    fn of(output: &Output) -> Self {
        assert_exit(output, 0);
        let mut given =
            Self { names: String::new(), sockets: BTreeMap::new(), said: stderr(output) };
        for (word, value) in stdout(output).lines().filter_map(|line| line.split_once(' ')) {
            match word.parse() {
                Ok(0..=2) => {}
                Ok(number) => {
                    let inode = value.strip_prefix("socket:[").and_then(|it| it.strip_suffix(']'));
                    given.sockets.insert(number, inode.map_or(0, |inode| inode.parse().unwrap()));
                }
                Err(_) => value.clone_into(&mut given.names),
            }
        }
        given
    }

    fn by(daemon: &Daemon, arguments: &[&str]) -> Self {
        Self::of(&exec(&daemon.path, arguments).output().unwrap())
    }
}

/// What `exec` says, if it fails in one line and PROG does not run.
fn refuses(path: &Path, code: i32, arguments: &[&str]) -> String {
    let output = exec(path, arguments).output().unwrap();
    assert_exit(&output, code);
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(stderr(&output).starts_with("fdholder exec: ") && output.stdout.is_empty());
    stderr(&output)
}

fn is_nonblocking(daemon: &Daemon, name: &str) -> bool {
    fcntl_getfl(held(daemon, name)).unwrap().contains(OFlags::NONBLOCK)
}

#[test]
fn first_start_opens_and_later_starts_reuse() {
    let (folder, daemon) = serve(&[]);
    let unix = format!("unix:{}", folder.path().join("unix").display());
    for (name, address) in [("tcp", TCP), ("udp", "udp:[::1]:0"), ("unix", &unix)] {
        let bind = format!("{name}={address}");
        let first = Given::by(&daemon, &["--bind", &bind]);
        assert_eq!((first.names.as_str(), first.said.as_str()), (name, ""));
        assert_eq!(first.sockets, BTreeMap::from([(3, inode(&daemon, name))]));
        assert_eq!(Given::by(&daemon, &["--bind", &bind]), first);
        // `bind` has nothing to add.
        assert_eq!(says(&daemon, &[name, address]), "");
    }
    UnixStream::connect(folder.path().join("unix")).unwrap();
    // Memory is no socket, and is passed on as well.
    let given = Given::by(&daemon, &["--bind", "state=memfd:state"]);
    assert_eq!((given.names.as_str(), given.sockets), ("state", BTreeMap::from([(3, 0)])));
}

#[test]
fn bound_socket_has_the_place_of_its_option() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    for name in ["a", "p/1", "z"] {
        daemon.client().store(&id(name), Limit::never(), &null, deadline()).unwrap();
    }
    let given = Given::by(
        &daemon,
        &[
            &["--fd", "z", "--bind", "web=tcp:127.0.0.1:0,udp:127.0.0.1:0,nonblock"][..],
            &["--fd-prefix", "p/", "--bind", "one=tcp:127.0.0.1:0", "--fd", "a"],
        ]
        .concat(),
    );
    assert_eq!(given.names, "z:web/1:web/2:p/1:one:a");
    let [web1, web2, one] = ["web/1", "web/2", "one"].map(|name| inode(&daemon, name));
    let places = [(3, 0), (4, web1), (5, web2), (6, 0), (7, one), (8, 0)];
    assert_eq!(given.sockets, BTreeMap::from(places));
}

#[test]
fn other_option_for_a_bound_socket_chooses_its_place_and_number() {
    let (_folder, daemon) = serve(&[]);
    let bind = ["--bind", "web=tcp:127.0.0.1:0"];
    for (options, names, number) in [
        (&["--fd", "web=10"][..], "", 10),
        (&["--fd", "web=http"], "http", 3),
        (&["--fd-prefix", "we"], "web", 3),
        (&["--env-style", "nginx", "--fd", "web=10"], "", 10),
    ] {
        for arguments in [[&bind, options].concat(), [options, &bind].concat()] {
            let given = Given::by(&daemon, &arguments);
            let sockets = BTreeMap::from([(number, inode(&daemon, "web"))]);
            assert_eq!((given.names.as_str(), given.sockets), (names, sockets), "{arguments:?}");
        }
    }
    let group = "g=tcp:127.0.0.1:0,tcp:127.0.0.1:0,tcp:127.0.0.1:0";
    let given = Given::by(&daemon, &["--bind", group, "--fd", "g/2=9", "--fd", "web"]);
    assert_eq!(given.names, "g/1:g/3:web");
    assert_eq!(given.sockets[&9], inode(&daemon, "g/2"));
    assert_eq!(given.sockets.len(), 4);
}

/// The same changes, with the same words, as by `bind`.
#[test]
fn held_socket_is_changed_as_bind_changes_it() {
    let (_folder, daemon) = serve(&[]);
    let (_other_folder, other) = serve(&[]);
    let (first, second) = (free_port(), free_port());
    for options in [
        "backlog=5,nonblock",
        "backlog=6",
        "blocking",
        "keepalive,keepalive-time=7",
        "nodelay,defer-accept=3",
        "",
    ] {
        let suffix = if options.is_empty() { String::new() } else { format!(",{options}") };
        let bind = format!("web=tcp:127.0.0.1:{first}{suffix}");
        let given = Given::by(&daemon, &["--bind", &bind]);
        let address = format!("tcp:127.0.0.1:{second}");
        let words = options.split(',').filter(|word| !word.is_empty());
        let words: Vec<_> = words.map(|word| format!("--{word}")).collect();
        let words = ["web", &address].into_iter().chain(words.iter().map(String::as_str));
        let said = says(&other, &words.collect::<Vec<_>>());
        assert_eq!(given.said, said.replace("fdholder bind: ", "fdholder exec: "), "{options}");
        assert_eq!(given.sockets[&3], inode(&daemon, "web"));
        assert_eq!(is_nonblocking(&daemon, "web"), is_nonblocking(&other, "web"), "{options}");
        assert_eq!(Given::by(&daemon, &["--bind", &bind]).said, "", "{options}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("unix");
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    let uid = rustix::process::getuid().as_raw();
    for (text, is) in [("0600", 0o600), ("0660", 0o660)] {
        let bind = format!("unix=unix:{},mode={text},owner={uid}:{uid}", file.display());
        Given::by(&daemon, &["--bind", &bind]);
        assert_eq!(mode(), is);
    }
}

#[test]
fn another_address_is_refused_unless_it_replaces() {
    let (_folder, daemon) = serve(&[]);
    let first = Given::by(&daemon, &["--bind", "web=tcp:127.0.0.1:0"]);
    let said = refuses(&daemon.path, 1, &["--bind", "web=udp:127.0.0.1:0"]);
    let why = "fdholder exec: fatal: unable to bind web to udp:127.0.0.1:0: held under it is TCP \
               listener 127.0.0.1:";
    assert!(said.starts_with(why), "{said}");
    assert!(said.ends_with(": --bind …,replace replaces it, delete removes it\n"), "{said}");
    assert_eq!(inode(&daemon, "web"), first.sockets[&3]);
    let given = Given::by(&daemon, &["--bind", "web=udp:127.0.0.1:0,replace"]);
    assert_ne!(given.sockets[&3], first.sockets[&3]);
    assert_eq!(given.sockets[&3], inode(&daemon, "web"));
    // What somebody else has cannot be opened, and what is held stays.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let said = refuses(&daemon.path, 111, &["--bind", &format!("web=tcp:{taken},replace")]);
    assert!(said.contains("Address already in use"), "{said}");
    assert_eq!(given.sockets[&3], inode(&daemon, "web"));
    let said = refuses(&daemon.path, 111, &["--bind", "other=tcp:192.0.2.1:0"]);
    assert!(said.contains("unable to open tcp:192.0.2.1:0 for other"), "{said}");
    assert_eq!(ids(&daemon), ["web"]);
}

#[test]
fn group_is_stored_whole_and_passed_in_order() {
    let (_folder, daemon) = serve(&[]);
    let bind = ["--bind", "web=tcp:127.0.0.1:0,tcp:[::1]:0,tcp:127.0.0.1:0,backlog=7"];
    let first = Given::by(&daemon, &bind);
    assert_eq!((first.names.as_str(), first.said.as_str()), ("web/1:web/2:web/3", ""));
    assert_eq!(Given::by(&daemon, &bind), first);
    let status = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["counts"]["setdump_data.ok"], 1, "{status}");
    assert_eq!(status["counts"]["store.ok"].as_u64().unwrap_or_default(), 0, "{status}");
    // A part is said once, not by both who look.
    let fewer = "web=tcp:127.0.0.1:0,tcp:[::1]:0,backlog=7";
    let given = Given::by(&daemon, &["--bind", fewer]);
    assert_eq!(given.names, "web/1:web/2");
    assert_eq!(
        given.said,
        "fdholder exec: warning: web/3 is held, too: clients wait there while no program has it; \
         --bind …,replace or delete releases it\n"
    );
    // One that is not bound as a group is passed as a part of one.
    let given = Given::by(&daemon, &["--bind", "web/1=tcp:127.0.0.1:0,backlog=7"]);
    assert!(given.said.contains("only a part of web/… is passed on"), "{given:?}");
    let given = Given::by(&daemon, &["--bind", &format!("{fewer},replace")]);
    assert!(given.said.contains("web/3: released, as it was not given"), "{given:?}");
    assert_eq!(ids(&daemon), ["web/1", "web/2"]);
}

#[test]
fn comma_in_a_path_is_escaped() {
    let (folder, daemon) = serve(&[]);
    let path = |name: &str| folder.path().join(name);
    let bind = format!(
        r"web=unix:{0}/a\,b,unix:{0}/c\\\,d=e,mode=0600,unix:{0}/f\g",
        folder.path().display()
    );
    let given = Given::by(&daemon, &["--bind", &bind]);
    assert_eq!(given.names, "web/1:web/2:web/3");
    for name in ["a,b", r"c\,d=e", r"f\g"] {
        UnixStream::connect(path(name)).unwrap();
        assert_eq!(fs::metadata(path(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let given = Given::by(&daemon, &["--bind", "a=b=memfd:c"]);
    assert_eq!(given.names, "a=b");
}

/// Nothing is asked of a holder.
#[test]
fn what_cannot_be_read_is_wrong_usage() {
    for (binds, says) in [
        (&["web"][..], "it is not ID=ADDRESS"),
        (&["web=tpc:0.0.0.0:80"], "'tpc:' is unknown: did you mean 'tcp:'?"),
        (&["web=tcp:80"], "say tcp:0.0.0.0:80"),
        (&["web=tcp:0.0.0.0:80,baklog=5"], "unknown option 'baklog': did you mean 'backlog'?"),
        (&["web=tcp:0.0.0.0:80,backlog=many"], "backlog: it is not a number"),
        (&["web=tcp:0.0.0.0:80,mode=0600"], "mode is for unix and fifo"),
        (&["web=unix:/x,unix:/x"], "unix:/x is there twice"),
        (&["=unix:/x"], "an identifier has at least one byte"),
        (&["a=unix:/x", "a=unix:/y"], "--bind says twice what is held under a"),
        (&["a=unix:/x", "b=unix:/x"], "--bind b has the address of --bind a"),
    ] {
        let arguments: Vec<_> = binds.iter().flat_map(|bind| ["--bind", *bind]).collect();
        let said = refuses(Path::new("/nowhere/holder"), 100, &arguments);
        assert!(said.contains(says), "{binds:?}: {said}");
    }
    let arguments = ["--blocking", "--bind", "web=unix:/x,nonblock"];
    let said = refuses(Path::new("/nowhere/holder"), 100, &arguments);
    assert!(said.contains("--bind web says the opposite of --blocking"), "{said}");
    let said = refuses(Path::new("/nowhere/holder"), 111, &["--bind", "web=tcp:0.0.0.0:0"]);
    assert!(said.contains("is the daemon running"), "{said}");
}

/// `--nonblock` is for all: it is set once, and not cleared and set at each start.
#[test]
fn nonblock_for_all_is_that_of_bound_sockets() {
    let (_folder, daemon) = serve(&[]);
    let bind = ["--bind", "web=tcp:127.0.0.1:0", "--bind", "state=memfd:x"];
    for (option, is_set) in [("--nonblock", true), ("--blocking", false)] {
        let arguments = [&[option][..], &bind].concat();
        Given::by(&daemon, &arguments);
        assert_eq!(is_nonblocking(&daemon, "web"), is_set);
        assert_eq!(Given::by(&daemon, &arguments).said, "", "{option}");
    }
}

#[test]
fn s6s_daemon_takes_bound_sockets() {
    for suite in [Suite::S6V211, Suite::S6V213] {
        if !suite.is_installed() {
            is_missing(&suite.to_string());
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let rules = Rules::all(folder.path().join("rules"));
        let daemon = Daemon::with_rules(suite, &folder.path().join("holder"), &rules, &[]);
        let bind = ["--bind", "one=tcp:127.0.0.1:0", "--bind", "web=udp:[::1]:0,tcp:[::1]:0"];
        let waits = [&["--wait", "5000"][..], &bind].concat();
        let first = Given::by(&daemon, &bind);
        assert_eq!((first.names.as_str(), first.said.as_str()), ("one:web/1:web/2", ""));
        assert_eq!(Given::by(&daemon, &bind), first, "{suite}");
        assert_eq!(Given::by(&daemon, &waits), first, "{suite}");
        let said = refuses(&daemon.path, 1, &["--bind", "one=memfd:one"]);
        assert!(said.contains("held under it is TCP listener"), "{said}");
        let given = Given::by(&daemon, &["--bind", "one=tcp:[::1]:0,replace,nonblock"]);
        assert_ne!(given.sockets[&3], first.sockets[&3]);
        assert!(is_nonblocking(&daemon, "one"));
    }
}

#[test]
fn who_may_not_store_gets_what_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let rules = Rules::all(folder.path().join("rules"));
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let bind = ["--bind", "web=tcp:127.0.0.1:0", "--bind", "g=tcp:127.0.0.1:0,udp:127.0.0.1:0"];
    let first = Given::by(&daemon, &bind);
    Rules::none(&rules.dir).allow("uid/self").regexes("uid/self", "^$", ".");
    for right in ["LIST", "GETDUMP", "SETDUMP"] {
        let _ = fs::remove_file(rules.dir.join(format!("uid/self/env/S6_FDHOLDER_{right}")));
    }
    // The rules are as this test means them.
    assert_exit(&suite::fdholder(["list"]).arg(&path).output().unwrap(), 1);
    assert_eq!(Given::by(&daemon, &bind), first);
    let file = folder.path().join("unix");
    let said = refuses(&path, 1, &["--bind", &format!("new=unix:{}", file.display())]);
    assert!(said.contains("unable to store fd: ") && said.contains("(for id new)"), "{said}");
    // What differs on the socket itself takes no right, another socket does.
    let given = Given::by(&daemon, &["--bind", "web=tcp:127.0.0.1:0,nonblock"]);
    assert_eq!(given.sockets[&3], first.sockets[&3]);
    refuses(&path, 1, &["--bind", "web=memfd:web,replace"]);
    assert_eq!(inode(&daemon, "web"), first.sockets[&3]);
}

#[test]
fn several_that_start_at_once_get_the_same() {
    let (folder, daemon) = serve(&[]);
    let unix = format!("unix:{}/s", folder.path().display());
    let one = format!("one=tcp:127.0.0.1:{}", free_port());
    let group = format!("web=tcp:127.0.0.1:{},{unix}", free_port());
    let start = || {
        let mut command = exec(&daemon.path, &["--bind", &one, "--bind", &group]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<_> = (0..8).map(|_| start()).collect();
    let given = all.into_iter().map(|child| Given::of(&child.wait_with_output().unwrap()));
    let given: Vec<_> = given.collect();
    assert_eq!(given[0].names, "one:web/1:web/2");
    assert_eq!(given[0].sockets[&3], inode(&daemon, "one"));
    assert!(given.iter().all(|one| *one == given[0]), "{given:?}");
    UnixStream::connect(folder.path().join("s")).unwrap();
}

/// One that comes when another has opened it, but not stored it yet, waits.
#[test]
fn second_start_waits_for_what_the_first_has_opened() {
    let (_folder, daemon) = serve(&[]);
    let address = format!("127.0.0.1:{}", free_port());
    let bind = format!("web=tcp:{address}");
    // What asks whether it is held, and what stores it.
    let inject = "inject=sendmsg:delay_enter=500ms:when=2";
    let slow = Command::new("strace")
        .args(["-qq", "-f", "-e", "trace=sendmsg", "-e", inject, "-o", "/dev/null"])
        .arg(env!("CARGO_BIN_EXE_fdholder"))
        .args(["exec", "--bind", &bind, daemon.path.to_str().unwrap(), "--", "true"])
        .spawn();
    let Ok(mut slow) = slow else {
        return is_missing("strace");
    };
    eventually("the first has opened it", || TcpStream::connect(&address).is_ok());
    assert_eq!(daemon.client().list(deadline()).unwrap(), []);
    let given = Given::by(&daemon, &["--bind", &bind]);
    assert_eq!(given.said, "");
    assert!(slow.wait().unwrap().success());
    assert_eq!(given.sockets[&3], inode(&daemon, "web"));
}

#[test]
fn bind_waits_for_the_holder_and_no_longer_for_one_that_always_hangs_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let bind = ["--wait", "100000", "--bind", "web=tcp:127.0.0.1:0,udp:127.0.0.1:0"];
    let child = exec(&path, &bind).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let daemon = {
        let mut command = suite::fdholder(["serve", "-1", "-v0"]);
        command.arg(&path);
        Daemon::spawn(command, &path)
    };
    let given = Given::of(&child.wait_with_output().unwrap());
    assert_eq!(given.sockets[&3], inode(&daemon, "web/1"));

    let path = folder.path().join("closed");
    let rules = Rules::none(folder.path().join("rules")).deny("uid/self");
    let _closed = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let since = Instant::now();
    let said = refuses(&path, 1, &["--wait", "100000", "--bind", "web=tcp:127.0.0.1:0"]);
    assert!(said.contains("do not let this user in"), "{said}");
    let spent = since.elapsed();
    assert!(spent > Duration::from_secs(1) && spent < Duration::from_secs(50), "{spent:?}");
}

/// It has opened the socket, and the holder is another one when it stores it.
#[test]
fn bind_tries_again_when_the_holder_ends_amid_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let daemon = || {
        let _ = fs::remove_file(&path);
        let mut command = suite::fdholder(["serve", "-1", "-v0"]);
        command.arg(&path);
        Daemon::spawn(command, &path)
    };
    let address = format!("127.0.0.1:{}", free_port());
    let bind = format!("web=tcp:{address}");
    let first = daemon();
    // What asks which holder it is, what asks for the socket, and what stores it.
    let inject = "inject=sendmsg:delay_enter=1s:when=3";
    let slow = Command::new("strace")
        .args(["-qq", "-f", "-e", "trace=sendmsg", "-e", inject, "-o", "/dev/null"])
        .arg(env!("CARGO_BIN_EXE_fdholder"))
        .args(["exec", "--wait", "100000", "--bind", &bind, path.to_str().unwrap()])
        .args(["--", "sh", "-c", LOOK])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(slow) = slow else {
        return is_missing("strace");
    };
    eventually("it has opened the socket", || TcpStream::connect(&address).is_ok());
    assert_eq!(ids(&first), [""; 0]);
    drop(first);
    let second = daemon();
    let given = Given::of(&slow.wait_with_output().unwrap());
    assert_eq!(given.sockets[&3], inode(&second, "web"));
}
