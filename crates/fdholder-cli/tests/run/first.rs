//! `run` as the first process of a container.

use crate::scene::Scene;
use crate::support::family::is_alive;
use crate::support::system::System;
use crate::support::{eventually, is_missing};
use rustix::process::Signal;
use std::process::Command;

fn unshared(scene: &Scene, options: &[&str]) -> Command {
    let command = scene.command(options);
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    unshare.arg(command.get_program()).args(command.get_args());
    scene.furnish(&mut unshare);
    unshare
}

/// Its processes: `unshare`'s child is number 1 there.
fn first(scene: &Scene) -> u32 {
    let mut first = None;
    eventually("there is a first process", || {
        first = scene.processes().into_iter().find(|pid| System::inner(*pid) == Some(1));
        first.is_some()
    });
    first.unwrap()
}

#[test]
fn first_process_reaps_and_stops() {
    if !rustix::process::geteuid().is_root() {
        return is_missing("root");
    }
    let scene = Scene::alone();
    // Its grandchildren are nobody's.
    scene.version(
        "
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(0.1)
        os._exit(0)
    os.wait()
time.sleep(0.3)
up(code=13)",
    );
    let mut run = scene.spawn(unshared(&scene, &["--notify", "web"]));
    run.logged("generation 1 is ready");
    assert_eq!(scene.ask().0, 1);
    let pid = first(&scene);
    let zombies = || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        children.split_whitespace().filter(|pid| !is_alive(pid.parse().unwrap())).count()
    };
    eventually("orphans are reaped", || zombies() == 0);
    crate::support::family::signal(pid, Signal::HUP);
    run.logged("generation 2 is ready");
    scene.is_answered_by(2);
    crate::support::family::signal(pid, Signal::TERM);
    assert_eq!(run.code(), Some(13), "{}", run.log());
    eventually("nothing is left", || scene.processes().is_empty());
}

#[test]
fn first_process_ends_as_its_program_does() {
    if !rustix::process::geteuid().is_root() {
        return is_missing("root");
    }
    let scene = Scene::alone();
    scene.version("sys.exit(21)");
    let mut run = scene.spawn(unshared(&scene, &[]));
    assert_eq!(run.code(), Some(21), "{}", run.log());
}
