//! The file of the listening socket is removed, renamed or replaced while the daemon serves.

use crate::support::family::{is_alive, signal};
use crate::support::{
    deadline, eventually, has_landlock, id, marked_file, path_of, suite, Daemon, Family,
};
use fdholder::transport::{self, Wait};
use fdholder::{Client, Limit};
use rustix::fs::fstat;
use rustix::process::Signal;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{chown, symlink, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A daemon at a path that is said in some way, relative to a folder.
fn serve_in(folder: &Path, said: &Path) -> Daemon {
    let mut command = suite::fdholder(["serve", "-1"]);
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    command.arg(said).current_dir(folder).stderr(log);
    Daemon::spawn(command, &folder.join(said))
}

fn hold(client: &mut Client, folder: &Path) -> PathBuf {
    let (file, path) = marked_file(folder, "x");
    client.store(&id("x"), Limit::never(), &file, deadline()).unwrap();
    path
}

/// Until the file is there, and clients can come by it.
fn wait_until_made_again(family: &Family) {
    eventually("the file is made again", || {
        let log = family.log();
        log.contains("was removed or renamed, and is made again")
    });
    assert!(fs::symlink_metadata(&family.path).unwrap().file_type().is_socket());
}

/// Whatever else happens then, the file is there soon, as it was, and leads to the same daemon.
#[test]
fn removed_socket_file_is_made_again() {
    for what_happens in [None, Some(Signal::HUP), Some(Signal::USR2)] {
        let family = Family::with(&[]);
        let mut client = family.client();
        let held = hold(&mut client, family.folder.path());
        fs::set_permissions(&family.path, Permissions::from_mode(0o640)).unwrap();
        // A program that begins to serve looks at the mode.
        signal(family.primary(), Signal::USR2);
        eventually("it has upgraded", || family.log().matches(": ready on").count() == 2);
        fs::remove_file(&family.path).unwrap();
        if let Some(what) = what_happens {
            signal(family.primary(), what);
        }
        wait_until_made_again(&family);
        assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), held);
        assert_eq!(path_of(family.client().retrieve(&id("x"), deadline()).unwrap()), held);
        let mode = fs::metadata(&family.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "{what_happens:?}");
    }
}

/// With Landlock, too, which is the default for such a path.
#[test]
fn socket_file_is_made_again_in_a_folder_that_was_made_again() {
    let mut family = Family::new();
    let folder = family.folder.path().join("sub");
    fs::create_dir(&folder).unwrap();
    family.path = folder.join("holder");
    family.serve(&["-v2"]);
    assert!(!has_landlock() || family.log().contains("(Landlock)"), "{}", family.log());
    let mut client = family.client();
    hold(&mut client, family.folder.path());
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    wait_until_made_again(&family);
    assert_eq!(family.client().list(deadline()).unwrap(), [id("x")]);
}

/// The next daemon finds the living one, by whichever name of the path, and goes on with everything.
#[test]
fn serve_after_the_file_has_gone_takes_over_from_the_living_daemon() {
    type Happens = fn(&Path);
    let remove: Happens = |path| fs::remove_file(path).unwrap();
    let rename: Happens = |path| fs::rename(path, path.with_file_name("renamed")).unwrap();
    let clear: Happens = |path| {
        let folder = path.parent().unwrap();
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
    };
    let replaced_folder: Happens = |path| {
        let folder = path.parent().unwrap();
        fs::rename(folder, folder.with_file_name("old")).unwrap();
        fs::create_dir(folder).unwrap();
    };
    let happenings =
        [("remove", remove), ("rename", rename), ("clear", clear), ("folder", replaced_folder)];
    let names = ["sub/holder", "link/holder", "ABSOLUTE"];
    for (what, happens) in happenings {
        for (first, second) in names.iter().flat_map(|one| names.map(|two| (*one, two))) {
            let temp = tempfile::tempdir().unwrap();
            let folder = temp.path();
            fs::create_dir(folder.join("sub")).unwrap();
            symlink("sub", folder.join("link")).unwrap();
            let absolute = folder.join("sub/holder");
            let said = |name: &str| match name {
                "ABSOLUTE" => absolute.clone(),
                name => PathBuf::from(name),
            };
            let mut old = serve_in(folder, &said(first));
            let mut client = old.client();
            let held = hold(&mut client, folder);
            happens(&absolute);
            let new = serve_in(folder, &said(second));
            let log = fs::read_to_string(folder.join("log")).unwrap();
            let context = format!("{what}: {first}, then {second}: {log}");
            let by_path = Client::connect(&absolute, deadline()).unwrap().list(deadline()).unwrap();
            assert_eq!(by_path, [id("x")], "{context}");
            assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), held, "{context}");
            assert!(old.wait().success(), "{context}");
            assert!(is_alive(new.pid()), "{context}");
        }
    }
}

/// With -D nothing is taken over; the file that was made meanwhile goes.
#[test]
fn serve_without_reuse_names_the_living_daemon() {
    let family = Family::with(&[]);
    hold(&mut family.client(), family.folder.path());
    // A folder that it did not begin with: it cannot make the file again.
    let primary = family.primary();
    fs::remove_file(&family.path).unwrap();
    let mut command = suite::fdholder(["serve", "-D"]);
    let output = command.arg(&family.path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(111), "{said}");
    // By then the living one may have made it again, which bind(2) says.
    let names_it = said.contains(&format!("a daemon listens there (pid {primary}"));
    assert!(names_it || said.contains("Address already in use"), "{said}");
    eventually("the living one can be reached", || {
        let client = Client::connect(&family.path, deadline());
        client.is_ok_and(|mut client| client.list(deadline()).is_ok_and(|ids| ids.len() == 1))
    });
}

/// A standby makes the file again before it is ready, whether the primary had or not.
#[test]
fn promoted_standby_makes_the_file_again() {
    for primary_has_made_it in [false, true] {
        let mut family = Family::with(&["--standby"]);
        let held = hold(&mut family.client(), family.folder.path());
        let (primary, standby) = family.pair();
        fs::remove_file(&family.path).unwrap();
        if primary_has_made_it {
            wait_until_made_again(&family);
        }
        family.kill(primary);
        eventually("the standby serves", || family.log().contains("which has gone"));
        wait_until_made_again(&family);
        assert_eq!(family.primary(), standby);
        let mut client = family.client();
        assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), held);
    }
}

/// What stands in the place of the file is another's, and stays; once it has gone, the file is made.
#[test]
fn replaced_socket_file_is_left_alone() {
    type Place = fn(&Path) -> Option<UnixListener>;
    let living: Place = |path| Some(UnixListener::bind(path).unwrap());
    let dead_of_another: Place = |path| {
        UnixListener::bind(path).unwrap();
        chown(path, Some(12345), None).unwrap();
        None
    };
    let file: Place = |path| {
        fs::write(path, "precious").unwrap();
        None
    };
    let link: Place = |path| {
        symlink("/nonexistent", path).unwrap();
        None
    };
    let folder: Place = |path| {
        fs::create_dir(path).unwrap();
        None
    };
    let mut places = vec![("living", living), ("file", file), ("link", link), ("folder", folder)];
    if rustix::process::geteuid().is_root() {
        places.push(("dead", dead_of_another));
    }
    for (what, place) in places {
        let family = Family::with(&[]);
        let mut client = family.client();
        let held = hold(&mut client, family.folder.path());
        // It comes in the place of the other at one stroke.
        let beside = family.folder.path().join("beside");
        let living = place(&beside);
        if what == "folder" {
            fs::remove_file(&family.path).unwrap();
        }
        fs::rename(&beside, &family.path).unwrap();
        let inode = || fs::symlink_metadata(&family.path).unwrap().ino();
        let before = inode();
        for what_happens in [Signal::HUP, Signal::USR2] {
            let ready = family.log().matches(": ready on").count();
            signal(family.primary(), what_happens);
            if what_happens == Signal::USR2 {
                eventually("it has upgraded", || {
                    family.log().matches(": ready on").count() > ready
                });
            }
            let problem = format!("no client can come by {}", family.path.display());
            eventually("it is said", || family.log().contains(&problem));
            assert_eq!(inode(), before, "{what}: {what_happens:?}");
        }
        drop(living);
        let gone = fs::remove_file(&family.path).or_else(|_| fs::remove_dir(&family.path));
        gone.unwrap();
        wait_until_made_again(&family);
        assert_eq!(path_of(family.client().retrieve(&id("x"), deadline()).unwrap()), held);
        assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), held);
    }
}

/// By its new name clients come in, and an upgrade is asked for.
#[test]
fn renamed_socket_serves_by_both_names() {
    let family = Family::with(&[]);
    let held = hold(&mut family.client(), family.folder.path());
    let renamed = family.folder.path().join("renamed");
    fs::rename(&family.path, &renamed).unwrap();
    wait_until_made_again(&family);
    for path in [&family.path, &renamed] {
        let mut client = Client::connect(path, deadline()).unwrap();
        assert_eq!(path_of(client.retrieve(&id("x"), deadline()).unwrap()), held);
    }
    let output = suite::fdholder(["upgrade"]).arg(&renamed).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(path_of(family.client().retrieve(&id("x"), deadline()).unwrap()), held);
}

/// Clients come in by the former name, too, at each daemon that serves after that: the program that
/// it becomes, a daemon that takes over, and a standby that was started later.
#[test]
fn renamed_socket_serves_by_both_names_after_each_succession() {
    let mut family = Family::with(&["--standby"]);
    let held = hold(&mut family.client(), family.folder.path());
    let renamed = family.folder.path().join("renamed");
    fs::rename(&family.path, &renamed).unwrap();
    wait_until_made_again(&family);
    let serves_by_both = |family: &Family, context: &str| {
        for path in [&family.path, &renamed] {
            let mut client = Client::connect(path, deadline()).unwrap();
            let retrieved = client.retrieve(&id("x"), deadline());
            assert_eq!(path_of(retrieved.unwrap()), held, "{context}: {}", family.log());
        }
    };
    for round in 0..2 {
        let (_, standby) = family.pair();
        signal(standby, Signal::KILL);
        eventually("it has ended", || !is_alive(standby));
        let (primary, _) = family.pair();
        signal(primary, Signal::KILL);
        eventually("it serves", || family.primary() != primary);
        serves_by_both(&family, &format!("later standby, round {round}"));
        family.pair();
        let upgraded = suite::fdholder(["upgrade"]).arg(&family.path).output().unwrap();
        assert!(upgraded.status.success(), "{upgraded:?}");
        serves_by_both(&family, "upgrade");
        let old = family.primary();
        family.serve(&["--standby"]);
        assert_ne!(family.primary(), old);
        serves_by_both(&family, "takeover");
    }
}

/// A client that has asked for the list and waits to be let in.
fn waiting_client(path: &Path) -> UnixStream {
    let mut waiting = UnixStream::connect(path).unwrap();
    waiting.write_all(b"\0\0\0\x01\0\0L").unwrap();
    waiting.shutdown(Shutdown::Write).unwrap();
    waiting.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    waiting
}

/// Clients that wait, at the former socket and the new one, are served: by this daemon, the program
/// that it becomes, or the standby when it is killed.
#[test]
fn clients_in_the_queues_of_both_sockets_are_served() {
    for what_happens in [None, Some(Signal::USR2), Some(Signal::KILL)] {
        let mut family = Family::with(&["--standby"]);
        let mut client = family.client();
        hold(&mut client, family.folder.path());
        let (primary, _) = family.pair();
        // Clients come by this name, too.
        let former = family.folder.path().join("former");
        fs::rename(&family.path, &former).unwrap();
        wait_until_made_again(&family);
        // The standby has been told when this is answered.
        client.list(deadline()).unwrap();
        // A daemon that is stopped lets nobody in.
        signal(primary, Signal::STOP);
        let status = format!("/proc/{primary}/status");
        eventually("it is stopped", || fs::read_to_string(&status).unwrap().contains("State:\tT"));
        let queues = [&former, &family.path];
        let waiting: Vec<_> =
            queues.into_iter().cycle().take(6).map(|at| waiting_client(at)).collect();
        match what_happens {
            Some(Signal::KILL) => family.kill(primary),
            other => {
                if let Some(other) = other {
                    signal(primary, other);
                }
                signal(primary, Signal::CONT);
            }
        }
        if what_happens == Some(Signal::USR2) {
            eventually("it goes on", || family.log().matches(": ready on").count() == 2);
        }
        for (number, mut waiting) in waiting.into_iter().enumerate() {
            let mut answer = Vec::new();
            let read = waiting.read_to_end(&mut answer);
            let is_listed = answer.ends_with(b"x\0");
            assert!(is_listed, "{what_happens:?}, {number}: {read:?} {answer:?} {}", family.log());
        }
    }
}

/// systemd keeps the socket by which clients come in, in the place of the former one.
#[test]
fn systemd_is_given_the_new_socket() {
    let mut family = Family::new();
    let address = family.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&address).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let mut command = suite::fdholder(["serve", "-1", "--fdstore"]);
    command.arg(&family.path).env("NOTIFY_SOCKET", &address);
    family.spawn(command);
    let mut kept = None;
    let mut read = || {
        let mut buffer = [0; 4096];
        while let Ok(received) = transport::receive(&systemd, &mut buffer, Wait::No) {
            let text = std::str::from_utf8(&buffer[..received.len]).unwrap();
            let is_listener = text.lines().any(|line| line.starts_with("FDNAME=l"));
            if is_listener && text.starts_with("FDSTORE=1") {
                kept = received.fds.into_iter().next();
            }
        }
        kept.as_ref().map(|fd: &OwnedFd| fstat(fd).unwrap().st_ino)
    };
    let mut before = None;
    eventually("it keeps the first", || {
        before = read();
        before.is_some()
    });
    fs::remove_file(&family.path).unwrap();
    eventually("it keeps another", || read() != before);
    // The daemon itself may let the client in, so this looks at the kernel's table.
    let kept = fstat(kept.as_ref().unwrap()).unwrap().st_ino;
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let bound = table.lines().filter(|line| line.ends_with(family.path.to_str().unwrap()));
    assert!(bound.into_iter().any(|line| line.contains(&format!(" {kept} "))), "{kept}: {table}");
}

/// The abstract name is for the next daemon alone: by it nothing is listed.
#[test]
fn client_by_the_abstract_name_has_no_rights() {
    let family = Family::with(&[]);
    hold(&mut family.client(), family.folder.path());
    let names = fs::read_to_string("/proc/net/unix").unwrap();
    let path = family.path.to_str().unwrap();
    let mut names = names.lines().filter_map(|line| Some(line.split_once('@')?.1));
    let name = names.find(|name| name.starts_with("fdholder/") && name.ends_with(path));
    let name = name.expect("it listens on an abstract name").to_owned();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"\0\0\0\x01\0\0L").unwrap();
    let mut answer = [0; 64];
    let len = stream.read(&mut answer).unwrap_or(0);
    assert!(!answer[..len].contains(&b'x'), "{:?}", &answer[..len]);
}

/// A program that begins to serve does not take a stranger's socket for its own, nor its mode.
#[test]
fn socket_of_another_process_stays_one_after_an_upgrade() {
    let family = Family::with(&[]);
    fs::remove_file(&family.path).unwrap();
    let stranger = UnixListener::bind(&family.path).unwrap();
    fs::set_permissions(&family.path, Permissions::from_mode(0o777)).unwrap();
    let times_said = || family.log().matches("the socket of another process is there").count();
    eventually("it is said", || times_said() == 1);
    signal(family.primary(), Signal::USR2);
    eventually("it is said again by the new program", || times_said() == 2);
    eventually("it has upgraded", || family.log().matches(": ready on").count() == 2);
    drop(stranger);
    wait_until_made_again(&family);
    assert_eq!(fs::metadata(&family.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(family.client().list(deadline()), Ok(vec![]));
}
