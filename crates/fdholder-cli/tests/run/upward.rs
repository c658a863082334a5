//! What goes to the service manager, and what goes into the holder.

use crate::scene::{Run, Scene};
use crate::support::family::signal;
use crate::support::{assert_exit, deadline, eventually, id, Family, PATIENCE};
use rustix::process::Signal;
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Who has started `run`, as systemd.
struct Manager {
    socket: UnixDatagram,
    address: String,
}

impl Manager {
    fn new(scene: &Scene) -> Self {
        let path = scene.at("manager");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, address: path.display().to_string() }
    }

    fn by_name(scene: &Scene) -> Self {
        let name = format!("fdholder-test{}", scene.folder.path().display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, address: format!("@{name}") }
    }

    fn start(&self, scene: &Scene, options: &[&str]) -> Run {
        let mut command = scene.command(options);
        command.env("NOTIFY_SOCKET", &self.address);
        scene.spawn(command)
    }

    /// The next message.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// All that there are.
    fn all(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut all = Vec::new();
        while let Ok(len) = self.socket.recv(&mut buffer) {
            all.push(String::from_utf8(buffer[..len].to_vec()).unwrap());
        }
        self.socket.set_nonblocking(false).unwrap();
        all
    }
}

fn is_reloading(text: &str) -> bool {
    let usec =
        text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|it| it.strip_suffix('\n'));
    usec.is_some_and(|usec| usec.parse::<u64>().unwrap() > 0)
}

#[test]
fn states_of_the_service_are_told() {
    for make in [Manager::new, Manager::by_name] {
        let scene = Scene::new();
        let manager = make(&scene);
        scene.version("stop_in_order(); notify('STATUS=up\\nREADY=1\\nMAINPID=1'); serve()");
        let mut run = manager.start(&scene, &["--notify", "web"]);
        let pid = run.pid();
        assert_eq!(manager.next(), "STATUS=up\n");
        assert_eq!(manager.next(), format!("READY=1\nMAINPID={pid}\nSTATUS=up\n"));
        scene.wait_for("serving.1");
        assert_exit(&scene.restart(), 0);
        assert!(is_reloading(&manager.next()));
        // What the next one says of itself counts once it is ready.
        assert_eq!(manager.next(), "READY=1\nSTATUS=up\n");
        scene.version("notify('STATUS=bad\\nWATCHDOG=1'); sys.exit(1)");
        assert_exit(&scene.restart(), 1);
        assert!(is_reloading(&manager.next()));
        assert_eq!(manager.next(), "READY=1\nSTATUS=up\n");
        assert_eq!(run.terminate(), Some(0));
        assert_eq!(manager.next(), "STOPPING=1\n");
        assert_eq!(manager.all(), [""; 0]);
    }
}

#[test]
fn program_speaks_through_run_but_not_of_descriptors() {
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let says = "notify('READY=1'); wait_for('go'); \
                notify('FDSTORE=1\\nFDNAME=x\\nFDPOLL=0\\nMAINPID=77\\nMAINPIDFDID=1\\nWATCHDOG=1', [0]); \
                notify('FDSTOREREMOVE=1\\nFDNAME=x'); barrier(); \
                notify('EXTEND_TIMEOUT_USEC=5\\nERRNO=2\\nEXIT_STATUS=3\\nX_OWN=1\\nBUSERROR=a.b'); \
                notify('RELOADING=1\\nMONOTONIC_USEC=5'); notify('READY=1'); notify('STOPPING=1\\nX=2'); \
                barrier(); note('said'); serve()";
    scene.version(says);
    let _run = manager.start(&scene, &["--notify", "web"]);
    assert!(manager.next().starts_with("READY=1\nMAINPID="));
    scene.touch("go");
    let expected = [
        "WATCHDOG=1\n",
        "EXTEND_TIMEOUT_USEC=5\nERRNO=2\nEXIT_STATUS=3\nX_OWN=1\nBUSERROR=a.b\n",
        "RELOADING=1\nMONOTONIC_USEC=5\n",
        "READY=1\n",
        // It is not the service that stops.
        "X=2\n",
    ];
    for text in expected {
        assert_eq!(manager.next(), text);
    }
}

#[test]
fn only_the_serving_generation_speaks() {
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let hears =
        "signal.signal(signal.SIGUSR1, lambda *_: notify(f'WATCHDOG=1\\nX_FROM={generation}'))\n";
    scene.version(&format!("{hears}up()"));
    let run = manager.start(&scene, &["--notify", "web"]);
    assert!(manager.next().starts_with("READY=1"));
    let (_, first) = scene.ask();
    scene.version(&format!(
        "{hears}notify('WATCHDOG=1'); barrier(); note('second', os.getpid()); wait_for('go'); \
         up()"
    ));
    run.signal(Signal::HUP);
    assert!(is_reloading(&manager.next()));
    scene.wait_for("second");
    signal(first, Signal::USR1);
    assert_eq!(manager.next(), "WATCHDOG=1\nX_FROM=1\n");
    let mut client = scene.connect();
    client.send("wait slow");
    scene.wait_for("slow.begun");
    scene.touch("go");
    assert_eq!(manager.next(), "READY=1\n");
    // The first one drains, and has nothing to say any more.
    signal(first, Signal::USR1);
    let mut second = first;
    // The first one may answer until it has seen its signal.
    eventually("the second one answers", || {
        second = scene.ask().1;
        second != first
    });
    signal(second, Signal::USR1);
    assert_eq!(manager.next(), "WATCHDOG=1\nX_FROM=2\n");
    scene.touch("slow");
}

#[test]
fn watchdog_is_for_the_program() {
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    scene.version(
        "note('watchdog', [os.getpid(), os.environ.get('WATCHDOG_PID'), \
                   os.environ.get('WATCHDOG_USEC')]); up()",
    );
    for (pid, is_own) in [("WATCHDOG_PID=$$", true), ("WATCHDOG_PID=1", false), ("X=1", true)] {
        let script = format!("export WATCHDOG_USEC=100000000 {pid}; exec \"$0\" \"$@\"");
        let command = scene.command(&["--notify", "web"]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
        scene.furnish(&mut shell);
        shell.env("NOTIFY_SOCKET", &manager.address);
        let mut run = scene.spawn(shell);
        assert!(manager.next().starts_with("READY=1"));
        let told = scene.wait_for("watchdog");
        let words: Vec<_> =
            told.split(['[', ' ', ',', ']', '\'']).filter(|it| !it.is_empty()).collect();
        assert_eq!(words.len(), 3, "{told}");
        assert_eq!(words[0] == words[1], is_own, "{pid}: {told}");
        assert_eq!(run.terminate(), Some(0));
        assert_eq!(manager.all(), ["STOPPING=1\n"]);
    }
}

#[test]
fn sleeping_service_keeps_the_watchdog_quiet() {
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let mut command = scene.command(&["--on-demand"]);
    command.env("NOTIFY_SOCKET", &manager.address).env("WATCHDOG_USEC", "600000");
    let _run = scene.spawn(command);
    assert!(manager.next().starts_with("READY=1"));
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
}

#[test]
fn newline_is_written_once() {
    let scene = Scene::new();
    scene.version("up()");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let command = scene.command(&["--notify", "web", "--notify-fd", "7"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 7>&1 >/dev/null"]);
    shell.arg(command.get_program()).args(command.get_args());
    scene.furnish(&mut shell);
    let log = std::fs::File::create(scene.at("log")).unwrap();
    let mut child = shell.stdout(writer).stderr(log).spawn().unwrap();
    drop(shell);
    // Nobody has it open any longer, PROG and its helpers included.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "\n");
    assert_exit(&scene.restart(), 0);
    signal(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut run = scene.spawn(scene.command(&["--notify-fd", "77"]));
    assert_eq!(run.code(), Some(111), "{}", run.log());
}

#[test]
fn each_generation_has_its_own_notify_socket() {
    let scene = Scene::new();
    let version = "note(f'address.{generation}', os.environ['NOTIFY_SOCKET']); up()";
    scene.version(version);
    let _run = scene.ready(&["--notify", "web"]);
    assert_exit(&scene.restart(), 0);
    assert_ne!(scene.wait_for("address.1"), scene.wait_for("address.2"));
    // A wrong one is no way to be ready.
    scene.version(
        "note('third'); os.environ['NOTIFY_SOCKET'] = \
                   open(folder + '/address.2').read(); notify('READY=1'); barrier(); \
                   note('said'); wait_for('go'); sys.exit(5)",
    );
    let restart = scene.restart_command(&[]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    scene.wait_for("said");
    scene.touch("go");
    assert_exit(&restart.wait_with_output().unwrap(), 1);
    eventually("sockets of the past are removed", || {
        !std::path::Path::new(&scene.read("address.1")).exists()
    });
}

#[test]
fn strangers_are_not_listened_to() {
    if !rustix::process::geteuid().is_root() {
        return crate::support::is_missing("root");
    }
    let scene = Scene::new();
    std::fs::set_permissions(scene.folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
    scene.version(
        "note('address', os.environ['NOTIFY_SOCKET']); wait_for('go')\n\
                   if os.fork() == 0:\n  os.setgid(65534); os.setuid(65534)\n  \
                   notify('READY=1'); time.sleep(1000)\nserve()",
    );
    let run = scene.spawn(scene.command(&["--notify", "web"]));
    let address = scene.wait_for("address");
    // Many, one after the other.
    let flood = "import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(sys.argv[1])
print('connected', flush=True)
while True: s.send(b'READY=1')";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", flood, &address]).uid(65534).gid(65534).current_dir("/");
    scene.furnish(&mut command);
    let mut stranger = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    stranger.stdout.take().unwrap().read_exact(&mut line).unwrap();
    for _ in 0..20 {
        assert_eq!(scene.generations(), [(1, "starting".to_owned())]);
    }
    // What PROG has started may, as another user, too.
    scene.touch("go");
    run.logged("generation 1 is ready");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn programs_of_systemd_can_tell() {
    let scene = Scene::new();
    if !std::path::Path::new("/usr/bin/systemd-notify").exists() {
        return crate::support::is_missing("systemd-notify");
    }
    let words = ["sh", "-c", "systemd-notify --ready --status=up; exec sleep 1000"];
    let run = scene.spawn(scene.command_of(&["--notify", "web"], &words));
    run.logged("generation 1 is ready");
}

/// A version that stores an open file and says what it was given.
const STORES: &str = "
note(f'names.{generation}', os.environ.get('LISTEN_FDNAMES', ''))
if generation == 1:
    file = os.open(os.path.join(folder, 'kept'), os.O_CREAT | os.O_RDWR)
    notify('FDSTORE=1\\nFDNAME=file', [file])
    barrier()
up()";

#[test]
fn stored_descriptors_come_back_at_the_next_generation() {
    let scene = Scene::new();
    scene.version(STORES);
    let run = scene.ready(&["--notify", "web"]);
    eventually("it is held", || {
        scene.holder().client().list(deadline()).unwrap().contains(&id("web/file"))
    });
    assert_exit(&scene.restart(), 0);
    assert_eq!(scene.wait_for("names.2"), "web:file");
    // Without --notify that is said.
    drop(run);
    let scene = Scene::new();
    scene.version(STORES);
    let run = scene.ready(&[]);
    run.logged("generation 1 stores descriptors (FDSTORE=1), which takes --notify");
}

#[test]
fn what_is_stored_right_before_the_end_is_held() {
    let scene = Scene::new();
    scene.version(
        "
if generation == 1:
    notify('READY=1'); wait_for('go')
    for number in range(300): notify(f'FDSTORE=1\\nFDNAME=n{number}', [os.open('/dev/null', 0)])
    os._exit(0)
note('names', os.environ['LISTEN_FDNAMES'].count(':'))
up()",
    );
    let run = scene.ready(&["--notify", "web", "--respawn"]);
    // The holder is busy for a while.
    scene.holder().signal(Signal::STOP);
    scene.touch("go");
    let stop = std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            scene.holder().signal(Signal::CONT);
        });
        holder.join()
    });
    stop.unwrap();
    run.logged("generation 2 is ready");
    assert_eq!(scene.wait_for("names"), "300");
}

#[test]
fn full_queue_of_the_manager_loses_no_state() {
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    let mut junk = 0;
    while sender.send_to(b"X_JUNK=1", &manager.address).is_ok() {
        junk += 1;
    }
    scene.version("notify('READY=1'); barrier(); note('said'); serve()");
    let run = manager.start(&scene, &["--notify", "web"]);
    run.logged("generation 1 is ready");
    assert_exit(&scene.restart(), 0);
    for _ in 0..junk {
        assert_eq!(manager.next(), "X_JUNK=1");
    }
    assert!(manager.next().starts_with("READY=1\nMAINPID="));
    assert!(is_reloading(&manager.next()));
    assert!(manager.next().starts_with("READY=1\n"));
}

#[test]
fn run_goes_on_while_the_holder_is_replaced() {
    let mut family = Family::with(&["--standby"]);
    let mut scene = Scene::alone();
    scene.path = Some(family.path.clone());
    scene.version(STORES);
    let run = scene.ready(&["--notify", "web"]);
    eventually("it is held", || {
        family.client().list(deadline()).unwrap().contains(&id("web/file"))
    });
    let (primary, _) = family.pair();
    family.kill(primary);
    family.pair();
    assert_exit(&scene.restart(), 0);
    assert_eq!(scene.wait_for("names.2"), "web:file");
    let output = scene.fdholder(&["upgrade"]).arg(&family.path).output().unwrap();
    assert_exit(&output, 0);
    assert_exit(&scene.restart(), 0);
    assert_eq!(scene.wait_for("names.3"), "web:file");
    scene.version("notify('FDSTORE=1\\nFDNAME=later', [0]); barrier(); up()");
    assert_exit(&scene.restart(), 0);
    eventually("it is held", || {
        family.client().list(deadline()).unwrap().contains(&id("web/later"))
    });
    drop(run);
}

#[test]
fn holder_that_begins_anew_has_the_service_again() {
    let mut family = Family::with(&[]);
    let mut scene = Scene::alone();
    scene.path = Some(family.path.clone());
    scene.version(STORES);
    let run = scene.ready(&["--notify", "web"]);
    scene.ask();
    let (before, pid) = scene.ask();
    let old = family.primary();
    family.kill(old);
    // It serves on meanwhile.
    assert_eq!(scene.ask(), (before, pid));
    family.serve(&[]);
    eventually("it has registered again", || {
        family.client().list(deadline()).unwrap().contains(&id("web/.run"))
    });
    // The listener has to be opened anew: the old one is in use.
    let output = scene.restart();
    assert_eq!(scene.ask(), (before, pid), "{output:?} {}", run.log());
}

fn catches_term(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
    caught.is_some_and(|caught| u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0)
}

#[test]
fn stopped_holder_does_not_block_run() {
    let scene = Scene::new();
    scene.version("signal.signal(signal.SIGUSR1, lambda *_: note('told')); up()");
    let mut run = scene.ready(&["--notify", "web", "--start-timeout", "1500"]);
    scene.ask();
    scene.holder().signal(Signal::STOP);
    run.signal(Signal::HUP);
    run.logged("generation 2 (pid");
    run.signal(Signal::USR1);
    scene.wait_for("told");
    run.logged("generation 2 was not ready within 1.5 s (--start-timeout)");
    assert_eq!(scene.ask().0, 1);
    assert_eq!(run.terminate(), Some(0));
    // While it waits for its first descriptors it can be stopped, too.
    for options in [&["--notify", "web"][..], &[], &["--on-demand"], &["--wait", "100000"]] {
        let mut run = scene.spawn(scene.command(options));
        eventually("it has begun", || !run.folders().is_empty());
        if options.first() != Some(&"--notify") {
            eventually("it catches signals", || catches_term(run.pid()));
        }
        let begun = std::time::Instant::now();
        run.signal(Signal::TERM);
        run.wait();
        assert!(begun.elapsed() < PATIENCE / 4, "{options:?}: {}", run.log());
    }
    scene.holder().signal(Signal::CONT);
}

#[test]
fn absent_holder_does_not_block_run() {
    let mut scene = Scene::alone();
    scene.path = Some(scene.at("holder"));
    let mut run = scene.spawn(scene.command(&["--on-demand", "--wait", "100000"]));
    run.logged("unable to connect");
    assert_eq!(run.terminate(), Some(0), "{}", run.log());
    // As soon as there is one it goes on.
    let run = scene.spawn(scene.command(&["--on-demand", "--notify-fd", "1"]));
    run.logged("unable to connect");
    let mut family = Family::new();
    family.path = scene.at("holder");
    family.serve(&[]);
    let mut stream = None;
    eventually("it listens", || {
        stream = std::os::unix::net::UnixStream::connect(scene.socket()).ok();
        stream.is_some()
    });
    assert_eq!(crate::scene::Client::new(stream.unwrap()).ask("now").0, 1);
}

#[test]
fn every_restart_is_told_and_over() {
    // Asleep.
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let run = manager.start(&scene, &["--on-demand"]);
    assert!(manager.next().starts_with("READY=1"));
    run.signal(Signal::HUP);
    assert!(is_reloading(&manager.next()));
    assert_eq!(manager.next(), "READY=1\n");
    drop(run);
    // Too many drain.
    let scene = Scene::new();
    let manager = Manager::new(&scene);
    let run = manager.start(&scene, &["--drain-max", "1", "--ready-after", "1"]);
    assert!(manager.next().starts_with("READY=1"));
    let mut client = scene.connect();
    client.send("wait slow");
    scene.wait_for("slow.begun");
    for _ in 0..2 {
        run.signal(Signal::HUP);
        assert!(is_reloading(&manager.next()));
        assert_eq!(manager.next(), "READY=1\n");
    }
    run.logged("1 generations are still draining");
}
