//! Versions that do not start: the generation before them serves on.

use crate::scene::{Scene, GOOD};
use crate::support::family::is_alive;
use crate::support::{assert_exit, eventually, stderr, Daemon, Rules, Suite};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// What the program is replaced by, and what `restart` says of it.
const BAD: [(&str, &str); 8] = [
    ("sys.exit(0)", "exited with code 0 before it was ready"),
    ("print('no database', file=sys.stderr); sys.exit(1)", "exited with code 1"),
    ("sys.exit(126)", "exited with code 126"),
    ("sys.exit(127)", "exited with code 127"),
    ("time.sleep(0.5); sys.exit(1)", "exited with code 1 before it was ready"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV before it was ready"),
    ("os.kill(os.getpid(), signal.SIGTERM)", "was killed by SIGTERM before it was ready"),
    ("raise ValueError('bad settings')", "exited with code 1"),
];

#[test]
fn bad_version_leaves_the_last_one_serving() {
    let scene = Scene::new();
    let run = scene.ready(&["--ready-after", "700"]);
    let first = scene.ask();
    for (version, said) in BAD {
        scene.version(version);
        let output = scene.restart();
        assert_exit(&output, 1);
        let text = stderr(&output);
        assert!(text.contains(said), "{version}: {text}");
        assert!(text.contains("the generation before it serves on"), "{version}: {text}");
        if version.contains("database") {
            assert!(text.contains("\n  no database\n"), "{text}");
        }
        if version.contains("ValueError") {
            assert!(text.contains("\n  ValueError: bad settings\n"), "{text}");
        }
        assert_eq!(scene.ask(), first, "{version}");
        let last = &scene.status()["last_restart"];
        assert!(last["text"].as_str().unwrap().contains(said), "{last}");
    }
    scene.version(GOOD);
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(2 + BAD.len() as u64);
    scene.wait_for("stopped.1");
    assert!(scene.status()["last_restart"]["result"] == "ready");
    drop(run);
}

#[test]
fn hanging_version_is_killed_with_all_of_its_group() {
    let scene = Scene::new();
    scene.version("os.write(4, b'\\n'); serve()");
    let options = ["--start-timeout", "2000", "--ready-fd", "4", "--stop-timeout", "300"];
    let run = scene.ready(&options);
    let first = scene.ask();
    // It and what it has started ignore SIGTERM.
    let hangs = "signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork(); \
                 note('child' if child == 0 else 'parent', os.getpid()); wait_for('never')";
    scene.version(hangs);
    let output = scene.restart();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("was not ready within 2.0 s"), "{output:?}");
    let both = ["parent", "child"].map(|name| scene.wait_for(name).parse().unwrap());
    eventually("both were killed", || !both.into_iter().any(is_alive));
    assert_eq!(run.count("generation 2 does not stop: killed"), 1);
    assert_eq!(scene.ask(), first);
    scene.version("os.write(4, b'\\n'); serve()");
    assert_exit(&scene.restart(), 0);
}

#[test]
fn program_that_cannot_be_executed_is_a_failure() {
    let scene = Scene::new();
    let program = scene.at("service");
    let write = |text: &str, mode| {
        fs::write(scene.at("service.new"), text).unwrap();
        fs::set_permissions(scene.at("service.new"), Permissions::from_mode(mode)).unwrap();
        fs::rename(scene.at("service.new"), &program).unwrap();
    };
    let good = format!("#!/bin/sh\nexec {} {}\n", scene.program()[0], scene.program()[1]);
    write(&good, 0o755);
    let run = scene.spawn(scene.command_of(&[], &[program.to_str().unwrap()]));
    run.logged("generation 1 is ready");
    let first = scene.ask();
    let check = |said: &str| {
        let output = scene.restart();
        assert_exit(&output, 1);
        let text = stderr(&output);
        assert!(text.contains(said) && text.contains("serves on"), "{text}");
        assert_eq!(scene.ask(), first);
    };
    write(&good, 0o644);
    check(&format!("did not start: unable to exec {}: Permission denied", program.display()));
    // It is said once.
    assert_eq!(run.count("Permission denied"), 1, "{}", run.log());
    write("#!/no/such/interpreter\n", 0o755);
    check("did not start: unable to exec");
    fs::remove_file(&program).unwrap();
    check(&format!("did not start: unable to exec {}: No such file", program.display()));
    write(&good, 0o755);
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(5);
}

#[test]
fn missing_descriptor_is_a_failure() {
    let scene = Scene::new();
    let other = crate::support::id("other");
    let null = fs::File::open("/dev/null").unwrap();
    let hold = || {
        let never = fdholder::Limit::never();
        scene.holder().client().store(&other, never, &null, crate::support::deadline()).unwrap();
    };
    hold();
    let _run = scene.ready(&["--fd", "other"]);
    let first = scene.ask();
    scene.holder().client().delete(&other, crate::support::deadline()).unwrap();
    let output = scene.restart();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("did not start: unable to retrieve"), "{output:?}");
    assert_eq!(scene.ask(), first);
    hold();
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(3);
}

#[test]
fn first_start_that_fails_ends_run() {
    for (version, code) in [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
        ("wait_for('never')", 1),
    ] {
        let scene = Scene::new();
        scene.version(version);
        let options = ["--ready-command", "false", "--start-timeout", "2000"];
        let mut run = scene.spawn(scene.command(&options));
        assert_eq!(run.code(), Some(code), "{version}: {}", run.log());
        assert!(run.log().contains("no generation serves"), "{}", run.log());
        assert_eq!(scene.processes(), [0; 0]);
    }
    let scene = Scene::new();
    let directory = scene.folder.path().to_str().unwrap();
    for (program, code) in [("/no/such/program", 127), (directory, 126)] {
        let mut run = scene.spawn(scene.command_of(&[], &[program]));
        assert_eq!(run.code(), Some(code), "{program}: {}", run.log());
        assert!(run.log().contains("unable to exec"), "{}", run.log());
    }
    let mut run = scene.spawn(scene.command(&["--fd", "missing"]));
    assert_eq!(run.code(), Some(1), "{}", run.log());
    assert!(run.log().contains("id missing"), "{}", run.log());
}

#[test]
fn rule_that_refuses_leaves_the_last_one_serving() {
    let mut scene = Scene::alone();
    let rules = Rules::all(scene.at("rules"));
    let path = scene.at("holder");
    scene.replace_holder(Daemon::with_rules(Suite::Ours, &path, &rules, &[]));
    let _run = scene.ready(&[]);
    let first = scene.ask();
    let rules = rules.regexes("uid/self", ".*", "^web/.run$");
    let output = scene.restart();
    assert_exit(&output, 1);
    let text = stderr(&output);
    assert!(text.contains("web: Operation not permitted"), "{text}");
    assert_eq!(scene.ask(), first);
    drop(rules.regexes("uid/self", ".*", ".*"));
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(3);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let scene = Scene::alone();
    for (options, said) in [
        (&["--ready-notify", "--ready-fd", "9"][..], "--ready-fd"),
        (&["--ready-notify", "--ready-command", "true"], "--ready-command"),
        (&["--drain-max", "0"], "every restart"),
    ] {
        let output = scene.command(options).output().unwrap();
        assert_exit(&output, 100);
        assert!(stderr(&output).contains(said), "{options:?}: {output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
}
