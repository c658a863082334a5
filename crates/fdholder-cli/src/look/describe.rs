//! What a descriptor is, in words: its kind, its addresses, what waits in it.

use crate::show::terminal::harmless;
use crate::sockopt::get_int;
use fdholder_daemon::accept_queue::{AcceptQueue, AcceptQueues};
use rustix::fs::{fcntl_get_seals, fcntl_getfl, statx, AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::ioctl_fionread;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    getpeername, getsockname, AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType,
};
use socket2::SockRef;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A descriptor in words. An address is empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    pub kind: String,
    pub address: String,
    pub peer: String,
    pub listening: bool,
    pub queue: Option<Queue>,
    /// Whether accept(2) and read(2) on it do not wait; for sockets, pipes and fifos.
    pub nonblock: Option<bool>,
}

/// What waits in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Clients that wait to be accepted.
    Clients(AcceptQueue),
    /// So many bytes; of a socket for datagrams, those of the next one.
    Bytes(u64),
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if self.address.is_empty() {
            return Ok(());
        }
        write!(f, " {}", harmless(self.address.clone()))
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients(queue) => write!(f, "{queue}"),
            Self::Bytes(bytes) => write!(f, "{bytes} B"),
        }
    }
}

/// Describes a descriptor as well as the kernel lets us. Nothing is read from it, and no
/// file server asked.
pub fn describe(fd: impl AsFd) -> Description {
    let fd = fd.as_fd();
    if let Ok(domain) = socket_domain(fd) {
        return describe_socket(fd, domain);
    }
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let target = target.map_or_else(|_| String::new(), |path| path.display().to_string());
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let mode = statx(fd, c"", flags, StatxFlags::TYPE).map(|stat| stat.stx_mode);
    let file_type = mode.map(|mode| FileType::from_raw_mode(mode.into()));
    let (kind, address) = match file_type {
        Ok(FileType::RegularFile) => match target.strip_prefix("/memfd:") {
            Some(name) => ("memfd", name.trim_end_matches(" (deleted)").to_owned()),
            // Without /proc nothing has a name.
            None if target.is_empty() && is_memfd(fd) => ("memfd", target),
            None => ("file", target),
        },
        Ok(FileType::Directory) => ("folder", target),
        Ok(FileType::CharacterDevice) => ("device", target),
        Ok(FileType::BlockDevice) => ("block device", target),
        Ok(FileType::Fifo) if target.starts_with("pipe:") => ("pipe", String::new()),
        Ok(FileType::Fifo) => ("fifo", target),
        _ => (target.strip_prefix("anon_inode:").unwrap_or("unknown"), String::new()),
    };
    let is_pipe = file_type == Ok(FileType::Fifo);
    let queue = is_pipe.then(|| ioctl_fionread(fd).ok().map(Queue::Bytes)).flatten();
    let kind = kind.to_owned();
    let nonblock = if is_pipe { is_nonblocking(fd) } else { None };
    Description { kind, address, peer: String::new(), listening: false, queue, nonblock }
}

fn is_nonblocking(fd: BorrowedFd<'_>) -> Option<bool> {
    fcntl_getfl(fd).ok().map(|flags| flags.contains(OFlags::NONBLOCK))
}

/// Only files in memory have seals, and a memfd is in no folder.
fn is_memfd(fd: BorrowedFd<'_>) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    fcntl_get_seals(fd).is_ok()
        && statx(fd, c"", flags, StatxFlags::NLINK).is_ok_and(|stat| stat.stx_nlink == 0)
}

fn describe_socket(fd: BorrowedFd<'_>, domain: AddressFamily) -> Description {
    let listening = socket_acceptconn(fd) == Ok(true);
    let is_ip = matches!(domain, AddressFamily::INET | AddressFamily::INET6);
    let is_unix = domain == AddressFamily::UNIX;
    let kind = match socket_type(fd) {
        Ok(SocketType::STREAM) if is_ip && is_mptcp(fd) => "MPTCP",
        Ok(SocketType::STREAM) if is_ip => "TCP",
        Ok(SocketType::DGRAM) if is_ip => "UDP",
        Ok(SocketType::STREAM) if is_unix => "Unix",
        Ok(SocketType::DGRAM) if is_unix => "Unix datagram",
        Ok(SocketType::SEQPACKET) if is_unix => "Unix seqpacket",
        Ok(SocketType::STREAM) if domain == AddressFamily::VSOCK => "vsock",
        _ => "other",
    };
    let queue = if listening {
        AcceptQueues::default().of(fd).map(Queue::Clients)
    } else {
        ioctl_fionread(fd).ok().map(Queue::Bytes)
    };
    let words = |address: Option<SocketAddrAny>| address.and_then(in_words).unwrap_or_default();
    let vsock = SockRef::from(&fd).local_addr().ok();
    let vsock = vsock.and_then(|address| address.as_vsock_address()).map(|(cid, port)| match cid {
        u32::MAX => format!(":{port}"),
        cid => format!("{cid}:{port}"),
    });
    Description {
        kind: match kind {
            _ if listening => format!("{kind} listener"),
            // They need not be told from anything else.
            "Unix datagram" | "Unix seqpacket" => kind.to_owned(),
            _ => format!("{kind} socket"),
        },
        address: vsock.unwrap_or_else(|| words(getsockname(fd).ok())),
        peer: words(getpeername(fd).ok().flatten()),
        listening,
        queue,
        nonblock: is_nonblocking(fd),
    }
}

fn is_mptcp(socket: BorrowedFd<'_>) -> bool {
    get_int(socket, (libc::SOL_SOCKET, libc::SO_PROTOCOL)) == Ok(libc::IPPROTO_MPTCP)
}

fn in_words(address: SocketAddrAny) -> Option<String> {
    if let Ok(unix) = SocketAddrUnix::try_from(address.clone()) {
        let path = unix.path_bytes().map(|path| String::from_utf8_lossy(path).into_owned());
        let name = unix.abstract_name().filter(|name| !name.is_empty());
        return path.or_else(|| name.map(|name| format!("@{}", name.escape_ascii())));
    }
    SocketAddr::try_from(address).ok().map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{memfd_create, MemfdFlags};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn words(fd: impl AsFd) -> (String, String) {
        let Description { kind, address, .. } = describe(fd);
        (kind, address)
    }

    #[test]
    fn things_are_called_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        assert_eq!(words(&tcp), ("TCP listener".into(), address));
        assert_eq!(words(UdpSocket::bind("127.0.0.1:0").unwrap()).0, "UDP socket");
        let path = dir.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        assert_eq!(words(&unix), ("Unix listener".into(), path.to_str().unwrap().into()));
        let (stream, _) = UnixStream::pair().unwrap();
        assert_eq!(words(&stream), ("Unix socket".into(), String::new()));
        let memfd = memfd_create("state", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(words(&memfd), ("memfd".into(), "state".into()));
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert_eq!(words(&pipe), ("pipe".into(), String::new()));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(words(&null), ("device".into(), "/dev/null".into()));
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert_eq!(words(epoll.unwrap()), ("[eventpoll]".into(), String::new()));
    }

    #[test]
    fn what_waits_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(matches!(
            describe(&listener).queue,
            Some(Queue::Clients(AcceptQueue { len: 1, max: 2.. }))
        ));
        let (accepted, peer) = listener.accept().unwrap();
        assert!(matches!(
            describe(&listener).queue,
            Some(Queue::Clients(AcceptQueue { len: 0, .. }))
        ));
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        let _waits = UnixStream::connect(dir.path().join("socket")).unwrap();
        assert!(matches!(
            describe(&unix).queue,
            Some(Queue::Clients(AcceptQueue { len: 1, max: 2.. }))
        ));
        assert_eq!(describe(&accepted).peer, peer.to_string());
        let (end, mut other) = UnixStream::pair().unwrap();
        client.write_all(b"unread").unwrap();
        other.write_all(b"hello").unwrap();
        assert_eq!(describe(&end).queue, Some(Queue::Bytes(5)));
    }
}
