//! The source sends; and what a client may make it do.

use crate::support::proxy::{Misdeed, Proxy, Seems};
use crate::support::{assert_exit, deadline, eventually, id, open_fds, stderr, Daemon, Rules};
use crate::{fill, ids, pair, s6, transferdump, Test};
use fdholder::extension::Extension;
use fdholder::frame::{Decoder, Message};
use fdholder::transport::{self, Wait};
use fdholder::{extension, reply, Client, Errno, Request};
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

pub const TESTS: &[Test] = &[
    ("no_descriptor_enters_the_client", false, no_descriptor_enters_the_client),
    ("no_descriptor_enters_the_client_on_its_way_to_s6", true, || {
        let folder = tempfile::tempdir().unwrap();
        let to = s6(folder.path(), &["-n", "12000"]);
        through_a_narrow_client(&to);
    }),
    ("a_relay_needs_room_for_one_message", true, a_relay_needs_room_for_one_message),
    ("the_source_checks_the_right", false, the_source_checks_the_right),
    ("others_do_not_notice_a_delivery_that_waits", false, others_do_not_notice),
    ("a_client_that_leaves_calls_the_courier_off", false, a_client_that_leaves),
    ("too_many_deliveries_are_relayed", false, too_many_deliveries),
    ("what_is_no_stream_is_refused", false, what_is_no_stream_is_refused),
    ("a_message_that_fits_in_part_goes_on", false, a_message_that_fits_in_part),
    ("a_delivery_to_itself_harms_nobody", false, a_delivery_to_itself),
    ("positions_are_checked", false, positions_are_checked),
    ("a_snapshot_is_of_one_instant", false, a_snapshot_is_of_one_instant),
    ("a_snapshot_without_getdump_keeps_nothing", false, a_snapshot_without_getdump),
];

/// Runs it with so many descriptors at most.
fn transferdump_under(limit: u32, options: &[&str], from: &Path, to: &Path) -> Output {
    let script = format!("ulimit -n {limit}; exec \"$0\" transferdump \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fdholder")]).args(options).arg(from).arg(to);
    command.output().unwrap()
}

fn through_a_narrow_client(to: &Daemon) {
    let (_from_folder, from) = crate::serve(&["-n", "12000"]);
    fill(&from, 5000);
    // Standard streams, two connections, one more to spare.
    let output = transferdump_under(6, &[], &from.path, &to.path);
    assert_exit(&output, 0);
    assert_eq!(ids(to).len(), 5000);
    assert_eq!(ids(&from).len(), 5000);
}

fn no_descriptor_enters_the_client() {
    let (_folder, to) = crate::serve(&["-n", "12000"]);
    through_a_narrow_client(&to);
}

fn a_relay_needs_room_for_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let from = s6(folder.path(), &["-n", "19000"]);
    fill(&from, 19_000);
    let (_to_folder, to) = crate::serve(&["-n", "19000"]);
    assert_exit(&transferdump_under(300, &[], &from.path, &to.path), 0);
    assert_eq!(ids(&to).len(), 19_000);
}

fn the_source_checks_the_right() {
    let (folder, from) = {
        let folder = tempfile::tempdir().unwrap();
        let rules = Rules::none(folder.path().join("rules"))
            .allow("uid/self")
            .regexes("uid/self", ".", ".")
            .may("uid/self", &["LIST", "SETDUMP"]);
        let rules = rules.dir.to_str().unwrap().to_owned();
        let (path_folder, from) = crate::serve(&["-i", &rules]);
        ((folder, path_folder), from)
    };
    fill(&from, 3);
    let (_to_folder, to) = crate::serve(&[]);
    let output = transferdump(&[], &from.path, &to.path);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("unable to get dump: Operation not permitted"), "{output:?}");
    assert_eq!(ids(&to), []);
    drop(folder);
}

/// A client that asks for deliveries as it likes.
struct Hand {
    stream: UnixStream,
    decoder: Decoder<OwnedFd>,
}

impl Hand {
    fn of(holder: &Daemon) -> Self {
        let stream = UnixStream::connect(&holder.path).unwrap();
        Self { stream, decoder: Decoder::new(1 << 20) }
    }

    /// With a snapshot of everything.
    fn with_snapshot(holder: &Daemon) -> Self {
        let mut hand = Self::of(holder);
        hand.send(Extension::Snapshot { entries: false });
        assert!(hand.answer(|frame| extension::parse_snapshot(&frame, false)).is_ok());
        hand
    }

    fn send(&self, extension: Extension<BorrowedFd<'_>>) {
        let message: Message<BorrowedFd<'_>> = Request::Extension(extension).into_message();
        let sent = transport::send(&self.stream, message.bytes(), message.fds(), Wait::Yes);
        assert_eq!(sent, Ok(message.bytes().len()));
    }

    fn answer<T>(
        &mut self,
        read: impl FnOnce(
            fdholder::frame::Frame<'_, OwnedFd>,
        ) -> Result<reply::Answer<T>, fdholder::Malformed>,
    ) -> reply::Answer<T> {
        let mut buffer = [0; 4096];
        while !self.decoder.has_frame() {
            let received = transport::receive(&self.stream, &mut buffer, Wait::Yes).unwrap();
            assert_ne!(received.len, 0, "the holder has hung up");
            self.decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
        }
        read(self.decoder.next().unwrap().unwrap()).unwrap()
    }

    fn deliver(&mut self, to: impl AsFd, runs: Vec<std::ops::Range<u32>>) -> reply::Answer<u64> {
        self.send(Extension::Deliver { runs, to: to.as_fd() });
        self.answer(|frame| extension::parse_delivered(&frame))
    }
}

fn couriers(holder: &Daemon) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", holder.pid())).unwrap();
    // One may end while it is looked at.
    let names = tasks.flatten().filter_map(|task| std::fs::read(task.path().join("comm")).ok());
    names.filter(|name| name == b"courier\n").count()
}

/// A delivery that nobody takes.
fn stuck(holder: &Daemon) -> (Hand, UnixStream) {
    let hand = Hand::with_snapshot(holder);
    let (to, far) = UnixStream::pair().unwrap();
    let all = ids(holder).len() as u32;
    hand.send(Extension::Deliver { runs: vec![0..all], to: to.as_fd() });
    (hand, far)
}

fn others_do_not_notice() {
    let (_from_folder, from, to_folder, to) = pair(12_000);
    let misdeed = Misdeed::StopsReading;
    let proxy = Proxy::new(to_folder.path(), &to.path, Seems::Fdholder, misdeed, 1);
    let transfer = {
        let (from, to) = (from.path.clone(), proxy.path.clone());
        std::thread::spawn(move || transferdump(&[], &from, &to))
    };
    eventually("a courier waits", || couriers(&from) == 1);
    let mut other = from.client();
    let null = File::open("/dev/null").unwrap();
    other.store(&id("new"), fdholder::Limit::never(), &null, deadline()).unwrap();
    other.retrieve(&id("id5"), deadline()).unwrap();
    other.delete(&id("id5"), deadline()).unwrap();
    assert_eq!(other.list(deadline()).unwrap().len(), 12_000);
    assert!(!transfer.is_finished());
    drop(proxy);
    assert_exit(&transfer.join().unwrap(), 2);
    eventually("the courier ends", || couriers(&from) == 0);
}

fn a_client_that_leaves() {
    let (_folder, holder) = crate::serve(&["-n", "12000"]);
    fill(&holder, 12_000);
    let open = holder.open_fds();
    let (hand, far) = stuck(&holder);
    eventually("a courier waits", || couriers(&holder) == 1);
    drop(hand);
    eventually("it is called off", || couriers(&holder) == 0);
    // Although the destination is still there.
    assert_eq!(holder.open_fds(), open);
    // The same with requests waiting behind the delivery, for which nothing is read.
    let (hand, _far) = stuck(&holder);
    for _ in 0..3 {
        hand.send(Extension::Snapshot { entries: false });
    }
    eventually("a courier waits", || couriers(&holder) == 1);
    drop(hand);
    eventually("it is called off", || couriers(&holder) == 0);
    // One that says nothing more does not wait for an answer.
    let (hand, _far) = stuck(&holder);
    eventually("a courier waits", || couriers(&holder) == 1);
    hand.stream.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("it is called off", || couriers(&holder) == 0);
    drop(far);
}

fn too_many_deliveries() {
    let (_from_folder, from, _to_folder, to) = pair(12_000);
    let stuck: Vec<_> = (0..16).map(|_| stuck(&from)).collect();
    eventually("all couriers are under way", || couriers(&from) == 16);
    let output = transferdump(&["--json"], &from.path, &to.path);
    assert_exit(&output, 0);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["path"], "relay");
    drop(stuck);
    eventually("the couriers end", || couriers(&from) == 0);
    let (_other_folder, other) = crate::serve(&["-n", "12000"]);
    let output = transferdump(&["--json"], &from.path, &other.path);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["path"], "direct");
}

fn what_is_no_stream_is_refused() {
    let (folder, holder) = crate::serve(&["-n", "12000"]);
    fill(&holder, 600);
    let open = holder.open_fds();
    let mut hand = Hand::with_snapshot(&holder);
    let listener = UnixListener::bind(folder.path().join("listener")).unwrap();
    let (gone, far) = UnixStream::pair().unwrap();
    drop(far);
    let cases: [(OwnedFd, Errno); 6] = [
        (File::open("/dev/null").unwrap().into(), Errno::NOTSOCK),
        (File::open(folder.path()).unwrap().into(), Errno::NOTSOCK),
        (UdpSocket::bind("127.0.0.1:0").unwrap().into(), Errno::PROTOTYPE),
        (UnixDatagram::unbound().unwrap().into(), Errno::PROTOTYPE),
        (listener.into(), Errno::NOTCONN),
        (gone.into(), Errno::PIPE),
    ];
    for (to, errno) in &cases {
        for runs in [vec![0..3], vec![0..600]] {
            assert_eq!(hand.deliver(to, runs), Err(*errno));
        }
    }
    // All of that on one connection, which still works.
    let (near, _far) = UnixStream::pair().unwrap();
    assert!(hand.deliver(&near, vec![0..3, 7..8]).is_ok());
    drop((hand, cases));
    eventually("nothing is kept", || holder.open_fds() == open);
}

/// A single message goes at once, as far as there is room; a courier sends the rest.
fn a_message_that_fits_in_part() {
    let (_folder, holder) = crate::serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let entry = |number: u32| fdholder::Entry {
        id: id(&format!("{number:0>200}")),
        limit: fdholder::Limit::never(),
        fd: null.as_fd(),
    };
    holder.client().setdump(&(0..253).map(entry).collect::<Vec<_>>(), deadline()).unwrap();
    let (to, far) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&to, 1).unwrap();
    let hand = Hand::with_snapshot(&holder);
    hand.send(Extension::Deliver { runs: vec![0..253], to: to.as_fd() });
    eventually("a courier waits", || couriers(&holder) == 1);
    drop(to);
    let mut decoder: Decoder<OwnedFd> = Decoder::new(1 << 20);
    while !decoder.has_frame() {
        let mut buffer = [0; 1000];
        let received = transport::receive(&far, &mut buffer, Wait::Yes).unwrap();
        assert_ne!(received.len, 0);
        decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
    }
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!((frame.fds.len(), frame.payload.len()), (253, 1 + 253 * (12 + 1 + 200 + 1)));
    assert!(!decoder.is_mid_frame());
}

/// The other end of its own connection: nobody ever reads that, and the holder does not
/// notice when the client goes, as it has that end itself.
fn a_delivery_to_itself() {
    let (_folder, holder) = crate::serve(&["-n", "12000", "-t", "200"]);
    fill(&holder, 12_000);
    let open = holder.open_fds();
    let hand = Hand::with_snapshot(&holder);
    let own = hand.stream.as_fd();
    hand.send(Extension::Deliver { runs: vec![0..12_000], to: own });
    drop(hand);
    // The daemon's limit on clients that stand still ends it.
    eventually("it is given up", || couriers(&holder) == 0 && holder.open_fds() == open);
    assert_eq!(ids(&holder).len(), 12_000);
}

fn positions_are_checked() {
    let (_folder, holder) = crate::serve(&[]);
    fill(&holder, 10);
    let (to, mut far) = UnixStream::pair().unwrap();
    let mut hand = Hand::of(&holder);
    // Without a snapshot there are none.
    assert_eq!(hand.deliver(&to, vec![0..1]), Err(Errno::INVAL));
    let mut hand = Hand::with_snapshot(&holder);
    for runs in [vec![0..11], vec![10..11], vec![5..6, 5..6], vec![5..6, 0..1], vec![0..3, 2..5]] {
        assert_eq!(hand.deliver(&to, runs.clone()), Err(Errno::INVAL), "{runs:?}");
        hand.send(Extension::Release { runs, only_ask: false });
        assert_eq!(hand.answer(|frame| extension::parse_released(&frame)), Err(Errno::INVAL));
    }
    far.set_nonblocking(true).unwrap();
    let nothing = std::io::Read::read(&mut far, &mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(ids(&holder).len(), 10);
    assert_eq!(hand.deliver(&to, vec![]), Ok(0));
}

fn a_snapshot_is_of_one_instant() {
    let (_folder, holder) = crate::serve(&[]);
    fill(&holder, 3);
    let mut hand = Hand::with_snapshot(&holder);
    let mut other = holder.client();
    other.delete(&id("id1"), deadline()).unwrap();
    let (to, far) = UnixStream::pair().unwrap();
    assert!(hand.deliver(&to, vec![0..3,]).is_ok());
    let received = transport::receive(&far, &mut [0; 4096], Wait::Yes).unwrap();
    assert_eq!(received.fds.len(), 3);
    // What is no longer held is not released again.
    hand.send(Extension::Release { runs: vec![0..3], only_ask: false });
    assert_eq!(hand.answer(|frame| extension::parse_released(&frame)), Ok(2));
    assert_eq!(ids(&holder), []);
}

/// Who may only list learns what is held, but keeps nothing open.
fn a_snapshot_without_getdump() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", ".", ".")
        .may("uid/self", &["LIST"]);
    let (_holder_folder, holder) = crate::serve(&["-i", rules.dir.to_str().unwrap()]);
    let mut client = Client::connect_negotiated(&holder.path, deadline()).unwrap();
    let null = File::open("/dev/null").unwrap();
    client.store(&id("x"), fdholder::Limit::never(), &null, deadline()).unwrap();
    let snapshot = client.snapshot(true, deadline()).unwrap();
    assert_eq!(snapshot.entries[0].id, id("x"));
    let open = open_fds(holder.pid());
    client.delete(&id("x"), deadline()).unwrap();
    assert_eq!(open_fds(holder.pid()), open - 1);
}
