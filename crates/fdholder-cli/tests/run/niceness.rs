//! The next generation gives way to the one that serves.

use crate::scene::Scene;
use crate::support::family::signal;
use crate::support::{assert_exit, eventually, stderr};
use rustix::process::{getpriority_process, Pid, Signal};

/// Says how nice it is while it starts, and is ready when the test says so. So is a process that it
/// has started.
const TELLS: &str = "child = os.fork()\n\
    if child == 0:\n  time.sleep(1000)\n\
    note(f'niceness.{generation}', f'{os.getpriority(os.PRIO_PROCESS, 0)} {child}')\n\
    wait_for(f'go.{generation}')\n\
    up()";

/// The niceness of a generation while it starts, and of its child by now.
fn told(scene: &Scene, number: u32) -> (i32, i32) {
    let text = scene.wait_for(&format!("niceness.{number}"));
    let mut words = text.split(' ').map(|word| word.parse().unwrap());
    let (niceness, child) = (words.next().unwrap(), words.next().unwrap());
    (niceness, getpriority_process(Pid::from_raw(child)).unwrap())
}

#[test]
fn generation_that_starts_beside_another_is_nicer_until_it_is_ready() {
    let own = getpriority_process(None).unwrap();
    // Only who may take it back adds any, unless that is asked for.
    let usual = if rustix::process::geteuid().is_root() { 10 } else { 0 };
    for (options, added) in [(&[][..], usual), (&["--start-nice", "0"], 0)] {
        let scene = Scene::new();
        scene.version(TELLS);
        scene.touch("go.1");
        let run = scene.ready(&[&["--notify", "web"], options].concat());
        assert_eq!(told(&scene, 1), (own, own), "nobody else serves");
        run.signal(Signal::HUP);
        assert_eq!(told(&scene, 2), (own + added, own + added));
        scene.touch("go.2");
        run.logged("generation 2 is ready");
        eventually("it is as others are", || told(&scene, 2).1 == own);
    }
}

/// It would have less of the processor, and not more time.
#[test]
fn generation_that_is_only_given_time_is_as_nice_as_others() {
    let own = getpriority_process(None).unwrap();
    let scene = Scene::new();
    scene.version("note(f'niceness.{generation}', os.getpriority(os.PRIO_PROCESS, 0)); serve()");
    let run = scene.ready(&["--ready-after", "1"]);
    run.signal(Signal::HUP);
    assert_eq!(scene.wait_for("niceness.2"), own.to_string());
}

#[test]
fn generation_is_as_nice_as_others_when_nobody_else_serves() {
    let own = getpriority_process(None).unwrap();
    let scene = Scene::new();
    scene.version(TELLS);
    scene.touch("go.1");
    let run = scene.ready(&["--notify", "web", "--respawn"]);
    let (_, child) = told(&scene, 1);
    assert_eq!(child, own);
    run.signal(Signal::HUP);
    told(&scene, 2);
    signal(scene.wait_for("serving.1").parse().unwrap(), Signal::KILL);
    eventually("it does not give way to anybody", || told(&scene, 2).1 == own);
    scene.touch("go.2");
    run.logged("generation 2 is ready");
}

#[test]
fn niceness_beyond_what_there_is_is_refused() {
    let scene = Scene::alone();
    let output = scene.command(&["--start-nice", "20"]).output().unwrap();
    assert_exit(&output, 100);
    assert!(stderr(&output).contains("--start-nice"), "{output:?}");
}
