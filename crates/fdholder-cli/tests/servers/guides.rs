//! What the guides and the README tell to run works as pasted. While it runs, and while SIGHUP
//! restarts its service once more, no client is refused.

use crate::load::{ask, Load};
use crate::support::family::signal;
use crate::support::{eventually, suite, Suite};
use crate::{example, folders};
use rustix::process::{kill_process, kill_process_group, Pid, Signal};
use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What there is to build is built, and what there is to install is what is tested.
const CARGO: &str = "#!/bin/sh
case $* in
    'install --locked --path crates/fdholder-cli') ;;
    'build --quiet --package fdholder-cli --example listenfd') ;;
    *) echo \"what is 'cargo $*'?\" >&2; exit 1 ;;
esac
";

const MARK: &str = "FDHOLDER_TEST_FOLDER";

/// A file of the repository, from its top.
pub fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// All shell blocks of a text, one after the other.
pub fn shell_blocks(text: &str) -> String {
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Runs all shell blocks of a guide, and returns what they print. From the time on at which a server
/// listens on a port, clients connect to it. Once the script has ended, SIGHUP restarts each service
/// that `run` keeps at ./holder. All clients are answered.
pub fn follow(guide: &str, ports: &[u16]) -> String {
    follow_with(Suite::S6V213, guide, ports)
}

/// The same, where s6's programs are those of a suite.
pub fn follow_with(suite: Suite, guide: &str, ports: &[u16]) -> String {
    let script = shell_blocks(&document(&format!("docs/guides/{guide}.md")));
    Script::start(suite, &script).succeeds(ports)
}

/// A service, as `status --json` shows it.
struct Service {
    name: String,
    /// The process of `run`.
    run: u32,
    /// The processes of its generations.
    generations: Vec<u32>,
}

fn services(holder: &Path) -> Vec<Service> {
    let output = suite::fdholder(["status", "--json"]).arg(holder).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = |value: &serde_json::Value| value["pid"].as_u64().unwrap() as u32;
    let service = |it: &serde_json::Value| Service {
        name: it["name"].as_str().unwrap().to_owned(),
        run: pid(it),
        generations: it["generations"].as_array().unwrap().iter().map(pid).collect(),
    };
    let runs = status["runs"].as_array().into_iter().flatten();
    // On a busy machine one may not answer in time.
    runs.filter(|it| it.get("error").is_none()).map(service).collect()
}

/// Restarts each service by SIGHUP, and waits until the next generation is the only one.
fn restart_by_hangup(holder: &Path) {
    if !holder.exists() {
        return;
    }
    for Service { name, run, generations } in services(holder) {
        signal(run, Signal::HUP);
        eventually("the next generation serves alone", || {
            let all = services(holder);
            all.iter().find(|it| it.name == name).is_some_and(|now| {
                now.generations.len() == 1 && !generations.contains(&now.generations[0])
            })
        });
    }
}

/// A script at the top of what looks like a checkout. It and all it started are killed when
/// dropped.
pub struct Script {
    folder: tempfile::TempDir,
    child: Child,
    group: Pid,
}

impl Script {
    pub fn start(s6: Suite, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink(example("."), at("examples")).unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_fdholder")).ancestors().nth(2).unwrap();
        symlink(built, at("target")).unwrap();
        let tools = tools(folder.path(), s6);
        let path = std::env::join_paths([tools].into_iter().chain(folders())).unwrap();
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script]).current_dir(folder.path()).env("PATH", path);
        command.env(MARK, folder.path());
        command.stdin(Stdio::null()).process_group(0);
        // What goes on in the background has these for as long as it lives.
        command.stdout(File::create(at("stdout")).unwrap());
        command.stderr(File::create(at("stderr")).unwrap());
        let child = command.spawn().unwrap();
        let group = Pid::from_child(&child);
        Self { folder, child, group }
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end, with clients; what was printed.
    pub fn succeeds(mut self, ports: &[u16]) -> String {
        let mut loads = Vec::new();
        for &port in ports {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            eventually("somebody listens", || {
                self.ended().is_some() || TcpStream::connect(address).is_ok()
            });
            loads.push(Load::on(address, ask));
        }
        eventually("the script ends", || self.ended().is_some());
        let status = self.ended().unwrap();
        let output = self.said("stdout");
        assert!(status.success(), "{status}\n{output}\n{}", self.said("stderr"));
        restart_by_hangup(&self.folder.path().join("holder"));
        for load in loads {
            load.finish();
        }
        output
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
        // What run has started is in groups of its own, and HAProxy may miss the signal that it gets
        // when run ends, if it is just starting.
        let mark = mark(self.folder.path());
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let environ = fs::read(process.path().join("environ")).unwrap_or_default();
            // nginx writes its title over its environment.
            let is_ours = environ.split(|byte| *byte == 0).any(|it| it == mark.as_bytes())
                || fs::read_link(process.path().join("cwd"))
                    .is_ok_and(|it| it.starts_with(self.folder.path()));
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| is_ours) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// What is in the environment of all that a script starts.
fn mark(folder: &Path) -> String {
    format!("{MARK}={}", folder.display())
}

/// A folder of commands that the scripts find first.
fn tools(folder: &Path, s6: Suite) -> PathBuf {
    let tools = folder.join("tools");
    fs::create_dir(&tools).unwrap();
    write(&tools, "cargo", CARGO);
    let mut names = vec!["s6-ipcserver-socketbinder".to_owned()];
    let programs = ["d", "-store", "-list", "-transferdump"];
    names.extend(programs.map(|name| format!("s6-fdholder{name}")));
    for name in names.iter().filter(|_| s6.is_installed()) {
        let words: Vec<_> = s6.words(name).iter().map(|it| it.display().to_string()).collect();
        write(&tools, name, &format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")));
    }
    tools
}

/// By another process: what is open for writing here cannot be executed.
fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    let text = folder.join("text");
    fs::write(&text, content).unwrap();
    assert!(Command::new("cp").arg(&text).arg(&path).status().unwrap().success());
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}
