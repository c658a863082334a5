//! What programs, strangers and unlucky moments do to `run`.

use crate::scene::{Run, Scene};
use crate::support::family::{is_alive, signal};
use crate::support::{
    deadline, eventually, id, is_missing, lingering, Daemon, Family, Rules, Suite, PATIENCE,
};
use fdholder::Limit;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use std::fs::{self, File, Permissions};
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// Sends a descriptor without keeping it.
fn give(socket: impl AsFd, bytes: &[u8], fd: OwnedFd) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    drop(fd);
}

#[test]
fn descriptors_that_take_long_to_close_do_not_stop_run() {
    let scene = Scene::new();
    scene.version("note('address', os.environ['NOTIFY_SOCKET']); up()");
    let run = scene.ready(&["--notify", "web"]);
    let notify = UnixDatagram::unbound().unwrap();
    notify.connect(scene.wait_for("address")).unwrap();
    scene.status();
    let control = scene.holder().client().retrieve(&id("web/.run"), deadline()).unwrap();
    for is_asked in [false, true] {
        run.signal(Signal::STOP);
        let mut others = Vec::new();
        for _ in 0..3 {
            let (fd, other) = lingering();
            if is_asked {
                give(&control, b"junk", fd);
            } else {
                give(&notify, b"X_JUNK=1", fd);
            }
            others.push(other);
        }
        run.signal(Signal::CONT);
        let begun = Instant::now();
        scene.status();
        assert!(begun.elapsed() < Duration::from_secs(4), "asked: {is_asked}");
    }
}

#[test]
fn strangers_cannot_find_the_notify_socket() {
    let scene = Scene::new();
    scene.version("note('address', os.environ['NOTIFY_SOCKET']); up()");
    let _run = scene.ready(&["--notify", "web"]);
    let address = scene.wait_for("address");
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(sockets.contains(&scene.folder.path().display().to_string()));
    assert!(!sockets.contains(&address), "everybody can read its name");
    let name = address.rsplit_once('/').unwrap().1;
    assert!(name.len() >= 30, "{name} can be guessed");
}

#[test]
fn failure_is_not_written_into_a_held_file() {
    let scene = Scene::new();
    let mut client = scene.holder().client();
    let mut options = Vec::new();
    for number in 0..40 {
        let file = File::create(scene.at(&format!("file{number}"))).unwrap();
        let name = format!("file{number}");
        client.store(&id(&name), Limit::never(), file.as_fd(), deadline()).unwrap();
        options.extend(["--fd".to_owned(), name]);
    }
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let mut run = scene.spawn(scene.command_of(&options, &["/does/not/exist"]));
    assert_eq!(run.code(), Some(127), "{}", run.log());
    for number in 0..40 {
        assert_eq!(scene.read(&format!("file{number}")), "", "{number}");
    }
    assert!(run.log().contains("unable to exec /does/not/exist"), "{}", run.log());
}

#[test]
fn program_of_another_user_stops_with_a_killed_run() {
    if !rustix::process::geteuid().is_root() {
        return is_missing("root");
    }
    for closes in ["", "os.close(2); "] {
        let scene = Scene::new();
        fs::set_permissions(scene.folder.path(), Permissions::from_mode(0o711)).unwrap();
        scene.version(&format!(
            "pid = os.getpid(); note('made')\n{closes}os.setgid(65534); os.setuid(65534)\n\
             notify('STATUS=changed'); notify('READY=1'); time.sleep(1000)"
        ));
        let mut run = scene.spawn(scene.command(&["--notify", "web"]));
        run.logged("generation 1 is ready");
        let pid = u32::try_from(scene.status()["generations"][0]["pid"].as_u64().unwrap()).unwrap();
        run.kill();
        eventually("the program ends", || !is_alive(pid));
    }
}

#[test]
fn program_of_a_killed_run_gets_one_signal() {
    let scene = Scene::new();
    scene.version(
        "count = 0\ndef told(*_):\n  global count\n  count += 1\n  note('count', count)\n\
         signal.signal(signal.SIGTERM, told); notify('READY=1')\nwhile True: time.sleep(1000)",
    );
    let mut run = scene.ready(&["--notify", "web"]);
    run.kill();
    assert_eq!(scene.wait_for("count"), "1");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.read("count"), "1");
}

#[test]
fn folder_is_made_where_that_is_possible() {
    let scene = Scene::new();
    let mut command = scene.command(&[]);
    // Nobody can make anything there.
    command.env("RUNTIME_DIRECTORY", "/proc/self");
    let run = scene.spawn(command);
    run.logged("generation 1 is ready");
    assert_eq!(run.folders().len(), 1);
    drop(run);
    let scene = Scene::new();
    let mut command = scene.command(&[]);
    fs::set_permissions(scene.folder.path(), Permissions::from_mode(0o711)).unwrap();
    command.env("RUNTIME_DIRECTORY", format!("{}:/x", scene.folder.path().display()));
    command.env("XDG_RUNTIME_DIR", "/proc/self");
    let run = scene.spawn(command);
    run.logged("generation 1 is ready");
    assert_eq!(run.folders().len(), 1);
}

fn pid_of(scene: &Scene) -> u64 {
    scene.status()["pid"].as_u64().unwrap()
}

#[test]
fn newer_run_of_a_name_keeps_it() {
    let scene = Scene::new();
    let first = scene.ready(&[]);
    eventually("it has registered", || pid_of(&scene) == u64::from(first.pid()));
    let mut second = scene.spawn(scene.command(&[]));
    eventually("it has the name", || pid_of(&scene) == u64::from(second.pid()));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(pid_of(&scene), u64::from(second.pid()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let warned = first.log().matches("nother run has this name").count();
    assert_eq!(warned, 2, "one each: {}", first.log());
    second.terminate();
    eventually("the first has it again", || pid_of(&scene) == u64::from(first.pid()));
}

#[test]
fn refused_registration_is_said_once() {
    let mut scene = Scene::alone();
    let rules = Rules::none(scene.at("rules")).allow("uid/self").regexes("uid/self", "^web$", ".*");
    let path = scene.at("holder");
    scene.replace_holder(Daemon::with_rules(Suite::Ours, &path, &rules, &[]));
    let run = scene.ready(&[]);
    run.logged("cannot reach this process, SIGHUP can");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(run.count("cannot reach this process"), 1, "{}", run.log());
}

#[test]
fn copy_of_the_control_socket_does_not_hide_the_end_of_the_holder() {
    let mut family = Family::with(&[]);
    let mut scene = Scene::alone();
    scene.path = Some(family.path.clone());
    let _run = scene.ready(&[]);
    scene.status();
    let _copy = family.client().retrieve(&id("web/.run"), deadline()).unwrap();
    let old = family.primary();
    family.kill(old);
    family.serve(&[]);
    eventually("it has registered again", || {
        family.client().list(deadline()).unwrap().contains(&id("web/.run"))
    });
}

#[test]
fn what_finds_the_restart_of_the_holder_is_stored() {
    let mut family = Family::with(&[]);
    let mut scene = Scene::alone();
    scene.path = Some(family.path.clone());
    scene.version(
        "def later():\n  wait_for('go')\n  notify('FDSTORE=1\\nFDPOLL=0\\nFDNAME=late', [0])\n\
         threading.Thread(target=later, daemon=True).start(); up()",
    );
    let _run = scene.ready(&["--notify", "web"]);
    let old = family.primary();
    family.kill(old);
    family.serve(&[]);
    scene.touch("go");
    eventually("it is held", || {
        family.client().list(deadline()).unwrap().contains(&id("web/late"))
    });
}

/// `run` whose stderr nobody reads, and is full.
fn unheard(scene: &Scene) -> (Run, std::io::PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (scene.spawn_with(scene.command(&[]), writer.into()), reader)
}

#[test]
fn full_stderr_does_not_stop_run() {
    let scene = Scene::new();
    scene.version("notify('READY=1')\nprint('x' * 5000, file=sys.stderr)\nserve()");
    let (mut run, _reader) = unheard(&scene);
    eventually("it serves", || scene.socket().exists());
    assert_eq!(scene.ask().0, 1);
    run.signal(Signal::HUP);
    eventually("the next one serves", || scene.ask().0 == 2);
    let begun = Instant::now();
    run.terminate();
    assert!(begun.elapsed() < PATIENCE / 4);
}

#[test]
fn askers_that_have_gone_leave_room_for_others() {
    let scene = Scene::new();
    let run = scene.ready(&["--notify", "web"][..0]);
    scene.version("wait_for('go'); serve()");
    run.signal(Signal::HUP);
    run.logged("generation 2 (pid");
    for _ in 0..66 {
        let mut asker = scene.restart_command(&[]).spawn().unwrap();
        eventually("it has asked", || {
            scene.status()["askers"] == 1 || asker.try_wait().unwrap().is_some()
        });
        assert_eq!(asker.try_wait().unwrap(), None, "it is refused");
        asker.kill().unwrap();
        asker.wait().unwrap();
    }
    scene.touch("go");
}

#[test]
fn what_a_stuck_holder_never_takes_is_said() {
    let scene = Scene::new();
    scene.version(
        "notify('READY=1'); wait_for('go')\n\
         for number in range(18): notify(f'FDSTORE=1\\nFDPOLL=0\\nFDNAME=n{number}', [0])\n\
         os._exit(3)",
    );
    let mut run = scene.ready(&["--notify", "web"]);
    scene.holder().signal(Signal::STOP);
    scene.touch("go");
    assert_eq!(run.code(), Some(3));
    scene.holder().signal(Signal::CONT);
    assert!(run.log().contains("does not take all that generation 1 has stored"), "{}", run.log());
}

#[test]
fn child_of_another_user_stores_with_its_own_rights() {
    if !rustix::process::geteuid().is_root() {
        return is_missing("root");
    }
    let mut scene = Scene::alone();
    fs::set_permissions(scene.folder.path(), Permissions::from_mode(0o711)).unwrap();
    // Other users may not store anything.
    let rules = Rules::all(scene.at("rules"));
    let path = scene.at("holder");
    scene.replace_holder(Daemon::with_rules(Suite::Ours, &path, &rules, &[]));
    scene.version(
        "notify('READY=1'); wait_for('go')\nif os.fork() == 0:\n  os.setgid(65534); os.setuid(65534)\n  \
         for number in range(14): notify(f'FDSTORE=1\\nFDPOLL=0\\nFDNAME=e{number}', [0])\n  \
         time.sleep(0.5); os._exit(0)\nos.wait(); note('waited'); wait_for('on')\n\
         notify('FDSTORE=1\\nFDPOLL=0\\nFDNAME=own', [0]); serve()",
    );
    let _run = scene.ready(&["--notify", "web"]);
    scene.status();
    // One of what it sends waits in run until the child has ended.
    scene.holder().signal(Signal::STOP);
    scene.touch("go");
    scene.wait_for("waited");
    scene.holder().signal(Signal::CONT);
    scene.touch("on");
    let held = || scene.holder().client().list(deadline()).unwrap();
    eventually("its own is held", || held().contains(&id("web/own")));
    let others: Vec<_> =
        held().into_iter().filter(|id| id.as_bytes().starts_with(b"web/e")).collect();
    assert_eq!(others, []);
}

/// Children of a process.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// The process beside a generation.
fn copier(run: &Run, scene: &Scene) -> u32 {
    let program = scene.ask().1;
    let mut found = None;
    eventually("a process copies", || {
        found = children(run.pid()).into_iter().find(|it| *it != program && is_alive(*it));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn copier_that_is_killed_is_started_again() {
    let scene = Scene::new();
    scene.version(
        "def later():\n  wait_for('go'); print('afterwards', file=sys.stderr, flush=True); \
         note('written')\nthreading.Thread(target=later, daemon=True).start()\nup()",
    );
    let run = scene.ready(&["--notify", "web"]);
    let first = copier(&run, &scene);
    signal(first, Signal::KILL);
    eventually("there is another one", || copier(&run, &scene) != first);
    scene.touch("go");
    run.logged("afterwards");
    scene.wait_for("written");
    assert_eq!(scene.ask().0, 1, "it lives");
    // The other one has the program stop, too.
    let second = copier(&run, &scene);
    run.signal(Signal::KILL);
    scene.wait_for("stopped.1");
    eventually("it ends with the program", || !is_alive(second));
}
