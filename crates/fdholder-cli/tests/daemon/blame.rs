//! Messages blame what is known, give a reason, and are one line.

use crate::serve;
use crate::support::{assert_exit, deadline, id, is_missing, stderr, suite, Daemon};
use fdholder::extension::{hello, upgraded};
use fdholder::frame::Message;
use fdholder::reply::{self, getdump_head};
use fdholder::Limit;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

/// A holder that answers the requests of one client so, one after another, and then hangs up.
fn answering(folder: &Path, answers: Vec<Message<u32>>) -> (PathBuf, JoinHandle<()>) {
    answering_each(folder, vec![answers])
}

/// The same with several clients, one after another; then there is no holder.
fn answering_each(folder: &Path, clients: Vec<Vec<Message<u32>>>) -> (PathBuf, JoinHandle<()>) {
    let path = folder.join("answering");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let at = path.clone();
    let serve = move || {
        for answers in clients {
            let (mut client, _) = listener.accept().unwrap();
            for answer in answers {
                let mut header = [0; 6];
                client.read_exact(&mut header).unwrap();
                let len = u32::from_be_bytes(header[..4].try_into().unwrap());
                client.read_exact(&mut vec![0; len as usize]).unwrap();
                client.write_all(answer.bytes()).unwrap();
            }
        }
        std::fs::remove_file(at).unwrap();
    };
    (path, std::thread::spawn(serve))
}

fn run(arguments: &[&str]) -> Output {
    suite::fdholder(arguments).output().unwrap()
}

#[test]
fn connection_closed_without_an_answer_may_be_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = answering(folder.path(), Vec::new());
    let output = run(&["list", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("closed without an answer"), "{output:?}");
    assert!(stderr(&output).contains("access rules"), "{output:?}");
}

#[test]
fn connection_closed_after_an_answer_is_not_blamed_on_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = answering(folder.path(), vec![hello(), getdump_head(1)]);
    let output = run(&["getdump", path.to_str().unwrap(), "true"]);
    server.join().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("Broken pipe (the holder closed the connection after"));
    assert!(!stderr(&output).contains("rules"), "{output:?}");
}

#[test]
fn refusal_without_a_reason_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = answering(folder.path(), vec![hello(), upgraded(Err(""))]);
    let output = run(&["upgrade", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_exit(&output, 1);
    let expected = "fdholder upgrade: fatal: unable to upgrade: the holder does not say why\n";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn reason_with_control_characters_is_one_harmless_line() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = answering(folder.path(), vec![hello(), upgraded(Err("a\nb\x1b[2J"))]);
    let output = run(&["upgrade", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(!stderr(&output).contains('\x1b'), "{output:?}");
    let output = run(&["list", "/nowhere/a\nb"]);
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
}

/// Neither its version is blamed, nor is it taken for s6's daemon.
#[test]
fn holder_that_hangs_up_on_everything_is_not_called_another() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["upgrade", "PATH"][..], &["exec", "--notify", "n", "PATH", "--", "true"]] {
        let (path, server) = answering_each(folder.path(), vec![Vec::new(), Vec::new()]);
        let path = path.to_str().unwrap();
        let arguments: Vec<_> =
            arguments.iter().map(|it| if *it == "PATH" { path } else { it }).collect();
        let output = run(&arguments);
        server.join().unwrap();
        assert_exit(&output, 1);
        let said = stderr(&output);
        assert!(said.contains("Broken pipe (the connection was closed without"), "{output:?}");
        assert!(!said.contains("another") && !said.contains("supported"), "{output:?}");
    }
}

/// One that has just replaced another is asked once more; s6's daemon hangs up again.
#[test]
fn holder_that_answers_all_but_the_first_question_may_be_a_fdholder() {
    let folder = tempfile::tempdir().unwrap();
    let list = || reply::list(std::iter::empty());
    let then = vec![hello(), upgraded(Ok("9.9"))];
    let clients = vec![Vec::new(), vec![list()], then];
    let (path, server) = answering_each(folder.path(), clients);
    let output = run(&["upgrade", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_exit(&output, 0);
    let clients = vec![Vec::new(), vec![list()], Vec::new(), vec![list()]];
    let (path, server) = answering_each(folder.path(), clients);
    let output = run(&["upgrade", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("that holder is no fdholder"), "{output:?}");
}

/// It is not the holder that has no room.
#[test]
fn retrieve_without_room_in_this_process_blames_its_own_limit() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    let script = "ulimit -n 4; exec \"$0\" retrieve \"$1\" x true";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    let output = command.output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("this process has no room"), "{output:?}");
    assert!(!stderr(&output).contains("option -n"), "{output:?}");
}

#[test]
fn program_that_may_not_be_executed_is_blamed_alone() {
    let (folder, daemon) = serve(&[]);
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let mut command = suite::fdholder(["exec", "--missing-ok", "--fd", "x"]);
    command.arg(&daemon.path).arg("--").arg(&plain);
    // As in what a confined daemon starts.
    let output = command.env("FDHOLDER_CONFINED", "1").output().unwrap();
    assert_exit(&output, 126);
    assert!(stderr(&output).ends_with(": Permission denied\n"), "{output:?}");
}

/// It is not the next daemon that has too little room.
#[test]
fn takeover_refused_for_want_of_a_memfd_is_not_blamed_on_its_own_limit() {
    if Command::new("strace").arg("--version").output().is_err() {
        return is_missing("strace");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holder");
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", "inject=memfd_create:error=ENFILE"]);
    command.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1", "-v0"]).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    let output = run(&["serve", "-1", path.to_str().unwrap()]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("it refuses: Too many open files"), "{output:?}");
    assert!(!stderr(&output).contains("-n"), "{output:?}");
    daemon.client().list(deadline()).unwrap();
}
