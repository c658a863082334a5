//! `exec` passes on what is held, as the program wants it, and nothing else.

use crate::serve;
use crate::support::{
    assert_exit, deadline, eventually, id, is_missing, marked_file, stderr, stdout, suite, Daemon,
};
use fdholder::Limit;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A daemon that holds files of these names.
fn holding(names: &[&str]) -> (tempfile::TempDir, Daemon) {
    let (folder, daemon) = serve(&[]);
    let mut client = daemon.client();
    for name in names {
        let (file, _) = marked_file(folder.path(), &name.replace('/', "-"));
        client.store(&id(name), Limit::never(), &file, deadline()).unwrap();
    }
    (folder, daemon)
}

/// What a program sees: its variables, and what it has open beyond standard streams, by the
/// last part of its path.
struct Seen {
    variables: BTreeMap<String, String>,
    open: BTreeMap<u32, String>,
}

/// `$$` is the process that `exec` has become. It is looked at by others, so that nothing of
/// the shell's own is open; and the shell would not hand on names such as `S6_FD#`.
const LOOK: &str = "echo pid=$$; tr '\\0' '\\n' </proc/$$/environ; \
                    find /proc/$$/fd -type l -printf 'open:%f=%l\\n'";

fn exec(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = suite::fdholder(["exec"]);
    command.args(arguments).arg(&daemon.path).args(["--", "sh", "-c", LOOK]);
    command
}

fn see(output: &Output) -> Seen {
    assert_exit(output, 0);
    let mut seen = Seen { variables: BTreeMap::new(), open: BTreeMap::new() };
    let text = stdout(output);
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match name.strip_prefix("open:").map(|number| number.parse().unwrap()) {
            Some(0..=2) => {}
            Some(number) => {
                let file = Path::new(value).file_name().unwrap().to_str().unwrap();
                seen.open.insert(number, file.to_owned());
            }
            None => {
                seen.variables.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    seen
}

impl Seen {
    fn by(mut command: Command) -> Self {
        see(&command.stdin(Stdio::null()).output().unwrap())
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    fn open(&self) -> Vec<(u32, &str)> {
        self.open.iter().map(|(&number, file)| (number, file.as_str())).collect()
    }
}

#[test]
fn descriptors_come_in_order_with_their_names() {
    let (_folder, daemon) = holding(&["b", "a", "web/10", "web/9", "tcp:80"]);
    let seen = Seen::by(exec(
        &daemon,
        &["--fd", "b", "--fd-prefix", "web/", "--fd", "a=first", "--fd", "tcp:80"],
    ));
    assert_eq!(seen.open(), [(3, "b"), (4, "web-9"), (5, "web-10"), (6, "a"), (7, "tcp:80")]);
    assert_eq!(seen.variable("LISTEN_FDS"), Some("5"));
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("b:web/9:web/10:first:tcp%3A80"));
    assert_eq!(seen.variable("LISTEN_PID"), seen.variable("pid"));
}

#[test]
fn nothing_else_is_inherited() {
    let (_folder, daemon) = holding(&["a"]);
    let inner = "exec 5</dev/null 9</dev/zero; exec \"$@\"";
    let run = |more: &[&str]| {
        let exec = exec(&daemon, &[&["--fd", "a"], more].concat());
        let mut command = Command::new("sh");
        command.args(["-c", inner, "sh"]).arg(exec.get_program()).args(exec.get_args());
        // What was meant for somebody else is not for the program.
        command.env("LISTEN_FDS", "7").env("LISTEN_PID", "1").env("NGINX", "8;");
        Seen::by(command)
    };
    let seen = run(&[]);
    assert_eq!(seen.open(), [(3, "a")]);
    assert_eq!(seen.variable("LISTEN_FDS"), Some("1"));
    assert_eq!(seen.variable("NGINX"), None);
    let seen = run(&["--keep", "9", "--no-pid"]);
    assert_eq!(seen.open(), [(3, "a"), (9, "zero")]);
    assert_eq!(seen.variable("LISTEN_PID"), None);
}

/// All that fits below the program's limit is passed on, and the limit stays.
#[test]
fn as_many_are_passed_as_fit() {
    let (_folder, daemon) = serve(&[]);
    let null = File::open("/dev/null").unwrap();
    let mut client = daemon.client();
    for number in 0..90 {
        client.store(&id(&format!("x{number}")), Limit::never(), &null, deadline()).unwrap();
    }
    let script = "ulimit -Sn 100; exec \"$0\" exec --fd-prefix x \"$1\" -- \
                  sh -c 'ulimit -Sn; echo $LISTEN_FDS; ls -l /proc/$$/fd | grep -c null'";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&daemon.path);
    let output = command.stdin(Stdio::piped()).output().unwrap();
    assert_eq!(stdout(&output), "100\n90\n90\n", "{output:?}");
}

#[test]
fn numbers_can_be_chosen() {
    let (_folder, daemon) = holding(&["a", "b", "c"]);
    // Where exec itself has something, and where it has nothing.
    let seen = Seen::by(exec(&daemon, &["--fd", "a=4", "--fd", "b", "--fd", "c=200"]));
    assert_eq!(seen.open(), [(3, "b"), (4, "a"), (200, "c")]);
    assert_eq!(seen.variable("LISTEN_FDS"), Some("1"));
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("b"));
    let mut command = suite::fdholder(["exec", "--fd", "a=0"]);
    command.arg(&daemon.path).args(["--", "readlink", "/proc/self/fd/0"]);
    let output = command.output().unwrap();
    assert!(stdout(&output).ends_with("/a\n"), "{output:?}");
}

#[test]
fn each_style_has_its_variables() {
    let (_folder, daemon) = holding(&["a", "b"]);
    let by =
        |style: &str| Seen::by(exec(&daemon, &["--env-style", style, "--fd", "a", "--fd", "b"]));
    assert_eq!(by("nginx").variable("NGINX"), Some("3;4;"));
    let seen = by("einhorn");
    assert_eq!(seen.variable("EINHORN_FD_COUNT"), Some("2"));
    assert_eq!(seen.variable("EINHORN_FD_1"), Some("4"));
    let own = std::process::id().to_string();
    assert_eq!(seen.variable("EINHORN_MASTER_PID"), Some(own.as_str()));
    let seen = by("s6");
    assert_eq!(seen.variable("S6_FD#"), Some("2"));
    assert_eq!(seen.variable("S6_FDID_1"), Some("b"));
    assert_eq!(seen.variable("S6_FD_1"), Some("4"));
    for style in ["nginx", "einhorn", "s6"] {
        assert_eq!(by(style).variable("LISTEN_FDS"), None, "{style}");
    }
    let seen = Seen::by(exec(&daemon, &["--env-style", "uvicorn-fd", "--fd", "a"]));
    assert_eq!(seen.variable("UVICORN_FD"), Some("3"));
}

/// A wrapper that forks has another pid than what it starts.
#[test]
fn the_pid_is_right_behind_a_wrapper() {
    let (_folder, daemon) = holding(&["a", "b"]);
    let ours = env!("CARGO_BIN_EXE_fdholder");
    let inner = format!(
        "'{ours}' exec --inherited --fd b '{}' -- sh -c '{}'; exit",
        daemon.path.display(),
        LOOK.replace('\'', "'\\''")
    );
    let mut command = suite::fdholder(["exec", "--fd", "a=kept"]);
    command.arg(&daemon.path).args(["--", "sh", "-c", &inner]);
    let seen = Seen::by(command);
    assert_eq!(seen.open(), [(3, "a"), (4, "b")]);
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("kept:b"));
    assert_eq!(seen.variable("LISTEN_PID"), seen.variable("pid"));
    // Nothing but what was inherited needs no holder.
    let inner =
        format!("'{ours}' exec --inherited -- sh -c '{}'; exit", LOOK.replace('\'', "'\\''"));
    let mut command = suite::fdholder(["exec", "--fd", "a"]);
    command.arg(&daemon.path).args(["--", "sh", "-c", &inner]);
    assert_eq!(Seen::by(command).open(), [(3, "a")]);
}

#[test]
fn a_missing_id_is_an_error_before_exec() {
    let (_folder, daemon) = holding(&["a"]);
    for (arguments, says) in [
        (&["--fd", "a", "--fd", "nope"][..], "unable to retrieve fd for id nope"),
        (&["--fd-prefix", "nope/"], "nothing is held under ids that begin with nope/"),
        (&["--fd", "nope", "--wait", "40"], "unable to retrieve fd for id nope"),
    ] {
        let output = exec(&daemon, arguments).output().unwrap();
        assert_exit(&output, 1);
        assert!(stderr(&output).contains(says), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn what_may_be_missing_is_left_out() {
    let (_folder, daemon) = holding(&["a", "b"]);
    let seen = Seen::by(exec(
        &daemon,
        &["--missing-ok", "--fd", "nope", "--fd", "b", "--fd-prefix", "nope/", "--fd", "a"],
    ));
    assert_eq!(seen.open(), [(3, "b"), (4, "a")]);
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("b:a"));
    let seen = Seen::by(exec(&daemon, &["--missing-ok", "--fd-prefix", "nope/"]));
    assert_eq!((seen.open().len(), seen.variable("LISTEN_FDS")), (0, None));
}

#[test]
fn what_is_waited_for_may_come_later() {
    let (_folder, daemon) = holding(&[]);
    let mut command = exec(&daemon, &["--wait", "60000", "--fd", "late", "--fd-prefix", "later/"]);
    let waiting = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let null = File::open("/dev/null").unwrap();
    for name in ["late", "later/x"] {
        daemon.client().store(&id(name), Limit::never(), &null, deadline()).unwrap();
    }
    let seen = see(&waiting.wait_with_output().unwrap());
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("late:later/x"));
}

#[test]
fn what_cannot_be_is_said() {
    let (_folder, daemon) = holding(&["a", "b"]);
    for (arguments, code, says) in [
        (&["--fd", "a=7", "--fd", "b=7"][..], 100, "7 cannot be two descriptors"),
        (&["--fd", "a", "--fd", "b=3"], 100, "without a gap"),
        (&["--fd", "a", "--fd", "b", "--env-style", "uvicorn-fd"], 100, "takes one descriptor"),
        (&["--fd", "a=1000000000"], 111, "see ulimit -n"),
        (&["--fd", "a", "--keep", "77"], 111, "keep descriptor 77"),
        (&["--fd", "a", "--env-style", "docker"], 100, "invalid value 'docker'"),
        (&[], 100, "nothing to pass on"),
    ] {
        let output = exec(&daemon, arguments).output().unwrap();
        assert_exit(&output, code);
        assert!(stderr(&output).contains(says), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    let run = |arguments: &[&str]| suite::fdholder(arguments).output().unwrap();
    let no_path = run(&["exec", "--fd", "a", "--", "true"]);
    assert_exit(&no_path, 100);
    assert!(stderr(&no_path).contains("where does the holder listen"), "{no_path:?}");
    let path = daemon.path.to_str().unwrap();
    assert_exit(&run(&["exec", "--fd", "a", path, "--", "/nowhere/prog"]), 127);
    assert_exit(&run(&["exec", "--fd", "a", path, "--", "/"]), 126);
    // What is passed on moves.
    let mut command = suite::fdholder(["exec", "--fd", "a", path, "--"]);
    command.arg(env!("CARGO_BIN_EXE_fdholder"));
    command.args(["exec", "--inherited", "--keep", "3", "--env-style", "nginx", "--", "true"]);
    let output = command.output().unwrap();
    assert_exit(&output, 100);
    assert!(stderr(&output).contains("3 is one of those"), "{output:?}");
    // What it tells of is not there.
    let mut command = suite::fdholder(["exec", "--inherited", "--", "true"]);
    assert_exit(&command.env("LISTEN_FDS", "1").output().unwrap(), 111);
}

/// What systemd has opened is passed on before what is held; as by the tool that does what
/// systemd would.
#[test]
fn what_systemd_gives_goes_first() {
    let (_folder, daemon) = holding(&["a"]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &address.to_string(), "--fdname=front"]);
    command.arg(env!("CARGO_BIN_EXE_fdholder")).args(["exec", "--inherited", "--fd", "a"]);
    command.arg(&daemon.path).args(["--", "sh", "-c", LOOK]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(child) = child else {
        return is_missing("systemd-socket-activate");
    };
    // It starts the program when somebody connects.
    eventually("it listens", || TcpStream::connect(address).is_ok());
    let seen = see(&child.wait_with_output().unwrap());
    assert_eq!(seen.variable("LISTEN_FDS"), Some("2"));
    assert_eq!(seen.variable("LISTEN_FDNAMES"), Some("front:a"));
    assert_eq!(seen.variable("LISTEN_PID"), seen.variable("pid"));
    assert!(seen.open[&3].starts_with("socket:") && seen.open[&4] == "a", "{:?}", seen.open);
}
