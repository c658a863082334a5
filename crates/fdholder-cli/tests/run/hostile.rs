//! Clients and programs that do what they should not.

use crate::scene::Scene;
use crate::support::{assert_exit, deadline, eventually, id, open_fds, stderr};
use fdholder::transport::{send, Wait};
use rustix::net::{shutdown, Shutdown};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

fn held(scene: &Scene) -> OwnedFd {
    scene.status();
    scene.holder().client().retrieve(&id("web/.run"), deadline()).unwrap()
}

#[test]
fn junk_and_floods_leave_run_responsive() {
    let scene = Scene::new();
    let run = scene.ready(&[]);
    let socket = held(&scene);
    let before = open_fds(run.pid());
    let null = File::open("/dev/null").unwrap();
    let (kept, theirs) = UnixStream::pair().unwrap();
    let full: OwnedFd = {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while std::io::Write::write(&mut &ours, &[0; 4096]).is_ok() {}
        std::mem::forget(theirs);
        ours.into()
    };
    let mine = File::create(scene.at("mine")).unwrap();
    let many = vec![null.as_fd(); 253];
    for (bytes, fds) in [
        (&b"junk"[..], &[][..]),
        (b"restart", &[]),
        (b"status", &[]),
        (b"status", &[null.as_fd()]),
        (b"status", &[mine.as_fd()]),
        (b"status", &[full.as_fd()]),
        (b"status", &[theirs.as_fd()]),
        (b"nothing", &[theirs.as_fd()]),
        (b"status", &many),
        (&[b'x'; 10_000], &many),
    ] {
        send(&socket, bytes, fds, Wait::Yes).unwrap();
        assert_eq!(scene.generations(), [(1, "ready".to_owned())]);
    }
    drop((kept, theirs));
    eventually("its descriptors are closed", || open_fds(run.pid()) <= before);
    // What is no socket is not written to.
    assert_eq!(scene.read("mine"), "");
    assert_exit(&scene.restart(), 0);
}

#[test]
fn socket_that_lingers_does_not_stop_run() {
    let scene = Scene::new();
    let run = scene.ready(&[]);
    let socket = held(&scene);
    let before = open_fds(run.pid());
    let mut peers = Vec::new();
    for text in [&b"junk"[..], b"status", b"restart"] {
        let (mine, peer) = crate::support::lingering();
        send(&socket, text, &[mine.as_fd()], Wait::Yes).unwrap();
        peers.push(peer);
    }
    eventually("they are closed", || open_fds(run.pid()) <= before);
    assert_exit(&scene.restart(), 0);
}

#[test]
fn flood_leaves_run_responsive() {
    let scene = Scene::new();
    let run = scene.ready(&[]);
    let socket = held(&scene);
    let before = open_fds(run.pid());
    for (text, with_fd) in [("junk", false), ("status", true)] {
        // Two processes, so that there is always a next one.
        let flood = format!(
            "import array, os, socket\ns = socket.socket(fileno=0); s.setblocking(True)\n\
             a, b = socket.socketpair()\n\
             rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [b.fileno()]))]\n\
             print('begins', flush=True)\n\
             while True:\n  try: s.sendmsg([b'{text}'], rights if {with_fd} else [])\n\
             \x20 except BlockingIOError: pass\n",
            with_fd = if with_fd { "True" } else { "False" },
        );
        let mut floods: Vec<_> = (0..2)
            .map(|_| {
                let mut command = Command::new("/usr/bin/python3");
                scene.furnish(&mut command);
                command.args(["-c", &flood]).stdin(Stdio::from(socket.try_clone().unwrap()));
                command.stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for flood in &mut floods {
            std::io::Read::read_exact(flood.stdout.as_mut().unwrap(), &mut [0; 7]).unwrap();
        }
        for _ in 0..5 {
            run.signal(rustix::process::Signal::WINCH);
            assert!(open_fds(run.pid()) < before + 100);
        }
        run.signal(rustix::process::Signal::HUP);
        let number = if with_fd { 3 } else { 2 };
        run.logged(&format!("generation {number} is ready"));
        for mut flood in floods {
            flood.kill().unwrap();
            flood.wait().unwrap();
        }
        eventually("it answers again", || scene.restart_command(&[]).output().is_ok());
        eventually("its descriptors are closed", || open_fds(run.pid()) <= before + 8);
        scene.status();
    }
}

#[test]
fn control_socket_that_was_shut_down_is_made_anew() {
    let scene = Scene::new();
    let _run = scene.ready(&[]);
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        let socket = held(&scene);
        shutdown(&socket, how).unwrap();
        drop(socket);
        eventually("it can be asked again", || scene.restart().status.success());
    }
    // An empty message is not the end.
    send(held(&scene), b"", &[], Wait::Yes).unwrap();
    assert_exit(&scene.restart(), 0);
    // Deleted, it comes back.
    scene.holder().client().delete(&id("web/.run"), deadline()).unwrap();
    eventually("it can be asked again", || scene.restart().status.success());
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let scene = Scene::new();
    scene.version("notify('READY=1') if generation == 1 else None; serve()");
    let run = scene.ready(&["--notify", "web"]);
    let socket = held(&scene);
    let before = open_fds(run.pid());
    let mut kept = Vec::new();
    for _ in 0..300 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&socket, b"restart", &[theirs.as_fd()], Wait::Yes).unwrap();
        kept.push(ours);
    }
    let output = scene.restart();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("too many wait for a restart"), "{output:?}");
    assert!(open_fds(run.pid()) < before + 100, "{}", open_fds(run.pid()));
    // Those that have gone make room.
    drop(kept);
    let mut restart = scene.restart_command(&["--timeout", "1000"]);
    eventually("there is room", || !stderr(&restart.output().unwrap()).contains("too many"));
}

#[test]
fn program_that_floods_its_notify_socket_is_bounded() {
    let scene = Scene::new();
    scene.version(
        "
notify('READY=1')
if os.fork() == 0:
    note('floods')
    while True: notify('STATUS=x\\nWATCHDOG=1', [0] * 253); notify('X=1' * 2000); notify('')
serve()",
    );
    let run = scene.ready(&["--notify", "web"]);
    scene.wait_for("floods");
    for _ in 0..20 {
        assert_eq!(scene.generations(), [(1, "ready".to_owned())]);
        assert!(open_fds(run.pid()) < 400, "{}", open_fds(run.pid()));
    }
    scene.version("up()");
    assert_exit(&scene.restart(), 0);
    scene.is_answered_by(2);
}

#[test]
fn stderr_of_any_kind_is_kept_harmless() {
    let scene = Scene::new();
    let run = scene.ready(&[]);
    for (version, said) in [
        ("os.write(2, b'no newline'); sys.exit(1)", "  no newline\n"),
        ("os.write(2, b'\\x1b]0;owned\\x07\\x1b[2J\\xff\\n'); sys.exit(1)", "owned"),
        (
            "os.write(2, b''.join(b'line %d\\n' % it for it in range(50000))); sys.exit(1)",
            "  line 49999\n",
        ),
        ("os.write(2, b'x' * 1000000); sys.exit(1)", "exited with code 1"),
        ("os.close(2); sys.exit(1)", "exited with code 1"),
        (
            "os.fork() or wait_for('never'); print('parent', file=sys.stderr); sys.exit(1)",
            "  parent\n",
        ),
    ] {
        scene.version(version);
        let output = scene.restart();
        assert_exit(&output, 1);
        let text = stderr(&output);
        assert!(text.contains(said), "{version}: {text}");
        assert!(
            !text.contains(['\x1b', '\x07']) && text.lines().count() <= 11,
            "{version}: {text}"
        );
        assert_eq!(scene.generations()[0], (1, "ready".to_owned()));
    }
    assert_eq!(run.count("line 49999\n"), 1);
}

#[test]
fn many_lines_are_copied_whole() {
    let scene = Scene::new();
    scene.version(
        "
def write():
    for number in range(20000): print(f'number {number}.', file=sys.stderr)
    note('written')
threading.Thread(target=write).start()
serve()",
    );
    let run = scene.ready(&["--ready-after", "1"]);
    scene.wait_for("written");
    assert_eq!(scene.ask().0, 1);
    eventually("all is copied", || run.count("number ") >= 20000);
    assert_eq!(run.count("number 19999.\n"), 1);
}

#[test]
fn log_that_nobody_reads_does_not_stop_run() {
    let scene = Scene::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = scene.command(&["--ready-after", "1"]);
    command.stdout(Stdio::null()).stderr(writer.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(scene.wait_for("serving.1"), scene.ask().1.to_string());
    // The pipe is full from now on.
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut &writer, &vec![b'\n'; size]).is_ok() {}
    while std::io::Write::write(&mut &writer, b"\n").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    for number in 1..4 {
        assert_exit(&scene.restart(), 0);
        scene.is_answered_by(number + 1);
    }
    crate::support::family::signal(child.id(), rustix::process::Signal::TERM);
    child.wait().unwrap();
    drop(reader);
}
