//! `bind` on a socket whose address looks like the one that was asked for, and is another: of another
//! network namespace, interface, protocol or user.

use crate::rebind::{address, bind, free_port, inode, refuses, says};
use crate::serve;
use crate::support::{assert_exit, deadline, id, is_missing, listeners_of, stderr, stdout};
use fdholder::Limit;
use std::fs::remove_file;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

/// Clients here do not get to a socket of another namespace, whose address looks the same.
#[test]
fn socket_of_another_network_namespace_is_another_one() {
    let (folder, daemon) = serve(&[]);
    let port = free_port();
    let endpoint = format!("tcp:0.0.0.0:{port}");
    let there = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", env!("CARGO_BIN_EXE_fdholder"), "bind"]);
        command.arg(&daemon.path).args(arguments).output()
    };
    let output = match there(&["web", &endpoint]) {
        Ok(output) if !stderr(&output).contains("Operation not permitted") => output,
        _ => return is_missing("unshare, or the right to make a network namespace,"),
    };
    assert_exit(&output, 0);
    let said = refuses(&daemon, 1, &["web", &endpoint]);
    assert!(said.contains("in another network namespace: --replace"), "{said}");
    assert_eq!(says(&daemon, &["--replace", "web", &endpoint]), "");
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    // A path leads there from everywhere.
    let path = folder.path().join("unix");
    let unix = format!("unix:{}", path.display());
    assert_exit(&there(&["unix", &unix]).unwrap(), 0);
    assert_eq!(says(&daemon, &["unix", &unix]), "");
    let _client = UnixStream::connect(&path).unwrap();
    assert_eq!(says(&daemon, &["unix", &unix]), "");
    remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let said = says(&daemon, &["unix", &unix]);
    assert!(said.contains("its file leads to another socket"), "{said}");
}

/// One that has the same name later is another one, from which nothing comes here.
#[test]
fn socket_of_an_interface_that_was_removed_is_opened_anew() {
    let (_folder, daemon) = serve(&[]);
    let script = "ip link add v0 type veth peer name v1 || exit 77
        $0 bind --device v0 $1 tcp tcp:0.0.0.0:80; $0 bind --device v0 $1 udp udp:0.0.0.0:80
        ip link del v0; ip link add v0 type veth peer name v1
        for again in 1 2
        do $0 bind --device v0 $1 tcp tcp:0.0.0.0:80; $0 bind --device v0 $1 udp udp:0.0.0.0:80
        done";
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_fdholder")])
        .arg(&daemon.path)
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        _ => return is_missing("unshare, or the right to make a network interface,"),
    };
    let opened =
        |name| format!("fdholder bind: info: {name}: opened anew: its interface was removed\n");
    assert_eq!(stderr(&output), [opened("tcp"), opened("udp")].concat());
}

/// What a script says about `bind` in a network namespace of its own.
fn said_in_a_network(daemon: &crate::support::Daemon, script: &str) -> Option<String> {
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_fdholder")])
        .arg(&daemon.path)
        .output();
    match output {
        Ok(output) if output.status.success() => Some(stderr(&output)),
        _ => {
            is_missing("unshare, or the right to set up a network,");
            None
        }
    }
}

/// The address has the number of the interface that is gone.
#[test]
fn socket_of_an_address_whose_interface_was_made_anew_is_opened_anew() {
    let (_folder, daemon) = serve(&[]);
    let script = "make() { ip link add v0 type veth peer name v1 && ip link set v0 up \
            && ip address add fe80::77/64 dev v0 nodad || exit 77; }
        make; $0 bind $1 web 'tcp:[fe80::77%v0]:80'; ip link del v0; make
        for again in 1 2; do $0 bind $1 web 'tcp:[fe80::77%v0]:80' || exit; done";
    let Some(said) = said_in_a_network(&daemon, script) else { return };
    assert_eq!(said, "fdholder bind: info: web: opened anew: its interface was removed\n");
}

#[test]
fn fast_open_that_the_system_turns_on_stays() {
    let (_folder, daemon) = serve(&[]);
    let script = "ip link set lo up; echo 1027 > /proc/sys/net/ipv4/tcp_fastopen || exit 77
        for again in 1 2; do $0 bind $1 web tcp:127.0.0.1:80 || exit; done
        $0 bind --backlog 7 $1 web tcp:127.0.0.1:80 && $0 bind --backlog 7 $1 web tcp:127.0.0.1:80";
    let Some(said) = said_in_a_network(&daemon, script) else { return };
    assert!(said.ends_with(" to 7\n") && said.lines().count() == 1, "{said}");
}

/// Each try would bring a client to it; and to delete what is held would not help.
#[test]
fn who_lives_at_the_path_is_left_alone() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("unix");
    let endpoint = format!("unix:{}", path.display());
    says(&daemon, &["web", &endpoint]);
    remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    other.set_nonblocking(true).unwrap();
    for name in ["web", "new"] {
        let said = refuses(&daemon, 111, &[name, &endpoint]);
        assert!(said.contains("a daemon listens there"), "{said}");
        assert!(!said.contains("in the way"), "{said}");
        let clients = other.incoming().map_while(Result::ok).count();
        assert!(clients <= 1, "{clients}");
    }
}

/// A link-local address is one of each interface.
#[test]
fn address_of_another_interface_is_another_one() {
    let (_folder, daemon) = serve(&[]);
    let script = "ip link add v0 type veth peer name v1 || exit 77
        for link in v0 v1
        do ip link set $link up; ip address add fe80::1234/64 dev $link nodad || exit 77
        done
        $0 bind $1 web 'tcp:[fe80::1234%v0]:80' && $0 bind $1 web 'tcp:[fe80::1234%v0]:80' || exit
        $0 bind $1 web 'tcp:[fe80::1234%v1]:80'; echo $?
        $0 bind --replace $1 web 'tcp:[fe80::1234%v1]:80' || exit
        $0 bind $1 web 'tcp:[fe80::1234%v1]:80'; echo $?";
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_fdholder")])
        .arg(&daemon.path)
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        _ => return is_missing("unshare, or the right to make a network interface,"),
    };
    assert_eq!(stdout(&output), "1\n0\n", "{output:?}");
    assert!(stderr(&output).contains("held under it is TCP listener [fe80::1234%"), "{output:?}");
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
}

/// The kernel lets sockets of one user alone share an address.
#[test]
fn socket_that_another_user_opened_and_is_in_the_way_stays() {
    let (_folder, daemon) = serve(&[]);
    let port = free_port();
    let endpoint = format!("tcp:127.0.0.1:{port}");
    let listener = Command::new("setpriv")
        .args(["--reuid=4711", "--clear-groups", "--", "sh", "-c"])
        .arg(format!(
            "exec python3 -c 'import socket,sys,time; s=socket.create_server((\"127.0.0.1\", {port})); \
             print(flush=True); sys.stdin.read()'"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut listener) = listener else { return is_missing("setpriv") };
    if listener.stdout.as_mut().unwrap().read_exact(&mut [0]).is_err() {
        return is_missing("python3, or the right to become another user,");
    }
    // It is taken from there, as a service would store it.
    let pid = listener.id();
    let socket = listeners_of(pid).pop().unwrap();
    let never = Limit::never();
    daemon.client().store(&id("web"), never, &socket, deadline()).unwrap();
    drop(socket);
    // What is settled on the socket needs no other.
    let said = says(&daemon, &["web", &endpoint]);
    assert!(said.contains("backlog changed from "), "{said}");
    let before = inode(&daemon, "web");
    let said = refuses(&daemon, 111, &["--replace", "--device", "lo", "web", &endpoint]);
    assert!(said.contains("it is in the way, and was opened by uid 4711"), "{said}");
    assert_eq!(inode(&daemon, "web"), before);
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    drop(listener.stdin.take());
    listener.wait().unwrap();
}

/// Another protocol at the same address.
#[test]
fn mptcp_listener_is_told_from_a_tcp_one() {
    let (_folder, daemon) = serve(&[]);
    let output = bind(&daemon, &["web", "mptcp:127.0.0.1:0"]);
    if stderr(&output).contains("not supported") {
        return is_missing("MPTCP in this kernel");
    }
    assert_exit(&output, 0);
    let port = address(&daemon, "web").port();
    let said = refuses(&daemon, 1, &["web", &format!("tcp:127.0.0.1:{port}")]);
    assert!(said.contains("MPTCP listener"), "{said}");
    assert!(said.contains("with protocol mptcp, not tcp"), "{said}");
    assert_eq!(says(&daemon, &["web", &format!("mptcp:127.0.0.1:{port}")]), "");
    assert_eq!(says(&daemon, &["--replace", "web", &format!("tcp:127.0.0.1:{port}")]), "");
    assert_eq!(says(&daemon, &["web", &format!("tcp:127.0.0.1:{port}")]), "");
}
