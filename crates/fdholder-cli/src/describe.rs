//! What a descriptor is, in words: its kind and its address.

use rustix::fs::{fstat, FileType};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{getsockname, AddressFamily, SocketAddrUnix, SocketType};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Kind and address; the address is empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub kind: String,
    pub address: String,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if self.address.is_empty() {
            return Ok(());
        }
        write!(f, " {}", self.address)
    }
}

/// Describes a descriptor as well as the kernel lets us.
pub fn describe(fd: impl AsFd) -> Description {
    let fd = fd.as_fd();
    let file_type = fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if file_type == Ok(FileType::Socket) {
        return describe_socket(fd);
    }
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let target = target.map_or_else(|_| String::new(), |path| path.display().to_string());
    let (kind, address) = match file_type {
        Ok(FileType::RegularFile) => match target.strip_prefix("/memfd:") {
            Some(name) => ("memfd", name.trim_end_matches(" (deleted)").to_owned()),
            None => ("file", target),
        },
        Ok(FileType::Directory) => ("folder", target),
        Ok(FileType::CharacterDevice) => ("device", target),
        Ok(FileType::BlockDevice) => ("block device", target),
        Ok(FileType::Fifo) if target.starts_with("pipe:") => ("pipe", String::new()),
        Ok(FileType::Fifo) => ("fifo", target),
        _ => (target.strip_prefix("anon_inode:").unwrap_or("unknown"), String::new()),
    };
    Description { kind: kind.to_owned(), address }
}

fn describe_socket(fd: BorrowedFd<'_>) -> Description {
    let listening = socket_acceptconn(fd) == Ok(true);
    let domain = socket_domain(fd);
    let kind = match (domain, socket_type(fd)) {
        (Ok(AddressFamily::INET | AddressFamily::INET6), Ok(SocketType::STREAM)) => "TCP",
        (Ok(AddressFamily::INET | AddressFamily::INET6), Ok(SocketType::DGRAM)) => "UDP",
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) => "Unix",
        (Ok(AddressFamily::UNIX), Ok(SocketType::DGRAM)) => "Unix datagram",
        (Ok(AddressFamily::UNIX), Ok(SocketType::SEQPACKET)) => "Unix seqpacket",
        _ => "socket",
    };
    let kind = format!("{kind} {}", if listening { "listener" } else { "socket" });
    let address = getsockname(fd).ok().and_then(|address| match domain {
        Ok(AddressFamily::UNIX) => {
            let address = SocketAddrUnix::try_from(address).ok()?;
            let path = address.path()?;
            Some(path.to_string_lossy().into_owned())
        }
        _ => SocketAddr::try_from(address).ok().map(|address| address.to_string()),
    });
    Description { kind, address: address.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{memfd_create, MemfdFlags};
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn words(fd: impl AsFd) -> (String, String) {
        let Description { kind, address } = describe(fd);
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
}
