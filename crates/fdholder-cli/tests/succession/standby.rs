//! A second process that has everything, when one of the two is killed.

use crate::follower::RawFollower;
use crate::support::family::{is_alive, signal};
use crate::support::{deadline, eventually, id, marked_file, path_of, Family};
use crate::{content, fill, open_paths};
use fdholder::extension::{self, VERSION};
use fdholder::link::Fed;
use fdholder::{reply, Client, Entry, Errno, Limit, Request, Timestamp};
use rustix::process::{prlimit, Pid, Resource, Rlimit, Signal};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Primary killed: the standby serves, with everything, and has a standby of its own.
#[test]
fn the_standby_serves_when_the_primary_is_killed() {
    let mut family = Family::with(&["--standby", "-n", "2000"]);
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", family.standby())).unwrap();
    assert_eq!(comm, "fdholder\n");
    let mut client = family.client();
    let folder = family.folder.path().to_owned();
    fill(&mut client, &folder, 600);
    let limit = Limit::at(Timestamp::now().saturating_add(Duration::from_secs(1000)));
    let (file, _) = marked_file(&folder, "limited");
    client.store(&id("limited"), limit, &file, deadline()).unwrap();
    for generation in 0..4 {
        let before = content(&mut family.client());
        let (primary, standby) = (family.primary(), family.standby());
        // What came last counts as well, and so does what went.
        let (file, path) = marked_file(&folder, &format!("last {generation}"));
        let mut client = family.client();
        client.store(&id("last"), Limit::never(), &file, deadline()).unwrap();
        client.delete(&id(&generation.to_string()), deadline()).unwrap();
        signal(primary, Signal::KILL);
        let mut client = family.client();
        assert_eq!(path_of(client.retrieve(&id("last"), deadline()).unwrap()), path);
        assert_eq!(family.primary(), standby);
        client.delete(&id("last"), deadline()).unwrap();
        let mut expected = before;
        expected.remove(&id(&generation.to_string())).unwrap();
        assert_eq!(content(&mut client), expected);
        family.kill(primary);
    }
}

/// Of a process that was killed what has the highest number goes first, and what it has beside
/// may take milliseconds.
#[test]
fn the_end_is_told_to_the_standby_first() {
    let mut family = Family::with(&["--standby", "-n", "2000"]);
    fill(&mut family.client(), family.folder.path(), 600);
    for _ in 0..2 {
        family.standby();
        let primary = family.primary();
        let fds = std::fs::read_dir(format!("/proc/{primary}/fd")).unwrap();
        let number = |fd: std::fs::DirEntry| fd.file_name().to_str().unwrap().parse().unwrap();
        let highest: u32 = fds.map(|fd| number(fd.unwrap())).max().unwrap();
        let what = std::fs::read_link(format!("/proc/{primary}/fd/{highest}")).unwrap();
        let what = what.to_str().unwrap();
        // All others have the lowest that are free.
        assert!(highest > 2000 && what.starts_with("socket:"), "{highest}: {what}");
        family.kill(primary);
        assert_eq!(family.client().list(deadline()).unwrap().len(), 600);
    }
}

/// What is acknowledged survives the very next instant, over and over.
#[test]
fn what_is_acknowledged_survives() {
    let mut family = Family::with(&["--standby"]);
    let folder = family.folder.path().to_owned();
    for round in 0..20 {
        family.standby();
        let primary = family.primary();
        let mut client = family.client();
        let (file, path) = marked_file(&folder, &format!("{round}"));
        let name = id(&format!("{round}"));
        match round % 4 {
            0 => client.store(&name, Limit::never(), &file, deadline()).unwrap(),
            1 => {
                let entry = [Entry { id: name.clone(), limit: Limit::never(), fd: file.as_fd() }];
                client.setdump(&entry, deadline()).unwrap();
            }
            2 => client.delete(&id(&format!("{}", round - 1)), deadline()).unwrap(),
            _ => {
                client
                    .retrieve_maybe_delete(&id(&format!("{}", round - 3)), true, deadline())
                    .unwrap();
                // It is known to have been taken when the next one finds it so.
                family.client().retrieve(&id(&format!("{}", round - 3)), deadline()).unwrap_err();
            }
        }
        signal(primary, Signal::KILL);
        let mut client = family.client();
        let list = client.list(deadline()).unwrap();
        match round % 4 {
            0 | 1 => assert_eq!(path_of(client.retrieve(&name, deadline()).unwrap()), path),
            2 => assert!(!list.contains(&id(&format!("{}", round - 1)))),
            _ => assert!(list.is_empty(), "{list:?}"),
        }
        family.kill(primary);
    }
}

/// Whoever asks to follow right behind what waits for the standby hears of that first.
#[test]
fn a_follower_is_answered_in_order() {
    let family = Family::with(&["--standby"]);
    family.standby();
    let (file, _) = marked_file(family.folder.path(), "x");
    let entry = Entry { id: id("x"), limit: Limit::never(), fd: file.as_fd() };
    let mut follower = RawFollower::behind(&family.path, &Request::Store(entry).into_message());
    follower.next(|frame| assert_eq!(reply::parse_status(&frame), Ok(Ok(()))));
    follower.next(|frame| assert_eq!(extension::parse_hello(&frame), Ok(Ok(VERSION))));
    follower.next(|frame| assert!(matches!(Fed::parse(frame), Ok(Fed::Head { .. }))));
}

/// Who follows and takes nothing more is struck off before what it should have been told is
/// answered: should it wake up and find the primary gone, it must not serve.
#[test]
fn whoever_is_given_up_must_not_serve() {
    let family = Family::with(&[]);
    let (_follower, place) = RawFollower::new(&family.path);
    let mut client = family.client();
    let (file, _) = marked_file(family.folder.path(), "x");
    let mut store = |name: &str| client.store(&id(name), Limit::never(), &file, deadline());
    store("x").unwrap();
    assert!(!place.is_struck_off());
    // More than its socket has room for.
    for number in 0..900 {
        store(&number.to_string()).unwrap();
    }
    assert!(place.is_struck_off());
}

/// Deleted is closed, in both of them.
#[test]
fn what_is_deleted_is_closed_in_both() {
    let family = Family::with(&["--standby"]);
    let mut client = family.client();
    let both = [family.primary(), family.standby()];
    for round in 0..200 {
        let (file, path) = marked_file(family.folder.path(), "marked");
        if round % 2 == 0 {
            client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        } else {
            let entry = [Entry { id: id("x"), limit: Limit::never(), fd: file.as_fd() }];
            client.setdump(&entry, deadline()).unwrap();
        }
        client.delete(&id("x"), deadline()).unwrap();
        for pid in both {
            assert!(!open_paths(pid).contains(&path), "round {round}");
        }
    }
    assert_eq!(both, [family.primary(), family.standby()]);
}

/// What expires is closed in both, too, without anybody asking.
#[test]
fn what_expires_is_closed_in_both() {
    let family = Family::with(&["--standby"]);
    let both = [family.primary(), family.standby()];
    let (file, path) = marked_file(family.folder.path(), "marked");
    let soon = Limit::after(Duration::from_millis(200));
    family.client().store(&id("x"), soon, &file, deadline()).unwrap();
    eventually("it is closed in both", || both.iter().all(|pid| !open_paths(*pid).contains(&path)));
}

/// Standby killed: the primary goes on, and has another one.
#[test]
fn the_primary_goes_on_when_the_standby_is_killed() {
    let mut family = Family::with(&["--standby"]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 100);
    let primary = family.primary();
    for _ in 0..5 {
        let standby = family.standby();
        family.kill(standby);
        assert_eq!(client.list(deadline()).unwrap().len(), 100);
        assert_ne!(family.standby(), standby);
        assert_eq!(family.primary(), primary);
    }
}

/// A standby that hangs is given up, killed, and another one started; it never serves.
#[test]
fn a_standby_that_hangs_is_given_up() {
    let family = Family::with(&["--standby"]);
    let mut client = family.client();
    let standby = family.standby();
    signal(standby, Signal::STOP);
    let (file, _) = marked_file(family.folder.path(), "x");
    // It still has what is deleted; that is said, and everything else goes on.
    client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    let error = client.delete(&id("x"), deadline()).unwrap_err();
    assert_eq!(error.errno(), Errno::INPROGRESS);
    eventually("it is killed", || !is_alive(standby));
    assert_ne!(family.standby(), standby);
}

/// What would not be enough to start with is no reason not to serve.
#[test]
fn less_room_does_not_keep_the_standby_from_serving() {
    let family = Family::with(&["--standby"]);
    let mut client = family.client();
    fill(&mut client, family.folder.path(), 10);
    let before = content(&mut client);
    let (primary, standby) = (family.primary(), family.standby());
    let few = Rlimit { current: Some(100), maximum: Some(100) };
    prlimit(Pid::from_raw(standby.cast_signed()), Resource::Nofile, few).unwrap();
    signal(primary, Signal::KILL);
    assert_eq!(content(&mut family.client()), before);
    assert_eq!(family.primary(), standby);
}

/// A client that asks for much without waiting is not kept waiting in between.
#[test]
fn many_requests_at_once_are_not_held_up() {
    const COUNT: usize = 1000;
    let family = Family::with(&["--standby"]);
    family.standby();
    fill(&mut family.client(), family.folder.path(), COUNT);
    let mut stream = UnixStream::connect(&family.path).unwrap();
    let delete = |number: usize| {
        let request = Request::<OwnedFd>::Delete(id(&number.to_string()));
        request.into_message().into_parts().0
    };
    let began = std::time::Instant::now();
    std::io::Write::write_all(&mut stream, &(0..COUNT).flat_map(delete).collect::<Vec<_>>())
        .unwrap();
    let mut answers = vec![0; COUNT * 7];
    std::io::Read::read_exact(&mut stream, &mut answers).unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// When the kernel has no resources for the first standby, there is another one; and what has
/// ended is not killed once more.
#[test]
fn there_is_another_standby() {
    let mut family = Family::new();
    let trace = family.folder.path().join("trace");
    let mut strace = std::process::Command::new("strace");
    strace.args(["-qq", "-o", trace.to_str().unwrap(), "-e", "trace=epoll_ctl,kill,wait4,waitid"]);
    // Eight sources and what wakes a thread, then the first standby.
    strace.args(["-e", "inject=epoll_ctl:error=ENOSPC:when=10"]);
    strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1", "--standby"]);
    strace.arg(&family.path);
    family.spawn(strace);
    let first = family.standby();
    signal(first, Signal::KILL);
    eventually("there is another one", || family.standby() != first);
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains("ENOSPC"), "{trace}");
    assert!(!trace.contains("ESRCH"), "a process was killed that had ended: {trace}");
}

/// When descriptors have no room in flight just once, a standby is not given up, however long
/// there was nothing to tell it.
#[test]
fn a_standby_with_nothing_to_do_does_not_hang() {
    let mut family = Family::new();
    let mut strace = std::process::Command::new("strace");
    let full = "inject=sendmsg:error=ETOOMANYREFS:when=4..8";
    strace.args(["-qq", "-o", "/dev/null", "-e", "trace=sendmsg", "-e", full]);
    strace.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1", "--standby"]);
    strace.arg(&family.path);
    family.spawn(strace);
    let standby = family.standby();
    std::thread::sleep(Duration::from_millis(2200));
    let (file, _) = marked_file(family.folder.path(), "x");
    family.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    assert_eq!(family.standby(), standby);
    assert!(!family.log().contains("given up"), "{}", family.log());
}

/// SIGTERM, to either, ends both.
#[test]
fn sigterm_ends_both() {
    for to_standby in [false, true] {
        let mut family = Family::with(&["--standby"]);
        let (file, _) = marked_file(family.folder.path(), "x");
        family.client().store(&id("x"), Limit::never(), &file, deadline()).unwrap();
        let (primary, standby) = (family.primary(), family.standby());
        signal(if to_standby { standby } else { primary }, Signal::TERM);
        assert_eq!(family.wait(primary), Some(1), "something was held");
        eventually("both have ended", || family.alive().is_empty());
        // The kernel closes a listener that was in flight between them a moment later.
        eventually("nobody listens", || Client::connect(&family.path, deadline()).is_err());
    }
}

/// A supervisor that restarts the dead primary finds the one that serves, and takes over.
#[test]
fn a_restarted_primary_takes_over_from_the_standby() {
    let mut family = Family::with(&["--standby"]);
    fill(&mut family.client(), family.folder.path(), 300);
    let before = content(&mut family.client());
    for _ in 0..5 {
        family.standby();
        let primary = family.primary();
        family.kill(primary);
        // At once, as a supervisor does; the standby may not even have noticed.
        let next = family.serve(&["--standby"]);
        assert_eq!(family.primary(), next);
        assert_eq!(content(&mut family.client()), before);
        family.standby();
        eventually("two are left", || family.alive().len() == 2);
    }
}

/// Clients for whose descriptors there was no room are served when there is, also if followers
/// were waited for meanwhile.
#[test]
fn who_waits_for_room_is_not_forgotten() {
    let mut family = Family::new();
    let mut command = std::process::Command::new("sh");
    let serve = "ulimit -n 816; exec \"$0\" serve -1 --standby -n 440 -c 10 \"$1\"";
    command.args(["-c", serve, env!("CARGO_BIN_EXE_fdholder")]).arg(&family.path);
    family.spawn(command);
    family.standby();
    let null = File::open("/dev/null").unwrap();
    let entry = |number: u32| Entry {
        id: id(&number.to_string()),
        limit: Limit::never(),
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..440).map(entry).collect();
    family.client().setdump(&set, deadline()).unwrap();
    // Half a message, with most of the descriptors that there is room for.
    let hand = UnixStream::connect(&family.path).unwrap();
    let half = [0, 0, 4, 0, 0, 200, b'.'];
    let fds = vec![null.as_fd(); 200];
    fdholder::transport::send(&hand, &half, &fds, fdholder::transport::Wait::Yes).unwrap();
    let mut other = family.client();
    other.list(deadline()).unwrap();
    std::thread::scope(|scope| {
        let store = |name: String| {
            let mut client = family.client();
            let null = &null;
            move || client.store(&id(&name), Limit::never(), null, deadline())
        };
        let waiting: Vec<_> =
            (0..6).map(|number| scope.spawn(store(format!("new{number}")))).collect();
        // Each answer to these waits for the standby.
        for number in 0..150 {
            other.delete(&id(&number.to_string()), deadline()).unwrap();
        }
        drop(hand);
        for client in waiting {
            client.join().unwrap().unwrap();
        }
    });
    assert_eq!(family.client().list(deadline()).unwrap().len(), 296);
}
