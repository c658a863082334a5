//! As many connections as there can be.

use crate::arena::{Arena, Rights};
use crate::case;
use libtest_mimic::Trial;
use std::fs;

/// Idle connections of each attacker.
const IDLE: usize = 5000;

/// Requests of each kind whose cost is looked at.
const REQUESTS: usize = 300;

pub fn cases(trials: &mut Vec<Trial>) {
    case(trials, "flood::ten_thousand_idle_ones_cost_nothing", ten_thousand);
}

/// What serving the victim takes does not depend on how many others are connected.
fn ten_thousand() {
    let mut arena = Arena::new(Rights::ManyConnections, &["-n", "1000", "-c", "10100"]);
    let cost = |arena: &mut Arena| {
        // What else goes on may only make it dearer.
        let costs = (0..5).map(|_| {
            let before = processor_time(arena.pid);
            arena.victim.ask(&format!("measure {REQUESTS}"));
            processor_time(arena.pid) - before
        });
        costs.min().unwrap()
    };
    let alone = cost(&mut arena);
    let memory = arena.status("VmRSS");
    let held = arena.attackers(&format!("connect {IDLE}"));
    assert_eq!(held, [format!("{IDLE} ENOENT"), format!("{IDLE} ENOENT")]);
    assert!(arena.fds() > 2 * IDLE);
    let grown = arena.status("VmRSS") - memory;
    assert!(grown < 20 * 1024, "{grown} kB for {} connections", 2 * IDLE);
    let among_them = cost(&mut arena);
    println!("{alone} ns of processor time, {among_them} ns among {} idle ones", 2 * IDLE);
    assert!(among_them < 2 * alone, "{alone} → {among_them} ns");
    arena.end();
}

/// Nanoseconds that the loop has run.
fn processor_time(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
