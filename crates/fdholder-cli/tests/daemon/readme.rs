//! The quick start of the README works as pasted.

use rustix::net::sockopt::socket_peercred;
use rustix::process::{kill_process, Signal};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Ends the daemon that listens at `path`.
fn end(path: &Path) {
    let probe = UnixStream::connect(path).unwrap();
    kill_process(socket_peercred(&probe).unwrap().pid, Signal::KILL).unwrap();
}

#[test]
fn the_quick_start_works_as_pasted() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let block = readme.split("<!-- quick start: begin").nth(1).unwrap();
    let block = block.split("<!-- quick start: end").next().unwrap();
    let script = block.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_fdholder")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-e", "-c", script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}", binary.display()))
        // The holders have it for as long as they live.
        .stderr(Stdio::null())
        .output()
        .unwrap();
    end(&folder.path().join("holder"));
    end(&folder.path().join("holder2"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "greeting\nstill here\n");
}
