//! `status` and `metrics` of services.

use crate::scene::{Client, Scene};
use crate::support::{assert_exit, eventually, stderr, stdout, Daemon, Suite};
use rustix::process::Signal;
use std::os::unix::net::UnixStream;

fn status(scene: &Scene) -> String {
    let mut command = scene.fdholder(&["status"]);
    let output = command.arg(&scene.holder().path).env("COLUMNS", "80").output().unwrap();
    assert_exit(&output, 0);
    stdout(&output)
}

fn other(scene: &Scene, name: &str) -> crate::scene::Run {
    let mut command = scene.fdholder(&["run", "--name", name, "--ready-after", "1"]);
    command.arg(&scene.holder().path).args(["--", "sleep", "1000"]);
    scene.spawn(command)
}

#[test]
fn status_shows_all_services() {
    let scene = Scene::new();
    scene.version("up()");
    let _run = scene.ready(&["--notify", "web"]);
    let mut slow = scene.connect();
    slow.send("wait slow");
    scene.wait_for("slow.begun");
    assert_exit(&scene.restart(), 0);
    assert!(status(&scene).contains(" ago: generation 2 is ready after "), "{}", status(&scene));
    scene.version("print('\\x1b[31mbad\\x07 settings', file=sys.stderr); sys.exit(3)");
    assert_exit(&scene.restart(), 1);
    let mut dead = other(&scene, "dead");
    let stopped = other(&scene, "stopped");
    eventually("all have registered", || {
        let runs = scene.runs();
        runs.len() == 3 && runs.iter().all(|run| run["error"].is_null())
    });
    dead.kill();
    stopped.signal(Signal::STOP);
    let text = status(&scene);
    let is_sentence = |line: &str| line.contains(" ago: ");
    let fits = |line: &str| line.chars().count() <= 80 || is_sentence(line);
    assert!(text.lines().skip_while(|line| !line.starts_with("RUN ")).take(5).all(fits), "{text}");
    let rows: Vec<Vec<_>> = text.lines().map(|it| it.split_whitespace().collect()).collect();
    let has = |words: &[&str]| rows.iter().any(|row| words.iter().all(|word| row.contains(word)));
    assert!(has(&["web", "2", "ready"]) && has(&["web", "1", "draining"]), "{text}");
    assert!(text.contains("its run has ended") && text.contains("is it stopped?"), "{text}");
    assert!(text.contains("generation 3 exited with code 3 before it was ready"), "{text}");
    assert!(text.contains("bad") && text.contains("settings"), "{text}");
    assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
    // The same for programs.
    let runs = scene.runs();
    let of = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap().clone();
    assert_eq!(of("dead")["error"], "its run has ended");
    assert!(of("stopped")["error"].as_str().unwrap().contains("stopped"));
    let web = of("web");
    assert_eq!(web["starts"]["ready"], 2);
    assert_eq!(web["starts"]["exited"], 1);
    assert_eq!(web["last_restart"]["result"], "exited");
    // And for Prometheus.
    let output = scene.fdholder(&["metrics"]).arg(&scene.holder().path).output().unwrap();
    assert_exit(&output, 0);
    let metrics = stdout(&output);
    for (name, up) in [("dead", 0), ("stopped", 0), ("web", 1)] {
        let path = scene.holder().path.display();
        let line = format!("fdholder_run_up{{path=\"{path}\",service=\"{name}\"}} {up}");
        assert!(metrics.lines().any(|it| it == line), "{line}: {metrics}");
    }
    assert!(metrics.contains("result=\"exited\"} 1"), "{metrics}");
    scene.touch("slow");
    assert_eq!(slow.answer().0, 1);
}

#[test]
fn s6_holders_keep_services_too() {
    for suite in [Suite::S6V211, Suite::S6V213] {
        if !suite.is_installed() {
            crate::support::is_missing(&suite.to_string());
            continue;
        }
        let mut scene = Scene::new();
        let rules = crate::support::Rules::all(scene.at("rules"));
        let path = scene.at("holder");
        scene.replace_holder(Daemon::with_rules(suite, &path, &rules, &[]));
        let mut run = scene.ready(&[]);
        let first = scene.ask();
        scene.version("sys.exit(3)");
        let output = scene.restart();
        assert_exit(&output, 1);
        assert!(stderr(&output).contains("exited with code 3"), "{suite}: {output:?}");
        assert_eq!(scene.ask(), first);
        scene.version("up()");
        assert_exit(&scene.restart(), 0);
        scene.is_answered_by(3);
        assert!(status(&scene).contains("ready"), "{suite}");
        assert_eq!(scene.generations().last().unwrap(), &(3, "ready".to_owned()));
        // The next run goes on.
        run.kill();
        scene.wait_for("closed.3");
        let mut client = Client::new(UnixStream::connect(scene.socket()).unwrap());
        client.send("now");
        let next = scene.spawn(scene.command(&["--ready-after", "1"]));
        next.logged("generation 1 (pid");
        assert_eq!(client.answer().0, 1, "{suite}");
        eventually("it can be asked", || scene.restart().status.success());
        // Its stores are for a fdholder alone.
        let mut bad = scene.spawn(scene.command(&["--notify", "web"]));
        assert_eq!(bad.code(), Some(1), "{suite}: {}", bad.log());
    }
}

#[test]
fn two_of_one_name_are_told() {
    let scene = Scene::new();
    let first = scene.ready(&[]);
    scene.status();
    let second = scene.spawn(scene.command(&["--ready-after", "1"]));
    second.logged("another run has this name, and goes on");
    assert_eq!(scene.status()["pid"], second.pid());
    // They do not take it from each other for ever.
    drop(second);
    eventually("the first one has it again", || {
        let runs = scene.runs();
        runs.iter().any(|run| run["pid"] == first.pid())
    });
}
