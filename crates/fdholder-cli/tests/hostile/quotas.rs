//! Everybody has a share of descriptors, connections and bytes, and no more.

use crate::actor::ATTACKERS;
use crate::arena::{own_prefixes, Arena, Rights};
use crate::case;
use crate::raw::{header, null, Raw};
use crate::support::{eventually, Rules};
use fdholder::limits::{MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use libtest_mimic::Trial;
use std::os::fd::AsFd;

pub fn cases(trials: &mut Vec<Trial>) {
    case(trials, "quotas::one_user_stores_until_enfile", one_stores_until_enfile);
    case(trials, "quotas::what_rules_allow_is_what_there_is", quotas);
    case(trials, "quotas::a_header_that_cannot_be_valid_is_refused_at_once", bad_headers);
    case(trials, "quotas::connections_that_hold_themselves", connections_that_hold_themselves);
}

fn one_stores_until_enfile() {
    let mut arena = Arena::new(Rights::OwnPrefix, &["-n", "1000"]);
    // The last 15 are for root, 100 are the victim's.
    assert_eq!(arena.attackers[0].ask("store 1000"), "295 ENFILE");
    assert_eq!(arena.victim.ask("store x"), "done");
    assert_eq!(arena.attackers[1].ask("store 1000"), "147 ENFILE");
    assert_eq!(arena.victim.ask("store y"), "done");
    assert_eq!(arena.victim.ask("delete x"), "done");
    assert_eq!(arena.victim.ask("delete y"), "done");
    arena.keep(130);
    arena.end();
}

/// With numbers in the rules.
fn quotas() {
    let folder = tempfile::tempdir().unwrap();
    let rules = own_prefixes(folder.path());
    let limits = [("FDS", "7"), ("CONN", "6"), ("BYTES", "2000"), ("UNREAD", "5")];
    let limited = |rules: Rules, uid: u32| {
        limits.iter().fold(rules, |rules, (name, limit)| {
            rules.write(&format!("uid/{uid}/env/FDHOLDER_MAX{name}"), format!("{limit}\n"))
        })
    };
    let rules = ATTACKERS.iter().fold(rules, |rules, uid| limited(rules, *uid));
    let rules = rules.may("uid/1002", &["LIST"]);
    let mut arena = Arena::with_rules(&rules.dir, &["-n", "5000"]);
    for attacker in &mut arena.attackers {
        assert_eq!(attacker.ask("store 20"), "7 ENFILE");
        // Those that it has left may just be noticed.
        eventually("it may have six connections", || {
            attacker.ask("release");
            attacker.ask("connect 20") == "6 EDQUOT"
        });
        attacker.ask("release");
    }
    // No more than five are on their way at once, whatever over; and none is lost.
    let first = &mut arena.attackers[0];
    eventually("five are on their way", || first.ask("retrieve-unread 20") == "5 20");
    // A list of what there is takes less than 2,000 bytes, and then more.
    assert_eq!(first.ask("list"), "done");
    arena.keep(300);
    assert_eq!(arena.attackers[0].ask("list"), "EDQUOT");
    arena.end();
}

/// Nothing more is waited for, and no memory is taken for what is only announced.
fn bad_headers() {
    let mut arena = Arena::new(Rights::Dumps, &["-c", "1000"]);
    let null = null();
    let before = arena.status("VmHWM");
    for (len, fds) in [
        (REQUEST_PAYLOAD_MAX as u32 + 1, 0),
        (1 << 28, 0),
        (u32::MAX, 0),
        (20, MESSAGE_FDS_MAX as u16 + 1),
        (20, u16::MAX),
        (0, 0),
    ] {
        for _ in 0..50 {
            let mut raw = Raw::new(&arena.family.path);
            raw.send(&header(len, fds), &[null.as_fd()]).unwrap();
            assert_eq!(raw.answer(), "hung up", "{len} {fds}");
        }
    }
    let connections: Vec<_> = (0..200)
        .map(|_| {
            let raw = Raw::new(&arena.family.path);
            raw.send(&header(REQUEST_PAYLOAD_MAX as u32, 253), &[null.as_fd()]).unwrap();
            raw
        })
        .collect();
    assert_eq!(arena.victim.ask("verify"), "done");
    let grown = arena.status("VmHWM") - before;
    assert!(grown < 1024, "{grown} kB for what was announced");
    drop(connections);
    arena.end();
}

/// A client that gives its own connection, and has it no more, is never seen to hang up. It
/// has as many of these as its share has connections, and others have theirs.
fn connections_that_hold_themselves() {
    let mut arena = Arena::new(Rights::OwnPrefix, &["-c", "100"]);
    for (attacker, share) in arena.attackers.iter_mut().zip([25..=33, 12..=16]) {
        let (count, errno) = attacker.ask("hold-itself 200").split_once(' ').map(own).unwrap();
        assert!(share.contains(&count) && errno == "EDQUOT", "{count} {errno}");
        assert_eq!(arena.victim.ask("reconnect"), "done");
    }
    // What is let go of is closed, connections and all.
    arena.end();
}

fn own((count, errno): (&str, &str)) -> (usize, String) {
    (count.parse().unwrap(), errno.to_owned())
}
