//! Restarts that are asked for, one by one and together, and askers that get no answer.

use crate::scene::{Scene, GOOD};
use crate::support::{assert_exit, deadline, eventually, id, stderr, stdout, Rules, Suite};
use rustix::process::Signal;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

/// A version that is ready when the test says so, once for each generation.
const SLOW: &str = "note(f'started.{generation}'); wait_for(f'go.{generation}'); \
                    up()";

fn begin(scene: &Scene) -> Child {
    let mut command = scene.restart_command(&[]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn restarts_during_a_restart_are_one_more() {
    let scene = Scene::new();
    scene.version(SLOW);
    scene.touch("go.1");
    let run = scene.ready(&["--notify", "web"]);
    let first = begin(&scene);
    scene.wait_for("started.2");
    let later: Vec<_> = (0..5).map(|_| begin(&scene)).collect();
    run.signal(Signal::HUP);
    // `status` answers meanwhile.
    eventually("they have asked", || scene.status()["askers"] == 6);
    scene.touch("go.2");
    let answer = |child: Child| stdout(&child.wait_with_output().unwrap());
    assert!(answer(first).starts_with("web: generation 2 is ready after"));
    scene.wait_for("started.3");
    scene.touch("go.3");
    for one in later {
        assert!(answer(one).starts_with("web: generation 3 is ready after"));
    }
    eventually("one is left", || scene.generations() == [(3, "ready".to_owned())]);
    run.signal(Signal::HUP);
    scene.wait_for("started.4");
    scene.touch("go.4");
    run.logged("generation 4 is ready");
    assert_eq!(run.count("is starting"), 4);
}

#[test]
fn each_asker_is_told_of_the_failure_once() {
    let scene = Scene::new();
    scene.version(SLOW);
    scene.touch("go.1");
    let run = scene.ready(&["--notify", "web"]);
    scene.version("note(f'started.{generation}'); wait_for(f'go.{generation}'); sys.exit(4)");
    let first = begin(&scene);
    scene.wait_for("started.2");
    let later: Vec<_> = (0..3).map(|_| begin(&scene)).collect();
    eventually("they have asked", || scene.status()["askers"] == 4);
    scene.touch("go.2");
    let output = first.wait_with_output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("generation 2 exited with code 4"));
    scene.wait_for("started.3");
    scene.touch("go.3");
    for one in later {
        let output = one.wait_with_output().unwrap();
        assert_exit(&output, 1);
        assert_eq!(stderr(&output).matches("generation 3 exited with code 4").count(), 1);
    }
    assert_eq!(scene.ask().0, 1);
    assert_eq!(run.count("is starting"), 3);
}

#[test]
fn restart_is_json_for_programs() {
    let scene = Scene::new();
    let _run = scene.ready(&[]);
    scene.version("print('why', file=sys.stderr); sys.exit(9)");
    let output = scene.restart_command(&["--json"]).output().unwrap();
    assert_exit(&output, 1);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["name"], &value["result"]), (&"web".into(), &"exited".into()));
    assert_eq!(value["stderr"].as_array().unwrap().last().unwrap(), "why");
    scene.version(GOOD);
    let output = scene.restart_command(&["--json"]).output().unwrap();
    assert_exit(&output, 0);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["result"], "ready");
}

#[test]
fn restart_of_a_stopped_run_says_so() {
    let scene = Scene::new();
    let run = scene.ready(&[]);
    run.signal(Signal::STOP);
    let output = scene.restart();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("is it stopped?"), "{output:?}");
    // Also when so many have asked that no more fit.
    let held = scene.holder().client().retrieve(&id("web/.run"), deadline()).unwrap();
    let junk = [0; 64];
    while fdholder::transport::send(&held, &junk, &[], fdholder::transport::Wait::No).is_ok() {}
    let output = scene.restart();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("is it stopped?"), "{output:?}");
    run.signal(Signal::CONT);
    eventually("it answers again", || scene.restart().status.success());
}

#[test]
fn restart_gives_up_when_it_is_told_to() {
    let scene = Scene::new();
    scene.version(SLOW);
    scene.touch("go.1");
    let run = scene.ready(&["--notify", "web"]);
    let output = scene.restart_command(&["--timeout", "700"]).output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("no answer"), "{output:?}");
    // The restart goes on.
    scene.touch("go.2");
    run.logged("generation 2 is ready");
}

#[test]
fn restart_of_what_has_ended_or_never_was_says_so() {
    let scene = Scene::new();
    let mut run = scene.ready(&[]);
    let restart = |name: &str| {
        let mut command = scene.fdholder(&["restart"]);
        let output = command.arg(&scene.holder().path).arg(name).output().unwrap();
        assert_exit(&output, 1);
        stderr(&output)
    };
    assert!(restart("other").contains("no service other has registered"));
    assert!(restart("").contains("no service"));
    assert!(restart(&"x".repeat(300)).contains("no service"));
    run.kill();
    assert!(restart("web").contains("the 'fdholder run' of web has ended"));
    let output = scene.fdholder(&["restart", "/no/holder", "web"]).output().unwrap();
    assert_exit(&output, 111);
    // The next one has the name.
    scene.version("note(f'again.{generation}', os.getpid()); serve()");
    let run = scene.spawn(scene.command(&[]));
    scene.wait_for("again.1");
    run.logged("generation 1 is ready");
    eventually("it can be asked", || scene.restart().status.success());
}

#[test]
fn restart_takes_the_right_to_retrieve() {
    if !rustix::process::geteuid().is_root() {
        return crate::support::is_missing("root");
    }
    let mut scene = Scene::new();
    let path = scene.at("holder");
    let rules = Rules::all(scene.at("rules")).allow("uid/65534").regexes(
        "uid/65534",
        "^$",
        "^(other|web)$",
    );
    std::os::unix::fs::chown(&scene.folder, Some(65534), None).unwrap();
    let holder = crate::support::Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    scene.replace_holder(holder);
    let _run = scene.ready(&[]);
    let mut command = scene.restart_command(&[]);
    let output = command.uid(65534).gid(65534).current_dir("/").output();
    // The program itself may be where that user cannot go.
    let Ok(output) = output else { return crate::support::is_missing("a program for all") };
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("Operation not permitted"), "{output:?}");
    assert_eq!(scene.generations(), [(1, "ready".to_owned())]);
}
