//! A program that ends by itself, and a `run` that is killed.

use crate::scene::{folders, Scene};
use crate::support::family::{is_alive, signal};
use crate::support::{assert_exit, eventually, stderr};
use rustix::process::Signal;

#[test]
fn run_ends_as_its_program_does() {
    for (end, code) in [
        ("sys.exit(0)", 0),
        ("sys.exit(77)", 77),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", 128 + 35),
    ] {
        let scene = Scene::new();
        scene.version(&format!("wait_for('go'); {end}"));
        let mut run = scene.spawn(scene.command(&["--ready-after", "1"]));
        run.logged("generation 1 is ready");
        scene.touch("go");
        assert_eq!(run.code(), Some(code), "{end}: {}", run.log());
        assert_eq!(scene.processes(), [0; 0]);
    }
}

#[test]
fn respawn_starts_again_with_a_pause() {
    let scene = Scene::new();
    scene.version("notify('READY=1'); note(f'up.{generation}', time.monotonic()); sys.exit(1)");
    let _run = scene.spawn(scene.command(&["--respawn", "--notify", "web"]));
    let at = |number: u64| -> f64 { scene.wait_for(&format!("up.{number}")).parse().unwrap() };
    // No sooner than that, however busy the machine is.
    for (number, pause) in [(1, 0.1), (2, 0.2), (3, 0.4)] {
        let passed = at(number + 1) - at(number);
        assert!(passed > pause - 0.05, "{number}: {passed}");
    }
}

#[test]
fn respawn_is_for_what_was_ready() {
    let scene = Scene::new();
    scene.version("sys.exit(3)");
    let mut run = scene.spawn(scene.command(&["--respawn"]));
    assert_eq!(run.code(), Some(3));
    // Later it is started until it gets ready again.
    let scene = Scene::new();
    let mut run = scene.ready(&["--respawn"]);
    let (_, pid) = scene.ask();
    scene.version(
        "wait_for(f'go.{generation}') if generation == 2 else None; \
                   serve() if generation == 4 else sys.exit(3)",
    );
    signal(pid, Signal::KILL);
    run.logged("generation 2 (pid");
    scene.touch("go.2");
    run.logged("generation 2 exited with code 3 before it was ready");
    run.logged("generation 4 is ready");
    assert_eq!(scene.ask().0, 4);
    assert_eq!(run.terminate(), Some(0));
}

#[test]
fn program_that_ends_during_a_restart_is_replaced() {
    let scene = Scene::new();
    scene.version("up()");
    let mut run = scene.ready(&["--notify", "web"]);
    let (_, pid) = scene.ask();
    scene.version("note('second'); wait_for('go'); up(code=4)");
    let mut restart = scene.restart_command(&[]).spawn().unwrap();
    scene.wait_for("second");
    // A client waits meanwhile, and is answered.
    signal(pid, Signal::KILL);
    eventually("it has ended", || scene.generations() == [(2, "starting".to_owned())]);
    let mut client = scene.connect();
    client.send("now");
    scene.touch("go");
    assert!(restart.wait().unwrap().success());
    assert_eq!(client.answer().0, 2);
    assert_eq!(run.terminate(), Some(4));
    // If the next one fails, too, run ends as the lost one did.
    let scene = Scene::new();
    scene.version("notify('READY=1'); wait_for('end'); sys.exit(21)");
    let mut run = scene.ready(&["--notify", "web"]);
    scene.version("note('second'); wait_for('go'); sys.exit(22)");
    let restart = scene.restart_command(&[]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    scene.wait_for("second");
    scene.touch("end");
    eventually("it has ended", || scene.generations() == [(2, "starting".to_owned())]);
    scene.touch("go");
    let output = restart.wait_with_output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("exited with code 22"), "{output:?}");
    assert_eq!(run.code(), Some(21), "{}", run.log());
}

#[test]
fn program_of_a_killed_run_stops_in_order() {
    let scene = Scene::new();
    let mut run = scene.ready(&["--ready-command", "test -e $FOLDER/serving.1"]);
    let (_, pid) = scene.ask();
    let mut client = scene.connect();
    client.send("wait slow");
    scene.wait_for("slow.begun");
    run.kill();
    // It has been told, and can still write.
    scene.wait_for("closed.1");
    // The next run goes on at once.
    let mut waits = scene.connect();
    waits.send("now");
    let mut next = scene.spawn(scene.command(&["--ready-after", "1"]));
    next.logged("generation 1 is ready");
    assert_eq!(waits.answer().0, 1);
    assert!(is_alive(pid));
    scene.touch("slow");
    assert_eq!(client.answer(), (1, pid));
    eventually("it has ended", || !is_alive(pid));
    assert!(next.log().contains("last words"), "{}", next.log());
    // One folder is left: that of the new run.
    assert_eq!(folders(scene.folder.path()).len(), 1);
    assert_eq!(next.terminate(), Some(0));
    eventually("nothing is left", || scene.processes().is_empty());
    assert!(folders(scene.folder.path()).is_empty());
}

#[test]
fn nothing_of_a_killed_run_is_left() {
    let scene = Scene::new();
    // All that can hang does.
    let command = "test $FDHOLDER_GENERATION = 1 || { echo > $FOLDER/probing; exec sleep 1000; }";
    let mut run = scene.ready(&["--ready-command", command]);
    scene.wait_for("serving.1");
    scene.version("note('second'); wait_for('never')");
    run.signal(Signal::HUP);
    scene.wait_for("probing");
    scene.wait_for("second");
    run.kill();
    eventually("nothing is left", || scene.processes().is_empty());
}

#[test]
fn signal_of_a_killed_run_is_the_stop_signal() {
    let scene = Scene::new();
    scene.version(
        "signal.signal(signal.SIGUSR1, lambda *_: (note('told'), os._exit(0))); \
                   note('up'); wait_for('never')",
    );
    let mut run = scene.spawn(scene.command(&["--stop-signal", "USR1", "--ready-after", "1"]));
    scene.wait_for("up");
    run.kill();
    scene.wait_for("told");
    eventually("nothing is left", || scene.processes().is_empty());
}
