//! What takes long to close, and comes in ways that others do not use.

use crate::notify::start;
use crate::serve;
use crate::support::daemon::serve_under;
use crate::support::{content_at, deadline, id, lingering, marked_file, open_fds, Daemon};
use crate::wire::{null, set_data, store_message, Raw};
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::{Entry, Errno, Identifier, Limit, Request};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const UNCLOSED: usize = 300;

/// Sends what is urgent, as far as that is known to a socket: the last byte. Whether it did.
fn send_urgently(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> bool {
    let mut space = [MaybeUninit::uninit(); 64];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::OOB) {
        Ok(sent) => sent == bytes.len(),
        // Linux 5.15 is the first to know it.
        Err(Errno::OPNOTSUPP) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn what_is_urgent_is_a_part_of_the_stream() {
    let (folder, daemon) = serve(&[]);
    let (file, path) = marked_file(folder.path(), "file");
    let mut raw = Raw::connect(&daemon);
    let message = store_message("x", &file);
    if !send_urgently(&raw.stream, &message.bytes()[..1], file.as_fd()) {
        return;
    }
    raw.send(&message.bytes()[1..], &[]);
    assert_eq!(raw.receive().unwrap().0, [0]);
    assert_eq!(content_at(&daemon.path)[&id("x")].0, path);
}

/// What the kernel leaves out it closes, while whoever reads waits.
#[test]
fn what_is_urgent_keeps_nobody_waiting() {
    let (_folder, daemon) = serve(&[]);
    let raw = Raw::connect(&daemon);
    let (ours, _theirs) = lingering();
    daemon.signal(Signal::STOP);
    let is_sent = send_urgently(&raw.stream, b"x", ours.as_fd());
    drop(ours);
    raw.send(&[0; 5], &[]);
    daemon.signal(Signal::CONT);
    if is_sent {
        daemon.client().list(deadline()).unwrap();
    }
}

/// Sockets that one user leaves unclosed, more than it may; who has the other ends.
fn unclosed(daemon: &Daemon) -> Vec<TcpStream> {
    let mut client = daemon.client();
    let ids: Vec<_> = (0..UNCLOSED).map(|number| id(&format!("lingers {number}"))).collect();
    let store = |id: &Identifier| {
        let (ours, theirs) = lingering();
        client.store(id, Limit::never(), &ours, deadline()).unwrap();
        theirs
    };
    let theirs = ids.iter().map(store).collect();
    // They give way, all at once.
    let null = null();
    let entry = |id: Identifier| Entry { id, limit: Limit::never(), fd: null.as_fd() };
    let set: Vec<_> = ids.into_iter().map(entry).collect();
    client.setdump(&set, deadline()).unwrap();
    theirs
}

/// Whether the daemon has answered by the time it has had time to.
fn is_answered(daemon: &Daemon, raw: &Raw) -> bool {
    let mut client = daemon.client();
    for _ in 0..10 {
        client.list(deadline()).unwrap();
    }
    let mut ready = [PollFd::new(&raw.stream, PollFlags::IN)];
    poll(&mut ready, Some(&Duration::ZERO.try_into().unwrap())).unwrap() > 0
}

/// Whoever has too much that is not closed yet brings no more, in whatever pieces it comes.
#[test]
fn who_leaves_much_unclosed_brings_no_more() {
    let (_folder, daemon) = serve(&[]);
    let null = null();
    let connect = || Raw::connect(&daemon);
    let (mut begun, mut amid, mut set) = (connect(), connect(), connect());
    // All of its descriptors have come.
    let begun_message = store_message("begun", &null);
    begun.send(&begun_message.bytes()[..9], &[null.as_fd()]);
    let amid_message = store_message("amid", &null);
    amid.send(&amid_message.bytes()[..1], &[]);
    set.send(Request::<OwnedFd>::Setdump(1).into_message().bytes(), &[]);
    assert_eq!(set.receive().unwrap().0.len(), 5);
    daemon.client().list(deadline()).unwrap();
    let theirs = unclosed(&daemon);
    let open = open_fds(daemon.pid());
    begun.send(&begun_message.bytes()[9..], &[]);
    assert_eq!(begun.receive().unwrap().0, [0]);
    amid.send(&amid_message.bytes()[1..], &[null.as_fd()]);
    set.send_message(&set_data(&["set"], &null));
    for raw in [&amid, &set] {
        assert!(!is_answered(&daemon, raw));
    }
    assert!(open_fds(daemon.pid()) <= open + 1);
    drop(theirs);
    for raw in [&mut amid, &mut set] {
        assert_eq!(raw.receive().unwrap().0, [0]);
    }
    assert_eq!(daemon.client().list(deadline()).unwrap().len(), UNCLOSED + 3);
}

/// What has no place the kernel would close, while whoever receives it waits.
#[test]
fn who_brings_much_in_parts_keeps_nobody_waiting() {
    let (_folder, daemon) = serve_under("ulimit -n 900", &["-c", "8", "-n", "200"]);
    let null = null();
    let clients: Vec<_> = (0..6).map(|_| Raw::connect(&daemon)).collect();
    for raw in &clients {
        raw.send(&[0], &[]);
    }
    // They have all been read.
    daemon.client().list(deadline()).unwrap();
    daemon.client().list(deadline()).unwrap();
    let send = |raw: &Raw| {
        let (ours, theirs) = lingering();
        let mut fds = vec![null.as_fd(); MESSAGE_FDS_MAX];
        fds[MESSAGE_FDS_MAX - 1] = ours.as_fd();
        // The rest of a header that announces so many, and more than a byte behind it.
        raw.send(&[0, 0, 100, 0, 253], &fds);
        theirs
    };
    let _theirs: Vec<_> = clients.iter().map(send).collect();
    for _ in 0..3 {
        daemon.client().list(deadline()).unwrap();
    }
}

/// What comes through a door, and has no place, the kernel would close.
#[test]
fn who_sends_much_to_a_door_keeps_nobody_waiting() {
    let (_folder, daemon) = serve_under("ulimit -n 900", &["-c", "8", "-n", "200"]);
    let door = start(&daemon.path, &[]);
    let null = null();
    daemon.signal(Signal::STOP);
    let send = |_| {
        let (ours, theirs) = lingering();
        let mut fds = vec![null.as_fd(); MESSAGE_FDS_MAX];
        fds[MESSAGE_FDS_MAX - 1] = ours.as_fd();
        door.send("STATUS=much", &fds);
        theirs
    };
    let _theirs: Vec<_> = (0..8).map(send).collect();
    daemon.signal(Signal::CONT);
    daemon.client().list(deadline()).unwrap();
}
