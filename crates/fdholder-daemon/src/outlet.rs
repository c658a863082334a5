//! A socket that a client has handed in, as something to send to.

use fdholder::Errno;
use rustix::event::epoll;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Refuses what is no Unix stream socket: what else `sendmsg` may do on a descriptor of a
/// client's choice, waiting included, is not ours to find out.
pub fn check(to: impl AsFd) -> Result<(), Errno> {
    let is_unix_stream =
        socket_domain(&to)? == AddressFamily::UNIX && socket_type(&to)? == SocketType::STREAM;
    is_unix_stream.then_some(()).ok_or(Errno::PROTOTYPE)
}

/// Has epoll tell when there is room in such a socket, until it is dropped.
///
/// Other processes share the open file description, so closing our descriptor alone would
/// not end the watch.
#[derive(Debug)]
pub struct Watch {
    epoll: Arc<OwnedFd>,
    socket: OwnedFd,
}

impl Watch {
    /// Watches it under that token.
    pub fn new(epoll: &Arc<OwnedFd>, socket: impl AsFd, token: u64) -> Result<Self, Errno> {
        let socket = fcntl_dupfd_cloexec(socket, 0)?;
        let data = epoll::EventData::new_u64(token);
        epoll::add(epoll.as_fd(), &socket, data, epoll::EventFlags::OUT)?;
        Ok(Self { epoll: Arc::clone(epoll), socket })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It was added under this very descriptor; nothing else removes it.
        let _ = epoll::delete(self.epoll.as_fd(), &self.socket);
    }
}
