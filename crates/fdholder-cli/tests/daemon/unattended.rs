//! Held listeners from which no process accepts.

use crate::serve;
use crate::support::{assert_exit, deadline, eventually, id, stdout, suite, Daemon};
use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

fn run(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = suite::fdholder(&arguments[..1]);
    let output = command.args(&arguments[1..]).arg(&daemon.path).output().unwrap();
    assert_exit(&output, 0);
    stdout(&output)
}

fn listeners(daemon: &Daemon) -> Vec<Value> {
    let status: Value = serde_json::from_str(&run(daemon, &["status", "--json"])).unwrap();
    status["listeners"].as_array().unwrap().clone()
}

fn queue(daemon: &Daemon, name: &str) -> (u64, u64) {
    let all = listeners(daemon);
    let it = all.iter().find(|it| it["id"] == name).unwrap();
    (it["queue"].as_u64().unwrap(), it["waiting_seconds"].as_u64().unwrap())
}

/// TCP and Unix, also without a folder to look into (Landlock), as `status`, `metrics` and `list`
/// tell at once.
#[test]
fn queue_of_a_held_listener_is_told_by_status_metrics_and_list() {
    for options in [&[][..], &["--no-landlock"]] {
        let (folder, daemon) = serve(options);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = folder.path().join("web");
        let unix = UnixListener::bind(&path).unwrap();
        for (name, fd) in [("tcp", tcp.as_fd()), ("unix", unix.as_fd())] {
            let mut client = daemon.client();
            client.store(&id(name), fdholder::Limit::never(), fd, deadline()).unwrap();
        }
        assert_eq!((queue(&daemon, "tcp"), queue(&daemon, "unix")), ((0, 0), (0, 0)));
        let mut clients: Vec<OwnedFd> = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(tcp.local_addr().unwrap()).unwrap().into());
        }
        for _ in 0..2 {
            clients.push(UnixStream::connect(&path).unwrap().into());
        }
        assert_eq!((queue(&daemon, "tcp").0, queue(&daemon, "unix").0), (3, 2));
        let metrics = run(&daemon, &["metrics"]);
        for (name, id, value) in [
            ("queue", "tcp", "3"),
            ("queue", "unix", "2"),
            ("waiting_seconds", "tcp", ""),
            ("queue_max", "unix", ""),
        ] {
            let holder = daemon.path.display();
            let line = format!("fdholder_listener_{name}{{path=\"{holder}\",id=\"{id}\"}} {value}");
            assert!(metrics.contains(&line), "{line} in {metrics}");
        }
        let list: Value =
            serde_json::from_str(&run(&daemon, &["list", "--long", "--json"])).unwrap();
        assert_eq!((&list[0]["queue"], &list[1]["queue"]), (&3.into(), &2.into()));
        assert!(list[1]["waiting_seconds"].is_u64(), "{list}");
        assert!(list[1]["unattended"].is_boolean(), "{list}");
        assert!(run(&daemon, &["status"]).contains("LISTENER"));
        // They are told for how long, from the first look on.
        eventually("it is said for how long", || {
            queue(&daemon, "tcp").1 > 0 && queue(&daemon, "unix").1 > 0
        });
        let marks = || run(&daemon, &["list", "--long"]).matches(", nobody accepts for ").count();
        let marked = || {
            let list = run(&daemon, &["list", "--long", "--json"]);
            let list: Value = serde_json::from_str(&list).unwrap();
            [0, 1].map(|at| list[at]["unattended"].clone())
        };
        assert_eq!((marks(), marked()), (2, [true, true].map(Value::from)));
        assert!(run(&daemon, &["status"]).contains("for "));
        drop((tcp.accept().unwrap(), unix.accept().unwrap()));
        assert_eq!((queue(&daemon, "tcp"), queue(&daemon, "unix")), ((2, 0), (1, 0)));
        assert_eq!((marks(), marked()), (0, [false, false].map(Value::from)));
        // What is deleted is not kept open to be looked at.
        let address = tcp.local_addr().unwrap();
        drop((tcp, clients));
        daemon.client().delete(&id("tcp"), deadline()).unwrap();
        TcpListener::bind(address).unwrap();
        assert_eq!(listeners(&daemon).len(), 1);
    }
}

/// What a daemon takes over is looked at, too; more than in one turn.
#[test]
fn listeners_that_are_taken_over_are_told_as_well() {
    let mut family = crate::support::family::Family::new();
    family.serve(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut client = family.client();
    let set: Vec<_> = (0..600)
        .map(|number| fdholder::Entry {
            id: id(&format!("{number:03}")),
            limit: fdholder::Limit::never(),
            fd: if number % 200 == 199 { listener.as_fd() } else { null.as_fd() },
        })
        .collect();
    client.setdump(&set, deadline()).unwrap();
    let _waits = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for _ in 0..2 {
        let output = suite::fdholder(["status", "--json"]).arg(&family.path).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let told: Vec<_> = status["listeners"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["id"].as_str().unwrap(), it["queue"].as_u64().unwrap()))
            .collect();
        assert_eq!(told, [("199", 1), ("399", 1), ("599", 1)]);
        family.serve(&[]);
    }
}
