//! Processes of a holder are killed, and taken over from, at random moments under load; and
//! nothing is lost, nothing refused, nothing leaks.
//!
//! `FDHOLDER_KILLS` is how many are killed, `FDHOLDER_UPGRADES` how often the program is
//! replaced, `FDHOLDER_SEED` repeats the choices of a run
//! that has printed it; see `scripts/chaos`.
#![allow(missing_docs, clippy::unwrap_used)]

mod known;
mod load;
mod open;
mod random;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod world;

use fdholder::Client;
use load::Load;
use random::Random;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit, Signal};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use support::family::signal;
use support::{assert_exit, deadline, eventually, id, suite, Family, Installed};
use world::{spin, World, CLIENTS, LIVE};

/// How many are killed in a run of all tests.
const KILLS: u64 = 100;

const TAKEOVERS: u64 = 20;

/// How many upgrades there are in a run of all tests.
const UPGRADES: u64 = 25;

/// How long to wait at most before the next is killed, when everything is in order.
const DELAY_MAX: Duration = Duration::from_millis(20);

const OPTIONS: [&str; 3] = ["--standby", "-n", "6000"];

/// The machine is for one at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn kills() {
    let kills = number_in("FDHOLDER_KILLS").unwrap_or(KILLS);
    let (mut killed, mut upgrading, mut restarts, mut cut_short) = ([0, 0], 0, 0, 0);
    under_load(true, |family, world, random| {
        for _ in 0..kills {
            let (primary, standby) = family.pair();
            wait_at_random(random);
            if random.one_in(4) {
                // An upgrade takes about as long.
                signal(primary, Signal::USR2);
                wait_at_random(random);
                // Any of them, whatever it is by now: there is a second copy all the time.
                let alive = family.alive();
                family.kill(alive[random.below(alive.len() as u64) as usize]);
                upgrading += 1;
            } else {
                let of_standby = random.one_in(2);
                family.kill(if of_standby { standby } else { primary });
                killed[usize::from(of_standby)] += 1;
            }
            let next_comes = random.below(4);
            if next_comes == 0 {
                // At whatever it is by then: starting, taking over, or serving.
                let next = family.begin(&OPTIONS);
                let asks_for_upgrade = random.one_in(2);
                for _ in 0..random.below(8) {
                    wait_at_random(random);
                    if asks_for_upgrade {
                        signal(next, Signal::USR2);
                    }
                }
                family.kill(next);
                cut_short += 1;
            } else if next_comes == 1 {
                // As a supervisor does, which does not know that another one goes on.
                let next = family.serve(&OPTIONS);
                assert_eq!(family.primary(), next);
                restarts += 1;
                if random.one_in(2) {
                    // It is ready, so that it is not alone.
                    family.kill(next);
                }
            }
            world.next_round();
        }
    });
    let [primaries, standbys] = killed;
    println!("killed: {primaries} primaries, {standbys} standbys, {upgrading} amid an upgrade");
    println!("restarts: {restarts}, killed on their way: {cut_short}");
}

#[test]
fn takeovers() {
    under_load(false, |family, world, random| {
        let (mut primary, _) = family.pair();
        for _ in 0..TAKEOVERS {
            wait_at_random(random);
            let next = family.serve(&OPTIONS);
            assert_eq!(family.wait(primary), Some(0));
            assert_eq!(family.pair().0, next);
            primary = next;
            world.next_round();
        }
    });
}

/// One after the other, and one of them to a program that does not start.
#[test]
fn upgrades() {
    let upgrades = number_in("FDHOLDER_UPGRADES").unwrap_or(UPGRADES);
    let mut family = Family::new();
    let installed = Installed::in_folder(family.folder.path());
    let pid = family.serve_by(&installed.path, &OPTIONS);
    under_load_of(family, false, |family, world, random| {
        let failing = random.below(upgrades);
        for number in 0..upgrades {
            wait_at_random(random);
            if number == failing {
                installed.replace_by_script("exit 3");
            } else {
                installed.replace();
            }
            let upgrade = suite::fdholder(["upgrade", family.path.to_str().unwrap()]).output();
            assert_exit(&upgrade.unwrap(), i32::from(number == failing));
            assert_eq!(family.pair().0, pid);
            world.next_round();
        }
    });
}

/// Runs clients of all kinds while something is done to a holder.
fn under_load(may_break: bool, act: impl FnOnce(&mut Family, &World, &mut Random)) {
    under_load_of(Family::with(&OPTIONS), may_break, act);
}

fn under_load_of(
    mut family: Family,
    may_break: bool,
    act: impl FnOnce(&mut Family, &World, &mut Random),
) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    raise_limit();
    let seed = number_in("FDHOLDER_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("FDHOLDER_SEED={seed}");
    let start = Instant::now();
    family.pair();
    let world = World::new(&family, seed, may_break);
    let address = service::begin(&world);
    let world = &world;
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || world.run(|| Load::new(world, number).run()));
        }
        let serving: Vec<_> = (0..2)
            .map(|number| scope.spawn(move || world.run(|| service::serve(world, number))))
            .collect();
        let probing: Vec<_> = (0..2)
            .map(|number| scope.spawn(move || world.run(|| service::probe(world, address, number))))
            .collect();
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            world.run(|| {
                act(&mut family, world, &mut Random::of(seed, 300));
                family.pair();
            });
        }));
        world.end();
        eventually("nobody waits to be served", || {
            probing.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        world.end_service();
        eventually("nobody accepts any more", || {
            drop(TcpStream::connect(address));
            serving.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        if let Err(panic) = result {
            let log = family.log();
            let lines: Vec<_> = log.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            std::panic::resume_unwind(panic);
        }
    });
    Client::connect(&world.path, deadline()).unwrap().delete(&id(LIVE), deadline()).unwrap();
    open::nothing_leaks(&family, &OPTIONS);
    tell(world, start.elapsed());
}

fn tell(world: &World, took: Duration) {
    let counts = &world.counts;
    let figures: [(&str, &AtomicU64); 6] = [
        ("operations", &counts.operations),
        ("whose connection broke", &counts.broken),
        ("comparisons of all that a client has", &counts.comparisons),
        ("takes undone by a kill", &counts.came_back),
        ("TCP connections", &counts.tcp_connections),
        ("connections to the holder besides", &counts.holder_connections),
    ];
    for (what, count) in figures {
        println!("{what}: {}", count.load(Ordering::Relaxed));
    }
    println!("took {:.1} s", took.as_secs_f64());
}

fn wait_at_random(random: &mut Random) {
    let micros = random.below(DELAY_MAX.as_micros() as u64);
    // Half of them at once, or nearly so.
    let micros = if random.one_in(2) { micros } else { micros / 100 };
    spin(Duration::from_micros(micros));
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Eight clients with a large set each have more open than a shell allows for.
fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
