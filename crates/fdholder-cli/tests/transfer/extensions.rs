//! What fdholders say to each other, and never to anybody else.

use crate::support::proxy::{Misdeed, Proxy, Seems};
use crate::support::{assert_exit, deadline, id};
use crate::{fill, ids, pair, transferdump, Test};
use fdholder::frame::Message;
use fdholder::transport::{self, Wait};
use fdholder::{extension, Client, Limit};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

pub const TESTS: &[Test] = &[
    ("an_s6_never_sees_what_it_does_not_know", false, an_s6_never_sees),
    ("what_a_later_version_asks_is_answered", false, what_a_later_version_asks),
    ("a_later_version_is_understood", false, || other_version(Seems::Later)),
    ("a_holder_that_knows_no_extension_is_understood", false, || {
        other_version(Seems::KnowsNothing);
    }),
    ("a_client_says_nothing_unasked", false, a_client_says_nothing_unasked),
];

/// On a connection on which anything else is said, nothing is said that s6 hangs up on.
fn an_s6_never_sees() {
    for (as_source, options) in [
        (true, &["--move", "--verify", "--prefix", "id", "--on-conflict", "keep"][..]),
        (false, &["--move", "--verify", "--prefix", "id", "--on-conflict", "keep"]),
        (false, &["--dry-run"]),
        (true, &["--dry-run"]),
        (true, &[]),
        (false, &[]),
    ] {
        let (from_folder, from, _to_folder, to) = pair(300);
        let behind = if as_source { &from.path } else { &to.path };
        let proxy =
            Proxy::new(from_folder.path(), behind, Seems::S6, Misdeed::AnswersEarly, usize::MAX);
        let (source, destination) =
            if as_source { (&proxy.path, &to.path) } else { (&from.path, &proxy.path) };
        assert_exit(&transferdump(options, source, destination), 0);
        let asked = proxy.asked.lock().unwrap();
        assert!(asked.len() >= 2);
        for connection in asked.iter() {
            assert!(connection == b"+" || !connection.contains(&b'+'), "{asked:?}");
        }
    }
}

fn send(stream: &UnixStream, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let message = Message::new(fds.to_vec(), |bytes| bytes.extend_from_slice(payload));
    transport::send(stream, message.bytes(), message.fds(), Wait::Yes).unwrap();
}

fn answer(stream: &UnixStream) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let received = transport::receive(stream, &mut buffer, Wait::Yes).unwrap();
    buffer[..received.len].to_vec()
}

/// EOPNOTSUPP, and the connection goes on; in the middle of a set as well.
fn what_a_later_version_asks() {
    const EOPNOTSUPP: &[u8] = b"\0\0\0\x01\0\0\x5f";
    let (_folder, holder) = crate::serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let open = holder.open_fds();
    let stream = UnixStream::connect(&holder.path).unwrap();
    for fds in [&[][..], &[null.as_fd()], &[null.as_fd(); 253]] {
        send(&stream, b"+\xc8and more", fds);
        assert_eq!(answer(&stream), EOPNOTSUPP);
    }
    send(&stream, b"!\0\0\0\x02", &[]);
    assert_eq!(answer(&stream), b"\0\0\0\x05\0\0\0\0\0\0\x01");
    send(&stream, b"+\xc8", &[null.as_fd()]);
    assert_eq!(answer(&stream), EOPNOTSUPP);
    assert_eq!(holder.open_fds(), open + 1, "only the connection is open");
    // What is no extension is no request.
    send(&stream, b"+", &[]);
    assert_eq!(answer(&stream), b"");
}

fn other_version(seems: Seems) {
    let (from_folder, from, to_folder, to) = pair(600);
    let obeys = |folder, path| Proxy::new(folder, path, seems, Misdeed::AnswersEarly, usize::MAX);
    let before_from = obeys(from_folder.path(), &from.path);
    let before_to = obeys(to_folder.path(), &to.path);
    let output = transferdump(&["--json"], &before_from.path, &before_to.path);
    assert_exit(&output, 0);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let way = if seems == Seems::Later { "direct" } else { "relay" };
    assert_eq!((&report["path"], ids(&to).len()), (&way.into(), 600));
    let client = Client::connect_negotiated(&before_to.path, deadline()).unwrap();
    assert_eq!(client.version(), (seems == Seems::Later).then_some(extension::VERSION + 7));
}

/// A client that has not asked whether the holder is a fdholder is told nothing, and says
/// nothing; the ordinary operations never ask.
fn a_client_says_nothing_unasked() {
    let (folder, holder) = crate::serve(&[]);
    fill(&holder, 3);
    let proxy =
        Proxy::new(folder.path(), &holder.path, Seems::S6, Misdeed::AnswersEarly, usize::MAX);
    let mut client = Client::connect(&proxy.path, deadline()).unwrap();
    assert_eq!(client.snapshot(true, deadline()).unwrap_err().errno(), fdholder::Errno::OPNOTSUPP);
    let null = File::open("/dev/null").unwrap();
    client.store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    client.retrieve(&id("x"), deadline()).unwrap();
    client.delete(&id("x"), deadline()).unwrap();
    assert_eq!(client.list(deadline()).unwrap().len(), 3);
    assert_eq!(client.getdump(deadline()).unwrap().len(), 3);
    assert_eq!(*proxy.asked.lock().unwrap(), [b"SRDL?".to_vec()]);
}
