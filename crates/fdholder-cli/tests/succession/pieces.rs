//! No large piece of memory is to be had any more, as in a heap that small ones have cut up, while
//! thousands are held. Whatever is asked, the daemon lives, what it has acknowledged is there, and
//! afterwards everything works.

use crate::follower::RawFollower;
use crate::support::family::is_alive;
use crate::support::starving::{attack, give_pieces, withhold_pieces, ATTACKS};
use crate::support::{deadline, eventually, id, suite, Family};
use fdholder::extension::{Extension, OnConflict, VERSION};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::{DUMP_FDS_MAX, MESSAGE_FDS_MAX, PAYLOAD_MAX, RELEASE_FDS_MAX, RUNS_MAX};
use fdholder::transport::{self, Wait};
use fdholder::{Client, Entry, Errno, Identifier, Limit, Request, Timestamp};
use rustix::process::{getrlimit, setrlimit, Resource};
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

/// A list of all that is as long as pointers is larger than a piece, and grows by doubling.
const MANY: usize = 17_000;

const OPTIONS: [&str; 4] = ["-n", "18000", "-c", "400"];

/// As short as so many are: a list of the identifiers takes less than one of pointers.
fn short(number: usize) -> Identifier {
    let digit = |number: usize| u8::try_from(1 + number % 250).unwrap();
    Identifier::new([digit(number), digit(number / 250)]).unwrap()
}

fn long(number: usize) -> Identifier {
    id(&format!("{number:0>255}"))
}

/// Has it hold so many more in one step.
fn hold(
    family: &Family,
    ids: impl Iterator<Item = Identifier>,
    limit: Limit,
) -> BTreeSet<Identifier> {
    let null = File::open("/dev/null").unwrap();
    let entries: Vec<_> = ids.map(|id| Entry { id, limit, fd: &null }).collect();
    let held = family.client().setdump(&entries, deadline());
    held.unwrap_or_else(|error| panic!("{error}: {}", family.log()));
    entries.into_iter().map(|entry| entry.id).collect()
}

/// A connection on which each request is the test's.
struct Asker(UnixStream, Decoder<OwnedFd>);

impl Asker {
    fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream, Decoder::new(PAYLOAD_MAX))
    }

    fn ask(&mut self, request: Request<BorrowedFd<'_>>) -> Result<(), Errno> {
        self.send(&request.into_message());
        self.answer()
    }

    fn send(&self, message: &Message<BorrowedFd<'_>>) {
        let mut sent = 0;
        while sent < message.bytes().len() {
            let fds = if sent == 0 { message.fds() } else { &[] };
            sent += transport::send(&self.0, &message.bytes()[sent..], fds, Wait::Yes).unwrap();
        }
    }

    fn extend(&mut self, extension: Extension<BorrowedFd<'_>>) -> Result<(), Errno> {
        self.ask(Request::Extension(extension))
    }

    fn answer(&mut self) -> Result<(), Errno> {
        while !self.1.has_frame() {
            let mut buffer = [0; 4096];
            let received = transport::receive(&self.0, &mut buffer, Wait::Yes)?;
            assert_ne!(received.len, 0, "it has hung up");
            self.1.push(&buffer[..received.len], received.fds, received.fds_lost);
        }
        match self.1.next().unwrap().unwrap().payload[0] {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno.into())),
        }
    }

    /// Gives so many, which are to give way to what is held.
    fn give_in_vain(&mut self, count: usize) {
        let null = File::open("/dev/null").unwrap();
        let entry = || Entry { id: id("held"), limit: Limit::never(), fd: null.as_fd() };
        self.extend(Extension::OnConflict(OnConflict::Keep)).unwrap();
        self.ask(Request::Setdump(u32::try_from(count).unwrap())).unwrap();
        let mut left = count;
        while left > 0 {
            let part = left.min(MESSAGE_FDS_MAX);
            left -= part;
            let entries = std::iter::repeat_with(entry).take(part).collect();
            let expected = if left == 0 { Ok(()) } else { Err(Errno::AGAIN) };
            assert_eq!(self.ask(Request::SetdumpData(entries)), expected);
        }
    }
}

/// Whatever is held, a dump is taken in here.
fn may_open_many() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
}

fn list(path: &Path) -> Result<BTreeSet<Identifier>, fdholder::Error> {
    let listed = Client::connect(path, deadline())?.list(deadline())?;
    Ok(listed.into_iter().collect())
}

fn is_nomem<T>(answer: Result<T, fdholder::Error>) -> bool {
    answer.is_err_and(|error| error.errno() == Errno::NOMEM)
}

/// Has others held in the place of these, which takes no large piece.
fn change(
    path: &Path,
    id_of: fn(usize) -> Identifier,
    numbers: Range<usize>,
    held: &mut BTreeSet<Identifier>,
) {
    let null = File::open("/dev/null").unwrap();
    let mut client = Client::connect(path, deadline()).unwrap();
    for number in numbers {
        client.delete(&id_of(number), deadline()).unwrap();
        held.remove(&id_of(number));
        let new = id(&format!("new {number}"));
        client.store(&new, Limit::never(), &null, deadline()).unwrap();
        held.insert(new);
    }
}

fn ask_for_all(id_of: fn(usize) -> Identifier) {
    may_open_many();
    let mut family = Family::with(&OPTIONS);
    let (path, primary) = (family.path.clone(), family.primary());
    let mut held = hold(&family, (0..MANY).map(id_of), Limit::never());
    let mut looker = Asker::new(&path);
    looker.extend(Extension::Snapshot { entries: false }).unwrap();

    withhold_pieces([primary]);
    let connect = || Client::connect_negotiated(&path, deadline()).unwrap();
    assert!(is_nomem(list(&path)), "large pieces are withheld");
    assert!(is_nomem(connect().getdump(deadline())));
    assert!(is_nomem(connect().inspect(deadline())));
    assert!(is_nomem(connect().snapshot(true, deadline())));
    connect().status(deadline()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let set: Vec<_> = (0..900)
        .map(|number| Entry { id: id(&format!("set {number}")), limit: Limit::never(), fd: &null })
        .collect();
    assert!(is_nomem(connect().setdump(&set, deadline())));
    // Thousands at once: nothing of it, or all.
    let runs = std::iter::once(0..u32::try_from(RELEASE_FDS_MAX).unwrap()).collect();
    assert_eq!(looker.extend(Extension::Release { runs, only_ask: false }), Err(Errno::NOMEM));
    // More runs than any client has.
    looker.send(&Message::new(Vec::new(), |bytes| {
        bytes.extend_from_slice(b"+\x03\x01");
        let runs = (0..RUNS_MAX as u32 + 400).flat_map(|run| [2 * run, 1]);
        bytes.extend(runs.flat_map(u32::to_be_bytes));
    }));
    assert_eq!(looker.answer(), Err(Errno::INVAL));
    change(&path, id_of, 0..100, &mut held);
    for (what, sent) in ATTACKS {
        held.append(&mut attack(&path, &sent()));
        assert!(is_alive(primary), "{what}");
    }
    change(&path, id_of, 100..200, &mut held);
    assert!(connect().upgrade(deadline()).unwrap().is_err(), "the next program has no memory");

    give_pieces([primary]);
    let works = |path: &Path| list(path).is_ok_and(|listed| listed == held);
    eventually("all is there", || works(&path));
    assert!(connect().upgrade(deadline()).unwrap().is_ok(), "{}", family.log());
    eventually("all is there after an upgrade", || works(&path));
    family.serve(&OPTIONS);
    assert!(works(&path));
    assert_eq!(connect().getdump(deadline()).unwrap().len(), held.len());
}

#[test]
fn whatever_is_asked_with_short_identifiers_the_daemon_lives() {
    ask_for_all(short);
}

#[test]
fn whatever_is_asked_with_long_identifiers_the_daemon_lives() {
    ask_for_all(long);
}

/// It is told where each of thousands stood that gave way: if there is memory for that, also by the
/// next daemon.
#[test]
fn what_came_of_a_large_set_is_told_when_there_is_memory() {
    let mut family = Family::with(&OPTIONS);
    let (path, primary) = (family.path.clone(), family.primary());
    let held = hold(&family, [id("held")].into_iter(), Limit::never());
    let mut asker = Asker::new(&path);
    asker.give_in_vain(17_000);
    withhold_pieces([primary]);
    assert_eq!(asker.extend(Extension::Taken), Err(Errno::NOMEM));
    give_pieces([primary]);
    asker.extend(Extension::Taken).unwrap();
    family.serve(&OPTIONS);
    asker.extend(Extension::Taken).unwrap();
    assert_eq!(list(&path).unwrap(), held);
}

/// It does not read, while clients change more than may wait for it.
#[test]
fn follower_that_does_not_read_does_not_end_a_primary_without_memory() {
    let family = Family::with(&OPTIONS);
    let primary = family.primary();
    let held = hold(&family, (0..3000).map(long), Limit::never());
    // There are places for what comes beside them for a moment.
    hold(&family, (3000..4000).map(long), Limit::at(Timestamp::now()));
    let (_silent, _) = RawFollower::new(&family.path);
    withhold_pieces([primary]);
    // Each entry is held and replaces one, which are two changes. Answers wait until the follower is
    // given up, once there is too much for it.
    for part in 0..20 {
        let numbers = part % 10 * 250..(part % 10 + 1) * 250;
        hold(&family, numbers.map(long), Limit::never());
    }
    assert!(is_alive(primary), "{}", family.log());
    give_pieces([primary]);
    assert_eq!(list(&family.path).unwrap(), held);
}

/// A list of all that is held is made for each follower.
#[test]
fn follower_for_which_there_is_no_memory_is_refused() {
    let mut family = Family::with(&OPTIONS);
    let (path, primary) = (family.path.clone(), family.primary());
    let held = hold(&family, (0..MANY).map(short), Limit::never());
    withhold_pieces([primary]);
    let mut refused = Asker::new(&path);
    refused.extend(Extension::Hello(VERSION)).unwrap();
    let follow = Extension::Follow { capacity: DUMP_FDS_MAX };
    assert_eq!(refused.extend(follow), Err(Errno::BUSY));
    assert!(is_alive(primary), "{}", family.log());
    give_pieces([primary]);
    family.serve(&OPTIONS);
    assert_eq!(list(&path).unwrap(), held);
}

/// Each process of the pair lacks memory while thousands expire, are stored and deleted.
#[test]
fn standby_and_primary_live_without_memory() {
    let mut family = Family::with(&[&["--standby"], &OPTIONS[..]].concat());
    let path = family.path.clone();
    let (primary, standby) = family.pair();
    let mut held = hold(&family, (0..6000).map(short), Limit::never());
    // As soon as they may: all at once, while neither has large pieces.
    let soon = Timestamp::now().saturating_add(Duration::from_secs(2));
    hold(&family, (0..5000).map(long), Limit::at(soon));
    // It has taken all that in when it has carried out what came behind.
    change(&path, short, 0..1, &mut held);
    withhold_pieces([primary, standby]);
    change(&path, short, 1..500, &mut held);
    eventually("all of them expire", || {
        let mut client = Client::connect_negotiated(&path, deadline()).unwrap();
        client.status(deadline()).unwrap().counts["expired"] >= 5000
    });
    change(&path, short, 500..1000, &mut held);
    assert!(is_alive(primary) && is_alive(standby), "{}", family.log());
    give_pieces([primary, standby]);
    assert_eq!(list(&path).unwrap(), held);
    assert_eq!(family.pair(), (primary, standby));
    family.kill(primary);
    eventually("the standby serves all", || list(&path).is_ok_and(|listed| listed == held));
}

/// All that is asked of two daemons, of which one has no memory.
#[test]
fn transfers_do_not_end_a_daemon_without_memory() {
    may_open_many();
    let (one, other) = (Family::with(&OPTIONS), Family::with(&OPTIONS));
    let held = hold(&one, (0..MANY).map(short), Limit::never());
    let transfer = |options: &[&str], from: &Family, to: &Family| {
        let mut command = suite::fdholder(["transferdump"]);
        command.args(options).args([&from.path, &to.path]).output().unwrap().status.success()
    };
    let pids = [one.primary(), other.primary()];
    for pid in pids {
        withhold_pieces([pid]);
        assert!(!transfer(&[], &one, &other), "one of them has no memory");
        assert!(!transfer(&["--move"], &one, &other));
        give_pieces([pid]);
        assert!(list(&other.path).unwrap().is_empty());
    }
    assert!(transfer(&["--move"], &one, &other));
    assert_eq!(list(&other.path).unwrap(), held);
    for pid in pids {
        withhold_pieces([pid]);
        transfer(&["--on-conflict", "keep"], &other, &one);
        transfer(&["--move"], &other, &one);
        give_pieces([pid]);
    }
    let mut all = list(&one.path).unwrap();
    all.extend(list(&other.path).unwrap());
    assert_eq!(all, held, "each is with one of them");
}

/// What it keeps with systemd is told anew, as a list and as a whole.
#[test]
fn daemon_that_keeps_thousands_with_systemd_lives_without_memory() {
    let mut family = Family::new();
    let (path, folder) = (family.path.clone(), family.folder.path().to_owned());
    let address = folder.join("systemd");
    let systemd = UnixDatagram::bind(&address).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let read_all = |systemd: &UnixDatagram| {
        let mut buffer = [0; 512];
        while transport::receive(systemd, &mut buffer, Wait::No).is_ok() {}
    };
    let read_until = |is_it: &dyn Fn() -> bool| {
        eventually("systemd is told", || {
            read_all(&systemd);
            is_it()
        });
    };
    let mut command = suite::fdholder(["serve", "--fdstore", "-n", "4000"]);
    command.arg(&path).env("NOTIFY_SOCKET", &address).env("FDSTORE", "5000");
    let log = File::options().append(true).open(family.log_path()).unwrap();
    family.adopt(command.stderr(log).spawn().unwrap());
    read_until(&|| family.log().contains(": ready on "));
    let primary = family.primary();
    // Each is another file, as most are.
    let store = |numbers: Range<usize>| {
        let (path, folder) = (path.clone(), folder.clone());
        std::thread::spawn(move || {
            let mut client = Client::connect(&path, deadline()).unwrap();
            for number in numbers {
                let file = File::create(folder.join(number.to_string())).unwrap();
                client.store(&long(number), Limit::never(), &file, deadline()).unwrap();
            }
        })
    };
    let thread = store(0..3800);
    read_until(&|| thread.is_finished());
    thread.join().unwrap();
    withhold_pieces([primary]);
    // More than are described one by one.
    let thread = store(3800..3900);
    read_until(&|| thread.is_finished());
    thread.join().unwrap();
    // It does not read, is lost, and reads again.
    let thread = store(3900..3910);
    thread.join().unwrap();
    assert!(family.log().contains("systemd takes no descriptors"));
    read_all(&systemd);
    store(3910..3920).join().unwrap();
    assert!(is_alive(primary) && !family.log().contains("is told of everything"));
    give_pieces([primary]);
    read_until(&|| family.log().contains("is told of everything"));
    assert_eq!(list(&path).unwrap(), (0..3920).map(long).collect());
}
