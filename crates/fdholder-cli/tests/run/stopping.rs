//! Signals to `run`: it stops its service in order, or passes them on.

use crate::scene::{Client, Run, Scene};
use crate::support::family::{is_alive, signal};
use crate::support::{assert_exit, eventually};
use rustix::process::Signal;

#[test]
fn signal_stops_the_service_in_order() {
    for how in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let scene = Scene::new();
        scene.version("serve(code=5)");
        let mut run = scene.ready(&[]);
        let mut client = scene.connect();
        client.send("wait slow");
        scene.wait_for("slow.begun");
        run.signal(how);
        run.logged("generation 1 is told to stop");
        // The request under way is answered.
        scene.touch("slow");
        assert_eq!(client.answer().0, 1);
        assert_eq!(run.code(), Some(5), "{how:?}: {}", run.log());
        assert_eq!(scene.processes(), [0; 0]);
        assert!(run.folders().is_empty());
    }
}

/// A version that notes what it gets, and ends by one signal only.
const NOTES: &str = "
for number in [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN,
               signal.SIGTTOU, signal.SIGINT, signal.SIGHUP]:
    signal.signal(number, lambda number, _: note(signal.Signals(number).name))
signal.signal(signal.SIGQUIT, lambda *_: os._exit(6))
note('catches')
while True: signal.pause()
";

#[test]
fn other_signals_are_passed_on() {
    let scene = Scene::new();
    scene.version(NOTES);
    let mut run = scene.spawn(scene.command(&["--stop-signal", "QUIT", "--ready-after", "1"]));
    scene.wait_for("catches");
    for (how, name) in [
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::WINCH, "SIGWINCH"),
        (Signal::TTIN, "SIGTTIN"),
        (Signal::TTOU, "SIGTTOU"),
    ] {
        run.signal(how);
        scene.wait_for(name);
    }
    assert_eq!(run.terminate(), Some(6), "{}", run.log());
    for name in ["SIGTERM", "SIGINT", "SIGHUP"] {
        assert!(!scene.at(name).exists(), "{name}");
    }
}

#[test]
fn signals_go_to_the_ready_generation() {
    let scene = Scene::new();
    scene.version("note('first'); signal.signal(signal.SIGUSR1, lambda *_: note('one')); serve()");
    let run = scene.ready(&[]);
    scene.version(
        "signal.signal(signal.SIGUSR1, lambda *_: note('two')); note('second'); \
                   wait_for('go'); up()",
    );
    // Not the one that starts, which may not have set its handler yet.
    run.signal(Signal::HUP);
    scene.wait_for("second");
    run.signal(Signal::USR1);
    scene.wait_for("one");
    scene.touch("go");
    run.logged("generation 2 is ready");
    run.signal(Signal::USR1);
    scene.wait_for("two");
}

#[test]
fn program_that_ignores_the_stop_signal_is_killed_with_its_group() {
    let scene = Scene::new();
    scene.version(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork(); \
                   note('child' if child == 0 else 'parent', os.getpid()); wait_for('never')",
    );
    let mut run = scene.spawn(scene.command(&["--ready-after", "1", "--stop-timeout", "400"]));
    let both = ["parent", "child"].map(|name| scene.wait_for(name).parse().unwrap());
    assert_eq!(run.terminate(), Some(128 + 9), "{}", run.log());
    assert_eq!(run.count("generation 1 does not stop: killed"), 1);
    eventually("both were killed", || !both.into_iter().any(is_alive));
}

#[test]
fn second_interrupt_kills() {
    let scene = Scene::new();
    scene.version(
        "signal.signal(signal.SIGTERM, lambda *_: note('told')); note('up'); \
                   wait_for('never')",
    );
    let mut run = scene.spawn(scene.command(&["--ready-after", "1", "--stop-timeout", "0"]));
    scene.wait_for("up");
    run.signal(Signal::INT);
    scene.wait_for("told");
    run.signal(Signal::TERM);
    run.signal(Signal::HUP);
    run.logged("the service is being stopped");
    run.signal(Signal::INT);
    assert_eq!(run.code(), Some(128 + 9), "{}", run.log());
}

#[test]
fn service_that_is_starting_is_stopped() {
    // The first start.
    let scene = Scene::new();
    scene.version(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(8)); note('up'); wait_for('never')",
    );
    let mut run = scene.spawn(scene.command(&["--notify", "web"]));
    scene.wait_for("up");
    assert_eq!(run.terminate(), Some(8));
    // A restart: the ready one says how it ended, and who waits is told.
    let scene = Scene::new();
    scene.version("up(code=2)");
    let mut run = scene.ready(&["--notify", "web"]);
    scene.version("note('next'); wait_for('never')");
    let restart = scene.restart_command(&[]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    scene.wait_for("next");
    run.signal(Signal::TERM);
    assert_exit(&restart.wait_with_output().unwrap(), 1);
    assert_eq!(run.code(), Some(2), "{}", run.log());
    assert_eq!(scene.processes(), [0; 0]);
}

/// A restart while a client of the last generation is served.
fn restart_with_client(scene: &Scene, number: u64) -> Client {
    let mut client = scene.connect();
    client.send(&format!("wait slow.{number}"));
    scene.wait_for(&format!("slow.{number}.begun"));
    client
}

fn drains(scene: &Scene, number: u64) -> bool {
    scene.generations().contains(&(number, "draining".to_owned()))
}

#[test]
fn generations_drain_beside_newer_ones_up_to_a_limit() {
    let scene = Scene::new();
    scene.version("up()");
    let options = ["--notify", "web", "--drain-max", "2", "--stop-timeout", "0"];
    let mut run: Run = scene.ready(&options);
    let mut clients = Vec::new();
    for number in 1..3 {
        clients.push(restart_with_client(&scene, number));
        assert_exit(&scene.restart(), 0);
        assert!(drains(&scene, number));
    }
    let output = scene.restart();
    assert_exit(&output, 1);
    let text = crate::support::stderr(&output);
    assert!(text.contains("2 generations are still draining (--drain-max)"), "{text}");
    assert_eq!(scene.ask().0, 3);
    scene.touch("slow.1");
    assert_eq!(clients.remove(0).answer().0, 1);
    eventually("it has ended", || !drains(&scene, 1));
    assert_exit(&scene.restart(), 0);
    assert_eq!(scene.ask().0, 4);
    // The end waits for all of them.
    run.signal(Signal::TERM);
    scene.wait_for("stopped.4");
    assert!(is_alive(run.pid()));
    scene.touch("slow.2");
    assert_eq!(clients.remove(0).answer().0, 2);
    assert_eq!(run.code(), Some(0), "{}", run.log());
}

#[test]
fn draining_generation_is_killed_in_time() {
    let scene = Scene::new();
    scene.version("up()");
    let run = scene.ready(&["--notify", "web", "--stop-timeout", "500"]);
    let mut client = restart_with_client(&scene, 1);
    assert_exit(&scene.restart(), 0);
    run.logged("generation 1 does not stop: killed");
    let mut rest = String::new();
    let _ = std::io::Read::read_to_string(&mut client.0, &mut rest);
    assert_eq!(rest, "");
    assert_eq!(scene.ask().0, 2);
    // It may ask for more time.
    scene.version(
        "signal.signal(signal.SIGTERM, lambda *_: None); note('third'); \
                   notify('READY=1'); \
                   signal.pause(); notify('EXTEND_TIMEOUT_USEC=100000000'); barrier(); \
                   note('asked'); wait_for('go'); sys.exit(0)",
    );
    assert_exit(&scene.restart(), 0);
    scene.version("up()");
    assert_exit(&scene.restart(), 0);
    scene.wait_for("asked");
    let begun = scene.since(3);
    eventually("the limit is over", || scene.since(3) > begun + 800);
    assert!(drains(&scene, 3));
    scene.touch("go");
    eventually("it ends", || scene.generations().len() == 1);
    assert_eq!(run.count("generation 3 does not stop"), 0);
}

#[test]
fn stop_signal_of_any_name_or_number() {
    for (name, number) in [("USR1", "10"), ("SIGUSR2", "12"), ("3", "3")] {
        let scene = Scene::new();
        scene.version(&format!(
            "signal.signal({number}, lambda *_: os._exit({number})); note('up'); \
                               wait_for('never')"
        ));
        let mut run = scene.spawn(scene.command(&["--ready-after", "1", "--stop-signal", name]));
        scene.wait_for("up");
        assert_eq!(run.terminate(), Some(number.parse().unwrap()));
    }
    let scene = Scene::new();
    let mut run = scene.spawn(scene.command(&["--stop-signal", "NOPE"]));
    assert_eq!(run.code(), Some(100));
}

#[test]
fn signal_to_a_program_that_has_ended_does_no_harm() {
    let scene = Scene::new();
    let mut run = scene.ready(&["--respawn"]);
    let (_, pid) = scene.ask();
    signal(pid, Signal::KILL);
    run.signal(Signal::USR1);
    run.logged("generation 2 is ready");
    assert_eq!(run.terminate(), Some(0));
}
