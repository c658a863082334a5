//! What takes long to close, and comes in ways that others do not use.

use crate::serve;
use crate::support::{content_at, deadline, id, marked_file};
use crate::wire::{store_message, Raw};
use fdholder::Errno;
use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A socket whose close takes as long as somebody likes: who has the other end.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    set_socket_send_buffer_size(&ours, 1 << 16).unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 1 << 14]).is_ok() {}
    set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    (ours, theirs)
}

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
