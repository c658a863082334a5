//! Clients that take as much of a holder's memory as they get.

use super::{deadline, eventually, id};
use fdholder::{Client, Deadline, Identifier, Limit};
use fdholder_daemon::limits::MEMORY_PIECE_LEN;
use rustix::process::{prlimit, Pid, Resource, Rlimit};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How many clients attack at once.
pub const ATTACKERS: usize = 300;

/// What an attacker sends, and never reads the answer to.
pub type Attack = fn() -> Vec<u8>;

pub const ATTACKS: [(&str, Attack); 7] = [
    ("half-sent requests", half_a_request),
    ("connections that say nothing", Vec::new),
    ("lists that nobody reads", || requests(b"L", 100)),
    ("dumps that nobody reads", || requests(b"?", 100)),
    ("sets that are announced", || request(&[b"!".as_slice(), &900_u32.to_be_bytes()].concat())),
    ("snapshots that nobody reads", || {
        [request(b"+\0\0\0\0\x05"), requests(b"+\x01\x01", 100)].concat()
    }),
    ("states that nobody reads", || [request(b"+\0\0\0\0\x05"), requests(b"+\x09", 100)].concat()),
];

fn request(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&len.to_be_bytes(), &[0, 0][..], payload].concat()
}

fn requests(payload: &[u8], count: usize) -> Vec<u8> {
    request(payload).repeat(count)
}

pub fn half_a_request() -> Vec<u8> {
    let mut half = request(&vec![b'.'; 60_000]);
    half[..4].copy_from_slice(&68_000_u32.to_be_bytes());
    half
}

/// Stores something, if the holder can: whether it was acknowledged.
pub fn try_store(path: &Path, name: &Identifier) -> bool {
    let null = File::open("/dev/null").unwrap();
    let soon = || Deadline::after(Duration::from_secs(10));
    let client = Client::connect(path, soon());
    client.and_then(|mut client| client.store(name, Limit::never(), &null, soon())).is_ok()
}

/// Has every large piece of memory that these processes ask for withheld from now on, and from the
/// processes that they start: by the limit that debug builds of the daemon read.
pub fn withhold_pieces(pids: impl IntoIterator<Item = u32>) {
    limit_pieces(pids, Some(MEMORY_PIECE_LEN as u64));
}

/// The end of that.
pub fn give_pieces(pids: impl IntoIterator<Item = u32>) {
    limit_pieces(pids, None);
}

fn limit_pieces(pids: impl IntoIterator<Item = u32>, longest: Option<u64>) {
    for pid in pids {
        let limit = Rlimit { current: longest, maximum: None };
        prlimit(Pid::from_raw(pid.cast_signed()), Resource::Rss, limit).unwrap();
    }
}

/// Long enough that lists and dumps take something.
pub fn name(number: usize) -> Identifier {
    id(&format!("{number:0>200}"))
}

/// Has a holder attacked; returns what it has acknowledged meanwhile.
pub fn attack(path: &Path, sent: &[u8]) -> BTreeSet<Identifier> {
    let mut acknowledged = BTreeSet::new();
    let mut attackers = Vec::new();
    for number in 0..ATTACKERS {
        // The daemon is about to let it in, or it is not there any more.
        let Ok(mut attacker) = UnixStream::connect(path) else { break };
        attacker.set_nonblocking(true).unwrap();
        // It takes no more, or has hung up.
        let _ = attacker.write(sent);
        attackers.push(attacker);
        if number % 20 == 0 && try_store(path, &name(1000 + number)) {
            acknowledged.insert(name(1000 + number));
        }
    }
    acknowledged
}

pub fn assert_works(path: &Path, expected: &BTreeSet<Identifier>, what: &str) {
    let list = || Client::connect(path, deadline()).ok()?.list(deadline()).ok();
    let mut listed = None;
    eventually(&format!("{what}: it lists"), || {
        listed = list();
        listed.is_some()
    });
    let held: BTreeSet<_> = listed.unwrap().into_iter().collect();
    let missing: Vec<_> = expected.difference(&held).collect();
    assert!(missing.is_empty(), "{what}: lost {missing:?}");
    eventually(&format!("{what}: it stores"), || try_store(path, &id("afterwards")));
    let mut client = Client::connect(path, deadline()).unwrap();
    client.retrieve(&id("afterwards"), deadline()).unwrap();
    assert!(client.getdump(deadline()).unwrap().len() > expected.len(), "{what}");
    client.delete(&id("afterwards"), deadline()).unwrap();
}
