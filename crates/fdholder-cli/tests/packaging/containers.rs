//! What runs in containers: the image is built from its Dockerfile and run; the manifests are
//! read by validators, as there is no cluster here.

use crate::file;
use crate::support::suite::peers;
use crate::support::{assert_exit, content_at, deadline, eventually, id, marked_file};
use fdholder::{Client, Limit};
use serde_json::json;
use std::fs;
use std::process::{Command, Output};

/// What the validators take that is not there.
pub fn missing() -> Option<String> {
    let folder = peers().join("validators");
    let is_there = folder.join("complete").exists();
    (!is_there).then(|| format!("{} (scripts/peers)", folder.display()))
}

fn validator(name: &str, arguments: &[&str]) -> Output {
    Command::new(peers().join("validators/bin").join(name)).args(arguments).output().unwrap()
}

pub fn dockerfile() {
    let dockerfile = file("docker/Dockerfile");
    for dockerfile in [&dockerfile, &file("docker/example-web/Dockerfile")] {
        let dockerfile = dockerfile.to_str().unwrap();
        assert_exit(&validator("hadolint", &["--failure-threshold=style", dockerfile]), 0);
    }
    // It does find mistakes.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("Dockerfile");
    let text = fs::read_to_string(dockerfile).unwrap().replace("ENTRYPOINT", "ENTRYPONT");
    fs::write(&wrong, text).unwrap();
    assert_exit(&validator("hadolint", &[wrong.to_str().unwrap()]), 1);
}

/// By the schemas of Kubernetes itself; nothing may be in them that those do not know.
pub fn manifests() {
    let daemonset = file("kubernetes/daemonset.yaml");
    let pod = file("kubernetes/example-pod.yaml");
    let validate = |path: &str| validator("kubernetes-validate", &["--strict", path]);
    for (manifest, kinds) in [(&daemonset, &["namespace", "daemonset"][..]), (&pod, &["pod"])] {
        let checked = validate(manifest.to_str().unwrap());
        assert_exit(&checked, 0);
        let said = String::from_utf8_lossy(&checked.stderr).into_owned()
            + &String::from_utf8_lossy(&checked.stdout);
        for kind in kinds {
            assert!(said.contains(&format!("passed for resource {kind}/")), "{said}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    let text = fs::read_to_string(daemonset).unwrap().replace("readOnlyRoot", "readOnlyRot");
    fs::write(&wrong, text).unwrap();
    assert_ne!(validate(wrong.to_str().unwrap()).status.code(), Some(0));

    // They say the same as the image.
    let of = |name: &str| fs::read_to_string(file(name)).unwrap();
    let command = r#"["/fdholder", "list", "-t", "4000", "/run/fdholder/holder"]"#;
    let arguments = r#"["serve", "-T", "10000", "/run/fdholder/holder"]"#;
    for name in ["docker/Dockerfile", "kubernetes/daemonset.yaml"] {
        assert!(of(name).contains(command) && of(name).contains(arguments), "{name}");
    }
    let version = format!("fdholder:{}", env!("CARGO_PKG_VERSION"));
    for name in [
        "docker/README.md",
        "docker/example-web/Dockerfile",
        "kubernetes/daemonset.yaml",
        "kubernetes/example-pod.yaml",
    ] {
        assert_eq!(of(name).matches("fdholder:0").count(), of(name).matches(&version).count());
    }
}

/// Builds it into /run/bundle/rootfs, and prints what it is told to run.
const BUILD: &str = r#"
mkdir /tmp/context /run/fdholder /run/bundle
cp /usr/bin/fdholder /srv/Dockerfile /tmp/context
build() { buildah --storage-driver vfs --root /tmp/storage --runroot /tmp/run "$@"; }
build build --isolation chroot --format docker --tag it /tmp/context >&2
container=$(build from it)
cp -r "$(build mount "$container")" /run/bundle/rootfs
build inspect --type image it
"#;

/// crun wants to see a cgroup, and needs none.
pub const PREPARE: &str = "mount -t tmpfs tmpfs /sys && mkdir -p /sys/fs/cgroup
                       mount -t cgroup2 -o ro cgroup2 /sys/fs/cgroup";

pub const CRUN: &str = "crun --root /run/crun --cgroup-manager=disabled";

/// As the README has it run: no capabilities, no network, nothing can be written but the volume.
pub fn container(words: &[String]) -> serde_json::Value {
    let tmpfs = |to: &str| json!({"destination": to, "type": "tmpfs", "source": "tmpfs"});
    let volume = json!({
        "destination": "/run/fdholder", "type": "bind", "source": "/run/fdholder",
        "options": ["bind", "rw"],
    });
    let spaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": words, "cwd": "/", "env": [],
            "capabilities": {}, "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}],
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"}, tmpfs("/dev"), volume,
        ],
        "linux": {"namespaces": spaces},
    })
}

pub fn words(value: &serde_json::Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// From the Dockerfile to a container, by programs that Kubernetes and others use, too.
pub fn an_image_is_built_and_run() {
    let system = crate::installed();
    fs::copy(file("docker/Dockerfile"), system.share().join("Dockerfile")).unwrap();
    let image: serde_json::Value = serde_json::from_str(&system.run(BUILD)).unwrap();
    let config = &image["Docker"]["config"];
    // The file is all there is.
    assert_eq!(system.run("cd /run/bundle/rootfs; find . -type f"), "./fdholder\n");
    let command = [words(&config["Entrypoint"]), words(&config["Cmd"])].concat();
    let health = words(&config["Healthcheck"]["Test"]);
    assert_eq!(health[0], "CMD");
    let health = format!("{CRUN} exec it {}", health[1..].join(" "));
    assert_eq!(config["StopSignal"], "SIGTERM");

    system.run(PREPARE);
    fs::write(system.at("run/bundle/config.json"), container(&command).to_string()).unwrap();
    let run = format!("exec {CRUN} run --bundle /run/bundle it >>/srv/log 2>&1");
    let mut running = system.command(&run).spawn().unwrap();
    eventually("it is healthy", || system.try_run(&health).status.success());
    let first = || {
        let state: serde_json::Value =
            serde_json::from_str(&system.run(&format!("{CRUN} state it"))).unwrap();
        let pid = state["pid"].as_u64().unwrap();
        (pid, system.run(&format!("grep ^NSpid: /proc/{pid}/status; cat /proc/{pid}/comm")))
    };
    let before_upgrade = first();
    assert!(before_upgrade.1.ends_with("\t1\nfdholder\n"), "{before_upgrade:?}");

    let path = system.at("run/fdholder/holder");
    let mut client = Client::connect(&path, deadline()).unwrap();
    let (held, _) = marked_file(&system.share(), "held");
    client.store(&id("held"), Limit::never(), &held, deadline()).unwrap();
    let before = content_at(&path);
    // In its own pid, although it is the first process.
    system.run(&format!("{CRUN} exec it /fdholder upgrade /run/fdholder/holder"));
    assert_eq!(content_at(&path), before);
    assert_eq!(first(), before_upgrade);
    drop(client);
    system.run(&format!("{CRUN} kill it TERM"));
    // Something was held. (That the client has gone may not have been seen yet, which is 2 more.)
    let code = running.wait().unwrap().code();
    assert!([Some(1), Some(3)].contains(&code), "{code:?}");
    assert!(!system.try_run(&health).status.success());
}
