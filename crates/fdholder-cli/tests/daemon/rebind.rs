//! `bind` on what is held already: it tells the truth about it, and sets it right.

use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, stderr, stdout, suite, Daemon, Rules, Suite,
};
use fdholder::{Errno, Limit};
use rustix::fs::{fcntl_getfl, fstat, OFlags};
use rustix::net::sockopt::{set_socket_keepalive, socket_keepalive};
use rustix::net::{getsockname, listen, shutdown, Shutdown};
use std::fs::{self, remove_file};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn bind(daemon: &Daemon, arguments: &[&str]) -> Output {
    suite::fdholder(["bind"]).arg(&daemon.path).args(arguments).output().unwrap()
}

/// What it says, if it succeeds.
fn says(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = bind(daemon, arguments);
    assert_exit(&output, 0);
    stderr(&output)
}

/// What it says, if it fails in one line.
fn refuses(daemon: &Daemon, code: i32, arguments: &[&str]) -> String {
    let output = bind(daemon, arguments);
    assert_exit(&output, code);
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    stderr(&output)
}

fn held(daemon: &Daemon, name: &str) -> OwnedFd {
    daemon.client().retrieve(&id(name), deadline()).unwrap()
}

fn inode(daemon: &Daemon, name: &str) -> u64 {
    fstat(held(daemon, name)).unwrap().st_ino
}

fn address(daemon: &Daemon, name: &str) -> SocketAddr {
    getsockname(held(daemon, name)).unwrap().try_into().unwrap()
}

fn ids(daemon: &Daemon) -> Vec<String> {
    let mut ids: Vec<_> =
        daemon.client().list(deadline()).unwrap().iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

fn delete(daemon: &Daemon, arguments: &[&str]) -> Output {
    suite::fdholder(["delete"]).arg(&daemon.path).args(arguments).output().unwrap()
}

/// The port of a listener that nobody else has, for now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs `cat` with what is held open, until it is ended.
fn with_program(daemon: &Daemon, name: &str) -> Child {
    let child = suite::fdholder(["exec", "--fd", name])
        .arg(&daemon.path)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    // It is that program, and no longer ours.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Every kind × everything after which no client gets to it: the next `bind` mends that, says
/// so, and has nothing to say afterwards.
#[test]
fn unreachable_socket_is_mended_by_the_next_bind() {
    let (folder, daemon) = serve(&[]);
    let at = |name: &str| folder.path().join(name);
    let own = format!("fdholder-test-{}", std::process::id());
    let kinds = [
        ("tcp", "tcp:127.0.0.1:0".to_owned(), "listens again"),
        ("tcp6", "tcp:[::1]:0".to_owned(), "listens again"),
        ("mptcp", "mptcp:127.0.0.1:0".to_owned(), "listens again"),
        ("udp", "udp:127.0.0.1:0".to_owned(), "opened anew: it was shut down"),
        ("unix", format!("unix:{}", at("unix").display()), "opened anew"),
        ("dgram", format!("unix-dgram:{}", at("dgram").display()), "opened anew"),
        ("seqpacket", format!("unix-seqpacket:{}", at("seqpacket").display()), "opened anew"),
        ("name", format!("unix:@{own}"), "opened anew: it was shut down"),
        ("name-dgram", format!("unix-dgram:@{own}-dgram"), "opened anew: it was shut down"),
        ("fifo", format!("fifo:{}", at("fifo").display()), "opened anew"),
    ];
    for (name, endpoint, mended) in &kinds {
        let output = bind(&daemon, &[name, endpoint]);
        if stderr(&output).contains("not supported") {
            continue; // MPTCP.
        }
        assert_exit(&output, 0);
        let endpoint = if endpoint.contains("p:") && endpoint.ends_with(":0") {
            format!("{}:{}", endpoint.strip_suffix(":0").unwrap(), address(&daemon, name).port())
        } else {
            endpoint.clone()
        };
        let again = [name, &*endpoint];
        assert_eq!(says(&daemon, &again), "", "{name}");
        // An error for what is not connected, and done nevertheless.
        if shutdown(held(&daemon, name), Shutdown::Both).err() != Some(Errno::NOTSOCK) {
            let said = says(&daemon, &again);
            assert!(said.contains(mended), "{name}, shut down: {said}");
            assert_eq!(says(&daemon, &again), "", "{name}");
        }
        if at(name).exists() {
            remove_file(at(name)).unwrap();
            let said = says(&daemon, &again);
            assert!(said.contains("opened anew: its file was removed"), "{name}: {said}");
            assert_eq!(says(&daemon, &again), "", "{name}");
            remove_file(at(name)).unwrap();
            // Nobody listens there any more.
            match *name {
                "dgram" => drop(UnixDatagram::bind(at(name)).unwrap()),
                "fifo" => {
                    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                    rustix::fs::mkfifoat(rustix::fs::CWD, at(name), mode).unwrap();
                }
                _ => drop(UnixListener::bind(at(name)).unwrap()),
            }
            let said = says(&daemon, &again);
            assert!(said.contains("opened anew: "), "{name}: {said}");
            assert_eq!(says(&daemon, &again), "", "{name}");
        }
    }
    TcpStream::connect(address(&daemon, "tcp")).unwrap();
    UnixStream::connect(at("unix")).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", at("dgram")).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address(&daemon, "udp")).unwrap();
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    left.retain(|entry| entry.file_name().to_string_lossy().contains("replaced"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn live_socket_at_the_path_is_never_replaced() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("socket");
    for scheme in ["unix", "unix-dgram", "unix-seqpacket"] {
        let endpoint = format!("{scheme}:{}", path.display());
        says(&daemon, &[scheme, &endpoint]);
        let before = inode(&daemon, scheme);
        remove_file(&path).unwrap();
        let other: (Option<UnixListener>, Option<UnixDatagram>) = match scheme {
            "unix-dgram" => (None, Some(UnixDatagram::bind(&path).unwrap())),
            _ => (Some(UnixListener::bind(&path).unwrap()), None),
        };
        let file = fs::metadata(&path).unwrap().ino();
        for more in [&[][..], &["--replace"]] {
            let said = refuses(&daemon, 111, &[&[scheme, &endpoint], more].concat());
            // A socket of another type cannot be asked who listens.
            assert!(said.contains("listens"), "{said}");
            assert!(said.contains(&format!("{scheme} stays")), "{said}");
            assert_eq!(fs::metadata(&path).unwrap().ino(), file);
            assert_eq!(inode(&daemon, scheme), before);
        }
        drop(other);
        remove_file(&path).unwrap();
        assert_exit(&delete(&daemon, &[scheme]), 0);
    }
    // What is there and no socket stays as well.
    let endpoint = format!("unix:{}", path.display());
    says(&daemon, &["web", &endpoint]);
    remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(refuses(&daemon, 111, &["web", &endpoint]).contains("no socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// Those that are held, those that a server has shortened, and those that the kernel limits.
#[test]
fn queue_gets_the_length_that_was_asked_for() {
    let (folder, daemon) = serve(&[]);
    let unix = format!("unix:{}", folder.path().join("unix").display());
    for (name, endpoint) in [("tcp", "tcp:127.0.0.1:0"), ("unix", &unix)] {
        says(&daemon, &[name, endpoint]);
        listen(held(&daemon, name), 5).unwrap();
        let said = says(&daemon, &[name, endpoint]);
        assert!(said.contains(&format!("info: {name}: backlog changed from 5 to ")), "{said}");
        assert_eq!(says(&daemon, &[name, endpoint]), "");
        let said = says(&daemon, &["--backlog", "7", name, endpoint]);
        assert!(said.ends_with(" to 7\n"), "{said}");
        assert_eq!(says(&daemon, &["--backlog", "7", name, endpoint]), "");
        let said = says(&daemon, &["--backlog", "1000000000", name, endpoint]);
        assert!(said.contains("net.core.somaxconn allows no more"), "{said}");
    }
    let said = says(&daemon, &["--backlog", "1000000000", "new", "tcp:127.0.0.1:0"]);
    assert!(said.contains("net.core.somaxconn allows no more"), "{said}");
}

#[test]
fn changed_option_is_set_or_refused_by_its_name() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("unix");
    let unix = format!("unix:{}", path.display());
    says(&daemon, &["web", "tcp:0.0.0.0:0", "--device", "lo"]);
    let tcp = format!("tcp:0.0.0.0:{}", address(&daemon, "web").port());
    let first = inode(&daemon, "web");
    let said = refuses(&daemon, 1, &["web", &tcp]);
    assert!(said.contains(" with device lo, not none: --replace replaces it"), "{said}");
    assert_eq!(inode(&daemon, "web"), first);
    assert_eq!(says(&daemon, &["--replace", "web", &tcp]), "");
    assert_ne!(inode(&daemon, "web"), first);
    // From now on it is so.
    assert_eq!(says(&daemon, &["web", &tcp]), "");
    let first = inode(&daemon, "web");
    for (option, value, there, back) in [
        ("--nonblock", None, "nonblock changed from off to on", "nonblock changed from on to off"),
        ("--keepalive", None, "keepalive changed from off", "keepalive changed from on to off"),
        ("--fastopen", Some("9"), "fastopen changed from 0 to 9", "fastopen changed from 9 to 0"),
        ("--tos", Some("low-delay"), "tos changed from 0 to 16", "tos changed from 16 to 0"),
        (
            "--send-buffer",
            Some("64K"),
            "send-buffer changed from",
            "send-buffer changed from 65536",
        ),
    ] {
        let arguments: Vec<_> = ["web", &tcp, option].into_iter().chain(value).collect();
        let said = says(&daemon, &arguments);
        assert!(said.contains(there), "{said}");
        assert_eq!(says(&daemon, &arguments), "");
        let said = says(&daemon, &["web", &tcp]);
        assert!(said.contains(back), "{said}");
    }
    assert_eq!(inode(&daemon, "web"), first);

    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    says(&daemon, &["unix", &unix, "--mode", "0600"]);
    // Nobody has asked for another one.
    assert_eq!(says(&daemon, &["unix", &unix]), "");
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    let said = says(&daemon, &["unix", &unix, "--mode", "0640"]);
    assert!(said.contains("mode changed from 0777 to 0640"), "{said}");
    assert_eq!(mode(), 0o640);
}

/// Both may have been set by hand.
#[test]
fn mode_and_owner_stay_when_a_socket_is_opened_anew() {
    let (folder, daemon) = serve(&[]);
    for scheme in ["unix", "unix-dgram", "unix-seqpacket"] {
        let path = folder.path().join(scheme);
        let arguments = [scheme, &format!("{scheme}:{}", path.display())];
        says(&daemon, &[&arguments[..], &["--mode", "0600"]].concat());
        let is_given = std::os::unix::fs::chown(&path, Some(4711), Some(4712)).is_ok();
        shutdown(held(&daemon, scheme), Shutdown::Both).unwrap_or_default();
        assert!(says(&daemon, &arguments).contains("opened anew: it was shut down"));
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{scheme}");
        assert!(!is_given || (file.uid(), file.gid()) == (4711, 4712), "{scheme}");
    }
}

/// A server that runs may have set it, and would be lost without it.
#[test]
fn option_that_was_not_asked_for_stays_while_a_program_has_the_socket() {
    let (_folder, daemon) = serve(&[]);
    let arguments = ["web", "tcp:127.0.0.1:0"];
    says(&daemon, &[&arguments[..], &["--nonblock"]].concat());
    set_socket_keepalive(held(&daemon, "web"), true).unwrap();
    let program = with_program(&daemon, "web");
    let said = says(&daemon, &arguments);
    let who = format!("pid {} (cat) has it open", program.id());
    for name in ["nonblock", "keepalive"] {
        assert!(
            said.contains(&format!("{name} stays on, which nobody asked for: {who}")),
            "{said}"
        );
    }
    let is_nonblocking = || fcntl_getfl(held(&daemon, "web")).unwrap().contains(OFlags::NONBLOCK);
    assert!(is_nonblocking() && socket_keepalive(held(&daemon, "web")).unwrap());
    // What is asked for is done.
    says(&daemon, &[&arguments[..], &["--blocking"]].concat());
    assert!(!is_nonblocking());
    end(program);
    let said = says(&daemon, &arguments);
    assert!(said.contains("keepalive changed from on to off"), "{said}");
}

#[test]
fn replacement_says_who_has_the_one_before_and_who_waits_in_it() {
    let (_folder, daemon) = serve(&[]);
    says(&daemon, &["web", "tcp:127.0.0.1:0", "--device", "lo"]);
    let program = with_program(&daemon, "web");
    let endpoint = format!("tcp:{}", address(&daemon, "web"));
    let _client = TcpStream::connect(address(&daemon, "web")).unwrap();
    let said = says(&daemon, &["--replace", "web", &endpoint]);
    assert!(said.contains("the one before: 1 client waits in its queue"), "{said}");
    let who = format!("the one before: pid {} (cat) still has it open: restart it", program.id());
    assert!(said.contains(&who), "{said}");
    end(program);
}

/// The kernel frees it when the last copy is closed.
#[test]
fn abstract_name_that_a_program_still_has_is_not_given_up_for_nothing() {
    let (_folder, daemon) = serve(&[]);
    let endpoint = format!("unix:@fdholder-test-{}-used", std::process::id());
    says(&daemon, &["web", &endpoint]);
    let program = with_program(&daemon, "web");
    shutdown(held(&daemon, "web"), Shutdown::Both).unwrap();
    let before = inode(&daemon, "web");
    let said = refuses(&daemon, 111, &["web", &endpoint]);
    let who = format!("it was shut down, and pid {} (cat) has its name: stop it", program.id());
    assert!(said.contains(&who), "{said}");
    assert_eq!(inode(&daemon, "web"), before);
    end(program);
    assert!(says(&daemon, &["web", &endpoint]).contains("opened anew: it was shut down"));
    assert_eq!(says(&daemon, &["web", &endpoint]), "");
}

/// Each of them finds it so, and one of them is faster.
#[test]
fn several_that_mend_the_same_at_once_agree() {
    let (folder, daemon) = serve(&[]);
    let path = folder.path().join("web");
    let own = format!("unix:@fdholder-test-{}-race", std::process::id());
    let udp = format!("udp:127.0.0.1:{}", free_port());
    for (name, endpoint) in
        [("web", format!("unix:{}", path.display())), ("name", own), ("udp", udp)]
    {
        says(&daemon, &[name, &endpoint]);
        let _ = shutdown(held(&daemon, name), Shutdown::Both);
        let started: Vec<_> = (0..6)
            .map(|_| {
                let mut command = suite::fdholder(["bind"]);
                command.arg(&daemon.path).args([name, &endpoint]).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        for one in started {
            assert_exit(&one.wait_with_output().unwrap(), 0);
        }
        assert_eq!(says(&daemon, &[name, &endpoint]), "");
    }
    UnixStream::connect(path).unwrap();
}

#[test]
fn address_that_this_holder_has_is_said_with_its_identifier() {
    let (folder, daemon) = serve(&[]);
    let port = free_port();
    let unix = format!("unix:{}", folder.path().join("unix").display());
    let own = format!("unix:@fdholder-test-{}-has", std::process::id());
    let (tcp, any) = (format!("tcp:127.0.0.1:{port}"), format!("tcp:0.0.0.0:{port}"));
    let (udp, both) = (format!("udp:127.0.0.1:{port}"), format!("udp:[::]:{port}"));
    for (name, endpoint, wanted) in [
        ("tcp", &tcp, &tcp),
        ("tcp", &tcp, &any),
        ("tcp", &tcp, &format!("mptcp:127.0.0.1:{port}")),
        ("udp", &udp, &both),
        ("unix", &unix, &unix),
        ("unix", &unix, &unix.replace("unix:", "unix-dgram:")),
        ("name", &own, &own),
    ] {
        says(&daemon, &[name, endpoint]);
        let said = refuses(&daemon, 111, &["other", wanted]);
        if !said.contains("not supported") {
            let has = format!("Address already in use: this holder has it, held under {name}");
            assert!(said.contains(&has), "{wanted}: {said}");
        }
    }
    assert_eq!(ids(&daemon), ["name", "tcp", "udp", "unix"]);
}

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

/// The same file by another path, and one that was renamed.
#[test]
fn socket_is_known_by_every_path_that_leads_to_it() {
    let (folder, daemon) = serve(&[]);
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("run")).unwrap();
    std::os::unix::fs::symlink(at("run"), at("var")).unwrap();
    for scheme in ["unix", "unix-dgram", "unix-seqpacket"] {
        let endpoint = |path: &str| format!("{scheme}:{}", at(path).display());
        says(&daemon, &[scheme, &endpoint("run/web")]);
        assert_eq!(says(&daemon, &[scheme, &endpoint("var/web")]), "");
        fs::rename(at("run/web"), at("renamed")).unwrap();
        assert_eq!(says(&daemon, &[scheme, &endpoint("renamed")]), "");
        remove_file(at("renamed")).unwrap();
        let said = refuses(&daemon, 1, &[scheme, &endpoint("renamed")]);
        assert!(said.contains("held under it is Unix"), "{said}");
    }
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
    let socket = crate::support::listeners_of(pid).pop().unwrap();
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

#[test]
fn unknown_option_is_refused_with_a_suggestion() {
    for (option, meant) in [
        ("--kepalive", "--keepalive"),
        ("--defer_accept", "--defer-accept"),
        ("--baklog", "--backlog"),
    ] {
        let output = suite::fdholder(["bind", option, "/nowhere", "x", "tcp:[::1]:1"]).output();
        let output = output.unwrap();
        assert_exit(&output, 100);
        assert!(stderr(&output).contains(&format!("'{meant}'")), "{output:?}");
    }
    let output = suite::fdholder(["bind", "/nowhere", "x", "tcp:[::1]:1", "--ipv6only"]).output();
    assert!(stderr(&output.unwrap()).contains("ipv6only is for [::], not for tcp:[::1]:1"));
}

/// Where the path is too long to be looked at, or the like, `bind` fails and nothing is lost.
#[test]
fn bind_at_a_path_that_is_gone_fails_and_keeps_what_is_held() {
    let (folder, daemon) = serve(&[]);
    let place = folder.path().join("place");
    fs::create_dir(&place).unwrap();
    let endpoint = format!("unix:{}", place.join("web").display());
    says(&daemon, &["web", &endpoint]);
    let before = inode(&daemon, "web");
    fs::remove_dir_all(&place).unwrap();
    let said = refuses(&daemon, 111, &["web", &endpoint]);
    assert!(said.contains("web stays"), "{said}");
    assert_eq!(inode(&daemon, "web"), before);
    assert!(!Path::new(&place).exists());
}
