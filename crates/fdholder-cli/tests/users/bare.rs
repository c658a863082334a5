//! Where there is no /proc, and where there is nothing but the program.

use crate::serve;
use crate::support::{assert_exit, deadline, eventually, id, is_missing, stdout, Daemon};
use fdholder::Limit;
use rustix::fs::{memfd_create, MemfdFlags};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A command in a space for mounts that has no /proc.
fn in_no_proc(words: &[&str], before: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "umount -l /proc; test ! -e /proc/self || exit 99; exec \"$@\"",
    ]);
    command.arg("sh").args(before).arg(env!("CARGO_BIN_EXE_fdholder")).args(words);
    command.stdin(Stdio::null()).output().unwrap()
}

pub fn without_proc() {
    let (folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    let path = daemon.path.to_str().unwrap();
    let output = folder.path().join("metrics");
    let commands: &[&[&str]] = &[
        &["exec", "--fd", "x", path, "--", "true"],
        &["exec", "--fd", "x=9", "--env-style", "s6", path, "--", "true"],
        &["exec", "--notify", "service", path, "--", "true"],
        &["retrieve", path, "x", "true"],
        &["getdump", path, "true"],
        &["store", path, "new"],
        &["delete", path, "new"],
        &["list", path],
        &["list", "--long", path],
        &["status", path],
        &["metrics", "-o", output.to_str().unwrap(), path],
        &["transferdump", "--dry-run", path, path],
        &["transferdump", path, path],
        &["bind", path, "web", "tcp:127.0.0.1:0"],
        &["upgrade", path],
        &["demo"],
    ];
    for words in commands {
        assert_exit(&in_no_proc(words, &[]), 0);
    }
    let memfd = memfd_create("state", MemfdFlags::CLOEXEC).unwrap();
    daemon.client().store(&id("state"), Limit::never(), &memfd, deadline()).unwrap();
    let table = stdout(&in_no_proc(&["list", "--long", path], &[]));
    let line = table.lines().find(|line| line.starts_with("state ")).unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some("memfd"), "{table}");
    // Nothing else is inherited there either, also where the kernel refuses close_range(2).
    let look = "for n in 3 4 5 9 300; do (: <&$n) 2>/dev/null && echo $n; done; :";
    let words = [
        "exec",
        "--fd",
        "x",
        "--keep",
        "9",
        "--env-style",
        "nginx",
        path,
        "--",
        "bash",
        "-c",
        look,
    ];
    let open = ["bash", "-c", "exec 5</dev/null 9</dev/null 300</dev/null; exec \"$@\"", "bash"];
    assert_eq!(stdout(&in_no_proc(&words, &open)), "3\n9\n");
    if Command::new("strace").arg("--version").output().is_err() {
        return is_missing("strace");
    }
    for errno in ["ENOSYS", "EPERM", "EINVAL"] {
        let inject = format!("inject=close_range:error={errno}");
        let traced = ["strace", "-qq", "-o", "/dev/null", "-e", &inject];
        let output = in_no_proc(&words, &[&open[..], &traced].concat());
        assert_eq!(stdout(&output), "3\n9\n", "{errno}: {output:?}");
    }
}

/// A folder with the program, and what its loader needs; nothing else.
fn image() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_fdholder");
    let copy = |from: &Path, to: &Path| {
        let to = folder.path().join(to.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        // By another process: what is open for writing cannot be executed.
        assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    };
    copy(Path::new(program), Path::new("/fdholder"));
    let libraries = Command::new("ldd").arg(program).output().unwrap();
    for word in stdout(&libraries).split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(word), Path::new(word));
    }
    fs::create_dir(folder.path().join("run")).unwrap();
    folder
}

pub fn nothing_but_the_program() {
    let image = image();
    let command = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(image.path()).arg("/fdholder").args(words).stdin(Stdio::null());
        command
    };
    let path: PathBuf = image.path().join("run/h");
    let log = image.path().join("log");
    let mut serve = command(&["serve", "-1", "--standby", "/run/h"]);
    serve.stderr(File::create(&log).unwrap());
    let daemon = Daemon::spawn(serve, &path);
    let commands: &[&[&str]] = &[
        &["bind", "/run/h", "web", "tcp:127.0.0.1:0"],
        &["bind", "--owner", "root:root", "/run/h", "own", "unix:/run/own.sock"],
        &["store", "/run/h", "x"],
        &["list", "--long", "/run/h"],
        &["status", "/run/h"],
        &["metrics", "-o", "/run/metrics", "/run/h"],
        &["exec", "--fd", "web", "/run/h", "--", "/fdholder", "--version"],
        &["exec", "--notify", "service", "/run/h", "--", "/fdholder", "--version"],
        &["retrieve", "/run/h", "web", "/fdholder", "--version"],
        &["retrieve", "-D", "/run/h", "x", "/fdholder", "--version"],
        &["getdump", "/run/h", "/fdholder", "--version"],
        &["upgrade", "/run/h"],
        &["transferdump", "/run/h", "/run/h"],
        &["delete", "/run/h", "own"],
        &["demo"],
    ];
    for words in commands {
        assert_exit(&command(words).output().unwrap(), 0);
    }
    // Streams that are closed are no reason to abort.
    let script = "exec chroot \"$0\" /fdholder list /run/h <&- 2>&-";
    let list = Command::new("sh").args(["-c", script]).arg(image.path()).output().unwrap();
    assert_exit(&list, 0);
    assert_eq!(stdout(&list).lines().filter(|line| *line == "web").count(), 1, "{list:?}");
    // The standby has everything.
    eventually("a standby is ready", || {
        let status = command(&["status", "--json", "/run/h"]).output().unwrap();
        stdout(&status).contains("\"standby\":\"ready\"")
    });
    drop(daemon);
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("warning"), "{log}");
}
