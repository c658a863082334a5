//! `bind` and `delete` where they do not see everything: without /proc or netlink, from another
//! namespace, as another user, and with a holder whose program has another name.

use crate::rebind::{delete, end, held, ids, says, sees_all_programs, with_program};
use crate::serve;
use crate::support::installed::Installed;
use crate::support::{assert_exit, eventually, is_missing, stderr, suite, Daemon};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::net::{shutdown, Shutdown};
use std::fs::remove_file;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};

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

const OTHER_NET: [&str; 2] = ["unshare", "--net"];
/// Where the kernel tells nothing of a socket's file.
const UNPRIVILEGED: [&str; 5] =
    ["unshare", "--net", "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];

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
            is_missing("unshare, or the right to make namespaces,");
            return end(program);
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

/// Whatever the file of its program is called, and the process that serves in its place by now.
#[test]
fn holder_of_another_name_is_not_taken_for_a_server() {
    if !sees_all_programs() {
        return eprintln!("left out: it takes root to see all programs");
    }
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

/// What lives there is not what is held, for every user.
#[test]
fn file_that_leads_to_another_living_socket_is_seen_from_another_network() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("socket");
    let clients = |listener: OwnedFd| {
        rustix::io::ioctl_fionbio(&listener, true).unwrap();
        let clients = UnixListener::from(listener).incoming().map_while(Result::ok).count();
        clients
    };
    for scheme in ["unix", "unix-seqpacket", "unix-dgram"] {
        let arguments = [scheme, &format!("{scheme}:{}", path.display())];
        says(&daemon, &arguments);
        let is_listener = scheme != "unix-dgram";
        let unsure = "unable to see whether its file still leads to it";
        for (before, made, said) in
            [(&OTHER_NET[..], 0, ""), (&UNPRIVILEGED, 1, if is_listener { "" } else { unsure })]
        {
            let Some(output) = bind_by(before, &daemon, &arguments) else {
                return is_missing("unshare, or the right to make namespaces,");
            };
            assert_exit(&output, 0);
            assert!(stderr(&output).contains(said), "{before:?}: {output:?}");
            assert_eq!(stderr(&output).is_empty(), said.is_empty(), "{before:?}: {output:?}");
            if is_listener {
                assert_eq!(clients(held(&daemon, scheme)), made, "{before:?}");
                rustix::io::ioctl_fionbio(held(&daemon, scheme), false).unwrap();
            }
        }
        remove_file(&path).unwrap();
        let other: (Option<UnixListener>, Option<OwnedFd>) = match scheme {
            "unix" => (Some(UnixListener::bind(&path).unwrap()), None),
            "unix-dgram" => (None, Some(UnixDatagram::bind(&path).unwrap().into())),
            _ => {
                let options = rustix::net::SocketFlags::CLOEXEC;
                let kind = rustix::net::SocketType::SEQPACKET;
                let family = rustix::net::AddressFamily::UNIX;
                let socket = rustix::net::socket_with(family, kind, options, None).unwrap();
                let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
                rustix::net::bind(&socket, &address).unwrap();
                rustix::net::listen(&socket, 9).unwrap();
                (None, Some(socket))
            }
        };
        for before in [&OTHER_NET[..], &UNPRIVILEGED] {
            let output = bind_by(before, &daemon, &arguments).unwrap();
            if is_listener || before == OTHER_NET {
                assert_exit(&output, 111);
                assert!(stderr(&output).contains("a daemon listens there"), "{output:?}");
            } else {
                assert!(stderr(&output).contains(unsure), "{output:?}");
            }
        }
        drop(other);
        remove_file(&path).unwrap();
        // A dead one is opened anew.
        drop(UnixListener::bind(&path).unwrap());
        let output = bind_by(&UNPRIVILEGED, &daemon, &arguments).unwrap();
        assert!(stderr(&output).contains("its file leads to another socket"), "{output:?}");
        assert_exit(&delete(&daemon, &[scheme]), 0);
        remove_file(&path).unwrap();
    }
}

#[test]
fn drain_waits_for_clients_whose_number_is_not_told() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("unix");
    let endpoint = format!("unix:{}", path.display());
    let delete_there = |patience: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", env!("CARGO_BIN_EXE_fdholder"), "delete", "--drain", patience]);
        command.arg(&daemon.path).arg("web").stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    says(&daemon, &["web", &endpoint]);
    let _client = UnixStream::connect(&path).unwrap();
    let output = delete_there("1").wait_with_output().unwrap();
    if stderr(&output).contains("unshare: ") {
        return is_missing("unshare, or the right to make a network namespace,");
    }
    let said = "at least 1 client waits in its queue, and no other program gets it";
    assert!(stderr(&output).contains(said), "{output:?}");
    remove_file(&path).unwrap();

    says(&daemon, &["web", &endpoint]);
    let _client = UnixStream::connect(&path).unwrap();
    let listener = held(&daemon, "web");
    let retrieved = || {
        let status = suite::fdholder(["status", "--json"]).arg(&daemon.path).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["counts"]["retrieve.ok"].as_u64().unwrap()
    };
    let before = retrieved();
    let draining = delete_there("60000");
    eventually("it looks at the queue", || retrieved() > before);
    assert_eq!(ids(&daemon), ["web"]);
    drop(rustix::net::accept(&listener).unwrap());
    let output = draining.wait_with_output().unwrap();
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "");
}
