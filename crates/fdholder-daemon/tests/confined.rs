//! What a confined process can still do: tried by a process of its own, this program once more.
#![allow(missing_docs, clippy::unwrap_used)]

use fdholder_daemon::confinement::{advice, is_confined, is_inherited, is_refused, Confinement};
use fdholder_daemon::launch::{Launch, CONFINED_VARIABLE, FOLLOW_VARIABLE};
use landlock::{AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::fs::{mkfifoat, Mode, CWD};
use rustix::io::Errno;
use rustix::process::{test_kill_process, Pid};
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// For a process that is to confine itself: what to try then, and in which folder.
const TO_TRY: &str = "FDHOLDER_TEST_TO_TRY";
const FOLDER: &str = "FDHOLDER_TEST_FOLDER";

const NOBODY: u32 = 65534;

fn main() {
    let inside: [(&str, fn(&Place)); 3] = [
        ("nothing_else_can_be_opened", nothing_else_can_be_opened),
        ("no_other_program_can_be_executed", no_other_program_can_be_executed),
        ("too_many_layers_are_refused", too_many_layers_are_refused),
    ];
    if let Ok(to_try) = std::env::var(TO_TRY) {
        let place = Place { folder: std::env::var_os(FOLDER).unwrap().into() };
        let (_, run) = inside.into_iter().find(|(name, _)| *name == to_try).unwrap();
        return run(&place);
    }
    let trials = inside.map(|(name, _)| {
        let ignored = strict().handle_access(AccessFs::Execute).is_err();
        Trial::test(name, move || outside(name)).with_ignored_flag(ignored)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

/// What this kernel can refuse.
fn strict() -> Ruleset {
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement)
}

/// Runs a part of this program, from a folder of its own.
fn outside(name: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir().unwrap();
    let place = Place { folder: folder.path().canonicalize().unwrap() };
    for folder in ["etc/rules", "run", "bin", "outside"] {
        fs::create_dir_all(place.at(folder)).unwrap();
        // It is not the file system that refuses something.
        fs::set_permissions(place.at(folder), Permissions::from_mode(0o777)).unwrap();
    }
    fs::set_permissions(&place.folder, Permissions::from_mode(0o777)).unwrap();
    fs::write(place.at("etc/rules/allow"), "").unwrap();
    fs::set_permissions(place.at("etc/rules/allow"), Permissions::from_mode(0o666)).unwrap();
    fs::write(place.at("outside/secret"), "").unwrap();
    // By another process, as what is open for writing here cannot be executed.
    let own = std::env::current_exe().unwrap();
    let install = |to: &str| {
        assert!(Command::new("cp").arg(&own).arg(place.at(to)).status().unwrap().success());
    };
    install("bin/program");
    install("outside/program");
    install("etc/rules/program");
    let mut command = Command::new(place.at("bin/program"));
    command.env(TO_TRY, name).env(FOLDER, &place.folder).current_dir(&place.folder);
    if rustix::process::geteuid().is_root() {
        // To root, more is allowed of other processes.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

struct Place {
    folder: PathBuf,
}

impl Place {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn confine(&self) {
        assert!(!is_confined());
        let arguments = vec!["program".into()];
        let mut needs =
            Confinement::with_program(&Launch { program: self.at("bin/program"), arguments })
                .unwrap();
        needs.read_folder(&self.at("etc/rules")).unwrap();
        needs.make_socket(&self.at("run/socket")).unwrap();
        needs.apply().unwrap();
        assert!(is_confined());
    }
}

#[track_caller]
fn refused<T>(result: Result<T, impl Into<io::Error>>) {
    let error = result.err().expect("this was not refused").into();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(advice(error.kind()).contains("landlock = false"));
}

fn nothing_else_can_be_opened(it: &Place) {
    let open = |path: PathBuf| File::open(path);
    let write = |path: &Path| File::options().write(true).open(path);
    let secret = it.at("outside/secret");
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    // Of the same user, and not confined.
    let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    open(format!("/proc/{}/environ", other.id()).into()).unwrap();
    it.confine();

    open(it.at("etc/rules/allow")).unwrap();
    fs::read_dir(it.at("etc/rules")).unwrap();
    refused(open(secret.clone()));
    refused(fs::read_dir("/"));
    assert!(is_refused(&secret) && !is_refused(&it.at("etc/rules/allow")));
    // By no way round it.
    let round = format!("/proc/self/root{}", secret.display());
    refused(open(round.into()));
    refused(open(it.at("etc/rules/../../outside/secret")));
    refused(open("/proc/self/cwd/outside/secret".into()));
    refused(symlink(&secret, it.at("etc/rules/link")));
    // What is read is not written to, and nothing is made.
    refused(write(&it.at("etc/rules/allow")));
    refused(fs::rename(it.at("etc/rules/allow"), it.at("etc/rules/deny")));
    refused(File::create(it.at("etc/rules/new")));
    refused(File::create(it.at("run/new")));
    refused(fs::create_dir(it.at("run/new")));
    refused(mkfifoat(CWD, it.at("run/new"), Mode::RUSR));
    refused(fs::remove_file(it.at("etc/rules/allow")));
    refused(fs::hard_link(it.at("etc/rules/allow"), it.at("run/new")));
    // But sockets.
    drop(UnixListener::bind(it.at("run/socket")).unwrap());
    fs::remove_file(it.at("run/socket")).unwrap();
    refused(UnixListener::bind(it.at("etc/rules/socket")));
    // Of other processes, what anybody may see, whoever's they are.
    let seen = |what: &str| open(format!("/proc/{}/{what}", other.id()).into());
    seen("stat").unwrap();
    for secret in ["environ", "mem", "maps"] {
        refused(seen(secret));
    }
    write(Path::new("/dev/null")).unwrap();
    open("/proc/self/maps".into()).unwrap();
    if strict().handle_access(AccessNet::ConnectTcp).is_ok() {
        refused(TcpStream::connect(web.local_addr().unwrap()));
    }
    // It may be opened again, at another port.
    TcpListener::bind("127.0.0.1:0").unwrap();
    if strict().scope(Scope::Signal).is_ok() {
        assert_eq!(test_kill_process(Pid::from_child(&other)), Err(Errno::PERM));
    }
    drop(other.stdin.take());
    other.wait().unwrap();
}

fn no_other_program_can_be_executed(it: &Place) {
    if is_inherited() {
        // Whoever is started is as confined as this one.
        return refused(File::open(it.at("outside/secret")));
    }
    it.confine();
    for program in ["/bin/sh", "/usr/bin/env"] {
        refused(Command::new(program).output());
    }
    for program in ["outside/program", "etc/rules/program"] {
        refused(Command::new(it.at(program)).output());
    }
    let own = |program: &Path| {
        let mut command = Command::new(program);
        // As the daemon says it to those that follow.
        command.envs([(CONFINED_VARIABLE, "1"), (FOLLOW_VARIABLE, "0")]).status().unwrap()
    };
    assert!(own(&it.at("bin/program")).success());
    assert!(own(Path::new("/proc/self/exe")).success());
}

/// The kernel has an end to that, and says so.
fn too_many_layers_are_refused(it: &Place) {
    let needs =
        Confinement::with_program(&Launch { program: it.at("bin/program"), arguments: Vec::new() })
            .unwrap();
    for _ in 0..16 {
        needs.apply().unwrap();
    }
    assert!(needs.apply().unwrap_err().to_string().contains("too long"));
}
