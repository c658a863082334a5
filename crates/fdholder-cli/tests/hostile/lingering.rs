//! What takes long to close, however it comes to be closed: nobody else waits for it.

use crate::arena::{Arena, Rights};
use crate::case;
use crate::raw::null;
use crate::support::family::signal;
use crate::support::{deadline, eventually, id, marked_file, open_fds, open_files};
use fdholder::Limit;
use libtest_mimic::Trial;
use rustix::process::Signal;

/// The ways to have something closed that an attacker has no copy of any more.
const WAYS: [&str; 9] = [
    "deleted",
    "replaced",
    "expired",
    "refused-busy",
    "refused-perm",
    "malformed",
    "unread",
    "in-a-queue",
    "mid-set",
];

/// Sockets of each attacker, and each way.
const COUNT: usize = 6;

pub fn cases(trials: &mut Vec<Trial>) {
    for way in WAYS {
        case(trials, format!("lingering::{way}"), move || nobody_waits(way, COUNT, &[]));
        case(trials, format!("lingering::{way}_with_a_standby"), move || {
            nobody_waits(way, COUNT, &["--standby"]);
        });
    }
    case(trials, "lingering::hundreds_of_one_user", || {
        nobody_waits("deleted", 150, &["-c", "2000"]);
    });
    case(trials, "lingering::hundreds_of_one_user_with_a_standby", || {
        nobody_waits("deleted", 150, &["-c", "2000", "--standby"]);
    });
    for (name, options) in [("", &[][..]), ("_with_a_standby", &["--standby"])] {
        case(trials, format!("lingering::again_and_again{name}"), move || {
            let mut arena = Arena::new(Rights::Dumps, options);
            arena.withstands("lingering");
            arena.end();
        });
    }
    case(trials, "lingering::delete_is_answered_when_it_is_closed", delete_is_answered);
}

fn begin(arena: &mut Arena, way: &str, count: usize) {
    signal(arena.pid, Signal::STOP);
    arena.attackers(&format!("linger {way} {count}"));
    signal(arena.pid, Signal::CONT);
}

/// The daemon closes them, and the victim does not notice, its own deletes included.
fn nobody_waits(way: &str, count: usize, options: &[&str]) {
    let mut arena = Arena::new(Rights::Dumps, options);
    // A standby has everything, and closes it last.
    let open = |arena: &Arena| arena.family.alive().into_iter().map(open_fds).sum::<usize>();
    let before = open(&arena);
    arena.withstands_all(
        way,
        |arena| {
            begin(arena, way, count);
            // The victim's deletes are answered only when they are carried out, and what it
            // deletes is closed: so are the attackers' by now, if that can be.
            let null = null();
            let mut client = arena.client();
            for _ in 0..20 {
                client.store(&id("x"), Limit::never(), &null, deadline()).unwrap();
                client.delete(&id("x"), deadline()).unwrap();
            }
            // Two of each are being closed, and have no number any more.
            // Some are hung up on.
            let are_gone = matches!(way, "unread" | "malformed" | "mid-set");
            let connections = if are_gone { 0 } else { 2 * count };
            let waiting = before + connections + 2 * (count - 2);
            eventually("what lingers is open in the daemon", || open(arena) >= waiting);
        },
        |arena| {
            if way == "deleted" || way == "in-a-queue" {
                let answers = arena.attackers("answers");
                // Some of many have to wait for their turn, and are answered then.
                assert_eq!(answers, ["done EINPROGRESS"; 2]);
            }
            arena.attackers("release");
            empty(arena);
            eventually("they are closed", || open(arena) <= before);
        },
    );
    arena.end();
}

/// For the next round.
fn empty(arena: &Arena) {
    let mut client = arena.client();
    for name in client.list(deadline()).unwrap() {
        if !name.as_bytes().starts_with(b"1001/") {
            let _ = client.delete(&name, deadline());
        }
    }
}

/// When its answer comes, a descriptor is closed, in a standby as well.
fn delete_is_answered() {
    for options in [&[][..], &["--standby"]] {
        let mut arena = Arena::new(Rights::Dumps, options);
        begin(&mut arena, "deleted", COUNT);
        let mut pids = vec![arena.pid];
        if !options.is_empty() {
            pids.push(arena.family.standby());
        }
        let mut client = arena.client();
        for round in 0..100 {
            let (file, path) = marked_file(arena.family.folder.path(), &round.to_string());
            client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
            client.delete(&id("x"), deadline()).unwrap();
            drop(file);
            for pid in &pids {
                let open = open_files(*pid);
                assert!(!open.is_empty() && open.values().all(|it| *it != path), "round {round}");
            }
        }
        drop(client);
        // What cannot be closed is no secret to who has had it deleted.
        assert_eq!(arena.attackers("answers"), ["done EINPROGRESS"; 2]);
        for pid in pids {
            assert!(open_fds(pid) > 2 * COUNT);
        }
        arena.end();
    }
}
