//! Processes that are not PROG yet, have died already, or are left by one.

use crate::scene::{Run, Scene};
use crate::support::family::is_alive;
use crate::support::{assert_exit, eventually, stderr};
use rustix::process::Signal;
use std::process::Stdio;
use std::time::Duration;

/// A restart whose process waits for the holder, which has been stopped.
fn preparing(scene: &Scene, options: &[&str]) -> Run {
    let run = scene.ready(options);
    scene.ask();
    scene.holder().signal(Signal::STOP);
    run.signal(Signal::HUP);
    run.logged("generation 2 (pid");
    run
}

#[test]
fn generation_that_waits_for_the_holder_is_not_ready() {
    let probed = "touch $FOLDER/probed.$FDHOLDER_GENERATION";
    for options in [["--ready-after", "300"], ["--ready-command", probed]] {
        let scene = Scene::new();
        let run = preparing(&scene, &options);
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!(run.count("generation 2 is ready"), 0, "{}", run.log());
        assert_eq!(run.count("is told to stop"), 0, "{}", run.log());
        assert!(!scene.at("probed.2").exists());
        assert_eq!(scene.ask().0, 1);
        scene.holder().signal(Signal::CONT);
        run.logged("generation 2 is ready");
        eventually("the next one serves", || scene.ask().0 == 2);
    }
}

#[test]
fn address_in_use_is_never_ready() {
    let scene = Scene::alone();
    let _other = std::os::unix::net::UnixListener::bind(scene.socket()).unwrap();
    let mut run = scene.spawn(scene.command(&["--ready-after", "200"]));
    assert_eq!(run.code(), Some(111), "{}", run.log());
    assert!(!run.log().contains("is ready"), "{}", run.log());
}

#[test]
fn signal_before_the_program_runs_is_not_passed_on() {
    let scene = Scene::new();
    scene.holder().signal(Signal::STOP);
    let run = scene.spawn(scene.command(&["--ready-after", "1"]));
    run.logged("generation 1 (pid");
    for signal in [Signal::USR1, Signal::USR2, Signal::TTIN, Signal::TTOU, Signal::WINCH] {
        run.signal(signal);
    }
    std::thread::sleep(Duration::from_millis(200));
    scene.holder().signal(Signal::CONT);
    run.logged("generation 1 is ready");
    eventually("it serves", || scene.at("serving.1").exists());
}

#[test]
fn stop_signal_ends_a_process_that_is_not_the_program_yet() {
    let scene = Scene::new();
    // A process that is not PROG yet would ignore it.
    let run =
        scene.ready(&["--ready-after", "1", "--stop-signal", "WINCH", "--start-timeout", "300"]);
    scene.holder().signal(Signal::STOP);
    run.signal(Signal::HUP);
    run.logged("generation 2 was not ready within");
    eventually("it has ended", || scene.processes().len() < 5);
    scene.holder().signal(Signal::CONT);
    eventually("one is left", || scene.generations().len() == 1);
    assert_eq!(run.count("killed"), 0, "{}", run.log());
}

#[test]
fn generation_that_has_died_replaces_none() {
    let says =
        [("notify('READY=1')", "--notify", "web"), ("os.write(9, b'\\n')", "--ready-fd", "9")];
    for (says, option, value) in says {
        let scene = Scene::new();
        scene.version("up()");
        if option == "--ready-fd" {
            scene.version("os.write(9, b'\\n'); serve()");
        }
        let run = scene.ready(&[option, value]);
        scene.version(&format!("wait_for('go'); {says}; note('said'); sys.exit(3)"));
        let restart = scene.restart_command(&[]).stderr(Stdio::piped()).spawn().unwrap();
        run.logged("generation 2 (pid");
        let log = run.log();
        let (_, pid) = log.split_once("generation 2 (pid ").unwrap();
        let pid: u32 = pid.split_once(')').unwrap().0.parse().unwrap();
        // All of that is there when run looks.
        run.signal(Signal::STOP);
        scene.touch("go");
        scene.wait_for("said");
        eventually("it has ended", || !is_alive(pid));
        run.signal(Signal::CONT);
        let output = restart.wait_with_output().unwrap();
        assert_exit(&output, 1);
        assert!(stderr(&output).contains("exited with code 3"), "{output:?}");
        assert_eq!(scene.ask().0, 1);
        assert_eq!(run.count("is told to stop"), 0, "{}", run.log());
    }
}

/// What a program does that leaves a process with its sockets.
const LEAVES: &str = "
child = os.fork()
if child == 0:
    STOPS
    note('child', os.getpid())
    wait_for('never')
wait_for('child')
";

#[test]
fn failed_generation_leaves_no_process() {
    for (stops, is_killed) in [
        ("signal.signal(signal.SIGTERM, lambda *_: (note('told'), os._exit(0)))", false),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", true),
    ] {
        let scene = Scene::new();
        let run = scene.ready(&["--stop-timeout", "500"]);
        scene.version(&format!("{}sys.exit(1)", LEAVES.replace("STOPS", stops)));
        assert_exit(&scene.restart(), 1);
        let child = scene.wait_for("child").parse().unwrap();
        run.logged("what generation 2 has left is told to stop");
        eventually("it has ended", || !is_alive(child));
        assert_eq!(scene.at("told").exists(), !is_killed);
        eventually("nothing of it is shown", || scene.generations() == [(1, "ready".to_owned())]);
        assert_eq!(run.count("generation 2 does not stop: killed"), usize::from(is_killed));
        assert_eq!(scene.ask().0, 1);
    }
}

#[test]
fn run_ends_after_what_its_program_has_left() {
    // As `sh -c` does: the signal ends the shell alone.
    let scene = Scene::new();
    let stops =
        "signal.signal(signal.SIGTERM, lambda *_: (note('told'), wait_for('go'), os._exit(0)))";
    scene.version(&format!("{}note('up'); signal.pause()", LEAVES.replace("STOPS", stops)));
    let mut run = scene.spawn(scene.command(&["--ready-after", "1"]));
    scene.wait_for("up");
    run.logged("generation 1 is ready");
    run.signal(Signal::TERM);
    scene.wait_for("told");
    assert!(is_alive(run.pid()));
    scene.touch("go");
    assert_eq!(run.code(), Some(128 + 15), "{}", run.log());
    assert_eq!(scene.processes(), [0; 0]);
    // One that fails takes all with it.
    let scene = Scene::new();
    let stops = "signal.signal(signal.SIGTERM, signal.SIG_IGN)";
    scene.version(&format!(
        "{}note('up'); wait_for('go'); sys.exit(4)",
        LEAVES.replace("STOPS", stops)
    ));
    let mut run = scene.ready(&["--ready-after", "1"]);
    let child = scene.wait_for("child").parse().unwrap();
    scene.touch("go");
    assert_eq!(run.code(), Some(4), "{}", run.log());
    eventually("it has ended", || !is_alive(child));
}
