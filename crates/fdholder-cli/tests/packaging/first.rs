//! `run` as the first process of a container: the image of the example, built and run.

use crate::containers::{container, words, CRUN, PREPARE};
use crate::example::{pid_from, served_by, Clients, Server, COMPLAINT};
use crate::installed;
use crate::support::system::System;
use crate::support::{deadline, eventually, id, listeners_of};
use fdholder::Client;
use serde_json::{json, Value};
use std::fs::{self, Metadata};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;

/// Both images that the example's is made from, the holder's by its own file and Python's from what
/// is installed here; then the example. Prints what it is told to run.
const BUILD: &str = r#"
mkdir /tmp/holder /tmp/web /tmp/python /run/bundle
cp /usr/bin/fdholder /usr/share/doc/fdholder/examples/docker/Dockerfile /tmp/holder
cp /usr/share/doc/fdholder/examples/docker/example-web/Dockerfile /tmp/web
cp /usr/share/doc/fdholder/examples/example-web.py /tmp/web
cd /tmp/python
cp -r --parents /usr/bin/python3* /usr/lib/python3* .
ldd /usr/bin/python3 | grep -o '/lib[^ ]*' | xargs cp -L --parents -t .
printf 'FROM scratch\nCOPY . /\nENV PATH=/usr/bin:/usr/local/bin\n' >Dockerfile
build() { buildah --storage-driver vfs --root /tmp/storage --runroot /tmp/run "$@"; }
make() { build build --isolation chroot --format docker --pull=never --tag "$1" "$2" >&2; }
make "$(sed -n 's/^COPY --from=\([^ ]*\).*/\1/p' /tmp/web/Dockerfile)" /tmp/holder
make "$(sed -n 's/^FROM //p' /tmp/web/Dockerfile)" /tmp/python
make it /tmp/web
container=$(build from it)
cp -r "$(build mount "$container")" /run/bundle/rootfs
build inspect --type image it
"#;

/// A container of that image.
struct Container {
    system: System,
    server: Server,
    running: Child,
}

impl Container {
    /// Starts it, with more options before what PROG is.
    fn start(system: System, options: &[&str]) -> Self {
        let image: Value = serde_json::from_str(&system.run(BUILD)).unwrap();
        let config = &image["Docker"]["config"];
        assert_eq!(config["StopSignal"], "SIGTERM");
        let mut run = words(&config["Entrypoint"]);
        let end = run.pop().unwrap();
        run.extend(options.iter().map(|&option| option.to_owned()));
        let all = [run, vec![end], words(&config["Cmd"])].concat();
        // Any port that is free: the network is that of all tests.
        let all: Vec<_> = all.iter().map(|word| word.replace(":8080", ":0")).collect();
        let mut bundle = container(&all);
        bundle["process"]["env"] = config["Env"].clone();
        let spaces = bundle["linux"]["namespaces"].as_array_mut().unwrap();
        spaces.retain(|space| space["type"] != "network");
        // As Docker has it; nothing else can be written.
        let shared = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs"});
        bundle["mounts"].as_array_mut().unwrap().push(shared);
        system.run(PREPARE);
        fs::write(system.at("run/bundle/config.json"), bundle.to_string()).unwrap();
        let root = system.at("run/bundle/rootfs");
        let path = root.join("usr/local/lib/example-web.py");
        // What is shared is in the volume of the container.
        system.run("mkdir -p /run/fdholder");
        let folder = system.at("run/fdholder");
        let server = Server::install(path, &folder, Path::new("/run/fdholder"));
        let running = Self::spawn(&system);
        Self { system, server, running }
    }

    fn spawn(system: &System) -> Child {
        let run = format!("exec {CRUN} run --bundle /run/bundle it >>/srv/log 2>&1");
        system.command(&run).spawn().unwrap()
    }

    /// Its first process, as it is here.
    fn first(&self) -> u32 {
        let all = self.all();
        let first = all.iter().find(|pid| System::inner(**pid) == Some(1));
        *first.unwrap_or_else(|| panic!("no first process: {}", self.system.log()))
    }

    /// All its processes, as they are here: those that have its volume, and pids two levels below.
    fn all(&self) -> Vec<u32> {
        let volume = fs::metadata(self.system.at("run/fdholder")).unwrap();
        let is_inside = |pid: &u32| {
            let seen = fs::metadata(format!("/proc/{pid}/root/run/fdholder"));
            let has_volume =
                |seen: Metadata| (seen.dev(), seen.ino()) == (volume.dev(), volume.ino());
            levels(*pid) == levels(std::process::id()) + 2 && seen.is_ok_and(has_volume)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(is_inside).collect()
    }

    /// Ended processes that nobody has reaped.
    fn zombies(&self) -> usize {
        let script = "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
        self.system.run(script).trim().parse().unwrap()
    }

    fn signal(&self, name: &str) {
        self.system.run(&format!("{CRUN} kill it {name}"));
    }
}

/// In how many spaces for processes a process is.
fn levels(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.map_or(0, |pids| pids.split_whitespace().count())
}

pub fn of_its_own_socket() {
    let mut container = Container::start(installed(), &[]);
    let mut address = None;
    eventually("it is ready", || {
        let log = container.system.log();
        log.contains("generation 1 is ready") && {
            address = listeners_of(container.first()).into_iter().find_map(as_tcp);
            address.is_some()
        }
    });
    let (address, first) = (address.unwrap(), container.first());
    let clients = Clients::of(address);
    container.server.with_orphans();
    let mut server = served_by(address);
    for _ in 0..3 {
        container.signal("HUP");
        server = clients.wait_for_successor(server);
        clients.wait_for_more();
    }
    // run has reaped what the servers left behind.
    eventually("the first process, one server and its copier are left", || {
        container.all().len() == 3 && container.zombies() == 0
    });
    assert_eq!(container.first(), first);

    container.server.bad();
    container.signal("HUP");
    eventually("it was tried", || {
        container.system.log().contains("the generation before it serves on")
    });
    assert!(container.system.log().contains(COMPLAINT), "{}", container.system.log());
    assert_eq!(served_by(address), server);
    clients.all_were_served();

    container.signal("TERM");
    assert_eq!(container.running.wait().unwrap().code(), Some(0), "{}", container.system.log());
    assert!(!container.system.log().contains("does not stop"), "{}", container.system.log());
    assert!(container.all().is_empty());
    // Nobody keeps the socket.
    assert!(TcpStream::connect(address).is_err());
}

/// Its holder is in another container, or on the machine.
pub fn of_a_held_socket() {
    let system = installed();
    system.run("mkdir /run/fdholder; fdholder serve /run/fdholder/holder >>/srv/log 2>&1 &");
    eventually("there is a holder", || {
        system.try_run("fdholder list /run/fdholder/holder").status.success()
    });
    let mut container = Container::start(system, &["/run/fdholder/holder"]);
    let held = container.system.at("run/fdholder/holder");
    let mut address = None;
    eventually("the socket is held", || {
        let mut client = Client::connect(&held, deadline()).unwrap();
        let web = client.retrieve(&id("web"), deadline()).ok();
        address = web.and_then(as_tcp);
        address.is_some()
    });
    let address = address.unwrap();
    let clients = Clients::of(address);
    for _ in 0..2 {
        let before = container.first();
        container.signal("KILL");
        assert!(!container.running.wait().unwrap().success());
        let waits = TcpStream::connect(address).unwrap();
        container.running = Container::spawn(&container.system);
        pid_from(waits).unwrap();
        assert_ne!(container.first(), before);
        clients.wait_for_more();
    }
    // `restart` reaches it from outside.
    container.server.bad();
    let restart = "fdholder restart /run/fdholder/holder web";
    let failed = container.system.try_run(restart);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains(COMPLAINT), "{failed:?}");
    container.server.good();
    container.system.run(restart);
    clients.none_was_refused();
    container.signal("TERM");
    assert_eq!(container.running.wait().unwrap().code(), Some(0), "{}", container.system.log());
}

fn as_tcp(listener: std::os::fd::OwnedFd) -> Option<SocketAddr> {
    TcpListener::from(listener).local_addr().ok()
}
