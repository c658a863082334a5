//! Worlds with fresh seeds, one that is asked for, and mistakes that must be found.

use super::world::{Failure, Tally, World, LARGE_SETS_EVERY};
use crate::bugs::{make, Bug};
use std::hash::{BuildHasher, RandomState};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

/// Operations of one world.
const OPERATIONS_PER_SEED: u64 = 5000;

/// Operations of all worlds, unless `FDHOLDER_OPERATIONS` says otherwise.
const OPERATIONS: u64 = 1_000_000;

/// Operations within which a mistake must be found.
const OPERATIONS_PER_BUG: u64 = 3_000_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A panic of the daemon's code is a failure like others.
fn run(seed: u64, trace: bool) -> Result<Tally, Failure> {
    let run = || World::new(seed, trace).run(OPERATIONS_PER_SEED);
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        let what = "the code has panicked".to_owned();
        Err(Failure { seed, step: 0, operations: 0, what })
    })
}

fn simulate(operations: u64) {
    let (begun, mut tally) = (Instant::now(), Tally::default());
    let first = RandomState::new().hash_one(0);
    while tally.operations < operations {
        let seed = first.wrapping_add(tally.steps);
        match run(seed, false) {
            Ok(more) => tally.add(&more),
            Err(Failure { seed, step, what, .. }) => panic!(
                "seed {seed}, step {step}: {what}\nto see it again: FDHOLDER_SEED={seed} cargo \
                 test -p fdholder-daemon simulator::replay -- --nocapture"
            ),
        }
        println!("seed {seed}: {tally:?}");
    }
    let secs = begun.elapsed().as_secs_f64();
    println!("{tally:?} in {secs:.1} s");
}

#[test]
fn nothing_is_lost() {
    simulate(variable("FDHOLDER_OPERATIONS").unwrap_or(OPERATIONS) / 2);
}

/// The same once more, so that it goes on beside the other.
#[test]
fn nothing_is_lost_either() {
    simulate(variable("FDHOLDER_OPERATIONS").unwrap_or(OPERATIONS) / 2);
}

pub fn replay() {
    let Some(seed) = variable("FDHOLDER_SEED") else { return };
    if let Err(Failure { seed, step, what, .. }) = run(seed, true) {
        panic!("seed {seed}, step {step}: {what}");
    }
}

fn is_found(bug: Bug) {
    make(Some(bug));
    let mut operations = 0;
    let mut seed = RandomState::new().hash_one(bug as u32);
    // What goes wrong with sets of several messages only is looked for where there are such.
    let stride = if bug == Bug::TearsSets { LARGE_SETS_EVERY } else { 1 };
    seed -= seed % stride;
    while operations < OPERATIONS_PER_BUG {
        match run(seed, false) {
            Ok(tally) => operations += tally.operations,
            Err(failure) => {
                operations += failure.operations;
                println!("{bug:?} is found after {operations} operations: {}", failure.what);
                make(None);
                return;
            }
        }
        seed = seed.wrapping_add(stride);
    }
    make(None);
    panic!("{bug:?} is not found within {operations} operations");
}

macro_rules! bugs {
    ($($name:ident: $bug:ident,)*) => {
        $(#[test]
        fn $name() {
            is_found(Bug::$bug);
        })*
    };
}

bugs! {
    it_finds_answers_before_mirroring: AnswersBeforeMirroring,
    it_finds_answers_before_carrying_out: AnswersBeforeCarryingOut,
    it_finds_answers_before_closing: AnswersBeforeClosing,
    it_finds_forgotten_limits: ForgetsLimits,
    it_finds_forgotten_owners: ForgetsOwners,
    it_finds_forgotten_releases: ForgetsReleases,
    it_finds_torn_sets: TearsSets,
    it_finds_early_belief: BelievesTooEarly,
    it_finds_changes_dropped_amid_a_copy: DropsChangesAmidCopy,
    it_finds_a_primary_that_never_goes_on: NeverGoesOn,
    it_finds_one_that_serves_although_given_up: GivenUpServes,
    it_finds_a_second_one_that_serves: SecondServes,
    it_finds_loans_left_to_the_vanished: VanishedHasLoan,
}
