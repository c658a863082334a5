//! `exec --on-demand`: the program starts when the first client waits.

use crate::support::daemon::serve;
use crate::support::{assert_exit, eventually, stderr, stdout, suite};
use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// Whether a process waits in poll(2), as the program that it was started as.
fn waits(pid: u32) -> bool {
    let is_ours = fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "fdholder"));
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    let polls = [libc::SYS_poll, libc::SYS_ppoll];
    is_ours && number.is_some_and(|number: i64| polls.contains(&number))
}

#[test]
fn program_starts_when_the_first_client_comes() {
    let (folder, daemon) = serve(&[]);
    let path = daemon.path.to_str().unwrap();
    let unix = folder.path().join("unix").to_str().unwrap().to_owned();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (tcp, udp) = (free(), UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let clients: [(String, Box<dyn Fn()>); 3] = [
        (
            format!("a=tcp:127.0.0.1:{tcp}"),
            Box::new(move || drop(TcpStream::connect(("127.0.0.1", tcp)).unwrap())),
        ),
        (
            format!("b=udp:127.0.0.1:{udp}"),
            Box::new(move || {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.send_to(b"x", ("127.0.0.1", udp)).unwrap();
            }),
        ),
        (format!("c=unix:{unix}"), Box::new(move || drop(UnixStream::connect(&unix).unwrap()))),
    ];
    for (bind, connect) in clients {
        let mut command = suite::fdholder(["exec", "--on-demand", "--bind", &bind, path]);
        command.args(["--", "sh", "-c", "echo $LISTEN_FDS"]).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        eventually("it waits", || waits(child.id()));
        connect();
        let output = child.wait_with_output().unwrap();
        assert_exit(&output, 0);
        assert_eq!(stdout(&output), "1\n", "{bind}");
    }
}

#[test]
fn program_that_no_client_can_reach_is_an_error() {
    let (_folder, daemon) = serve(&[]);
    let mut store = suite::fdholder(["store"]);
    store.arg(&daemon.path).arg("file").stdin(fs::File::open("/dev/null").unwrap());
    assert_exit(&store.output().unwrap(), 0);
    let mut command = suite::fdholder(["exec", "--on-demand", "--fd", "file"]);
    let output = command.arg(&daemon.path).args(["--", "true"]).output().unwrap();
    assert_exit(&output, 100);
    assert!(stderr(&output).contains("no client can come"), "{}", stderr(&output));
}
