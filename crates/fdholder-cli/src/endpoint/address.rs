//! Where a socket is: at the address of an endpoint, in its way, or out of reach.

use super::diag::unix_socket;
use super::table::has_lost_its_device;
use super::{Endpoint, IpProtocol, UnixAddress, VSOCK_PORT_ANY};
use crate::sockopt::bound_file;
use fdholder::Errno;
use fdholder_daemon::credentials::{of_peer, Credentials};
use fdholder_daemon::listen::is_bound;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fstat, stat, FileType, Stat};
use rustix::net::sockopt::{ipv6_v6only, socket_domain, socket_type};
use rustix::net::{
    connect, getpeername, getsockname, socket_with, AddressFamily, SocketAddrUnix, SocketFlags,
    SocketType,
};
use socket2::SockRef;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the path of a Unix socket leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    Here,
    /// The kernel tells neither where it leads nor who lives there.
    PerhapsHere,
    /// To another socket, dead or alive.
    Elsewhere,
    /// There is something else.
    ToNoSocket,
    Nowhere,
}

impl Endpoint {
    /// Whether a socket of this kind has this address. Port 0 matches any port, and a link-local
    /// address without an interface that of any. connect(2) gives a socket for datagrams that has
    /// any address a single one for the time, and one of an interface that is gone keeps its number.
    pub fn is_address_of(&self, fd: impl AsFd) -> bool {
        let fd = fd.as_fd();
        match self {
            Self::Ip { protocol, address } => ip_address(fd).is_some_and(|bound| {
                let is_any = *protocol == IpProtocol::Udp
                    && address.ip().is_unspecified()
                    && getpeername(fd).is_ok_and(|peer| peer.is_some());
                (bound.ip() == address.ip() || is_any)
                    && (address.port() == 0 || bound.port() == address.port())
                    && (scope(address) == 0
                        || scope(&bound) == scope(address)
                        || has_lost_its_device(fd))
            }),
            Self::Unix { address, .. } => {
                unix_address(fd).is_some_and(|bound| is_unix(&bound, address))
                    // By another name of a folder, say.
                    || self.file().is_some_and(|path| is_bound_to(path, fd))
            }
            Self::Vsock { cid, port } => {
                let bound = SockRef::from(&fd).local_addr().ok();
                let bound = bound.and_then(|bound| bound.as_vsock_address());
                bound.is_some_and(|bound| {
                    bound.0 == *cid && (*port == VSOCK_PORT_ANY || bound.1 == *port)
                })
            }
            Self::Fifo(_) | Self::Memfd(_) => false,
        }
    }

    /// Whether it is this socket that has the address, or a part of it.
    pub fn leads_to(&self, fd: impl AsFd) -> bool {
        let fd = fd.as_fd();
        let leads_here = |path: &Path| leads(path, fd) == Leads::Here;
        self.is_in_the_way_of(fd) && self.file().is_none_or(leads_here)
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
    match file_of(socket) {
        Some(file) if file.is(&there) => Leads::Here,
        Some(_) => Leads::Elsewhere,
        None => by_connecting(path, socket),
    }
}

/// The file that a socket was bound to, wherever that is by now.
enum BoundFile {
    /// The low 32 bits of its number.
    Inode(u32),
    Stat(Stat),
}

impl BoundFile {
    fn is(&self, there: &Stat) -> bool {
        match self {
            Self::Inode(inode) => *inode == there.st_ino as u32,
            Self::Stat(stat) => (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino),
        }
    }
}

/// The kernel tells it in the socket's own network namespace, or an administrator of that.
fn file_of(socket: BorrowedFd<'_>) -> Option<BoundFile> {
    let inode = unix_socket(socket).and_then(|socket| socket.file).map(BoundFile::Inode);
    inode.or_else(|| bound_file(socket).and_then(fstat).ok().map(BoundFile::Stat))
}

/// Whether a path is known to lead to this socket.
fn is_bound_to(path: &Path, socket: BorrowedFd<'_>) -> bool {
    file_of(socket).is_some_and(|file| stat(path).is_ok_and(|there| file.is(&there)))
}

/// Whether a path leads to this socket, as far as a client sees it.
fn by_connecting(path: &Path, socket: BorrowedFd<'_>) -> Leads {
    let Ok(kind) = socket_type(socket) else { return Leads::Elsewhere };
    // What is dead is told without a client.
    if is_bound(path) == Ok(false) {
        return Leads::Elsewhere;
    }
    if kind == SocketType::DGRAM {
        return Leads::PerhapsHere;
    }
    let had_clients = has_clients(socket);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, kind, flags, None);
    let client =
        client.and_then(|client| connect(&client, &SocketAddrUnix::new(path)?).map(|()| client));
    match client {
        // Who has it listen is told to each client; a server that accepts hides the rest.
        Ok(client) => match (of_peer(&client), of_peer(socket)) {
            (there, here) if there != here => Leads::Elsewhere,
            (Ok(Credentials { pid: Some(_), .. }), _) => Leads::Here,
            _ if had_clients == Some(false) && has_clients(socket) == Some(true) => Leads::Here,
            _ => Leads::PerhapsHere,
        },
        Err(Errno::CONNREFUSED | Errno::PROTOTYPE) => Leads::Elsewhere,
        Err(_) => Leads::PerhapsHere,
    }
}

/// Whether any client waits to be accepted.
fn has_clients(listener: BorrowedFd<'_>) -> Option<bool> {
    let mut polled = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).ok()?;
    Some(polled[0].revents().contains(PollFlags::IN))
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
        UnixAddress::Path(path) => bound
            .path_bytes()
            .is_some_and(|bound| is_same_place(Path::new(OsStr::from_bytes(bound)), path)),
    }
}

/// Whether two paths are the same name in the same folder, there or not.
pub fn is_same_place(bound: &Path, wanted: &Path) -> bool {
    let folder = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
    bound == wanted
        // What is relative is so to the folder of the process that bound it.
        || bound.is_absolute()
            && bound.file_name() == wanted.file_name()
            && folder(bound).is_some_and(|bound| Some(bound) == folder(wanted))
}

fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

fn overlap(bound: IpAddr, wanted: IpAddr, bound_is_v6only: bool) -> bool {
    match (bound.to_canonical(), wanted.to_canonical()) {
        (IpAddr::V6(bound), IpAddr::V4(_)) => bound.is_unspecified() && !bound_is_v6only,
        (IpAddr::V4(_), IpAddr::V6(wanted)) => wanted.is_unspecified(),
        (bound, wanted) => bound == wanted || bound.is_unspecified() || wanted.is_unspecified(),
    }
}

/// Whether it is an address of one interface, which its scope says.
pub fn has_scope(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if SocketAddrV6::scope_id(address) != 0)
}
