//! When the kernel has no room: the daemon goes on, and holds what it holds.

use crate::actor::VICTIM;
use crate::arena::{Arena, Rights};
use crate::case;
use crate::raw::null;
use crate::support::family::{is_alive, signal};
use crate::support::{deadline, eventually, id, open_fds, Family};
use fdholder::{Client, Errno, Error, Limit};
use libtest_mimic::Trial;
use rustix::process::{prlimit, Pid, Resource, Rlimit, Signal};
use std::process::Command;

/// What accept4(2), recvmsg(2) and sendmsg(2) may say of a lack of room, or of one client.
const ERRORS: [&str; 6] = ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ETOOMANYREFS", "ECONNABORTED"];

const CALLS: [&str; 3] = ["accept4", "recvmsg", "sendmsg"];

pub fn cases(trials: &mut Vec<Trial>) {
    for call in CALLS {
        for error in ERRORS {
            case(trials, format!("failures::{error}_at_{call}"), move || injected(call, error));
        }
    }
    case(trials, "failures::open_files_lowered_while_it_runs", open_files_lowered);
    case(trials, "failures::lowered_with_a_standby", lowered_with_a_standby);
}

/// Every third call fails: clients wait, and all that was asked is done.
fn injected(call: &str, error: &str) {
    let mut family = Family::new();
    let trace = family.folder.path().join("trace");
    let inject = format!("inject={call}:error={error}:when=3+3");
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", trace.to_str().unwrap(), "-e", &format!("trace={call}")]);
    strace.args(["-e", &inject, env!("CARGO_BIN_EXE_fdholder"), "serve", "-1"]).arg(&family.path);
    family.spawn(strace);
    let pid = family.primary();
    let null = null();
    // A connection that the kernel calls aborted is lost, and nothing else.
    let may_break = error == "ECONNABORTED" && call != "accept4";
    let is_broken = |error: &Error| may_break && error.errno() == Errno::PIPE;
    for number in 0..12 {
        let name = id(&number.to_string());
        loop {
            let mut client = family.client();
            let stored = client.store(&name, Limit::never(), &null, deadline());
            match stored.and_then(|()| client.retrieve(&name, deadline())) {
                Ok(_) => break,
                // It has been stored, and the answer was lost.
                Err(error) if may_break && error.errno() == Errno::BUSY => break,
                Err(error) if is_broken(&error) => {}
                Err(error) => panic!("{number}: {error}"),
            }
        }
    }
    eventually("everything is listed", || match family.client().list(deadline()) {
        Ok(list) => list.len() == 12,
        Err(error) if is_broken(&error) => false,
        Err(error) => panic!("{error}"),
    });
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains("(INJECTED)"), "{trace}");
    assert!(is_alive(pid));
    signal(pid, Signal::TERM);
    eventually("it has ended, as it was asked to", || !is_alive(pid));
}

fn limit_open_files(pid: u32, count: Option<u64>) {
    let pid = Pid::from_raw(pid.cast_signed());
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let current = count.or(maximum);
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// Whoever is there goes on, whoever has come waits, and what has no room is refused.
fn open_files_lowered() {
    let mut arena = Arena::new(Rights::OwnPrefix, &[]);
    for _ in 0..5 {
        limit_open_files(arena.pid, Some(10));
        assert_eq!(arena.victim.ask("store x"), "ENFILE");
        assert_eq!(arena.victim.ask("verify"), "done");
        assert_eq!(arena.victim.ask("delete x"), "ENOENT");
        let said = |arena: &Arena| arena.family.log().matches("trying again").count();
        let before = said(&arena);
        arena.victim.tell("reconnect");
        eventually("it cannot be let in", || said(&arena) > before);
        assert!(is_alive(arena.pid));
        limit_open_files(arena.pid, None);
        assert_eq!(arena.victim.answer("reconnect"), "done");
        assert_eq!(arena.victim.ask("store x"), "done");
        assert_eq!(arena.victim.ask("delete x"), "done");
    }
    arena.end();
}

/// The same for both of two: a follower that cannot take what it is told is given up.
fn lowered_with_a_standby() {
    let mut arena = Arena::new(Rights::OwnPrefix, &["--standby"]);
    let standby = arena.family.standby();
    limit_open_files(standby, Some(10));
    assert_eq!(arena.victim.ask("store x"), "done");
    assert_eq!(arena.victim.ask("verify"), "done");
    assert_eq!(arena.victim.ask("delete x"), "done");
    assert_ne!(arena.family.standby(), standby);
    assert!(open_fds(arena.pid) > 0 && is_alive(arena.pid));
    let ids = Client::connect(&arena.family.path, deadline()).unwrap().list(deadline()).unwrap();
    assert!(ids.iter().all(|id| id.as_bytes().starts_with(format!("{VICTIM}/").as_bytes())));
    arena.end();
}
