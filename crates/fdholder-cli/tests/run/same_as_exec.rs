//! What PROG sees is what `exec` leaves it.

use crate::scene::Scene;
use crate::support::{deadline, id};
use fdholder::Limit;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What a program sees of itself. Its stderr is a pipe under `run`.
const LOOK: &str = r#"
{
    echo "arguments: $*"
    env | LC_ALL=C sort
    cd "/proc/$$/fd" || exit
    for fd in *; do
        case $fd in 2) ;; *) test ! -e $fd -a ! -L $fd || echo "$fd: $(readlink $fd)" ;; esac
    done
    cd "$OLDPWD"
    umask
    pwd
    nice
    cat /proc/$$/oom_score_adj /proc/$$/limits /proc/$$/cgroup
    ps -o sid= -p $$ 2>/dev/null
    grep -E '^(Uid|Gid|Groups|Sig(Blk|Ign|Cgt)|NoNewPrivs|Cap)' /proc/self/status
} >"$SEEN.new" 2>&1
sed -i -e "s/=$$\$/=PID/" "$SEEN.new"
mv "$SEEN.new" "$SEEN"
"#;

/// Changes what a process is started with: Python, which becomes its arguments.
const CHANGED: [&str; 10] = [
    "pass",
    "os.umask(0o137); os.chdir('/'); os.nice(5)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 900)); \
     resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)",
    "signal.signal(signal.SIGPIPE, signal.SIG_IGN)",
    "[signal.signal(it, signal.SIG_IGN) for it in (1, 2, 3, 10, 12, 17, 28, 34, 64)]",
    "signal.pthread_sigmask(signal.SIG_BLOCK, {1, 2, 10, 13, 15, 17, 34, 64})",
    "os.close(0)",
    "os.close(1)",
    "os.environ.update(LISTEN_FDS='7', LISTEN_PID='1', LISTEN_FDNAMES='a:b', EMPTY='', \
     SERVER_STARTER_PORT='80=3', FDHOLDER_RUN_PROBEX='1', NOTIFY_SOCKET='/nowhere')",
];

/// Options, and arguments of PROG.
const OPTIONS: [(&[&str], &[&str]); 16] = [
    (&[], &[]),
    (&["--fd", "a", "--fd", "b=other"], &["{a}", "{b}", "x{missing}"]),
    (&["--env-style", "nginx", "--fd", "a", "--fd", "b=17"], &["{a} {b}"]),
    (&["--env-style", "server-starter", "--fd", "tcp"], &[]),
    (&["--env-style", "angie", "--fd", "tcp"], &[]),
    (&["--env-style", "unicorn", "--fd", "tcp"], &[]),
    (&["--env-style", "puma", "--fd", "tcp"], &[]),
    (&["--env-style", "nginx", "--fd", "a=0"], &[]),
    (&["--no-pid", "--fd-prefix", "a"], &[]),
    (&["--keep", "7", "--fd", "a"], &[]),
    (&["--keep-all", "--env-style", "nginx", "--fd", "a=30"], &[]),
    (&["--keep-all", "--env-style", "nginx", "--fd", "a=10", "--fd", "b=12"], &["/dev/fd/15"]),
    (&["--keep", "7", "--env-style", "nginx", "--fd", "a=11"], &["/dev/fd/9"]),
    (&["--missing-ok", "--fd", "missing", "--fd", "a"], &[]),
    (&["--nonblock", "--fd", "tcp"], &[]),
    (&["--inherited", "--fd", "a"], &[]),
];

fn look(scene: &Scene, how: &str, change: &str, case: &(&[&str], &[&str])) -> String {
    let (options, arguments) = case;
    let seen = scene.at("seen");
    let _ = fs::remove_file(&seen);
    let change = format!(
        "import ctypes, os, resource, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.closerange(3, 100)
null = os.open('/dev/null', os.O_RDWR)
for number in {{7, 9}}: os.dup2(null, number)
if null not in {{7, 9}}: os.close(null)
{change}
if '--inherited' in sys.argv:
    for number in {{3, 4}}: os.dup2(7, number)
    os.environ.update(LISTEN_FDS='2', LISTEN_PID='1', LISTEN_FDNAMES='zero:one')
os.execv(sys.argv[1], sys.argv[1:])"
    );
    let mut command = Command::new("/usr/bin/python3");
    scene.furnish(&mut command);
    command.args(["-c", &change, env!("CARGO_BIN_EXE_fdholder"), how]).args(*options);
    command.env("SEEN", &seen).env_remove("PYTHONDONTWRITEBYTECODE");
    if how == "run" {
        command.args(["--name", "web"]);
    }
    command.arg(&scene.holder().path).args(["--", "/bin/sh", "-c", LOOK, "sh"]).args(*arguments);
    let output = command.stdin(Stdio::null()).process_group(0).output().unwrap();
    assert!(
        output.status.code() == Some(0) && seen.exists(),
        "{how} {change} {case:?}: {output:?}"
    );
    let seen = fs::read_to_string(&seen).unwrap();
    let added = ["FDHOLDER_GENERATION=1", "SERVER_STARTER_GENERATION=1"];
    let is_added = |line: &&str| added.contains(line) || is_notify_socket(line);
    let count = seen.lines().filter(is_added).count();
    assert!(how == "exec" || count == 3, "{seen}");
    // `run` has another one for each generation, whatever it was started with.
    let is_same = |line: &&str| !is_added(line) && *line != "NOTIFY_SOCKET=/nowhere";
    // A pipe of this test has another number each time.
    let same = |line: &str| line.split(":[").next().unwrap().to_owned();
    seen.lines().filter(is_same).map(|line| same(line) + "\n").collect()
}

fn is_notify_socket(line: &str) -> bool {
    line.starts_with("NOTIFY_SOCKET=") && line.contains("/fdholder-run.")
}

#[test]
fn program_sees_what_exec_leaves_it() {
    let scene = Scene::new();
    let null = fs::File::open("/dev/null").unwrap();
    let mut client = scene.holder().client();
    for name in ["a", "b"] {
        client.store(&id(name), Limit::never(), &null, deadline()).unwrap();
    }
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    client.store(&id("tcp"), Limit::never(), &tcp, deadline()).unwrap();
    let mut differ = Vec::new();
    let changed = CHANGED.iter().map(|change| (*change, &OPTIONS[1]));
    let options = OPTIONS[1..].iter().map(|case| ("pass", case));
    for (change, case) in changed.chain(options) {
        let (exec, run) = (look(&scene, "exec", change, case), look(&scene, "run", change, case));
        for line in exec.lines().filter(|line| !run.contains(*line)) {
            differ.push(format!("{change} {case:?}: exec {line}"));
        }
        for line in run.lines().filter(|line| !exec.contains(*line)) {
            differ.push(format!("{change} {case:?}: run {line}"));
        }
        assert!(exec.contains("SigBlk"), "{exec}");
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn limit_on_open_files_is_as_before_without_a_holder() {
    let scene = Scene::alone();
    let command = "ulimit -Sn 300; exec \"$0\" run --name web -- sh -c 'ulimit -Sn >$FOLDER/limit'";
    let mut shell = Command::new("sh");
    scene.furnish(&mut shell);
    let output = shell.args(["-c", command, env!("CARGO_BIN_EXE_fdholder")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.read("limit"), "300\n");
}

#[test]
fn descriptor_to_keep_must_be_open() {
    // One of `run`'s own may have that number.
    for number in 3..30 {
        let scene = Scene::new();
        let number = number.to_string();
        let close = format!("exec \"$0\" \"$@\" {number}>&-");
        let mut shell = Command::new("bash");
        scene.furnish(&mut shell);
        shell.args(["-c", &close, env!("CARGO_BIN_EXE_fdholder"), "run", "--keep", &number]);
        let mut run = scene.spawn({
            shell.args(["--", "true"]);
            shell
        });
        assert_eq!(run.code(), Some(111), "{number}: {}", run.log());
        assert!(run.log().contains("keep descriptor"), "{}", run.log());
    }
}
