//! What clients may do to the stream, and what comes of it.

use crate::serve;
use crate::support::{
    content_at, deadline, eventually, id, marked_file, open_fds, path_of, Daemon,
};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::REPLY_PAYLOAD_MAX;
use fdholder::transport::{self, Wait};
use fdholder::{reply, Cause, Entry, Errno, Limit, Request, Timestamp};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A client that sends what it likes.
pub struct Raw {
    pub stream: UnixStream,
    decoder: Decoder<OwnedFd>,
}

impl Raw {
    pub fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(&daemon.path).unwrap();
        Self { stream, decoder: Decoder::new(REPLY_PAYLOAD_MAX) }
    }

    pub fn send(&self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut fds = fds;
        while !bytes.is_empty() {
            let sent = transport::send(&self.stream, bytes, fds, Wait::Yes).unwrap();
            (bytes, fds) = (&bytes[sent..], &[]);
        }
    }

    pub fn send_message(&self, message: &Message<BorrowedFd<'_>>) {
        self.send(message.bytes(), message.fds());
    }

    /// The payload and descriptors of the next reply; `None` once the daemon hangs up.
    pub fn receive(&mut self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        while !self.decoder.has_frame() {
            let mut buffer = [0; 4096];
            match transport::receive(&self.stream, &mut buffer, Wait::Yes) {
                Ok(received) if received.len > 0 => {
                    let bytes = &buffer[..received.len];
                    self.decoder.push(bytes, received.fds, received.fds_lost);
                }
                Ok(_) | Err(Errno::CONNRESET) => return None,
                Err(errno) => panic!("{errno}"),
            }
        }
        let frame = self.decoder.next().unwrap().unwrap();
        Some((frame.payload.to_vec(), frame.fds))
    }
}

pub fn store_message<'a>(name: &str, fd: &'a impl AsFd) -> Message<BorrowedFd<'a>> {
    let entry = Entry { id: id(name), limit: Limit::never(), fd: fd.as_fd() };
    Request::Store(entry).into_message()
}

fn retrieve_message(name: &str, delete: bool) -> Message<BorrowedFd<'static>> {
    Request::Retrieve { id: id(name), delete }.into_message()
}

pub fn set_data<'a>(names: &[&str], fd: &'a impl AsFd) -> Message<BorrowedFd<'a>> {
    let entry = |name: &&str| Entry { id: id(name), limit: Limit::never(), fd: fd.as_fd() };
    Request::SetdumpData(names.iter().map(entry).collect()).into_message()
}

pub fn null() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let (folder, daemon) = serve(&[]);
    let (file, path) = marked_file(folder.path(), "file");
    let mut raw = Raw::connect(&daemon);
    let message = store_message("a", &file);
    for (index, byte) in message.bytes().iter().enumerate() {
        raw.send(&[*byte], if index == 0 { message.fds() } else { &[] });
        // The daemon has read this byte before the next is sent.
        daemon.client().list(deadline()).unwrap();
    }
    assert_eq!(raw.receive().unwrap().0, [0]);
    assert_eq!(content_at(&daemon.path)[&id("a")].0, path);
}

#[test]
fn a_hundred_requests_may_come_in_one_write() {
    let (_folder, daemon) = serve(&[]);
    let mut raw = Raw::connect(&daemon);
    let mut bytes = Vec::new();
    for number in 0..100 {
        bytes.extend_from_slice(retrieve_message(&number.to_string(), false).bytes());
        bytes.extend_from_slice(Request::<OwnedFd>::List.into_message().bytes());
    }
    raw.send(&bytes, &[]);
    for _ in 0..100 {
        assert_eq!(raw.receive().unwrap().0, [2], "ENOENT");
        assert_eq!(raw.receive().unwrap().0, [0; 5], "an empty list");
    }
}

/// One message ends in the same read that brings the next one's descriptors.
#[test]
fn descriptors_go_with_their_own_message() {
    let (folder, daemon) = serve(&[]);
    let files: Vec<_> =
        (0..50).map(|number| marked_file(folder.path(), &format!("{number}"))).collect();
    let mut raw = Raw::connect(&daemon);
    for (number, (file, _)) in files.iter().enumerate() {
        let message = store_message(&number.to_string(), file);
        let (head, tail) = message.bytes().split_at(3 + number % 20);
        raw.send(head, message.fds());
        raw.send(tail, &[]);
    }
    for _ in &files {
        assert_eq!(raw.receive().unwrap().0, [0]);
    }
    for (id, (path, _)) in content_at(&daemon.path) {
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), id.to_string());
    }
}

/// Retrieve x with delete, and store y, in one turn of the daemon: x is what comes.
#[test]
fn a_reply_owns_what_it_sends() {
    let (folder, daemon) = serve(&[]);
    let (x, x_path) = marked_file(folder.path(), "x");
    let (y, y_path) = marked_file(folder.path(), "y");
    for _ in 0..20 {
        let mut raw = Raw::connect(&daemon);
        raw.send_message(&store_message("x", &x));
        let retrieve = retrieve_message("x", true);
        raw.send(&retrieve.bytes().repeat(2), &[]);
        raw.send_message(&store_message("x", &y));
        raw.send_message(&retrieve_message("x", true));
        assert_eq!(raw.receive().unwrap().0, [0]);
        assert_eq!(path_of(&raw.receive().unwrap().1[0]), x_path);
        assert_eq!(raw.receive().unwrap().0, [2], "it is gone");
        assert_eq!(raw.receive().unwrap().0, [0]);
        assert_eq!(path_of(&raw.receive().unwrap().1[0]), y_path);
    }
}

/// A set that is not finished leaves no trace, however it ends.
#[test]
fn a_set_is_taken_whole_or_not_at_all() {
    let (folder, daemon) = serve(&["-n", "4"]);
    let (old, _) = marked_file(folder.path(), "old");
    let (new, new_path) = marked_file(folder.path(), "new");
    daemon.client().store(&id("a"), Limit::never(), &old, deadline()).unwrap();
    let before = content_at(&daemon.path);
    let open_before = daemon.open_fds();

    let begin = |count| {
        let mut raw = Raw::connect(&daemon);
        raw.send_message(&Request::Setdump(count).into_message());
        assert_eq!(raw.receive().unwrap().0[0], 0);
        raw
    };
    let part = |raw: &mut Raw, names: &[&str]| {
        raw.send_message(&set_data(names, &new));
        raw.receive().map(|(payload, _)| payload[0])
    };
    let eagain = Some(11);

    let mut dies = begin(3);
    assert_eq!(part(&mut dies, &["a", "b"]), eagain);
    drop(dies);
    let mut malformed = begin(3);
    assert_eq!(part(&mut malformed, &["a", "b"]), eagain);
    malformed.send(b"\0\0\0\x02\0\x01.x", &[new.as_fd()]);
    assert!(malformed.receive().is_none(), "it is hung up on");
    let mut too_many = begin(3);
    assert_eq!(part(&mut too_many, &["a", "b"]), eagain);
    assert_eq!(part(&mut too_many, &["c", "d"]), None);
    let mut distracted = begin(2);
    assert_eq!(part(&mut distracted, &["a"]), eagain);
    distracted.send_message(&Request::List.into_message());
    assert!(distracted.receive().is_none(), "nothing else may come in between");
    let mut unannounced = Raw::connect(&daemon);
    assert_eq!(part(&mut unannounced, &["a"]), None);
    let mut too_large = Raw::connect(&daemon);
    too_large.send_message(&Request::Setdump(5).into_message());
    assert_eq!(too_large.receive().unwrap().0, [23], "ENFILE");
    let mut full = begin(4);
    assert_eq!(part(&mut full, &["b", "c"]), eagain);
    assert_eq!(part(&mut full, &["d", "e"]), Some(23), "ENFILE");
    drop((too_large, full));

    assert_eq!(content_at(&daemon.path), before);
    eventually("what was given is closed", || daemon.open_fds() == open_before);

    let mut whole = begin(4);
    assert_eq!(part(&mut whole, &["a", "b"]), eagain);
    assert_eq!(content_at(&daemon.path), before, "not before the end");
    assert_eq!(part(&mut whole, &["c", "d"]), Some(0));
    let after = content_at(&daemon.path);
    assert!(after.len() == 4 && after.values().all(|(path, _)| *path == new_path));
    // The connection is as good as new.
    whole.send_message(&Request::List.into_message());
    assert_eq!(whole.receive().unwrap().0[..5], [0, 0, 0, 0, 4]);
}

/// Descriptors that no request claims are closed, and their sender is hung up on.
#[test]
fn descriptors_that_nobody_claims_are_closed() {
    let (_folder, daemon) = serve(&[]);
    daemon.client().store(&id("held"), Limit::never(), null(), deadline()).unwrap();
    let open_before = daemon.open_fds();
    let null = null();
    let one = [null.as_fd()];
    let store = store_message("x", &null);
    let mut store_with_two = store.bytes().to_vec();
    store_with_two[5] = 2;
    let cases: [(&[u8], usize); 7] = [
        (b"\0\0\0\x01\0\x01L", 1),
        (b"\0\0\0\x01\0\0L", 1),
        (b"\0\0\0\x01\0\xfeL", 1),
        (b"\x10\0\0\x01\0\x01S", 1),
        (b"\0\0\0\x01\0\x01Z", 1),
        (&store_with_two, 2),
        (&store_with_two, 1),
    ];
    for (bytes, count) in cases {
        let mut raw = Raw::connect(&daemon);
        raw.send(bytes, &one.repeat(count));
        // A reply that was due already may come; then it ends.
        while raw.receive().is_some() {}
    }
    // In the middle of a request, the client leaves.
    let raw = Raw::connect(&daemon);
    raw.send(&store.bytes()[..9], &one);
    drop(raw);
    // Refused: its identifier is taken.
    let mut raw = Raw::connect(&daemon);
    raw.send_message(&store_message("held", &null));
    assert_eq!(raw.receive().unwrap().0, [16], "EBUSY");
    drop(raw);
    eventually("they are closed", || daemon.open_fds() == open_before);
    assert_eq!(daemon.client().list(deadline()), Ok(vec![id("held")]));
}

/// A client that shuts down its side gets its replies all the same, also those that do
/// not fit into the socket yet.
#[test]
fn half_a_connection_is_enough() {
    let (_folder, daemon) = serve(&["-n", "2530"]);
    let null = null();
    let entry = |number: u32| Entry {
        id: id(&number.to_string()),
        limit: Limit::never(),
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..2530).map(entry).collect();
    daemon.client().setdump(&set, deadline()).unwrap();
    let mut raw = Raw::connect(&daemon);
    let dumps = 10;
    raw.send(&Request::<OwnedFd>::Getdump.into_message().bytes().repeat(dumps), &[]);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The daemon has seen the end of what it was sent.
    daemon.client().list(deadline()).unwrap();
    daemon.client().list(deadline()).unwrap();
    for _ in 0..dumps {
        assert_eq!(raw.receive().unwrap().0, reply::getdump_head::<OwnedFd>(2530).bytes()[6..]);
        for _ in 0..10 {
            assert_eq!(raw.receive().unwrap().1.len(), 253);
        }
    }
    assert!(raw.receive().is_none());
}

/// The flags of an open file description belong to everybody who has it.
#[test]
fn flags_stay_as_they_are() {
    let (_folder, daemon) = serve(&[]);
    let (blocking, _writer) = UnixStream::pair().unwrap();
    let (nonblocking, _writer) = UnixStream::pair().unwrap();
    nonblocking.set_nonblocking(true).unwrap();
    let flags = |fd: BorrowedFd<'_>| rustix::fs::fcntl_getfl(fd).unwrap();
    let before = [flags(blocking.as_fd()), flags(nonblocking.as_fd())];
    assert_ne!(before[0], before[1]);
    let mut client = daemon.client();
    client.store(&id("blocking"), Limit::never(), &blocking, deadline()).unwrap();
    client.store(&id("nonblocking"), Limit::never(), &nonblocking, deadline()).unwrap();
    client.retrieve(&id("blocking"), deadline()).unwrap();
    client.getdump(deadline()).unwrap();
    let retrieved = client.retrieve_maybe_delete(&id("nonblocking"), true, deadline()).unwrap();
    assert_eq!([flags(blocking.as_fd()), flags(nonblocking.as_fd())], before);
    assert_eq!(flags(retrieved.as_fd()), before[1]);
}

/// A descriptor is never handed out after its limit, not even while the loop is busy.
#[test]
fn expiry_does_not_wait_for_quiet() {
    let (_folder, daemon) = serve(&[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = daemon.client();
                while !done.load(Ordering::Relaxed) {
                    client.list(deadline()).unwrap();
                }
            });
        }
        let mut client = daemon.client();
        for round in 0..20 {
            let limit = Timestamp::now().saturating_add(Duration::from_millis(20));
            client.store(&id("brief"), Limit::at(limit), null(), deadline()).unwrap();
            let mut handed_out = 0;
            loop {
                let asked = Timestamp::now();
                match client.retrieve(&id("brief"), deadline()) {
                    Ok(_) => {
                        assert!(asked < limit, "round {round}: handed out after its limit");
                        handed_out += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.cause(), Cause::Denied(Errno::NOENT));
                        assert!(Timestamp::now() >= limit, "round {round}: gone too early");
                        break;
                    }
                }
            }
            assert!(round > 0 || handed_out > 0);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Expired descriptors are closed although nobody comes.
#[test]
fn expiry_needs_no_visitor() {
    let (_folder, daemon) = serve(&[]);
    let mut client = daemon.client();
    client.list(deadline()).unwrap();
    let before = open_fds(daemon.pid());
    for number in 0..10 {
        let limit = Limit::after(Duration::from_millis(10 * number));
        client.store(&id(&number.to_string()), limit, null(), deadline()).unwrap();
    }
    eventually("they are closed", || open_fds(daemon.pid()) == before);
    // And one that is far away does not wake it up for ever.
    client
        .store(&id("later"), Limit::after(Duration::from_secs(3600)), null(), deadline())
        .unwrap();
    assert_eq!(open_fds(daemon.pid()), before + 1);
}

/// A client that does not read its dumps keeps nobody waiting.
#[test]
fn a_client_that_does_not_read_disturbs_nobody() {
    let (_folder, daemon) = serve(&["-n", "3000"]);
    let null = null();
    let mut client = daemon.client();
    for number in 0..3000 {
        client.store(&id(&number.to_string()), Limit::never(), &null, deadline()).unwrap();
    }
    let mut lazy = Raw::connect(&daemon);
    lazy.stream.set_nonblocking(true).unwrap();
    // More requests than the daemon keeps replies for.
    let dumps = Request::<OwnedFd>::Getdump.into_message().bytes().repeat(60);
    lazy.send(&dumps, &[]);
    for _ in 0..100 {
        assert_eq!(client.list(deadline()).unwrap().len(), 3000);
    }
    // It reads at last, and all is there.
    lazy.stream.set_nonblocking(false).unwrap();
    for _ in 0..60 {
        let (head, _) = lazy.receive().unwrap();
        assert_eq!(head, reply::getdump_head::<OwnedFd>(3000).bytes()[6..]);
        let mut received = 0;
        while received < 3000 {
            received += lazy.receive().unwrap().1.len();
        }
        assert_eq!(received, 3000);
    }
}

/// A client that asks for lists and does not read them costs one list, not thirty.
#[test]
fn unread_lists_are_few() {
    let (_folder, daemon) = serve(&["-n", "1000"]);
    let null = null();
    let entry = |number: u32| Entry {
        id: id(&format!("{number:0255}")),
        limit: Limit::never(),
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..1000).map(entry).collect();
    daemon.client().setdump(&set, deadline()).unwrap();
    let resident_kb = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident_kb();
    let lazy: Vec<_> = (0..50)
        .map(|_| {
            let raw = Raw::connect(&daemon);
            raw.send(&Request::<OwnedFd>::List.into_message().bytes().repeat(30), &[]);
            raw
        })
        .collect();
    daemon.open_fds();
    // Each is owed 30 lists of 256 kB; two of them may wait, and what is being read.
    let grown = resident_kb() - before;
    assert!(grown < 50 * 3 * 256, "{grown} kB for 50 clients");
    drop(lazy);
}

/// Replies that are due come before a client is hung up on.
#[test]
fn what_was_asked_before_nonsense_is_answered() {
    let (_folder, daemon) = serve(&[]);
    let mut raw = Raw::connect(&daemon);
    let null = null();
    raw.send_message(&store_message("x", &null));
    assert_eq!(raw.receive().unwrap().0, [0]);
    let retrieve = retrieve_message("x", true);
    raw.send(&[retrieve.bytes(), b"\0\0\0\x01\0\0Z"].concat(), &[]);
    assert_eq!(raw.receive().unwrap().1.len(), 1);
    assert!(raw.receive().is_none());
}
