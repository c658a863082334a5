//! A reader that cannot take two messages of a dump together gets them one by one.

use crate::support::{assert_exit, deadline};
use crate::{fill, ids, Daemon, Suite, Test};
use fdholder::frame::Decoder;
use fdholder::transport::{self, Wait};
use fdholder::Client;
use rustix::io::ioctl_fionread;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

pub const TESTS: &[Test] = &[
    ("a_message_waits_until_the_one_before_is_read", false, a_message_waits),
    ("a_daemon_that_waits_for_a_reader_sleeps", false, a_daemon_that_waits_sleeps),
    ("whoever_says_hello_gets_them_together", false, whoever_says_hello),
    ("what_is_asked_during_a_dump_is_read", false, what_is_asked_during_a_dump),
    ("s6_reads_our_dumps", true, s6_reads_our_dumps),
];

/// Has the daemon go round its loop, so that it has done what it was going to do.
fn go_round(holder: &Daemon) {
    holder.client().list(deadline()).unwrap();
    holder.client().list(deadline()).unwrap();
}

/// Reads as s6 does, piece by piece. At no time is there more to read than the rest of one
/// message.
fn a_message_waits() {
    let (_folder, holder) = crate::serve(&["-n", "6000"]);
    fill(&holder, 1000);
    let mut stream = UnixStream::connect(&holder.path).unwrap();
    stream.write_all(b"\0\0\0\x01\0\0?").unwrap();
    let mut decoder: Decoder<OwnedFd> = Decoder::new(1 << 20);
    let mut buffer = [0; 2048];
    let mut taken = 0;
    let mut heads = 1;
    while taken < 1000 {
        // With one message under way, and its descriptors taken, no other has been sent.
        if decoder.is_mid_frame() {
            go_round(&holder);
            let unread = ioctl_fionread(&stream).unwrap();
            assert!(unread < 253 * 20, "{unread} bytes wait: two messages");
        }
        let received = transport::receive(&stream, &mut buffer, Wait::Yes).unwrap();
        assert_ne!(received.len, 0);
        decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
        while let Some(frame) = decoder.next().unwrap() {
            taken += frame.fds.len();
            assert_eq!(frame.fds.is_empty(), heads == 1);
            heads = 0;
        }
    }
}

/// There is room in the socket all the time; that alone must not wake it.
fn a_daemon_that_waits_sleeps() {
    let (_folder, holder) = crate::serve(&["-n", "6000"]);
    fill(&holder, 1000);
    let mut stream = UnixStream::connect(&holder.path).unwrap();
    stream.write_all(b"\0\0\0\x01\0\0?").unwrap();
    go_round(&holder);
    crate::support::eventually("the daemon sleeps", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('S')
    });
}

fn whoever_says_hello() {
    let (_folder, holder) = crate::serve(&["-n", "6000"]);
    fill(&holder, 1000);
    let mut stream = UnixStream::connect(&holder.path).unwrap();
    stream.write_all(b"\0\0\0\x06\0\0+\0\0\0\0\x01\0\0\0\x01\0\0?").unwrap();
    // Though nothing is read: it may take the daemon several turns.
    crate::support::eventually("all four messages are there", || {
        ioctl_fionread(&stream).unwrap() > 1000 * 17
    });
    let mut client = Client::connect_negotiated(&holder.path, deadline()).unwrap();
    assert_eq!(client.getdump(deadline()).unwrap().len(), 1000);
}

/// A client that does not read its dump asks more than a socket holds: all of it is taken
/// in, up to the limit on replies that wait.
fn what_is_asked_during_a_dump() {
    let (_folder, holder) = crate::serve(&["-n", "6000"]);
    fill(&holder, 1000);
    let mut stream = UnixStream::connect(&holder.path).unwrap();
    stream.write_all(b"\0\0\0\x01\0\0?").unwrap();
    go_round(&holder);
    // What no holder knows, large: ten are read in several pieces.
    let large = [&60_000u32.to_be_bytes()[..], b"\0\0+\xff", &vec![0; 59_998]].concat();
    let asked = std::thread::spawn(move || {
        stream.write_all(&large.repeat(10)).unwrap();
        stream
    });
    crate::support::eventually("all is asked", || asked.is_finished());
    asked.join().unwrap();
}

/// s6's own client, reading from our daemon: without pacing one dump in two fails.
fn s6_reads_our_dumps() {
    let (_from_folder, from) = crate::serve(&["-n", "19000"]);
    fill(&from, 19_000);
    for _ in 0..20 {
        let (_to_folder, to) = crate::serve(&["-n", "19000"]);
        let mut command = Suite::S6V213.command("s6-fdholder-transferdump");
        let output = command.arg(&from.path).arg(&to.path).output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(ids(&to).len(), 19_000);
    }
}
