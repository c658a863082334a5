//! Hours of good clients and bad ones, and the daemon is at the end what it was at the
//! beginning: `FDHOLDER_SOAK_MINUTES` says how long. See `scripts/soak`, which starts it; other
//! runs of tests do not.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../hostile/actor.rs"]
mod actor;
// Not all that the suite does is done here.
#[allow(dead_code)]
#[path = "../hostile/arena.rs"]
mod arena;
#[path = "../hostile/attacks.rs"]
mod attacks;
#[path = "../hostile/deeds.rs"]
mod deeds;
#[path = "../hostile/raw.rs"]
mod raw;
#[path = "../support/mod.rs"]
mod support;
#[path = "../hostile/victim.rs"]
mod victim;

use arena::{Arena, Rights};
use attacks::ATTACKS;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::eventually;

/// How long each attacker does the same.
const ACT: Duration = Duration::from_secs(3);

/// So often all of it is over for a moment: then the daemon has to be what it was.
const TURNS_PER_REST: usize = 8;

const OPTIONS: [&str; 7] = ["--standby", "-n", "2000", "-c", "1000", "-t", "2000"];

/// What a daemon has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// Resident memory in kB.
    memory: usize,
    fds: usize,
    threads: usize,
}

impl Sample {
    fn of(arena: &Arena) -> Self {
        Self { memory: arena.status("VmRSS"), fds: arena.fds(), threads: arena.status("Threads") }
    }

    /// Of each figure by itself.
    fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> usize| {
            let mut figures: Vec<_> = samples.iter().map(figure).collect();
            figures.sort_unstable();
            figures[figures.len() / 2]
        };
        Self { memory: of(|it| it.memory), fds: of(|it| it.fds), threads: of(|it| it.threads) }
    }
}

fn main() -> ExitCode {
    if actor::plays_a_role() {
        return ExitCode::SUCCESS;
    }
    let minutes = std::env::var("FDHOLDER_SOAK_MINUTES").unwrap_or_default();
    let Ok(minutes) = minutes.parse::<f64>() else {
        eprintln!("FDHOLDER_SOAK_MINUTES is to say how many minutes; see scripts/soak");
        return ExitCode::FAILURE;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("this takes several users, and so root");
        return ExitCode::FAILURE;
    }
    let mut arena = Arena::new(Rights::Dumps, &OPTIONS);
    let start = Sample::of(&arena);
    let samples = soak(&mut arena, start, Duration::from_secs_f64(minutes * 60.0));
    let problems = problems(&samples);
    rest(&mut arena, start);
    let end = Sample::of(&arena);
    arena.end();
    println!("\nat the start {start:?}\nat the end   {end:?}");
    let Some(problem) = problems else {
        println!("flat");
        return ExitCode::SUCCESS;
    };
    println!("{problem}");
    ExitCode::FAILURE
}

/// Attacks in turns, while the victim does what it does.
fn soak(arena: &mut Arena, start: Sample, span: Duration) -> Vec<Sample> {
    let begin = Instant::now();
    let mut samples = Vec::new();
    let mut changed = begin;
    let (mut operations, mut most, mut minute, mut turn) = (0, 0, 0, 0);
    // Of different lengths, so that each meets every other one in time.
    let name = |turn: usize, number: usize| {
        let names = &ATTACKS[..ATTACKS.len() - number];
        names[turn % names.len()].0
    };
    let start_all = |arena: &mut Arena, turn: usize| {
        for (number, attacker) in arena.attackers.iter_mut().enumerate() {
            attacker.ask(&format!("begin {}", name(turn, number)));
        }
    };
    println!(
        "at rest:  operations   memory (kB)   descriptors   threads   (most descriptors before)"
    );
    start_all(arena, turn);
    while begin.elapsed() < span {
        // Four requests each.
        arena.victim.ask("measure 50");
        assert_eq!(arena.victim.ask("verify"), "done");
        operations += 200 + arena::KEPT;
        most = most.max(arena.fds());
        if changed.elapsed() < ACT {
            continue;
        }
        changed = Instant::now();
        for attacker in &mut arena.attackers {
            operations += attacker.ask("end").parse::<usize>().unwrap();
        }
        turn += 1;
        if turn % TURNS_PER_REST == 0 {
            rest(arena, start);
            let sample = Sample::of(arena);
            samples.push(sample);
            let now = begin.elapsed().as_secs() / 60;
            if now > minute || samples.len() == 1 {
                minute = now;
                let Sample { memory, fds, threads } = sample;
                println!(
                    "{minute:3} min {operations:13} {memory:13} {fds:13} {threads:9} {most:13}"
                );
                most = 0;
            }
        }
        start_all(arena, turn);
    }
    for attacker in &mut arena.attackers {
        attacker.ask("end");
    }
    samples
}

/// Has all that the attackers do undone. Fails unless descriptors, threads, and what the victim has
/// held, are what they were.
fn rest(arena: &mut Arena, start: Sample) {
    arena.clean_up();
    eventually("threads that are not needed end", || Sample::of(arena).threads <= start.threads);
}

/// Memory may be taken at first: what was not used is not there. It must not go on.
fn problems(samples: &[Sample]) -> Option<String> {
    let third = samples.len() / 3;
    if third < 3 {
        return Some("that was too short to tell".to_owned());
    }
    let second = Sample::median(&samples[third..2 * third]).memory;
    let last = Sample::median(&samples[samples.len() - third..]).memory;
    println!("\nmemory: median of the second third {second} kB, of the last third {last} kB");
    (last > second + second / 10 + 2048)
        .then(|| format!("memory has grown from {second} to {last} kB"))
}
