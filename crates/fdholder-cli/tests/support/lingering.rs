//! What takes long to close.

use rustix::net::sockopt::{
    set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size,
};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A socket whose close takes as long as somebody likes: who has the other end, and reads
/// nothing.
pub fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Little memory for each, as there are hundreds; and far less room than there is to send.
    set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    set_socket_send_buffer_size(&ours, 1 << 16).unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 1 << 14]).is_ok() {}
    set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    (ours.into(), theirs)
}
