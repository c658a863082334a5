//! `bind` on what is held already: it tells the truth about it, and sets it right.

use crate::serve;
use crate::support::{assert_exit, deadline, id, stderr, suite, Daemon};
use fdholder::Errno;
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
use std::process::{Child, Output, Stdio};

pub fn bind(daemon: &Daemon, arguments: &[&str]) -> Output {
    suite::fdholder(["bind"]).arg(&daemon.path).args(arguments).output().unwrap()
}

/// What it says, if it succeeds.
pub fn says(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = bind(daemon, arguments);
    assert_exit(&output, 0);
    stderr(&output)
}

/// What it says, if it fails in one line.
pub fn refuses(daemon: &Daemon, code: i32, arguments: &[&str]) -> String {
    let output = bind(daemon, arguments);
    assert_exit(&output, code);
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    stderr(&output)
}

pub fn held(daemon: &Daemon, name: &str) -> OwnedFd {
    daemon.client().retrieve(&id(name), deadline()).unwrap()
}

pub fn inode(daemon: &Daemon, name: &str) -> u64 {
    fstat(held(daemon, name)).unwrap().st_ino
}

pub fn address(daemon: &Daemon, name: &str) -> SocketAddr {
    getsockname(held(daemon, name)).unwrap().try_into().unwrap()
}

pub fn ids(daemon: &Daemon) -> Vec<String> {
    let mut ids: Vec<_> =
        daemon.client().list(deadline()).unwrap().iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

pub fn delete(daemon: &Daemon, arguments: &[&str]) -> Output {
    suite::fdholder(["delete"]).arg(&daemon.path).args(arguments).output().unwrap()
}

/// Whether this user may see that no program has a socket.
pub fn sees_all_programs() -> bool {
    rustix::process::geteuid().is_root()
}

/// The port of a listener that nobody else has, for now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs `cat` with what is held open, until it is ended.
pub fn with_program(daemon: &Daemon, name: &str) -> Child {
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

pub fn end(mut child: Child) {
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
        if !sees_all_programs() {
            break;
        }
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
    let is_reset = said.contains("keepalive changed from on to off");
    assert_eq!(is_reset, sees_all_programs(), "{said}");
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
