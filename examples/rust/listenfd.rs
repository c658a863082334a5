//! An HTTP server on the socket that it is passed: the `listenfd` crate takes it. It sends READY=1 when
//! it can serve. On SIGTERM it stops accepting, and finishes its requests.

use rustix::event::{poll, PollFd, PollFlags};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;

fn main() -> io::Result<()> {
    let listener = listenfd::ListenFd::from_env().take_tcp_listener(0)?;
    let listener = listener.ok_or_else(|| io::Error::other("no socket was passed"))?;
    // Another process may be faster to accept what poll has told of.
    listener.set_nonblocking(true)?;
    let (stop, stopped) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, stopped)?;
    ready()?;
    thread::scope(|scope| loop {
        let read = PollFlags::IN;
        let mut ready = [PollFd::new(&stop, read), PollFd::new(&listener, read)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        if !ready[0].revents().is_empty() {
            // The scope waits for the threads.
            return Ok(());
        }
        match listener.accept() {
            Ok((client, _)) => {
                scope.spawn(move || serve(&client));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    })
}

/// The crate `sd-notify` does the same.
fn ready() -> io::Result<()> {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    UnixDatagram::unbound()?.send_to(b"READY=1", socket).map(drop)
}

fn serve(client: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    while !lines.next().transpose()?.unwrap_or_default().is_empty() {}
    let mut client = client;
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
}
