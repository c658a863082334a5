//! Programs that start for their first client, and stop when they have none.

use crate::scene::{Run, Scene};
use crate::support::family::is_alive;
use crate::support::{assert_exit, deadline, eventually, id, stdout};
use fdholder::Limit;
use rustix::process::Signal;
use std::io::Read;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

fn asleep(scene: &Scene) -> bool {
    let status = scene.status();
    status["generations"].as_array().unwrap().is_empty() && status["waits_for_clients"] == true
}

fn holds(scene: &Scene, name: &str) -> bool {
    scene.holder().client().list(deadline()).unwrap().contains(&id(name))
}

fn start(scene: &Scene, options: &[&str]) -> Run {
    let run = scene.spawn(scene.command(&[&["--on-demand"], options].concat()));
    eventually("it listens", || holds(scene, "web"));
    run
}

#[test]
fn first_client_starts_the_program() {
    let scene = Scene::new();
    let mut run = start(&scene, &[]);
    eventually("it waits", || asleep(&scene));
    assert_eq!(scene.ask().0, 1);
    assert_eq!(scene.ask().0, 1);
    assert_eq!(run.terminate(), Some(0));
    // A sleeping one has nothing to stop.
    let mut run = start(&scene, &[]);
    eventually("it waits", || asleep(&scene));
    assert_eq!(run.terminate(), Some(0));
    // A client that came before is served, too.
    let mut early = scene.connect();
    early.send("now");
    let _run = start(&scene, &[]);
    assert_eq!(early.answer().0, 1);
}

#[test]
fn client_of_any_kind_starts_the_program() {
    let scene = Scene::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let datagrams = scene.at("datagrams");
    let binds = [
        format!("tcp=tcp:{tcp}"),
        format!("udp=udp:{udp}"),
        format!("dgram=unix-dgram:{}", datagrams.display()),
    ];
    // One descriptor each: web, tcp, udp and datagrams.
    scene.version(
        "
listener = socket.socket(fileno=int(os.environ.get('TCP', 4)))
ready = select.select([3, 4, 5, 6], [], [])[0]
note(f'came.{generation}', ready)
if 3 in ready: socket.socket(fileno=3).accept()
if 4 in ready: socket.socket(fileno=4).accept()
for number in {5, 6} & set(ready): os.read(number, 10)
time.sleep(1.1)
sys.exit(0)",
    );
    let mut options = vec!["--on-demand", "--ready-after", "1"];
    for bind in &binds {
        options.extend(["--bind", bind]);
    }
    let _run = scene.spawn(scene.command(&options));
    eventually("it waits", || holds(&scene, "dgram") && asleep(&scene));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let mut kept = Vec::new();
    for (generation, number) in [(1, 3), (2, 4), (3, 5), (4, 6)] {
        match number {
            3 => drop(scene.connect()),
            4 => kept.push(TcpStream::connect(tcp).unwrap()),
            5 => drop(client.send_to(b"x", udp).unwrap()),
            _ => drop(unix.send_to(b"x", &datagrams).unwrap()),
        }
        assert_eq!(scene.wait_for(&format!("came.{generation}")), format!("[{number}]"));
        eventually("it sleeps again", || asleep(&scene));
    }
}

#[test]
fn idle_program_is_stopped_and_starts_again() {
    let scene = Scene::new();
    let run = start(&scene, &["--idle-stop", "600", "--ready-after", "1"]);
    assert_eq!(scene.ask().0, 1);
    scene.wait_for("stopped.1");
    eventually("it sleeps", || asleep(&scene));
    scene.is_answered_by(2);
    scene.wait_for("stopped.2");
    scene.is_answered_by(3);
    assert_eq!(run.count("warning"), 0, "{}", run.log());
}

#[test]
fn program_with_short_clients_is_not_idle() {
    let scene = Scene::new();
    let _run = start(&scene, &["--idle-stop", "700", "--ready-after", "1"]);
    let first = scene.ask();
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < Duration::from_secs(3) {
        let was_late = last.elapsed() > Duration::from_millis(600);
        last = Instant::now();
        let answer = scene.ask();
        if was_late {
            // This machine is too busy to say anything.
            return;
        }
        assert_eq!(answer, first, "it was stopped between two clients");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn quiet_client_drains_after_an_idle_stop() {
    let scene = Scene::new();
    let run = start(&scene, &["--idle-stop", "600", "--ready-after", "1", "--stop-timeout", "0"]);
    let mut quiet = scene.connect();
    quiet.send("wait slow");
    scene.wait_for("slow.begun");
    run.logged("generation 1 is told to stop");
    // Another client has a generation of its own.
    scene.is_answered_by(2);
    scene.touch("slow");
    assert_eq!(quiet.answer().0, 1);
}

#[test]
fn restart_of_a_sleeping_service_is_done() {
    let scene = Scene::new();
    let run = start(&scene, &["--ready-after", "1"]);
    eventually("it waits", || asleep(&scene));
    let output = scene.restart();
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "web: the next client starts the next generation\n");
    run.signal(Signal::HUP);
    let text = "the next client starts the next generation";
    eventually("it has been asked", || run.count(text) == 2);
    scene.version("up(code=9)");
    assert_eq!(scene.ask().0, 1);
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(2);
}

#[test]
fn program_that_ends_when_idle_sleeps() {
    let scene = Scene::new();
    scene.version(
        "listener = socket.socket(fileno=3); listener.settimeout(1.2)
notify('READY=1')
try:
    while True: answer(listener.accept()[0])
except TimeoutError: sys.exit(0)",
    );
    let mut run = start(&scene, &["--notify", "web"]);
    let (generation, pid) = scene.ask();
    assert_eq!(generation, 1);
    eventually("it has ended", || !is_alive(pid));
    eventually("it sleeps", || asleep(&scene));
    scene.is_answered_by(2);
    // One that fails ends run.
    scene.version("wait_for('go'); notify('READY=1'); barrier(); sys.exit(6)");
    eventually("it sleeps", || asleep(&scene));
    let mut client = scene.connect();
    client.send("now");
    scene.touch("go");
    assert_eq!(run.code(), Some(6), "{}", run.log());
}

#[test]
fn program_that_leaves_its_client_alone_is_not_started_without_a_pause() {
    let scene = Scene::new();
    scene.version("notify('READY=1'); note(f'up.{generation}', time.monotonic()); sys.exit(0)");
    let _run = start(&scene, &["--notify", "web"]);
    let _client = scene.connect();
    let at = |number: u64| -> f64 { scene.wait_for(&format!("up.{number}")).parse().unwrap() };
    for (number, pause) in [(1, 0.1), (2, 0.2), (3, 0.4)] {
        let passed = at(number + 1) - at(number);
        assert!(passed > pause - 0.05, "{number}: {passed}");
    }
}

#[test]
fn many_clients_of_a_service_that_comes_and_goes_are_served() {
    let scene = Scene::new();
    let _run = start(&scene, &["--idle-stop", "1", "--ready-after", "1"]);
    let mut generations = std::collections::BTreeSet::new();
    for number in 0..40 {
        generations.insert(scene.ask().0);
        if number % 4 == 0 {
            std::thread::sleep(Duration::from_millis(number * 5));
        }
    }
    assert!(generations.len() > 3, "{generations:?}");
}

#[test]
fn nothing_is_ready_before_it_listens() {
    // The address is in use, and then it is not.
    let scene = Scene::alone();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("tcp=tcp:{}", other.local_addr().unwrap());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let command = scene.command(&["--on-demand", "--notify-fd", "7", "--bind", &bind]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 7>&1 >/dev/null"]);
    shell.arg(command.get_program()).args(command.get_args());
    scene.furnish(&mut shell);
    let log = std::fs::File::create(scene.at("log")).unwrap();
    let mut run = shell.stdout(writer).stderr(log).spawn().unwrap();
    drop(shell);
    eventually("it says why", || scene.read("log").contains("warning"));
    let log = scene.read("log");
    assert!(log.to_lowercase().contains("in use") && !log.contains("timed out"), "{log}");
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let mut newline = [0];
    let read = reader.read(&mut newline);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(other);
    rustix::io::ioctl_fionbio(&reader, false).unwrap();
    assert_eq!(reader.read(&mut newline).unwrap(), 1);
    assert_eq!(scene.ask().0, 1);
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn service_that_no_client_can_come_to_ends() {
    let scene = Scene::new();
    let file = std::fs::File::open("/etc/passwd").unwrap();
    scene.holder().client().store(&id("file"), Limit::never(), &file, deadline()).unwrap();
    let program = scene.program();
    let mut command = scene.fdholder(&["run", "--fd", "file", "--on-demand"]);
    command.arg(&scene.holder().path).arg("--").args(program);
    let mut run = scene.spawn(command);
    assert_eq!(run.code(), Some(100), "{}", run.log());
    assert!(run.log().contains("no client can come by"), "{}", run.log());
}

#[test]
fn program_is_not_idle_because_the_holder_does_not_answer() {
    let scene = Scene::new();
    scene.version("note('begun'); wait_for('go'); up()");
    let _run = start(&scene, &["--notify", "web", "--idle-stop", "500"]);
    eventually("it waits", || asleep(&scene));
    let mut first = scene.connect();
    first.send("now");
    scene.wait_for("begun");
    scene.holder().signal(Signal::STOP);
    scene.touch("go");
    assert_eq!(first.answer().0, 1);
    // Clients come all the time, and run cannot get the socket to see them.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(scene.ask().0, 1);
    }
    scene.holder().signal(Signal::CONT);
    eventually("it is idle", || asleep(&scene));
}
