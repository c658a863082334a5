//! The store of a systemd that is a model, behind a real socket, with real descriptors; and
//! everything killed at any message.

use super::shelf::Shelf;
use super::*;
use crate::closing::ClientFd;
use crate::replication::roll::Roll;
use crate::replication::{Mirrors, Ticket};
use crate::same_file::are_one;
use crate::store::Store;
use crate::Change;
use fdholder::extension::OnConflict;
use fdholder::transport::{receive, Wait};
use fdholder::{Entry, Identifier, Limit, Tenure, Timestamp};
use proptest::prelude::*;
use rustix::fs::{fstat, memfd_create, MemfdFlags};
use rustix::io::{fcntl_dupfd_cloexec, pread, pwrite};
use std::collections::BTreeMap;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Arc;

const CAPACITY: usize = 40;

/// What systemd does with messages, as tried with versions 252 and 257.
struct Systemd {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl Systemd {
    /// Takes in up to so many messages.
    fn read(&mut self, count: usize) {
        for _ in 0..count {
            let mut buffer = [0; 512];
            let Ok(received) = receive(&self.socket, &mut buffer, Wait::No) else { return };
            let text = std::str::from_utf8(&buffer[..received.len]).unwrap();
            let value = |key| text.lines().find_map(|line| line.strip_prefix(key));
            let name = value("FDNAME=").unwrap();
            if value("FDSTOREREMOVE=").is_some() {
                self.kept.retain(|(kept, _)| kept != name);
            } else {
                assert_eq!((value("FDSTORE="), value("FDPOLL=")), (Some("1"), Some("0")));
                let fd = received.fds.into_iter().next().unwrap();
                if !self.kept.iter().any(|(_, kept)| are_one(kept, &fd).unwrap()) {
                    self.kept.push((name.to_owned(), fd));
                }
            }
        }
    }

    /// What it gives to the next start: copies, in an order that means nothing.
    fn give(&self) -> Vec<(String, OwnedFd)> {
        let copy =
            |(name, fd): &(String, OwnedFd)| (name.clone(), fcntl_dupfd_cloexec(fd, 0).unwrap());
        self.kept.iter().rev().map(copy).collect()
    }
}

/// The daemon, as far as it is of interest here.
struct Daemon {
    store: Store<ClientFd>,
    mirrors: Mirrors<ClientFd>,
    shelf: Shelf,
}

impl Daemon {
    fn new(notifier: Notifier, store: Store<ClientFd>, past: &Past) -> Self {
        let mut mirrors = Mirrors::default();
        let shelf = Shelf::new(notifier, &mut mirrors, &store, past);
        Self { store, mirrors, shelf }
    }

    /// Returns the numbers of what went.
    fn record(&mut self, changes: &[Change<ClientFd>]) -> Vec<u64> {
        self.mirrors.record(changes, &self.store);
        let gone = changes.iter().flat_map(|change| match change {
            Change::Held(_) => &[],
            Change::HeldAll { replaced, .. } => &replaced[..],
            Change::Released(record) => std::slice::from_ref(record),
        });
        gone.map(|record| record.origin.serial).collect()
    }

    fn tell(&mut self) {
        while !self.shelf.tell(&mut self.mirrors, &self.store) {}
    }

    /// What is held: which file, until when, and whose.
    fn content(&self) -> Content {
        let what = |fd: &ClientFd| {
            let mut bytes = [0; 16];
            let len = pread(fd, &mut bytes, 0).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        let all = self.store.all();
        all.iter().map(|it| (it.id.clone(), (what(&it.fd), it.limit, it.origin.owner))).collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// A new file, or one more descriptor of one there was.
    Store {
        id: u8,
        file: Option<u8>,
    },
    Delete(u8),
    Set(Vec<(u8, Option<u8>)>),
    /// systemd reads so many messages.
    Read(usize),
    /// Everything is killed, and starts anew; with a daemon between that knows nothing of
    /// what systemd was told, or not.
    Kill {
        is_followed: bool,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let file = || proptest::option::weighted(0.4, any::<u8>());
    prop_oneof![
        6 => (0u8..12, file()).prop_map(|(id, file)| Op::Store { id, file }),
        4 => (0u8..12).prop_map(Op::Delete),
        2 => proptest::collection::vec((0u8..12, file()), 1..6).prop_map(Op::Set),
        6 => (0usize..12).prop_map(Op::Read),
        1 => any::<bool>().prop_map(|is_followed| Op::Kill { is_followed }),
    ]
}

fn id(number: u8) -> Identifier {
    Identifier::new(format!("id {number}")).unwrap()
}

fn now() -> Timestamp {
    Timestamp::new(1 << 62, 0).unwrap()
}

fn file(number: usize) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    pwrite(&file, number.to_string().as_bytes(), 0).unwrap();
    file
}

type Content = BTreeMap<Identifier, (String, Limit, u32)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Whatever is killed when: what comes back is what was acknowledged, or something that
    /// was asked for since, and sets whole.
    #[test]
    fn what_comes_back_is_what_was_acknowledged(ops in proptest::collection::vec(any_op(), 1..80)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut systemd = Systemd { socket, kept: Vec::new() };
        let notifier = || Notifier::to(path.as_os_str()).unwrap();
        let mut daemon = Daemon::new(notifier(), Store::new(CAPACITY), &Past::none());
        // What was held after each operation, and what its answer waits for.
        let mut history: Vec<(Ticket, Content)> = vec![(daemon.mirrors.ticket(), BTreeMap::new())];
        let mut files: Vec<OwnedFd> = Vec::new();
        let mut dropped = Vec::new();
        let mut owner = 0u32..;
        for op in ops {
            let mut pick = |file_of: Option<u8>| {
                if file_of.is_none() || files.is_empty() {
                    files.push(file(files.len()));
                }
                let index = file_of.map_or(files.len() - 1, |of| usize::from(of) % files.len());
                fcntl_dupfd_cloexec(&files[index], 0).unwrap()
            };
            let mut entry = |number, of| Entry { id: id(number), limit: Limit::never_from(now()), fd: ClientFd::new(pick(of), 0) };
            match op {
                Op::Store { id, file } => {
                    let entry = entry(id, file);
                    let outcome = daemon.store.store(entry, owner.next().unwrap(), now());
                    dropped.extend(daemon.record(&outcome.changes));
                }
                Op::Delete(number) => {
                    let outcome = daemon.store.delete(&id(number), now());
                    dropped.extend(daemon.record(&outcome.changes));
                }
                Op::Set(set) => {
                    let set: Vec<_> = set.into_iter().map(|(id, of)| entry(id, of)).collect();
                    let set = set.into_iter();
                    let set = set.map(|entry| daemon.store.stage(entry, owner.next().unwrap(), Tenure::from_bits(0)));
                    let set = set.collect();
                    let outcome = daemon.store.setdump(set, OnConflict::Replace, 0, now());
                    dropped.extend(daemon.record(&outcome.changes));
                }
                Op::Read(count) => systemd.read(count),
                Op::Kill { is_followed } => {
                    if is_followed {
                        // One that has everything goes on, and tells systemd anew.
                        let Daemon { mut store, .. } = daemon;
                        store.skip_serials(1000);
                        daemon = Daemon::new(notifier(), store, &Past::unknown(std::mem::take(&mut dropped)));
                        for _ in 0..200 {
                            daemon.tell();
                            systemd.read(100);
                        }
                        history = vec![(daemon.mirrors.ticket(), daemon.content())];
                    }
                    // What was sent is read all the same.
                    systemd.read(usize::MAX);
                    let acknowledged = history
                        .iter()
                        .rposition(|(ticket, _)| daemon.mirrors.has_passed(*ticket))
                        .unwrap();
                    let Recovered { store, past, .. } = recover(systemd.give(), CAPACITY);
                    store.check();
                    daemon = std::thread::scope(|scope| {
                        // It waits until systemd has read the first messages.
                        let begin = || {
                            let mut daemon = Daemon::new(notifier(), store, &past);
                            daemon.shelf.begin();
                            daemon
                        };
                        let beginning = scope.spawn(begin);
                        while !beginning.is_finished() {
                            systemd.read(100);
                        }
                        beginning.join().unwrap()
                    });
                    let content = daemon.content();
                    let possible = history[acknowledged..].iter().any(|(_, then)| *then == content);
                    prop_assert!(possible, "{content:?} after {:?}", &history[acknowledged..]);
                    history.clear();
                    dropped.clear();
                }
            }
            daemon.tell();
            history.push((daemon.mirrors.ticket(), daemon.content()));
        }
        // Once systemd has read everything it has what is held, and little else.
        for _ in 0..1000 {
            daemon.tell();
            systemd.read(100);
        }
        prop_assert!(daemon.mirrors.has_passed(daemon.mirrors.ticket()));
        let held = daemon.content();
        prop_assert!(systemd.kept.len() <= held.len() + BESIDE_MAX);
        let Recovered { store, past, .. } = recover(systemd.give(), CAPACITY);
        prop_assert_eq!(Daemon::new(notifier(), store, &past).content(), held);
        prop_assert!(fstat(&systemd.socket).is_ok());
    }
}

/// A daemon that keeps a roll and a listening socket, and a systemd, killed at any message.
struct Own {
    folder: tempfile::TempDir,
    systemd: Systemd,
    daemon: Daemon,
}

impl Own {
    fn notifier(folder: &tempfile::TempDir) -> Notifier {
        Notifier::to(folder.path().join("notify").as_os_str()).unwrap()
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let systemd = Systemd { socket, kept: Vec::new() };
        let daemon = Daemon::new(Self::notifier(&folder), Store::new(CAPACITY), &Past::none());
        Self { folder, systemd, daemon }
    }

    fn listener(&self, name: &str) -> Arc<OwnedFd> {
        Arc::new(UnixListener::bind(self.folder.path().join(name)).unwrap().into())
    }

    /// What a daemon would go on with: the generation of the roll, and the listening sockets.
    fn recovered(&self) -> (Option<u64>, Vec<OwnedFd>) {
        let Recovered { kept_listeners, roll, .. } = recover(self.systemd.give(), CAPACITY);
        let generation = roll.map(|roll| crate::replication::roll::generation(roll).unwrap());
        (generation, kept_listeners.into_iter().map(|(_, listener)| listener).collect())
    }

    /// Has systemd read message by message, and looks at it after each.
    fn read_all(&mut self, mut look: impl FnMut(&Self)) {
        for _ in 0..300 {
            self.daemon.tell();
            self.systemd.read(1);
            look(self);
        }
    }
}

/// When a roll or a listening socket takes the place of another, systemd has one of them at each
/// moment, and in the end only that.
#[test]
fn roll_and_listening_socket_are_never_missing() {
    let mut own = Own::new();
    let [first, second, third] = ["1", "2", "3"].map(|name| own.listener(name));
    own.daemon.shelf.keep_listener(Arc::clone(&first));
    own.daemon.shelf.keep_roll(&Roll::new(1).unwrap());
    own.read_all(|_| ());
    assert_eq!(own.recovered().0, Some(1));
    let mut before = first;
    for (generation, listener) in [(2, second), (3, third)] {
        // The heir of that daemon: nobody tells it what systemd was told, but it has the socket.
        let notifier = Own::notifier(&own.folder);
        own.daemon = Daemon::new(notifier, Store::new(CAPACITY), &Past::unknown([]));
        own.daemon.shelf.keep_listener(Arc::clone(&before));
        own.daemon.shelf.keep_roll(&Roll::new(generation).unwrap());
        let has = |own: &Own, socket: &OwnedFd| {
            own.recovered().1.iter().any(|kept| are_one(kept, socket).unwrap())
        };
        own.read_all(|own| {
            let roll = own.recovered().0;
            assert!([Some(generation - 1), Some(generation)].contains(&roll), "{roll:?}");
            assert!(has(own, &before));
        });
        assert_eq!(own.recovered().0, Some(generation));
        // Its socket's file is made again.
        own.daemon.shelf.keep_listener(Arc::clone(&listener));
        own.read_all(|own| assert!(has(own, &before) || has(own, &listener)));
        assert!(has(&own, &listener) && !has(&own, &before));
        before = listener;
    }
    let rolls = own.systemd.kept.iter().filter(|(name, _)| name.starts_with('r'));
    assert_eq!(rolls.count(), 1);
}

/// It says whether a standby may be let alone: only when systemd could be told of everything.
#[test]
fn everything_is_told_once_the_last_message_is_sent() {
    let mut own = Own::new();
    assert!(!own.daemon.shelf.has_told_all(), "nothing is sent");
    own.read_all(|_| ());
    assert!(own.daemon.shelf.has_told_all());
    let entry = |number| Entry {
        id: id(number),
        limit: Limit::never_from(now()),
        fd: ClientFd::new(file(usize::from(number)), 0),
    };
    // As many as no queue of systemd has room for.
    for number in 0..CAPACITY as u8 {
        let outcome = own.daemon.store.store(entry(number), 0, now());
        own.daemon.record(&outcome.changes);
    }
    own.daemon.tell();
    assert!(!own.daemon.shelf.has_told_all(), "its queue is full");
    own.read_all(|_| ());
    assert!(own.daemon.shelf.has_told_all());
    let names = own.systemd.kept.iter().filter(|(name, _)| name.starts_with('h'));
    assert_eq!(names.count(), CAPACITY);
}

/// A version that knows of no generation has served in between, and has told systemd of its own roll
/// by the name that these had; and one whose roll was left there was followed.
#[test]
fn roll_of_who_served_last_is_the_one_that_counts() {
    const RECOVERED: u8 = 2;
    const SERVES: u8 = 4;
    let given = |rolls: &[(&str, u64, u8)]| {
        let all = rolls.iter().map(|(name, generation, state)| {
            let roll = Roll::new(*generation).unwrap();
            let copy = memfd_create("roll", MemfdFlags::CLOEXEC).unwrap();
            let mut bytes = [0; 16];
            pread(&**roll.file(), &mut bytes, 0).unwrap();
            bytes[0] = *state;
            // To be told from others.
            bytes[15] = name.as_bytes()[name.len() - 1];
            pwrite(&copy, &bytes, 0).unwrap();
            ((*name).to_owned(), copy)
        });
        let all = all.collect::<Vec<_>>();
        let Recovered { roll, past, .. } = recover(all, CAPACITY);
        let mut last = [0];
        pread(roll.unwrap(), &mut last, 15).unwrap();
        (char::from(last[0]), past.generation)
    };
    assert_eq!(given(&[("r0", 4, 0), ("r1", 3, SERVES)]), ('0', 4));
    assert_eq!(given(&[("r1", 3, SERVES), ("r0", 4, SERVES)]), ('0', 4));
    assert_eq!(given(&[("r1", 1, SERVES), ("r", 0, 0)]), ('r', 1));
    // The heir of the fourth lives, and systemd was not told to forget the third.
    assert_eq!(given(&[("r0", 4, SERVES), ("r1", 3, RECOVERED)]), ('0', 4));
}
