//! `bind` and `delete` where they do not see everything: without /proc or netlink, from another
//! namespace, as another user, and with a holder whose program has another name.

use crate::rebind::{end, held, says, with_program};
use crate::serve;
use crate::support::installed::Installed;
use crate::support::{assert_exit, is_missing, stderr, Daemon};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::net::{shutdown, Shutdown};
use std::process::{Command, Output};

/// `bind` by a program that is put before it; `None` where that may not do its work.
fn bind_by(before: &[&str], daemon: &Daemon, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(env!("CARGO_BIN_EXE_fdholder"));
    let output = command.arg("bind").arg(&daemon.path).args(arguments).output().ok()?;
    (!stderr(&output).contains("unshare: ")).then_some(output)
}

const WITHOUT_PROC: [&str; 5] =
    ["unshare", "--mount", "sh", "-c", "umount --lazy /proc && exec \"$0\" \"$@\""];
const OTHER_PIDS: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

fn set_nonblocking(daemon: &Daemon, name: &str) {
    fcntl_setfl(held(daemon, name), OFlags::NONBLOCK).unwrap();
}

fn is_nonblocking(daemon: &Daemon, name: &str) -> bool {
    fcntl_getfl(held(daemon, name)).unwrap().contains(OFlags::NONBLOCK)
}

/// A server there may be lost without it.
#[test]
fn option_that_was_not_asked_for_stays_where_programs_cannot_be_seen() {
    let (_folder, daemon) = serve(&[]);
    let arguments = ["web", "tcp:127.0.0.1:0"];
    says(&daemon, &arguments);
    let program = with_program(&daemon, "web");
    set_nonblocking(&daemon, "web");
    for before in [&WITHOUT_PROC[..], &OTHER_PIDS] {
        let Some(output) = bind_by(before, &daemon, &arguments) else {
            return is_missing("unshare, or the right to make namespaces,");
        };
        assert_exit(&output, 0);
        let why = "nonblock stays on, which nobody asked for: unable to see whether a program";
        assert!(stderr(&output).contains(why), "{before:?}: {output:?}");
        assert!(is_nonblocking(&daemon, "web"), "{before:?}");
    }
    end(program);
    // What is asked for is done.
    let asked = [&arguments[..], &["--blocking"]].concat();
    assert_exit(&bind_by(&WITHOUT_PROC, &daemon, &asked).unwrap(), 0);
    assert!(!is_nonblocking(&daemon, "web"));
}

/// Whatever the file of its program is called, and whoever serves in its place by now.
#[test]
fn holder_of_another_name_is_not_taken_for_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let installed = Installed::in_folder(folder.path());
    let program = folder.path().join("holder-1.2");
    std::fs::rename(&installed.path, &program).unwrap();
    let path = folder.path().join("holder");
    let begin = || {
        let mut command = Command::new(&program);
        command.args(["serve", "-1", "-v0", "--standby"]).arg(&path);
        Daemon::spawn(command, &path)
    };
    let first = begin();
    let own = format!("unix:@fdholder-test-{}-named", std::process::id());
    for (name, endpoint) in [("web", "tcp:127.0.0.1:0"), ("name", &own)] {
        says(&first, &[name, endpoint]);
    }
    let taking_over = begin();
    for daemon in [&first, &taking_over] {
        set_nonblocking(daemon, "web");
        let said = says(daemon, &["web", "tcp:127.0.0.1:0"]);
        assert!(said.contains("nonblock changed from on to off"), "{said}");
        shutdown(held(daemon, "name"), Shutdown::Both).unwrap();
        let said = says(daemon, &["name", &own]);
        assert!(said.contains("opened anew: it was shut down"), "{said}");
    }
}
