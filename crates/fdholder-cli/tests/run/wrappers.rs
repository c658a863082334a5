//! Programs behind a shell that does not become them.

use crate::scene::Scene;
use crate::support::is_missing;

/// Opens its own port where `LISTEN_PID` is another's, as systemd's library does.
const CHECKS: &str = "
if os.environ.get('LISTEN_PID') == str(os.getpid()):
    listener = socket.socket(fileno=3)
else:
    listener = socket.create_server(('127.0.0.1', 0))
note('port', listener.getsockname())
wait_for('never')";

#[test]
fn program_that_opens_its_own_port_is_told_of_once() {
    let scene = Scene::new();
    scene.version(CHECKS);
    let [python, program] = scene.program();
    let script = format!("{python} {program}; true");
    let run = scene.spawn(scene.command_of(&["--ready-after", "1"], &["sh", "-c", &script]));
    run.logged("LISTEN_PID is");
    let log = run.log();
    let warning = log.lines().find(|line| line.contains("LISTEN_PID is")).unwrap();
    assert!(warning.contains("warning") && warning.contains("exec python3"), "{warning}");
    let port = scene.wait_for("port");
    let port = port.split(", ").nth(1).unwrap().trim_end_matches(')').to_owned();
    assert!(warning.contains(&format!("TCP port {port}")), "{warning}");
    assert_eq!(run.count("LISTEN_PID is"), 1);
    if !std::path::Path::new("/bin/sh").exists() {
        is_missing("sh");
    }
}

#[test]
fn program_that_uses_its_sockets_is_not() {
    // By exec, and without a pid.
    for (options, script) in [
        (&["--ready-after", "1"][..], "exec python3"),
        (&["--ready-after", "1", "--no-pid"], "python3"),
    ] {
        let scene = Scene::new();
        // Workers and their own sockets are nobody's business.
        scene.version(
            "
if os.fork() == 0:
    note('worker'); wait_for('never')
serve()",
        );
        let [python, program] = scene.program();
        let script = format!("{} {program}; true", script.replace("python3", &python));
        let run = scene.spawn(scene.command_of(options, &["sh", "-c", &script]));
        run.logged("generation 1 is ready");
        scene.wait_for("worker");
        run.signal(rustix::process::Signal::HUP);
        run.logged("generation 2 is ready");
        // The look at the first one would have been before that of the second.
        assert_eq!(run.count("LISTEN_PID is"), 0);
    }
}
