//! Sockets, pipes and devices whose other end is closed: `--drop-hung-up`.

use crate::serve;
use crate::support::{deadline, eventually, id, Daemon};
use fdholder::Limit;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

fn store(holder: &Daemon, name: &str, fd: impl AsFd) {
    holder.client().store(&id(name), Limit::never(), fd, deadline()).unwrap();
}

fn held(holder: &Daemon) -> Vec<String> {
    let ids = holder.client().list(deadline()).unwrap();
    let mut ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

/// Has everything held that may hang up, and what never does; returns the other ends.
fn fill(holder: &Daemon) -> (TcpStream, UnixStream, std::io::PipeReader, std::io::PipeWriter) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unix, unix_other) = UnixStream::pair().unwrap();
    let (reader, written) = std::io::pipe().unwrap();
    let (read, writer) = std::io::pipe().unwrap();
    store(holder, "tcp", listener.accept().unwrap().0);
    store(holder, "unix", unix);
    store(holder, "reader", reader);
    store(holder, "writer", writer);
    store(holder, "listener", listener);
    store(holder, "file", File::open("/dev/null").unwrap());
    (tcp, unix_other, read, written)
}

const ALL: [&str; 6] = ["file", "listener", "reader", "tcp", "unix", "writer"];

#[test]
fn what_has_hung_up_is_let_go_of() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let (tcp, unix, read, written) = fill(&holder);
    assert_eq!(held(&holder), ALL);
    drop(unix);
    eventually("the Unix socket goes", || !held(&holder).contains(&"unix".to_owned()));
    drop(written);
    eventually("the pipe that nobody writes to goes", || {
        !held(&holder).contains(&"reader".to_owned())
    });
    drop(read);
    eventually("the pipe that nobody reads goes", || !held(&holder).contains(&"writer".to_owned()));
    // Half of a connection is still something.
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(held(&holder), ["file", "listener", "tcp"]);
    // With a reset it is over.
    rustix::net::sockopt::set_socket_linger(&tcp, Some(std::time::Duration::ZERO)).unwrap();
    drop(tcp);
    eventually("the connection goes", || held(&holder) == ["file", "listener"]);
    // What had hung up before it was stored goes at once; and so it does from a set.
    let (unix, _) = UnixStream::pair().unwrap();
    store(&holder, "late", unix);
    let (unix, _) = UnixStream::pair().unwrap();
    let entry = fdholder::Entry { id: id("set"), limit: Limit::never(), fd: unix };
    holder.client().setdump(&[entry], deadline()).unwrap();
    eventually("they go", || held(&holder) == ["file", "listener"]);
}

#[test]
fn by_default_it_is_held_on() {
    let (_folder, holder) = serve(&[]);
    let others = fill(&holder);
    drop(others);
    let (unix, _) = UnixStream::pair().unwrap();
    store(&holder, "late", unix);
    assert_eq!(held(&holder), ["file", "late", "listener", "reader", "tcp", "unix", "writer"]);
}

/// A terminal, and the name of the end that its user has.
pub fn terminal() -> (OwnedFd, PathBuf) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    (master, OsStr::from_bytes(name.to_bytes()).into())
}

pub fn open_terminal(name: &Path) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(name, flags, Mode::empty()).unwrap()
}

/// Everything before it that has hung up is released by then.
fn wait_for_a_terminal(holder: &Daemon) {
    let (master, name) = terminal();
    let user = open_terminal(&name);
    store(holder, "marker", master);
    // Otherwise it might be seen too late that there was one.
    rustix::io::write(&user, b"hello\n").unwrap();
    drop(user);
    eventually("the terminal goes", || !held(holder).contains(&"marker".to_owned()));
}

#[test]
fn terminal_whose_other_end_has_gone_is_released() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let (master, name) = terminal();
    let user = open_terminal(&name);
    store(&holder, "master", &master);
    store(&holder, "user", open_terminal(&name));
    wait_for_a_terminal(&holder);
    assert_eq!(held(&holder), ["master", "user"]);
    // The last but the holder's own.
    holder.client().delete(&id("user"), deadline()).unwrap();
    drop(user);
    eventually("the master goes", || held(&holder).is_empty());
    let user = open_terminal(&name);
    store(&holder, "user", &user);
    drop(master);
    eventually("the user's end goes", || held(&holder).is_empty());
}

/// It looks as if its user had gone.
#[test]
fn terminal_without_a_user_is_kept_until_one_has_been_there() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let (fresh, fresh_name) = terminal();
    let (opened, opened_name) = terminal();
    drop(open_terminal(&opened_name));
    store(&holder, "fresh", &fresh);
    store(&holder, "opened", &opened);
    wait_for_a_terminal(&holder);
    wait_for_a_terminal(&holder);
    assert_eq!(held(&holder), ["fresh", "opened"]);
    for name in [fresh_name, opened_name] {
        let user = open_terminal(&name);
        rustix::io::write(&user, b"hello\n").unwrap();
        drop(user);
    }
    eventually("both go", || held(&holder).is_empty());
}

/// Whatever says that it has hung up or failed goes, as with systemd; what never does stays.
#[test]
fn kernel_objects_go_when_they_hang_up_and_others_stay() {
    let (folder, holder) = serve(&["--drop-hung-up"]);
    let file = File::create(folder.path().join("file")).unwrap();
    store(&holder, "file", file);
    store(&holder, "folder", File::open(folder.path()).unwrap());
    store(&holder, "null", File::open("/dev/null").unwrap());
    let flags = rustix::event::epoll::CreateFlags::CLOEXEC;
    store(&holder, "epoll", rustix::event::epoll::create(flags).unwrap());
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    store(&holder, "eventfd", rustix::event::eventfd(0, flags).unwrap());
    let mut stay = vec!["epoll", "eventfd", "file", "folder", "null"];
    let has_hung_up = |fd: &OwnedFd| {
        let mut polled = [PollFd::new(fd, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
    };
    // Nothing is mounted by it, so it fails.
    let fuse = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    if let Some(fuse) = fuse.ok().filter(has_hung_up) {
        store(&holder, "fuse", fuse);
    }
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
    store(&holder, "pidfd", &pidfd);
    child.wait().unwrap();
    // Not in all kernels.
    if !has_hung_up(&pidfd) {
        stay.push("pidfd");
    }
    eventually("what has hung up goes", || held(&holder) == stay);
    wait_for_a_terminal(&holder);
    assert_eq!(held(&holder), stay);
}

/// The client's end of a connection, held by the holder at its other end, would be there for
/// ever.
#[test]
fn a_holder_does_not_hold_its_own_connections() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let open = holder.open_fds();
    for number in 0..20 {
        let itself = UnixStream::connect(&holder.path).unwrap();
        store(&holder, &number.to_string(), itself);
    }
    eventually("they go", || held(&holder).is_empty());
    eventually("their connections end", || holder.open_fds() == open);
}
