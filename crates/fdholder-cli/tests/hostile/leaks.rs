//! Nothing of one gets to another, or stays.

use crate::actor::ATTACKERS;
use crate::arena::{Arena, Rights};
use crate::case;
use crate::raw::null;
use crate::support::{deadline, eventually, id};
use fdholder::{Entry, Limit};
use libtest_mimic::Trial;
use rustix::process::{getrlimit, prlimit, Pid, Resource, Rlimit};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;

pub fn cases(trials: &mut Vec<Trial>) {
    case(trials, "leaks::descriptors_that_belong_to_nothing_are_closed", strays);
    case(trials, "leaks::descriptors_without_room_are_closed", without_room);
    case(trials, "leaks::answers_are_for_who_has_asked", nonces);
    case(trials, "leaks::answers_do_not_tell_what_is_held", tell_apart);
    case(trials, "leaks::what_is_held_is_close_on_exec", close_on_exec);
}

fn strays() {
    let mut arena = Arena::new(Rights::OwnPrefix, &["-n", "2000"]);
    for _ in 0..20 {
        assert_eq!(arena.attackers("strays"), ["done"; ATTACKERS.len()]);
    }
    let before = arena.fds();
    for _ in 0..20 {
        assert_eq!(arena.attackers("strays"), ["done"; ATTACKERS.len()]);
    }
    eventually("no more is open than before", || arena.fds() <= before);
    arena.end();
}

/// The same while the process has room for some of them, or for none (`MSG_CTRUNC`).
fn without_room() {
    let arena = Arena::new(Rights::Dumps, &["-n", "2000"]);
    let pid = Pid::from_raw(arena.pid.cast_signed());
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // There is a connection already, and no room for another one.
    let mut client = arena.client();
    client.list(deadline()).unwrap();
    let null = null();
    let entry = |number: usize| Entry {
        id: id(&format!("set {number}")),
        limit: Limit::never(),
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..200).map(entry).collect();
    let before = arena.fds();
    for room in [0, 1, 10, 150] {
        limit(Some((before + room) as u64));
        let refused = client.setdump(&set, deadline()).unwrap_err();
        assert_eq!(refused.errno(), fdholder::Errno::NFILE);
        client = {
            limit(maximum);
            arena.client()
        };
        client.list(deadline()).unwrap();
        eventually("all are closed that had room", || arena.fds() == before);
        limit(Some(10));
        let refused = client.store(&id("x"), Limit::never(), &null, deadline()).unwrap_err();
        assert_eq!(refused.errno(), fdholder::Errno::NFILE);
        limit(maximum);
        eventually("nothing is open that has no place", || arena.fds() == before);
    }
    client.setdump(&set, deadline()).unwrap();
    drop(client);
    arena.end();
}

fn nonces() {
    let mut arena = Arena::new(Rights::OwnPrefix, &[]);
    for attacker in &mut arena.attackers {
        attacker.tell("nonces 150");
    }
    for _ in 0..20 {
        assert_eq!(arena.victim.ask("verify"), "done");
        arena.victim.ask("measure 10");
    }
    for attacker in &mut arena.attackers {
        assert_eq!(attacker.answer("nonces"), "done");
    }
    arena.end();
}

fn tell_apart() {
    let mut arena = Arena::new(Rights::OwnPrefix, &["-n", "300"]);
    assert_eq!(arena.victim.ask("store held"), "done");
    let ask = "tell-apart 1001/held 1001/none";
    // Those of the protocol are refused, and so are others that are about what is held.
    let (perm, invalid, no_data) = (1, 22, 61);
    let plain = [perm; 7];
    let extensions = [0, perm, perm, invalid, invalid, perm, perm, no_data, perm, perm, 0, perm];
    let expected: Vec<_> = plain.iter().chain(&extensions).map(i32::to_string).collect();
    for full in [false, true] {
        if full {
            let (mut client, null) = (arena.client(), null());
            let store = |number: usize| {
                let name = id(&format!("full {number}"));
                client.store(&name, Limit::never(), &null, deadline()).is_ok()
            };
            assert!(!(0..300).all(store), "it has room");
        }
        for answer in arena.attackers(ask) {
            let answers: Vec<_> = answer.split(' ').collect();
            assert_eq!(answers, expected);
        }
    }
    assert_eq!(arena.victim.ask("delete held"), "done");
    arena.end();
}

/// Whichever way it came; nothing else that the daemon has opened is for a child, either.
fn close_on_exec() {
    let mut arena = Arena::new(Rights::Dumps, &["-n", "5000"]);
    // What the daemon was started with is not its own.
    let (before, _) = open_on_exec(arena.pid);
    arena.attackers("begin sets");
    arena.attackers("end");
    arena.attackers("strays");
    arena.attackers("connect 10");
    let (after, count) = open_on_exec(arena.pid);
    assert_eq!(after, before);
    // As much as the shares of all attackers allow.
    assert!(count > 300, "{count}");
    arena.end();
}

/// Descriptors that are not close-on-exec, and how many there are in all.
fn open_on_exec(pid: u32) -> (BTreeSet<u32>, usize) {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let (mut found, mut count) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten() {
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        if u32::from_str_radix(flags.trim(), 8).unwrap() & CLOSE_ON_EXEC == 0 {
            found.insert(entry.file_name().to_str().unwrap().parse().unwrap());
        }
        count += 1;
    }
    (found, count)
}
