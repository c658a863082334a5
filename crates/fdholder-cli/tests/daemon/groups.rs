//! The descriptors of one service, ID/1, ID/2, …; what goes with one that is deleted, and the
//! flag that a program expects.

use crate::rebind::{address, delete, free_port, held, ids, inode, refuses, says};
use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, stderr, stdout, suite, Daemon, Rules, Suite,
};
use fdholder::Limit;
use rustix::fs::{fcntl_getfl, OFlags};
use rustix::net::{shutdown, Shutdown};
use std::fs::{self, remove_file};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

#[test]
fn delete_says_how_many_clients_wait_and_drain_waits_for_them() {
    let (folder, daemon) = serve(&[]);
    let unix = format!("unix:{}", folder.path().join("unix").display());
    for endpoint in ["tcp:127.0.0.1:0", &unix] {
        says(&daemon, &["web", endpoint]);
        let connect = || match endpoint {
            "tcp:127.0.0.1:0" => {
                OwnedFd::from(TcpStream::connect(address(&daemon, "web")).unwrap())
            }
            _ => UnixStream::connect(folder.path().join("unix")).unwrap().into(),
        };
        let clients = (connect(), connect());
        let output = delete(&daemon, &["web", "--drain", "1"]);
        assert_exit(&output, 0);
        let said = "fdholder delete: warning: web: 2 clients wait in its queue, and no other \
                    program gets it\n";
        assert_eq!(stderr(&output), said);
        assert!(ids(&daemon).is_empty());
        drop(clients);
        let _ = remove_file(folder.path().join("unix"));

        says(&daemon, &["web", endpoint]);
        let _client = connect();
        let listener = held(&daemon, "web");
        let retrieved = || {
            let status = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            status["counts"]["retrieve.ok"].as_u64().unwrap()
        };
        let before = retrieved();
        let draining = suite::fdholder(["delete", "--drain", "60000"])
            .arg(&daemon.path)
            .arg("web")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it looks at the queue", || retrieved() > before);
        assert_eq!(ids(&daemon), ["web"]);
        drop(rustix::net::accept(&listener).unwrap());
        drop(listener);
        let output = draining.wait_with_output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(stderr(&output), "");
        let _ = remove_file(folder.path().join("unix"));
    }
    // What is lost of a fifo are bytes.
    let fifo = folder.path().join("fifo");
    says(&daemon, &["fifo", &format!("fifo:{}", fifo.display())]);
    rustix::io::write(held(&daemon, "fifo"), b"12345").unwrap();
    let output = delete(&daemon, &["fifo"]);
    assert!(stderr(&output).contains("5 bytes in it were not read"), "{output:?}");
}

/// Without the right to look at it there is no queue to wait for, and nothing is lost.
#[test]
fn drain_of_what_may_not_be_retrieved_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::none(folder.path().join("rules"));
    let rules = rules.allow("uid/self").regexes("uid/self", ".", "^none$");
    let daemon = Daemon::with_rules(Suite::Ours, &folder.path().join("holder"), &rules, &[]);
    let null = fs::File::open("/dev/null").unwrap();
    daemon.client().store(&id("web"), Limit::never(), null, deadline()).unwrap();
    let output = delete(&daemon, &["--drain", "1000", "web"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("unable to retrieve fd for id web"), "{output:?}");
    let output = delete(&daemon, &["web"]);
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "");
}

#[test]
fn exec_sets_the_flag_that_the_program_expects() {
    let (_folder, daemon) = serve(&[]);
    says(&daemon, &["web", "tcp:127.0.0.1:0"]);
    let listed = || {
        let output = suite::fdholder(["list", "--long", "--json"]).arg(&daemon.path).output();
        let list: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        list[0]["nonblock"].as_bool()
    };
    for (option, expected) in
        [("--nonblock", true), ("--nonblock", true), ("--blocking", false), ("--blocking", false)]
    {
        let output = suite::fdholder(["exec", option, "--fd", "web"])
            .arg(&daemon.path)
            .args(["--", "true"])
            .output()
            .unwrap();
        assert_exit(&output, 0);
        assert_eq!(listed(), Some(expected), "{option}");
    }
    let output = suite::fdholder(["exec", "--blocking", "--nonblock", "--fd", "web"])
        .arg(&daemon.path)
        .args(["--", "true"])
        .output();
    assert_exit(&output.unwrap(), 100);
}

#[test]
fn group_with_more_or_fewer_addresses_is_said() {
    let (_folder, daemon) = serve(&[]);
    let tcp = "tcp:127.0.0.1:0";
    assert_eq!(says(&daemon, &["web", tcp, tcp]), "");
    let said = says(&daemon, &["web", tcp, tcp, tcp, tcp]);
    assert!(said.contains("info: web: 2 of 4 addresses were held"), "{said}");
    assert_eq!(ids(&daemon), ["web/1", "web/2", "web/3", "web/4"]);
    let said = says(&daemon, &["web", tcp, tcp]);
    assert!(said.contains("warning: web/3 and web/4 are held, too"), "{said}");
    // One that is missing, and one that is shut down, come back.
    assert_exit(&delete(&daemon, &["web/2"]), 0);
    shutdown(held(&daemon, "web/3"), Shutdown::Both).unwrap();
    let said = says(&daemon, &["web", tcp, tcp, tcp, tcp]);
    assert!(said.contains("info: web/3: listens again"), "{said}");
    assert!(said.contains("3 of 4 addresses were held"), "{said}");
    // A single one is not of the group.
    let said = says(&daemon, &["web", tcp]);
    assert!(said.contains("warning: web/1, web/2, web/3 and web/4 are held, too"), "{said}");
    let said = says(&daemon, &["web", tcp, tcp, tcp, tcp]);
    assert!(said.contains("warning: web is held, too"), "{said}");
    assert_exit(&delete(&daemon, &["web"]), 0);
    // What a service stored under such an identifier is not this program's.
    let null = fs::File::open("/dev/null").unwrap();
    daemon.client().store(&id("web/7"), Limit::never(), null, deadline()).unwrap();
    let said = says(&daemon, &["--replace", "web", tcp, tcp]);
    assert!(said.contains("info: web/3: released"), "{said}");
    assert!(!said.contains("web/7"), "{said}");
    assert_eq!(ids(&daemon), ["web/1", "web/2", "web/7"]);
}

/// Neither is changed when one of them cannot be.
#[test]
fn group_of_which_one_is_refused_stays_as_it_is() {
    let (_folder, daemon) = serve(&[]);
    says(&daemon, &["web", "tcp:127.0.0.1:0", "udp:127.0.0.1:0"]);
    let said = refuses(&daemon, 1, &["web", "tcp:127.0.0.1:0", "memfd:x", "--nonblock"]);
    assert!(said.contains("unable to bind web/2 to memfd:x: held under it is UDP"), "{said}");
    assert!(!fcntl_getfl(held(&daemon, "web/1")).unwrap().contains(OFlags::NONBLOCK));
    let said = refuses(&daemon, 100, &["web", "unix:/x", "unix:/x"]);
    assert!(said.contains("unix:/x is there twice, which takes --reuseport"), "{said}");
}

fn counts(daemon: &Daemon) -> (u64, u64) {
    let status = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let count = |name: &str| status["counts"][name].as_u64().unwrap_or_default();
    (count("setdump_data.ok"), count("store.ok"))
}

/// Nobody who looks, or waits for the group, sees a part of it.
#[test]
fn new_members_of_a_group_come_together() {
    let (_folder, daemon) = serve(&[]);
    let tcp = "tcp:127.0.0.1:0";
    assert_eq!(says(&daemon, &["web", tcp, tcp, tcp]), "");
    assert_eq!(ids(&daemon), ["web/1", "web/2", "web/3"]);
    assert_eq!(counts(&daemon), (1, 0));
    // Of several that make it at once one has it held, and the others find it.
    let bind = || {
        let mut command = suite::fdholder(["bind"]);
        command.arg(&daemon.path).args(["db", tcp, tcp, tcp]).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let many: Vec<_> = (0..8).map(|_| bind()).collect();
    for child in many {
        let output = child.wait_with_output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(stderr(&output), "");
    }
    assert_eq!(counts(&daemon), (2, 0));
}

#[test]
fn group_of_which_one_cannot_be_opened_is_not_held_in_part() {
    let (folder, daemon) = serve(&[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp:{}", taken.local_addr().unwrap());
    let file = folder.path().join("unix");
    let unix = format!("unix:{}", file.display());
    let said = refuses(&daemon, 111, &["web", &unix, "tcp:127.0.0.1:0", &taken]);
    assert!(said.contains("for web/3"), "{said}");
    assert!(ids(&daemon).is_empty() && !file.exists());
    let said = refuses(&daemon, 111, &["web", &unix, "tcp:192.0.2.1:0"]);
    assert!(said.contains("for web/2"), "{said}");
    assert!(ids(&daemon).is_empty() && !file.exists());
}

/// Who may store but give no set has them held one after another, or none.
#[test]
fn group_of_who_may_give_no_set_is_held_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::none(folder.path().join("rules"));
    let rules = rules.allow("uid/self").regexes("uid/self", "^web/[12]$", ".");
    let daemon = Daemon::with_rules(Suite::Ours, &folder.path().join("holder"), &rules, &[]);
    let tcp = "tcp:127.0.0.1:0";
    let said = refuses(&daemon, 1, &["web", tcp, tcp, tcp]);
    assert!(said.contains("unable to store fd"), "{said}");
    let is_held = |name: &str| daemon.client().retrieve(&id(name), deadline()).is_ok();
    assert!(!is_held("web/1") && !is_held("web/2"));
    assert_eq!(says(&daemon, &["web", tcp, tcp]), "");
    assert!(is_held("web/1") && is_held("web/2"));
}

/// A service gets a second address: the socket of the first stays, with its clients.
#[test]
fn socket_that_moves_into_a_group_is_the_same() {
    let (_folder, daemon) = serve(&[]);
    says(&daemon, &["web", &format!("tcp:127.0.0.1:{}", free_port())]);
    let endpoint = format!("tcp:{}", address(&daemon, "web"));
    let before = inode(&daemon, "web");
    let said = refuses(&daemon, 111, &["web", &endpoint, "tcp:127.0.0.1:0"]);
    assert!(said.contains("held under web\n") || said.contains("held under web;"), "{said}");
    let said = says(&daemon, &["--replace", "web", &endpoint, "tcp:127.0.0.1:0"]);
    assert!(said.contains("web/1: is what was held under web"), "{said}");
    assert_eq!(inode(&daemon, "web/1"), before);
    assert_eq!(ids(&daemon), ["web/1", "web/2"]);
}

/// The sockets and their clients stay, whichever place they had, and those that are not given go.
#[test]
fn group_gets_another_order_or_size_with_its_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let all = Rules::all(folder.path().join("all"));
    let no_sets = Rules::none(folder.path().join("no-sets"));
    let no_sets =
        no_sets.allow("uid/self").regexes("uid/self", ".", ".").may("uid/self", &["LIST"]);
    let own = format!("unix:@fdholder-test-{}-order", std::process::id());
    for (rules, name) in [(&all, "sets"), (&no_sets, "no-sets")] {
        let path = folder.path().join(format!("holder-{name}"));
        let daemon = Daemon::with_rules(Suite::Ours, &path, rules, &[]);
        let tcp = |_| format!("tcp:127.0.0.1:{}", free_port());
        let unix = |name| format!("unix:{}/{name}", folder.path().display());
        for [a, b, c] in
            [[0, 1, 2].map(tcp), ["a", "b", "c"].map(unix), [0, 1, 2].map(|n| format!("{own}-{n}"))]
        {
            assert_eq!(says(&daemon, &["web", &a, &b, &c]), "");
            let [_, of_b, of_c] = ["web/1", "web/2", "web/3"].map(|name| inode(&daemon, name));
            let said = says(&daemon, &["--replace", "web", &b, &c]);
            assert!(said.contains("web/1: is what was held under web/2"), "{said}");
            assert!(said.contains("web/3: released, as it was not given"), "{said}");
            assert_eq!(ids(&daemon), ["web/1", "web/2"]);
            assert_eq!((inode(&daemon, "web/1"), inode(&daemon, "web/2")), (of_b, of_c));
            says(&daemon, &["--replace", "web", &c, &b]);
            assert_eq!((inode(&daemon, "web/1"), inode(&daemon, "web/2")), (of_c, of_b));
            says(&daemon, &["--replace", "web", &b]);
            assert_eq!(ids(&daemon), ["web"]);
            assert_eq!(inode(&daemon, "web"), of_b);
            let _ = remove_file(folder.path().join("a"));
            says(&daemon, &["--replace", "web", &a, &b]);
            assert_eq!(ids(&daemon), ["web/1", "web/2"]);
            assert_eq!(inode(&daemon, "web/2"), of_b);
            for name in ["web/1", "web/2"] {
                assert_exit(&delete(&daemon, &[name]), 0);
            }
            for name in ["a", "b", "c"] {
                let _ = remove_file(folder.path().join(name));
            }
        }
        // When one cannot be opened, all are where they were.
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("tcp:{}", other.local_addr().unwrap());
        let [a, b] = [0, 1].map(tcp);
        says(&daemon, &["web", &a, &b]);
        let before = ["web/1", "web/2"].map(|name| inode(&daemon, name));
        refuses(&daemon, 111, &["--replace", "web", &b, &taken, &a]);
        assert_eq!(ids(&daemon), ["web/1", "web/2"]);
        assert_eq!(["web/1", "web/2"].map(|name| inode(&daemon, name)), before);
        for name in ["web/1", "web/2"] {
            assert_exit(&delete(&daemon, &[name]), 0);
        }
        // What is in the way of another address gives way, wherever it is.
        let port = free_port();
        says(&daemon, &["web", "tcp:127.0.0.1:0", &format!("tcp:127.0.0.1:{port}")]);
        let any = format!("tcp:0.0.0.0:{port}");
        says(&daemon, &["--replace", "web", &any, "udp:127.0.0.1:0"]);
        assert_eq!(address(&daemon, "web/1").to_string(), format!("0.0.0.0:{port}"));
    }
}

#[test]
fn exec_warns_when_it_passes_a_part_of_a_group() {
    let (_folder, daemon) = serve(&[]);
    let tcp = "tcp:127.0.0.1:0";
    says(&daemon, &["web", tcp, tcp, tcp]);
    says(&daemon, &["one", tcp]);
    let null = fs::File::open("/dev/null").unwrap();
    daemon.client().store(&id("web/9"), Limit::never(), null, deadline()).unwrap();
    let exec = |arguments: &[&str]| {
        let mut command = suite::fdholder(["exec"]);
        command.args(arguments).arg(&daemon.path).args(["--", "sh", "-c", "echo $LISTEN_FDS"]);
        let output = command.output().unwrap();
        assert_exit(&output, 0);
        (stdout(&output), stderr(&output))
    };
    let (fds, said) = exec(&["--fd", "web/1", "--fd", "one"]);
    assert_eq!(fds, "2\n");
    let warning = "fdholder exec: warning: only a part of web/… is passed on: clients wait in \
                   web/2 and web/3\n";
    assert_eq!(said, warning);
    assert_eq!(exec(&["--fd-prefix", "web/"]).1, "");
    assert_eq!(exec(&["--fd", "one"]).1, "");
}
