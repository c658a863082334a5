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

/// What is looked at is looked at so often.
const SAMPLE: Duration = Duration::from_secs(2);

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
    let samples = soak(&mut arena, Duration::from_secs_f64(minutes * 60.0));
    let problems = problems(&samples);
    arena.attackers.iter_mut().for_each(|attacker| drop(attacker.ask("end")));
    // Fails unless descriptors, and what the victim has held, are what they were.
    arena.clean_up();
    eventually("threads that are not needed end", || Sample::of(&arena).threads <= start.threads);
    let end = Sample::of(&arena);
    arena.end();
    println!("\nat the start {start:?}\nat the end   {end:?}");
    if problems.is_empty() {
        println!("flat");
        return ExitCode::SUCCESS;
    }
    for problem in &problems {
        println!("{problem}");
    }
    ExitCode::FAILURE
}

/// Attacks in turns, while the victim does what it does.
fn soak(arena: &mut Arena, span: Duration) -> Vec<Sample> {
    let begin = Instant::now();
    let mut samples = Vec::new();
    let (mut changed, mut looked_at) = (begin, begin);
    let mut operations: usize = 0;
    let mut minute = 0;
    let mut turn = 0;
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
    println!("minute       operations   memory (kB)   descriptors   threads");
    start_all(arena, turn);
    while begin.elapsed() < span {
        // Four requests each.
        arena.victim.ask("measure 50");
        assert_eq!(arena.victim.ask("verify"), "done");
        operations += 200 + arena::KEPT;
        if changed.elapsed() >= ACT {
            changed = Instant::now();
            for attacker in &mut arena.attackers {
                operations += attacker.ask("end").parse::<usize>().unwrap();
            }
            turn += 1;
            start_all(arena, turn);
        }
        if looked_at.elapsed() >= SAMPLE {
            looked_at = Instant::now();
            samples.push(Sample::of(arena));
            let now = begin.elapsed().as_secs() / 60;
            if now > minute || samples.len() == 1 {
                minute = now;
                let Sample { memory, fds, threads } = samples[samples.len() - 1];
                println!("{minute:6} {operations:16} {memory:13} {fds:13} {threads:9}");
            }
        }
    }
    samples
}

/// What has grown: the last fifth beside the second one, as the first may still have been
/// taking what it takes.
fn problems(samples: &[Sample]) -> Vec<String> {
    let fifth = samples.len() / 5;
    if fifth < 3 {
        return vec!["that was too short to tell".to_owned()];
    }
    let second = Sample::median(&samples[fifth..2 * fifth]);
    let last = Sample::median(&samples[samples.len() - fifth..]);
    println!("\nmedian of the second fifth {second:?}\nmedian of the last fifth   {last:?}");
    // What goes on at a moment is not what goes on at another.
    let figures = [
        ("memory", second.memory, last.memory, 2048),
        ("descriptors", second.fds, last.fds, 200),
        ("threads", second.threads, last.threads, 3),
    ];
    let has_grown = |(_, second, last, spare): &(&str, usize, usize, usize)| {
        *last > second + second / 10 + spare
    };
    let tell = |(what, second, last, _): (&str, usize, usize, usize)| {
        format!("{what} has grown from {second} to {last}")
    };
    figures.into_iter().filter(has_grown).map(tell).collect()
}
