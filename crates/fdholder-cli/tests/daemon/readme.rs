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

/// Runs a block of the README in an empty folder, and returns what it printed. The holders
/// it has started are ended.
fn run_block(name: &str, holders: [&str; 2]) -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let block = readme.split(&format!("<!-- {name}: begin")).nth(1).unwrap();
    let block = block.split(&format!("<!-- {name}: end")).next().unwrap();
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
    for holder in holders {
        end(&folder.path().join(holder));
    }
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_quick_start_works_as_pasted() {
    assert_eq!(run_block("quick start", ["holder", "holder2"]), "greeting\nstill here\n");
}

#[test]
fn the_transfer_works_as_pasted() {
    let said = run_block("transfer", ["old", "new"]);
    let (table, json) = said.split_once("it fits\n").unwrap();
    assert!(table.contains("udp:53   never    held"), "{table}");
    // The last command has nothing to list.
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(report["deleted_from_source"], 3);
    assert_eq!(report["replaced"], 3);
}
