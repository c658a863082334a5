//! Without PATH: `run` keeps the sockets itself.

use crate::scene::{folders, Client, Scene};
use crate::support::{eventually, PATIENCE};
use rustix::process::Signal;
use std::io::Read;
use std::net::{TcpListener, TcpStream};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> Client<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client(stream)
}

#[test]
fn one_command_restarts_without_a_holder() {
    let scene = Scene::alone();
    let port = free_port();
    scene.version(
        "note(f'names.{generation}', os.environ['LISTEN_FDNAMES'])
if generation == 1: notify('FDSTORE=1\\nFDNAME=kept', [0]); barrier()
up()",
    );
    let bind = format!("web=tcp:127.0.0.1:{port}");
    let mut command = scene.fdholder(&["run", "--bind", &bind, "--notify", "svc", "--"]);
    command.args(scene.program());
    let mut run = scene.spawn(command);
    run.logged("python3: generation 1 is ready");
    let mut slow = connect(port);
    slow.send("wait slow");
    scene.wait_for("slow.begun");
    assert_eq!(connect(port).ask("now").0, 1);
    run.signal(Signal::HUP);
    run.logged("generation 2 is ready");
    eventually("the next one answers", || connect(port).ask("now").0 == 2);
    scene.touch("slow");
    assert_eq!(slow.answer().0, 1);
    assert_eq!(scene.wait_for("names.2"), "web:kept");
    assert_eq!(folders(scene.folder.path()).len(), 1);
    assert_eq!(run.terminate(), Some(0));
    assert!(folders(scene.folder.path()).is_empty(), "{}", run.log());
    // Nobody listens there any more.
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(run.count("warning"), 0, "{}", run.log());
}

#[test]
fn sockets_outlive_run_with_a_holder() {
    let scene = Scene::new();
    let mut run = scene.ready(&[]);
    assert_eq!(run.terminate(), Some(0));
    let mut client = scene.connect();
    client.send("now");
    let _run = scene.ready(&[]);
    assert_eq!(client.answer().0, 1);
}

#[test]
fn several_without_names_are_apart() {
    let scene = Scene::alone();
    let runs: Vec<_> = (0..3)
        .map(|number| {
            let bind = format!("web=unix:{}", scene.at(&format!("socket.{number}")).display());
            let mut command = scene.fdholder(&["run", "--bind", &bind, "--"]);
            command.args(scene.program());
            scene.spawn(command)
        })
        .collect();
    for number in 0..3 {
        let path = scene.at(&format!("socket.{number}"));
        let mut stream = None;
        eventually("it listens", || {
            stream = std::os::unix::net::UnixStream::connect(&path).ok();
            stream.is_some()
        });
        assert_eq!(Client::new(stream.unwrap()).ask("now").0, 1);
    }
    drop(runs);
    // Those that were killed leave folders, which the next one removes.
    eventually("all have ended", || scene.processes().is_empty());
    assert_eq!(folders(scene.folder.path()).len(), 3);
    let mut run = scene.spawn(scene.fdholder(&["run", "--", "sh", "-c", "exit 4"]));
    assert_eq!(run.code(), Some(4));
    assert!(folders(scene.folder.path()).is_empty());
}

#[test]
fn many_that_start_at_once_leave_each_other_alone() {
    let scene = Scene::alone();
    let start = |_| scene.spawn(scene.fdholder(&["run", "--", "sh", "-c", "exit 5"]));
    for _ in 0..30 {
        let mut runs: Vec<_> = (0..12).map(start).collect();
        for run in &mut runs {
            assert_eq!(run.code(), Some(5), "{}", run.log());
        }
    }
}

#[test]
fn terminal_is_left_to_the_program() {
    let scene = Scene::alone();
    let mut command = scene.fdholder(&["run", "--", "sh", "-c", "echo out; exit 3"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), child.wait().unwrap().code()), ("out\n", Some(3)));
}
