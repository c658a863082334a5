//! Where a socket is: at the address of an endpoint, in its way, or out of reach.

use super::diag::unix_socket;
use super::{Endpoint, IpProtocol, UnixAddress};
use fdholder::Errno;
use rustix::fs::{stat, FileType};
use rustix::net::sockopt::{ipv6_v6only, socket_domain, socket_type};
use rustix::net::{
    connect, getsockname, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use socket2::SockRef;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the path of a Unix socket leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    Here,
    /// To another socket, dead or alive.
    Elsewhere,
    /// There is something else.
    ToNoSocket,
    Nowhere,
}

impl Endpoint {
    /// Whether a socket of this kind has this address. Port 0 matches any port, and a link-local
    /// address without an interface that of any.
    pub fn is_address_of(&self, fd: impl AsFd) -> bool {
        let fd = fd.as_fd();
        match self {
            Self::Ip { address, .. } => ip_address(fd).is_some_and(|bound| {
                bound.ip() == address.ip()
                    && (address.port() == 0 || bound.port() == address.port())
                    && (scope(address) == 0 || scope(&bound) == scope(address))
            }),
            Self::Unix { address, .. } => {
                unix_address(fd).is_some_and(|bound| is_unix(&bound, address))
                    // By another name of a folder, say.
                    || self.file().is_some_and(|path| is_bound_to(path, fd))
            }
            Self::Vsock { cid, port } => {
                let bound = SockRef::from(&fd).local_addr().ok();
                bound.and_then(|bound| bound.as_vsock_address()) == Some((*cid, *port))
            }
            Self::Fifo(_) | Self::Memfd(_) => false,
        }
    }

    /// Whether a socket has an address that cannot be had twice with this one.
    pub fn is_in_the_way_of(&self, fd: impl AsFd) -> bool {
        let fd = fd.as_fd();
        match self {
            Self::Ip { protocol, address } => {
                let kind = match protocol {
                    IpProtocol::Udp => SocketType::DGRAM,
                    IpProtocol::Tcp | IpProtocol::Mptcp => SocketType::STREAM,
                };
                socket_type(fd) == Ok(kind)
                    && ip_address(fd).is_some_and(|bound| {
                        bound.port() == address.port()
                            && overlap(bound.ip(), address.ip(), ipv6_v6only(fd) == Ok(true))
                    })
            }
            Self::Vsock { port, .. } => {
                let bound = SockRef::from(&fd).local_addr().ok();
                let bound = bound.and_then(|bound| bound.as_vsock_address());
                bound.is_some_and(|(_, bound)| bound == *port)
            }
            _ => self.is_address_of(fd),
        }
    }
}

/// Whether a path leads to this socket, which was bound to it.
pub fn leads(path: &Path, socket: BorrowedFd<'_>) -> Leads {
    let Ok(there) = stat(path) else { return Leads::Nowhere };
    if FileType::from_raw_mode(there.st_mode) != FileType::Socket {
        return Leads::ToNoSocket;
    }
    let is_here = match unix_socket(socket).and_then(|socket| socket.file) {
        Some(inode) => inode == there.st_ino as u32,
        // It is of another network namespace, say: one that lives is taken for this one.
        None => !is_dead(path, socket),
    };
    if is_here {
        Leads::Here
    } else {
        Leads::Elsewhere
    }
}

/// Whether a path is known to lead to this socket.
fn is_bound_to(path: &Path, socket: BorrowedFd<'_>) -> bool {
    let file = unix_socket(socket).and_then(|socket| socket.file);
    file.is_some() && stat(path).is_ok_and(|there| file == Some(there.st_ino as u32))
}

/// Whether a path leads to a socket that nobody has open, or that is not of this type.
fn is_dead(path: &Path, socket: BorrowedFd<'_>) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_type(socket)
        .and_then(|kind| socket_with(AddressFamily::UNIX, kind, flags, None))
        .and_then(|client| connect(&client, &SocketAddrUnix::new(path)?));
    matches!(connected, Err(Errno::CONNREFUSED | Errno::PROTOTYPE))
}

fn ip_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    getsockname(fd).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

fn unix_address(fd: BorrowedFd<'_>) -> Option<SocketAddrUnix> {
    if socket_domain(fd) != Ok(AddressFamily::UNIX) {
        return None;
    }
    getsockname(fd).ok().and_then(|address| SocketAddrUnix::try_from(address).ok())
}

fn is_unix(bound: &SocketAddrUnix, address: &UnixAddress) -> bool {
    match address {
        UnixAddress::Abstract(name) => bound.abstract_name() == Some(name.as_bytes()),
        UnixAddress::Path(path) => bound.path_bytes() == Some(path.as_os_str().as_bytes()),
    }
}

fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

fn overlap(bound: IpAddr, wanted: IpAddr, bound_is_v6only: bool) -> bool {
    match (bound, wanted) {
        (IpAddr::V6(bound), IpAddr::V4(_)) => bound.is_unspecified() && !bound_is_v6only,
        (IpAddr::V4(_), IpAddr::V6(wanted)) => wanted.is_unspecified(),
        _ => bound == wanted || bound.is_unspecified() || wanted.is_unspecified(),
    }
}

/// Whether it is an address of one interface, which its scope says.
pub fn has_scope(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if SocketAddrV6::scope_id(address) != 0)
}
