//! How a generation becomes ready.

use crate::scene::{Scene, GOOD};
use crate::support::family::is_alive;
use crate::support::system::comm;
use crate::support::{assert_exit, eventually, stderr};

/// Every way: PROG is starting until it has said so, then a restart is done.
fn check(options: &[&str], good: &str) {
    let scene = Scene::new();
    scene.version(&format!("wait_for('go'); {good}"));
    let run = scene.spawn(scene.command(options));
    run.logged("generation 1 (pid");
    assert_eq!(scene.generations(), [(1, "starting".to_owned())], "{options:?}");
    scene.touch("go");
    run.logged("generation 1 is ready");
    assert_eq!(scene.ask().0, 1);
    assert_exit(&scene.restart(), 0);
    scene.wait_for("stopped.1");
    scene.is_answered_by(2);
}

/// A version that does not say that it is ready is ended, and the one before it serves on.
fn check_silent(options: &[&str], good: &str, silent: &str) {
    let scene = Scene::new();
    scene.version(good);
    let _run = scene.ready(&[&["--start-timeout", "3000"], options].concat());
    scene.wait_for("serving.1");
    let first = scene.ask();
    scene.version(&format!("note('silent', os.getpid()); {silent}"));
    let output = scene.restart();
    assert_exit(&output, 1);
    let text = stderr(&output);
    assert!(text.contains("was not ready within 3.0 s (--start-timeout)"), "{text}");
    let silent = scene.wait_for("silent").parse().unwrap();
    eventually("the silent one has ended", || !is_alive(silent));
    // run may not have waited for it yet.
    eventually("the last one is left", || scene.generations() == [(1, "ready".to_owned())]);
    assert_eq!(scene.ask(), first, "{options:?}");
}

#[test]
fn notify_socket_makes_ready() {
    let good = "up()";
    check(&["--notify", "web"], good);
    check(&["--ready-notify", "--ready-after", "1"], good);
    // What says nothing of it, or something else, is not ready.
    let silent = "notify('STATUS=READY=1\\nREADY=0\\nREADY=11\\nREADY=1 \\nXREADY=1'); serve()";
    check_silent(&["--notify", "web"], good, silent);
    check_silent(&["--ready-notify", "--ready-after", "1"], good, silent);
}

#[test]
fn ready_fd_takes_any_number() {
    for number in
        [0, 1, 2, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 300]
    {
        let good = format!("os.write({number}, b'\\n'); os.close({number}); serve()");
        let scene = Scene::new();
        scene.version(&good);
        let _run = scene.ready(&["--ready-fd", &number.to_string()]);
        assert_eq!(scene.ask().0, 1, "{number}");
    }
}

#[test]
fn ready_fd_makes_ready() {
    check(&["--ready-fd", "4"], "os.write(4, b'x'); os.write(4, b'x\\n'); serve()");
    // What comes without a newline, or the end of it all, says nothing.
    let silent = "os.write(4, b'ready'); os.close(4); serve()";
    check_silent(&["--ready-fd", "4"], "os.write(4, b'\\n'); serve()", silent);
}

#[test]
fn ready_fd_collision_is_refused() {
    for (options, problem) in [
        (&["--ready-fd", "3"][..], "3"),
        (&["--ready-fd", "5", "--fd", "web=5"], "5"),
        (&["--ready-fd", "1", "--keep", "1"], "1"),
    ] {
        let scene = Scene::new();
        let mut run = scene.spawn(scene.command(options));
        assert_eq!(run.code(), Some(100), "{options:?}: {}", run.log());
        assert!(run.log().contains(problem) && run.log().contains("ready-fd"), "{}", run.log());
    }
}

#[test]
fn ready_fd_beside_numbers_that_were_chosen() {
    // Whatever numbers the supervisor's own descriptors have.
    for number in 4..40 {
        let scene = Scene::new();
        scene.version(&format!("os.write({}, b'\\n'); serve({number})", number + 1));
        let fd = format!("web={number}");
        let ready = (number + 1).to_string();
        let options = ["--env-style", "nginx", "--fd", &fd, "--ready-fd", &ready];
        let _run = scene.ready(&options);
        assert_eq!(scene.ask().0, 1, "{number}");
    }
}

#[test]
fn ready_command_makes_ready() {
    let command = "test -e \"$FOLDER/serving.$FDHOLDER_GENERATION\" && kill -0 $MAINPID";
    check(&["--ready-command", command], GOOD);
    check_silent(&["--ready-command", command], GOOD, "wait_for('never')");
}

#[test]
fn ready_command_that_hangs_or_is_killed_is_not_ready() {
    // The first one succeeds.
    for hangs in ["sleep 1000", "kill -9 $$", "exit 1", "true & sleep 1000 & wait"] {
        let command = format!("test $FDHOLDER_GENERATION = 1 || {{ {hangs}; }}");
        check_silent(&["--ready-command", &command], GOOD, GOOD);
    }
}

#[test]
fn ready_command_ends_with_what_it_is_for() {
    let scene = Scene::new();
    let command =
        "test $FDHOLDER_GENERATION = 1 || { echo $$ > $FOLDER/probe; sleep 1000 & wait; }";
    let _run = scene.ready(&["--ready-command", command]);
    scene.wait_for("serving.1");
    scene.version("note('pid', os.getpid()); wait_for('end'); sys.exit(3)");
    let mut restart = scene.restart_command(&[]).spawn().unwrap();
    scene.wait_for("pid");
    let mut probe = String::new();
    eventually("it is asked", || {
        probe = scene.read("probe");
        probe.ends_with('\n')
    });
    scene.touch("end");
    assert_eq!(restart.wait().unwrap().code(), Some(1));
    let probe = probe.trim().parse().unwrap();
    eventually("the command was ended", || !is_alive(probe));
    eventually("with what it had started", || {
        !scene.processes().into_iter().any(|pid| comm(pid).trim() == "sleep")
    });
}

#[test]
fn ready_after_makes_ready() {
    check(&[], GOOD);
    check(&["--ready-after", "300"], GOOD);
    // At once, whatever it does.
    let scene = Scene::new();
    scene.version("wait_for('never')");
    let _run = scene.ready(&["--ready-after", "0"]);
}

#[test]
fn ready_that_nobody_asked_for_does_not_count() {
    // gunicorn sends it before it loads the application, which may fail.
    let scene = Scene::new();
    scene.version("serve()");
    let _run = scene.ready(&[]);
    scene.version("notify('READY=1'); barrier(); sys.exit(7)");
    assert_exit(&scene.restart(), 1);
    assert_eq!(scene.generations(), [(1, "ready".to_owned())]);
    // Where something else was asked for, that counts.
    check_silent(
        &["--ready-fd", "4"],
        "os.write(4, b'\\n'); serve()",
        "notify('READY=1'); serve()",
    );
}

#[test]
fn start_timeout_is_extended() {
    let scene = Scene::new();
    scene.version("up()");
    let run = scene.ready(&["--notify", "web", "--start-timeout", "3000"]);
    let wait = "notify('EXTEND_TIMEOUT_USEC=100000000'); barrier(); note('said'); wait_for('go'); \
                up()";
    scene.version(wait);
    let mut restart = scene.restart_command(&[]).spawn().unwrap();
    scene.wait_for("said");
    let begun = scene.since(2);
    eventually("the first limit is over", || scene.since(2) > begun + 3500);
    assert_eq!(scene.generations()[1], (2, "starting".to_owned()));
    scene.touch("go");
    assert!(restart.wait().unwrap().success(), "{}", run.log());
}

#[test]
fn ready_before_the_end_is_ready() {
    // Both are there when the supervisor looks.
    let scene = Scene::new();
    scene.version("notify('READY=1'); sys.exit(7)");
    let mut run = scene.spawn(scene.command(&["--notify", "web"]));
    assert_eq!(run.code(), Some(7));
    assert!(run.log().contains("generation 1 is ready"), "{}", run.log());
}
