//! Sockets and pipes whose other end is closed: `--drop-hung-up`.

use crate::serve;
use crate::support::{deadline, eventually, id, Daemon};
use fdholder::Limit;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

fn store(holder: &Daemon, name: &str, fd: impl AsFd) {
    holder.client().store(&id(name), Limit::never(), fd, deadline()).unwrap();
}

fn held(holder: &Daemon) -> Vec<String> {
    let ids = holder.client().list(deadline()).unwrap();
    let mut ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.sort();
    ids
}

/// Has everything held that may hang up, and what never does; returns the other ends.
fn fill(holder: &Daemon) -> (TcpStream, UnixStream, std::io::PipeReader, std::io::PipeWriter) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unix, unix_other) = UnixStream::pair().unwrap();
    let (reader, written) = std::io::pipe().unwrap();
    let (read, writer) = std::io::pipe().unwrap();
    store(holder, "tcp", listener.accept().unwrap().0);
    store(holder, "unix", unix);
    store(holder, "reader", reader);
    store(holder, "writer", writer);
    store(holder, "listener", listener);
    store(holder, "file", File::open("/dev/null").unwrap());
    (tcp, unix_other, read, written)
}

const ALL: [&str; 6] = ["file", "listener", "reader", "tcp", "unix", "writer"];

#[test]
fn what_has_hung_up_is_let_go_of() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let (tcp, unix, read, written) = fill(&holder);
    assert_eq!(held(&holder), ALL);
    drop(unix);
    eventually("the Unix socket goes", || !held(&holder).contains(&"unix".to_owned()));
    drop(written);
    eventually("the pipe that nobody writes to goes", || {
        !held(&holder).contains(&"reader".to_owned())
    });
    drop(read);
    eventually("the pipe that nobody reads goes", || !held(&holder).contains(&"writer".to_owned()));
    // Half of a connection is still something.
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(held(&holder), ["file", "listener", "tcp"]);
    // With a reset it is over.
    rustix::net::sockopt::set_socket_linger(&tcp, Some(std::time::Duration::ZERO)).unwrap();
    drop(tcp);
    eventually("the connection goes", || held(&holder) == ["file", "listener"]);
    // What had hung up before it was stored goes at once; and so it does from a set.
    let (unix, _) = UnixStream::pair().unwrap();
    store(&holder, "late", unix);
    let (unix, _) = UnixStream::pair().unwrap();
    let entry = fdholder::Entry { id: id("set"), limit: Limit::never(), fd: unix };
    holder.client().setdump(&[entry], deadline()).unwrap();
    eventually("they go", || held(&holder) == ["file", "listener"]);
}

#[test]
fn by_default_it_is_held_on() {
    let (_folder, holder) = serve(&[]);
    let others = fill(&holder);
    drop(others);
    let (unix, _) = UnixStream::pair().unwrap();
    store(&holder, "late", unix);
    assert_eq!(held(&holder), ["file", "late", "listener", "reader", "tcp", "unix", "writer"]);
}

/// The client's end of a connection, held by the holder at its other end, would be there for
/// ever.
#[test]
fn a_holder_does_not_hold_its_own_connections() {
    let (_folder, holder) = serve(&["--drop-hung-up"]);
    let open = holder.open_fds();
    for number in 0..20 {
        let itself = UnixStream::connect(&holder.path).unwrap();
        store(&holder, &number.to_string(), itself);
    }
    eventually("they go", || held(&holder).is_empty());
    eventually("their connections end", || holder.open_fds() == open);
}
