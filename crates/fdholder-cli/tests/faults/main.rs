//! System calls that fail, one at a time, in the middle of what a daemon does: nothing acknowledged
//! is lost, at most one daemon serves, and afterwards everything works again.
//!
//! The table is calls × errors × which time × what is done meanwhile. `scripts/test` runs every
//! eleventh case; `scripts/faults` runs all.
#![allow(missing_docs, clippy::unwrap_used)]

mod cared_for;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod with_systemd;

use scene::{Fault, Scene};
use std::collections::BTreeSet;

/// What the loop, its threads and those who follow ask of the kernel. `calls_are_all_in_the_table`
/// says what is missing.
const CALLS: [&str; 41] = [
    "accept4",
    "brk",
    "clone",
    "clone3",
    "close",
    "connect",
    "dup",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "execve",
    "fcntl",
    "fstat",
    "getsockname",
    "getsockopt",
    "ioctl",
    "kill",
    "lseek",
    "memfd_create",
    "mmap",
    "mprotect",
    "newfstatat",
    "openat",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "pwrite64",
    "read",
    "recvmsg",
    "sendmsg",
    "setsockopt",
    "sigaltstack",
    "socket",
    "socketpair",
    "statx",
    "timerfd_settime",
    "waitid",
    "write",
];

/// As when memory, buffers or descriptors run out.
const ERRORS: [&str; 4] = ["ENOMEM", "ENOBUFS", "ENFILE", "EAGAIN"];

/// Which call of each thread fails.
const TIMES: [u32; 3] = [1, 2, 10];

fn cases(scene: Scene) -> Vec<Fault> {
    let mut all = Vec::new();
    for (error_number, error) in ERRORS.into_iter().enumerate() {
        for call in CALLS {
            for time in TIMES {
                all.push((error_number, Fault { call, error, time }));
            }
        }
    }
    if std::env::var_os("FDHOLDER_FAULTS").is_some_and(|which| which == "all") {
        return all.into_iter().map(|(_, fault)| fault).collect();
    }
    let offset = scene as usize;
    let chosen = all.into_iter().enumerate();
    let is_chosen = |at: usize, error: usize| (at + 3 * error + 5 * offset).is_multiple_of(11);
    chosen.filter(|(at, (error, _))| is_chosen(*at, *error)).map(|(_, (_, it))| it).collect()
}

fn play_all(scene: Scene) {
    let mut failed = Vec::new();
    for fault in cases(scene) {
        let began = std::time::Instant::now();
        if let Err(why) = scene::play(scene, fault) {
            eprintln!("{why}");
            failed.push(fault.to_string());
        }
        eprintln!("{scene:?}, {fault}: {:?}", began.elapsed());
    }
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}

#[test]
fn plain_daemon_survives_failing_calls() {
    play_all(Scene::Plain);
}

#[test]
fn daemon_with_standby_survives_failing_calls() {
    play_all(Scene::Standby);
}

#[test]
fn takeover_survives_failing_calls_of_the_old_daemon() {
    play_all(Scene::TakeoverOld);
}

#[test]
fn takeover_survives_failing_calls_of_the_new_daemon() {
    play_all(Scene::TakeoverNew);
}

#[test]
fn upgrade_survives_failing_calls() {
    play_all(Scene::Upgrade);
}

#[test]
fn transfer_survives_failing_calls() {
    play_all(Scene::Transfer);
}

#[test]
fn what_is_cared_for_survives_failing_calls() {
    play_all(Scene::CaredFor);
}

/// What cannot fail, or whose failure nobody sees: ends, waits, time, and what threads tell the kernel
/// of themselves.
const NOT_IN_TABLE: [&str; 18] = [
    "clock_nanosleep",
    "exit",
    "exit_group",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "gettid",
    "getuid",
    "madvise",
    "munmap",
    "restart_syscall",
    "rseq",
    "rt_sigprocmask",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
];

/// Every call that a daemon makes in these scenes is in the table, or cannot fail.
#[test]
fn calls_are_all_in_the_table() {
    let known: BTreeSet<&str> = CALLS.into_iter().chain(NOT_IN_TABLE).collect();
    let made = [Scene::Plain, Scene::Standby].into_iter().flat_map(scene::calls_made);
    let missing: BTreeSet<_> = made.filter(|call| !known.contains(call.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
