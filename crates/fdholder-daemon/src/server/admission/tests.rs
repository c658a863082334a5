//! A server in this process, to which clients come when the tests say.

use super::*;
use crate::access::Rules;
use crate::limits::{CONNECTIONS_RESERVED, SWEEP_PAUSE};
use crate::signals::Signals;
use crate::Options;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// A list, as it is asked for, and the answer of a holder that is empty.
const LIST: &[u8] = b"\0\0\0\x01\0\0L";
const NOTHING: &[u8] = b"\0\0\0\x05\0\0\0\0\0\0\0";

struct Served {
    _folder: tempfile::TempDir,
    server: Server,
}

impl Served {
    /// By a rule this user may have so many connections.
    fn with_quota(connections: usize) -> Self {
        Self::with(Some(connections), Options::default())
    }

    fn with(quota: Option<usize>, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rule = folder.path().join("rules/uid/self");
        fs::create_dir_all(rule.join("env")).unwrap();
        fs::write(rule.join("allow"), "").unwrap();
        fs::write(rule.join("env/S6_FDHOLDER_LIST"), "\n").unwrap();
        if let Some(quota) = quota {
            fs::write(rule.join("env/FDHOLDER_MAXCONN"), quota.to_string()).unwrap();
        }
        let listener = UnixListener::bind(folder.path().join("holder")).unwrap().into();
        let rules = Rules::in_dir(folder.path().join("rules"));
        let signals = Signals::none().unwrap();
        let server = Server::new(listener, rules, signals, options).unwrap();
        Self { _folder: folder, server }
    }

    /// One more comes. Its token, if it is let in.
    fn come(&mut self, now: Instant) -> (UnixStream, Option<usize>) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        // It is closed by another thread, and only a server that is broken leaves it open.
        theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        ours.set_nonblocking(true).unwrap();
        let token = self.server.let_in(ours.into(), now);
        (theirs, token)
    }

    fn come_in(&mut self, now: Instant) -> (UnixStream, usize) {
        let (stream, token) = self.come(now);
        (stream, token.unwrap())
    }

    fn is_here(&self, token: usize) -> bool {
        self.server.peers.contains(token)
    }
}

fn has_ended(stream: &mut UnixStream) -> bool {
    stream.read(&mut [0]).unwrap() == 0
}

/// The next message that waits, which is so long.
fn answer(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).unwrap();
    answer
}

fn was_turned_away(stream: &mut UnixStream) -> bool {
    let expected = reply::status::<BorrowedFd<'_>>(Err(Errno::DQUOT));
    answer(stream, expected.bytes().len()) == expected.bytes() && has_ended(stream)
}

#[test]
fn the_longest_idle_of_a_user_goes_when_it_wants_one_more() {
    let mut it = Served::with_quota(3);
    let mut came: Vec<_> = (0..3).map(|_| it.come_in(Instant::now())).collect();
    let now = Instant::now();
    let later = now + IDLE_SAFE;
    // None has been for so long.
    let almost = later.checked_sub(Duration::from_secs(30)).unwrap();
    let (mut stream, token) = it.come(almost);
    assert!(token.is_none() && was_turned_away(&mut stream));
    assert_eq!(it.server.peers.len(), 3);
    // Now all have been, and the first one for longest.
    let (_new, new) = it.come_in(later);
    assert!(has_ended(&mut came[0].0));
    assert!(it.is_here(new) && it.is_here(came[1].1) && it.is_here(came[2].1));
    assert_eq!(it.server.peers.len(), 3);
    // Not all of them are looked at again and again.
    let (mut stream, token) = it.come(later + SWEEP_PAUSE / 2);
    assert!(token.is_none() && was_turned_away(&mut stream));
    let (_new, new) = it.come_in(later + SWEEP_PAUSE);
    assert!(has_ended(&mut came[1].0));
    assert!(it.is_here(new) && it.is_here(came[2].1));
    // What it has is counted right.
    let claimant = Claimant::trusted(it.server.user.uid);
    assert_eq!(it.server.hold.ledger.used(claimant.uid, Resource::Connections), 3);
}

#[test]
fn who_is_not_idle_stays() {
    let mut it = Served::with_quota(3);
    let (mut active, active_token) = it.come_in(Instant::now());
    let (mut busy, busy_token) = it.come_in(Instant::now());
    let (mut idle, _) = it.come_in(Instant::now());
    let later = Instant::now() + IDLE_SAFE;
    active.write_all(LIST).unwrap();
    it.server.serve(active_token, Instant::now());
    assert_eq!(answer(&mut active, NOTHING.len()), NOTHING);
    busy.write_all(&LIST[..3]).unwrap();
    it.server.serve(busy_token, Instant::now());
    let (_new, new) = it.come_in(later);
    assert!(has_ended(&mut idle) && it.is_here(new));
    // Nobody goes in its stead when there is no other.
    it.server.swept_at.clear();
    let (mut stream, token) = it.come(later);
    assert!(token.is_none() && was_turned_away(&mut stream));
    busy.write_all(&LIST[3..]).unwrap();
    it.server.serve(busy_token, Instant::now());
    assert_eq!(answer(&mut busy, NOTHING.len()), NOTHING);
    assert!(it.is_here(active_token) && it.is_here(busy_token));
}

/// Whoever wants one more lets go of its own.
#[test]
fn another_users_connections_stay() {
    let mut it = Served::with_quota(2);
    let (_others, others) = it.come_in(Instant::now());
    let peer = &mut it.server.peers[others];
    peer.discharge(&mut it.server.hold.ledger);
    peer.who.user.uid += 1;
    peer.recharge(&mut it.server.hold.ledger);
    let (mut own, _) = it.come_in(Instant::now());
    let (_own, second) = it.come_in(Instant::now());
    let later = Instant::now() + IDLE_SAFE;
    let (_new, new) = it.come_in(later);
    assert!(has_ended(&mut own));
    assert!([others, second, new].into_iter().all(|token| it.is_here(token)));
}

/// Who may have more does not lose what it has.
#[test]
fn nobody_goes_while_there_is_room() {
    let mut it = Served::with_quota(3);
    let (_first, first) = it.come_in(Instant::now());
    let later = Instant::now() + 2 * IDLE_SAFE;
    let (_second, second) = it.come_in(later);
    assert!(it.is_here(first) && it.is_here(second));
}

/// One who may have all there is, and has.
fn full() -> (Served, Vec<(UnixStream, usize)>) {
    let mut it = Served::with(None, Options { connections_max: 1, ..Options::default() });
    let came = (0..CONNECTIONS_RESERVED).map(|_| it.come_in(Instant::now())).collect();
    (it, came)
}

/// Many who come at once wait for one another, as they do little each.
#[test]
fn who_may_have_all_waits_a_moment_for_a_connection_of_its_own() {
    let (mut it, mut came) = full();
    let now = Instant::now();
    let (_new, token) = it.come(now);
    assert!(token.is_none() && it.server.undecided.is_some());
    it.server.attend_to_clocks(now);
    assert!(it.server.undecided.is_some() && !it.server.listening);
    let (gone, token) = came.pop().unwrap();
    drop(gone);
    it.server.serve(token, now);
    it.server.attend_to_clocks(now);
    assert!(it.server.undecided.is_none() && it.server.listening);
    assert_eq!(it.server.peers.len(), CONNECTIONS_RESERVED);
    assert!(it.server.full_since.is_empty());
}

/// First of all one that is idle, then one that got stuck; none that waits for the daemon.
#[test]
fn who_may_have_all_gets_in_in_the_place_of_one_that_is_idle_or_stuck() {
    let (mut it, mut came) = full();
    for (number, (stream, token)) in came.iter_mut().enumerate() {
        match number {
            0 => it.server.peers[*token].turn = Some(Instant::now()),
            1 | 2 => stream.write_all(&LIST[..3]).unwrap(),
            3 => {
                stream.write_all(LIST).unwrap();
                it.server.serve(*token, Instant::now());
                assert_eq!(answer(stream, NOTHING.len()), NOTHING);
                continue;
            }
            _ => {}
        }
        it.server.serve(*token, Instant::now());
    }
    // Its next request waits for its turn.
    it.server.peers[came[0].1].turn = Some(Instant::now());
    let now = Instant::now() + IDLE_SAFE_TRUSTED;
    let mut new = Vec::new();
    for number in [4, 5, 6, 7, 3, 1, 2] {
        new.push(it.come_in(now));
        assert!(has_ended(&mut came[number].0), "{number}");
    }
    assert!(it.is_here(came[0].1));
    // Nobody else can go: the next waits, and then is told, and those behind it do not wait.
    let (mut stream, token) = it.come(now);
    assert!(token.is_none() && it.server.undecided.is_some());
    it.server.undecided = None;
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let later = now + IDLE_SAFE_TRUSTED;
    for (_, peer) in &mut it.server.peers {
        (peer.active_at, peer.turn) = (later, Some(later));
    }
    for _ in 0..2 {
        let (mut stream, token) = it.come(later);
        assert!(token.is_none() && was_turned_away(&mut stream));
    }
    // As soon as one can go, it does, though it has not been idle for long.
    it.server.peers[came[0].1].turn = None;
    it.come_in(later);
    assert!(has_ended(&mut came[0].0));
    for (_, peer) in &mut it.server.peers {
        peer.turn = None;
    }
}
