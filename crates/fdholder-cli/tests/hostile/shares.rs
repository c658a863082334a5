//! Whatever somebody does all the time, or leaves undone: the victim is served as fast as ever,
//! and the daemon spends no more on it than it must.

use crate::arena::{Arena, Rights};
use crate::case;
use crate::support::eventually;
use libtest_mimic::Trial;

/// What is done all the time, and that the victim is served as fast as ever; and how much
/// memory the daemon may take for it, in kB.
const ATTACKS: [(&str, usize); 15] = [
    ("slow-readers", 8192),
    ("slow-writers", 4096),
    ("unread-lists", 32 * 1024),
    ("unread-dumps", 32 * 1024),
    ("unread-descriptors", 16 * 1024),
    ("headers", 4096),
    ("half-messages", 32 * 1024),
    ("unfinished-sets", 16 * 1024),
    ("stores", 4096),
    ("requests", 4096),
    ("retrieves", 4096),
    ("sets", 8192),
    ("dumps", 8192),
    ("expiry", 8192),
    ("malformed", 8192),
];

/// Those whose time runs out.
const STUCK: [&str; 7] = [
    "slow-readers",
    "slower-writers",
    "unread-lists",
    "unread-dumps",
    "headers",
    "half-messages",
    "unfinished-sets",
];

const OPTIONS: [&str; 4] = ["-n", "2000", "-c", "1000"];

pub fn cases(trials: &mut Vec<Trial>) {
    for (attack, memory) in ATTACKS {
        case(trials, format!("shares::{attack}"), move || attacked(attack, memory));
    }
    for attack in ["connections", "coming-and-going"] {
        case(trials, format!("shares::flood_of_{attack}"), move || flooded(attack));
    }
    for attack in STUCK {
        case(trials, format!("shares::{attack}_are_dropped"), move || dropped(attack));
    }
}

fn attacked(attack: &str, memory_max: usize) {
    let mut arena = Arena::new(Rights::Dumps, &OPTIONS);
    let before = arena.status("VmRSS");
    arena.withstands(attack);
    let grown = arena.status("VmHWM").saturating_sub(before);
    assert!(grown < memory_max, "{grown} kB more");
    arena.end();
}

/// Connections as fast as they can be had. The queue in which they wait to be accepted is
/// one for all, so the victim's new ones wait in it, and are let in; those that it has are
/// served as fast as ever.
fn flooded(attack: &str) {
    let mut arena = Arena::new(Rights::Dumps, &OPTIONS);
    let before = arena.status("VmRSS");
    arena.withstands_but_for_connecting(attack);
    let grown = arena.status("VmHWM").saturating_sub(before);
    assert!(grown < 4096, "{grown} kB more");
    arena.attackers(&format!("begin {attack}"));
    for _ in 0..3 {
        assert_eq!(arena.victim.ask("reconnect"), "done");
    }
    arena.attackers("end");
    arena.end();
}

/// Whoever is stuck in the middle of something is let go of when its time is up, and does not
/// gain any by doing a little.
fn dropped(attack: &str) {
    let mut arena = Arena::new(Rights::Dumps, &[&OPTIONS[..], &["-t", "400"]].concat());
    arena.attackers(&format!("begin {attack}"));
    eventually("their time is up", || {
        arena.family.log().matches("dropped: Connection timed out").count() >= 40
    });
    arena.attackers("end");
    arena.end();
}
