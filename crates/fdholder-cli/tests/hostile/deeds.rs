//! What users of bad will do once, when they are told to, and what they say of it.

use crate::attacks::Attacker;
use crate::raw::{bytes_of, header, null, store, Raw};
use crate::support::{deadline, eventually, id, lingering, path_of};
use fdholder::extension::{Extension, OnConflict, VERSION};
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::{Client, Entry, Errno, Identifier, Limit, Request, Timestamp};
use rustix::fs::{memfd_create, MemfdFlags};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub fn act(attacker: &mut Attacker, what: &str, words: &[&str]) -> String {
    let number = |index: usize| words[index].parse::<usize>().unwrap();
    match what {
        "linger" => linger(attacker, words[0], number(1)),
        "answers" => answers(attacker),
        "store" => store_many(attacker, number(0)),
        "connect" => connect_many(attacker, number(0)),
        "hold-itself" => hold_itself(attacker, number(0)),
        "retrieve-unread" => retrieve_unread(attacker, number(0)),
        "list" => Raw::new(&attacker.path).ask(Request::<OwnedFd>::List),
        "strays" => strays(attacker),
        "nonces" => nonces(attacker, number(0)),
        "tell-apart" => tell_apart(attacker, &id(words[0]), &id(words[1])),
        "try" => tries(attacker, words[0], number(1)),
        _ => panic!("{what}?"),
    }
}

/// Leaves sockets that linger with the daemon, which is stopped meanwhile: when this is done,
/// nobody else has them.
fn linger(attacker: &mut Attacker, way: &str, count: usize) -> String {
    for number in 0..count {
        let (ours, theirs) = lingering();
        attacker.lingering.push(theirs);
        let name = attacker.id(&format!("{way} {number}"));
        let raw = Raw::new(&attacker.path);
        let say = |request: Request<BorrowedFd<'_>>| raw.say(request).unwrap();
        let entry = |fd| Entry { id: name.clone(), limit: Limit::never(), fd };
        let null = null();
        match way {
            "deleted" => {
                say(store(name.clone(), ours.as_fd()));
                say(Request::Delete(name.clone()));
            }
            "replaced" => {
                say(store(name.clone(), ours.as_fd()));
                say(Request::Setdump(1));
                say(Request::SetdumpData(vec![entry(null.as_fd())]));
            }
            "expired" => {
                let limit = Limit::at(Timestamp::now().saturating_add(Duration::from_millis(30)));
                say(Request::Store(Entry { limit, ..entry(ours.as_fd()) }));
            }
            "refused-busy" => {
                say(store(name.clone(), null.as_fd()));
                say(store(name.clone(), ours.as_fd()));
            }
            "refused-perm" => say(store(id("not mine"), ours.as_fd())),
            "malformed" => raw.send(b"\0\0\0\x01\0\x01L", &[ours.as_fd()]).unwrap(),
            "mid-set" => {
                say(Request::Setdump(2));
                say(Request::SetdumpData(vec![entry(ours.as_fd())]));
                // That is no part of a set.
                say(Request::List);
            }
            // Behind more than is read at once.
            "unread" => {
                let list = bytes_of(Request::<OwnedFd>::List).repeat(10_000);
                raw.send(&list, &[]).unwrap();
                say(store(name.clone(), ours.as_fd()));
            }
            "in-a-queue" => {
                let (one, other) = UnixStream::pair().unwrap();
                // Each end holds the other open, and what is in it.
                let inside = Raw::over(one.into());
                inside.send(b"x", &[ours.as_fd()]).unwrap();
                say(store(name.clone(), other.as_fd()));
                say(Request::Delete(name.clone()));
            }
            _ => panic!("{way}?"),
        }
        // Who hangs up has an unread connection closed.
        if way != "unread" {
            attacker.connections.push(raw);
        }
    }
    "done".to_owned()
}

/// What came of pairs of requests that were sent before, each kind once.
fn answers(attacker: &mut Attacker) -> String {
    let mut connections = std::mem::take(&mut attacker.connections);
    let pairs = connections.iter_mut().map(|raw| [raw.answer(), raw.answer()].join(" "));
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs.dedup();
    pairs.join(", ")
}

/// How many it may, and what it is told then.
fn count(most: usize, mut what: impl FnMut(usize) -> String) -> String {
    for number in 0..most {
        let answer = what(number);
        if answer != "done" {
            return format!("{number} {answer}");
        }
    }
    format!("{most} done")
}

fn store_many(attacker: &mut Attacker, most: usize) -> String {
    let null = null();
    let mut raw = Raw::new(&attacker.path);
    count(most, |number| raw.ask(store(attacker.id(&number.to_string()), &null)))
}

/// Each connection is one that is served.
fn connect_many(attacker: &mut Attacker, most: usize) -> String {
    let nothing = attacker.id("nothing");
    let mut last = "done".to_owned();
    for number in 0..most {
        let mut raw = Raw::new(&attacker.path);
        last = raw.ask(Request::<OwnedFd>::Delete(nothing.clone()));
        if last != "ENOENT" {
            return format!("{number} {last}");
        }
        attacker.connections.push(raw);
    }
    format!("{most} {last}")
}

/// Gives its own end of each connection, and has it no more.
fn hold_itself(attacker: &mut Attacker, most: usize) -> String {
    count(most, |number| {
        let mut raw = Raw::new(&attacker.path);
        let own = raw.socket.try_clone().unwrap();
        raw.ask(store(attacker.id(&format!("itself {number}")), own))
    })
}

/// Asks for so many over three connections and reads nothing until the daemon waits for that;
/// tells how many have come by then, and in all. It has something held.
fn retrieve_unread(attacker: &mut Attacker, count: usize) -> String {
    const CONNECTIONS: usize = 3;
    let mut raws: Vec<Raw> = (0..CONNECTIONS).map(|_| Raw::new(&attacker.path)).collect();
    for raw in &mut raws {
        // Whoever has said that is sent more than one.
        let answer = raw.ask(Request::<OwnedFd>::Extension(Extension::Hello(VERSION)));
        if answer != "done" {
            return answer;
        }
    }
    let retrieve = Request::<OwnedFd>::Retrieve { id: attacker.id("0"), delete: false };
    let retrieve = bytes_of(retrieve);
    for number in 0..count {
        raws[number % CONNECTIONS].send(&retrieve, &[]).unwrap();
    }
    // Each answer has seven bytes.
    let come = |raw: &Raw| rustix::io::ioctl_fionread(&raw.socket).unwrap() as usize / 7;
    let (mut last, mut same) = (0, 0);
    while same < 20 {
        std::thread::sleep(Duration::from_millis(5));
        let now = raws.iter().map(come).sum();
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    let mut all = 0;
    for number in 0..count {
        match raws[number % CONNECTIONS].answer().as_str() {
            "done" => all += 1,
            other => return other.to_owned(),
        }
    }
    format!("{last} {all}")
}

/// Descriptors that come with what they do not belong to.
fn strays(attacker: &mut Attacker) -> String {
    let null = null();
    let many = [null.as_fd(); MESSAGE_FDS_MAX];
    let one = &many[..1];
    let store_bytes = bytes_of(store(attacker.id("stray"), ()));
    let with_count = |request: Request<OwnedFd>, fds: usize| {
        let mut bytes = bytes_of(request);
        bytes[4..6].copy_from_slice(&(fds as u16).to_be_bytes());
        bytes
    };
    let unknown = |fds: usize| {
        let mut bytes = header(2, fds as u16).to_vec();
        bytes.extend(b"+\xff");
        bytes
    };
    let nothing = attacker.id("nothing");
    let retrieve = Request::Retrieve { id: nothing.clone(), delete: false };
    let two = |number: usize| &many[..number];
    // What is sent, in as many control messages as there are parts, and what comes of it.
    let cases: Vec<(&str, Vec<u8>, Vec<&[BorrowedFd<'_>]>, &str)> = vec![
        ("list", with_count(Request::List, 1), vec![one], "hung up"),
        ("list of many", with_count(Request::List, 253), vec![&many], "hung up"),
        ("unannounced list", bytes_of(Request::<OwnedFd>::List), vec![one], "hung up"),
        ("delete", with_count(Request::Delete(nothing.clone()), 1), vec![one], "hung up"),
        ("retrieve", with_count(retrieve, 1), vec![one], "hung up"),
        ("two to store", with_header_fds(&store_bytes, 2), vec![two(2)], "hung up"),
        ("more than announced", store_bytes.clone(), vec![two(3)], "hung up"),
        ("less than announced", with_header_fds(&store_bytes, 3), vec![two(2)], "hung up"),
        ("none", store_bytes.clone(), vec![], "hung up"),
        ("two messages, one announced", store_bytes.clone(), vec![one, one], "hung up"),
        (
            "two messages, two announced",
            with_header_fds(&store_bytes, 2),
            vec![one, one],
            "hung up",
        ),
        ("two large messages", store_bytes.clone(), vec![two(126), two(127)], "hung up"),
        ("delete with many", with_count(Request::Delete(nothing), 253), vec![&many], "hung up"),
        ("not its own", bytes_of(store(id("other"), ())), vec![one], "EPERM"),
        ("in use", bytes_of(store(attacker.id("in use"), ())), vec![one], "EBUSY"),
        ("unknown", unknown(0), vec![], "EOPNOTSUPP"),
        ("unknown with many", unknown(253), vec![&many], "EOPNOTSUPP"),
        ("unknown in two", unknown(253), vec![two(100), two(153)], "EOPNOTSUPP"),
        ("half a header", vec![0, 0, 0], vec![&many], ""),
        ("half a message", store_bytes[..20].to_vec(), vec![one], ""),
        ("much with half a message", store_bytes[..20].to_vec(), vec![&many], "hung up"),
    ];
    // It is there already the next time.
    let _ = Raw::new(&attacker.path).ask(store(attacker.id("in use"), &null));
    for (what, bytes, parts, expected) in cases {
        let mut raw = Raw::new(&attacker.path);
        match parts[..] {
            [first, second] => {
                assert_eq!(raw.send_in_two(&bytes, first, second), Ok(bytes.len()), "{what}");
            }
            [all] => raw.send(&bytes, all).unwrap(),
            _ => raw.send(&bytes, &[]).unwrap(),
        }
        // Some leave at this point.
        if !expected.is_empty() {
            let mut answer = raw.answer();
            if expected == "hung up" && answer != expected {
                // What was whole may be answered before what is too much is seen.
                answer = raw.answer();
            }
            if answer != expected {
                return format!("{what}: {answer} instead of {expected}");
            }
        }
    }
    "done".to_owned()
}

fn with_header_fds(bytes: &[u8], fds: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[4..6].copy_from_slice(&fds.to_be_bytes());
    bytes
}

/// Whoever comes and goes, at whatever moment, gets the answers to what it has asked.
fn nonces(attacker: &mut Attacker, rounds: usize) -> String {
    let attacker = &*attacker;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| scope.spawn(move || nonces_of(&attacker.path, attacker, thread, rounds)))
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    "done".to_owned()
}

fn nonces_of(path: &Path, attacker: &Attacker, thread: usize, rounds: usize) {
    let random = RandomState::new();
    for round in 0..rounds {
        let nonce = format!("{:x}", random.hash_one((thread, round)));
        let name = attacker.id(&nonce);
        let fd = memfd_create(&*nonce, MemfdFlags::CLOEXEC).unwrap();
        let expected = path_of(&fd);
        // One that asks for the same and leaves before it has all of it.
        let leaver = Raw::new(path);
        leaver.say(store(name.clone(), &fd)).unwrap();
        let retrieve = Request::<OwnedFd>::Retrieve { id: name.clone(), delete: false };
        leaver.send(&bytes_of(retrieve).repeat(1 + round % 5), &[]).unwrap();
        let mut client = Client::connect(path, deadline()).unwrap();
        if round % 2 == 0 {
            drop(leaver);
        }
        let mine = attacker.id(&format!("{nonce} mine"));
        client.store(&mine, Limit::never(), &fd, deadline()).unwrap();
        for _ in 0..3 {
            assert_eq!(path_of(client.retrieve(&mine, deadline()).unwrap()), expected);
        }
        // Stored by the other one, or not yet.
        match client.retrieve(&name, deadline()) {
            Ok(found) => assert_eq!(path_of(found), expected),
            Err(error) => assert_eq!(error.errno(), Errno::NOENT),
        }
        client.delete(&mine, deadline()).unwrap();
        assert_eq!(client.delete(&mine, deadline()).unwrap_err().errno(), Errno::NOENT);
        eventually("what was sent is carried out", || client.delete(&name, deadline()).is_ok());
    }
}

/// Every request about something that is held and something that is not, by one who may know
/// of neither: the answers must be the same.
fn tell_apart(attacker: &mut Attacker, held: &Identifier, other: &Identifier) -> String {
    let null = null();
    let requests = |id: &Identifier| -> Vec<Request<BorrowedFd<'_>>> {
        // One run, of one position.
        let runs = || std::iter::once(0..1).collect::<Vec<_>>();
        let extensions = [
            Extension::Hello(VERSION),
            Extension::Snapshot { entries: true },
            Extension::Snapshot { entries: false },
            Extension::Release { runs: runs(), only_ask: true },
            Extension::Release { runs: runs(), only_ask: false },
            Extension::OnConflict(OnConflict::Fail),
            Extension::OnConflict(OnConflict::Keep),
            Extension::Taken,
            Extension::Inspect,
            Extension::Status,
            Extension::Why,
            Extension::Upgrade,
        ];
        let plain = [
            store(id.clone(), null.as_fd()),
            Request::Delete(id.clone()),
            Request::Retrieve { id: id.clone(), delete: false },
            Request::Retrieve { id: id.clone(), delete: true },
            Request::List,
            Request::Getdump,
            Request::Setdump(1),
        ];
        plain.into_iter().chain(extensions.map(Request::Extension)).collect()
    };
    let ask = |id: &Identifier| -> Vec<Option<Vec<u8>>> {
        let mut raw = Raw::new(&attacker.path);
        let ask = |request: Request<_>| {
            raw.say(request).unwrap();
            raw.next(|frame| frame.payload.to_vec())
        };
        requests(id).into_iter().map(ask).collect()
    };
    let (of_held, of_other) = (ask(held), ask(other));
    if of_held != of_other {
        return format!("{of_held:?} {of_other:?}");
    }
    let answers = of_held.into_iter().map(|answer| answer.map_or(0, |answer| answer[0]));
    answers.map(|errno| errno.to_string()).collect::<Vec<_>>().join(" ")
}

/// Tries to store what it may not, over a new connection each time; how often it was let.
fn tries(attacker: &mut Attacker, name: &str, count: usize) -> String {
    let null = null();
    let mut answers = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..count {
        let answer = Raw::new(&attacker.path).ask(store(id(name), &null));
        *answers.entry(answer).or_default() += 1;
    }
    format!("{answers:?}")
}
