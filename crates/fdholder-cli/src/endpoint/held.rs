//! Whether a descriptor is what an endpoint says.

use super::{Endpoint, UnixAddress, UnixKind};
use rustix::fs::{fstat, stat, FileType};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{getsockname, AddressFamily, SocketAddrUnix, SocketType};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

impl Endpoint {
    /// Whether this descriptor is what would be opened: of the same kind, at the same address,
    /// and still to be reached there. Port 0 matches any port.
    pub fn is(&self, fd: impl AsFd) -> bool {
        let fd = fd.as_fd();
        match self {
            Self::Tcp(wanted) => is_listener(fd, SocketType::STREAM) && is_at(fd, *wanted),
            Self::Udp(wanted) => socket_type(fd) == Ok(SocketType::DGRAM) && is_at(fd, *wanted),
            Self::Unix { kind, address } => is_unix(fd, *kind) && is_at_unix(fd, address),
            Self::Fifo(path) => is_fifo(fd, path),
            Self::Memfd(name) => is_memfd(fd, name),
        }
    }
}

fn is_listener(fd: BorrowedFd<'_>, kind: SocketType) -> bool {
    socket_type(fd) == Ok(kind) && socket_acceptconn(fd) == Ok(true)
}

fn is_at(fd: BorrowedFd<'_>, wanted: SocketAddr) -> bool {
    let bound = getsockname(fd).ok().and_then(|address| SocketAddr::try_from(address).ok());
    bound.is_some_and(|bound| {
        bound.ip() == wanted.ip() && (wanted.port() == 0 || bound.port() == wanted.port())
    })
}

fn is_unix(fd: BorrowedFd<'_>, kind: UnixKind) -> bool {
    let waits_for_clients = kind != UnixKind::Datagram;
    socket_domain(fd) == Ok(AddressFamily::UNIX)
        && socket_type(fd) == Ok(kind.socket_type())
        && socket_acceptconn(fd) == Ok(waits_for_clients)
}

fn is_at_unix(fd: BorrowedFd<'_>, wanted: &UnixAddress) -> bool {
    let bound = getsockname(fd).ok().and_then(|address| SocketAddrUnix::try_from(address).ok());
    let Some(bound) = bound else { return false };
    match wanted {
        UnixAddress::Abstract(name) => bound.abstract_name() == Some(name.as_bytes()),
        UnixAddress::Path(path) => {
            let same = bound.path_bytes() == Some(path.as_os_str().as_bytes());
            // One that was removed cannot be reached any more.
            let file = stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
            same && file == Ok(FileType::Socket)
        }
    }
}

fn is_fifo(fd: BorrowedFd<'_>, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (fstat(fd), stat(path)) else { return false };
    FileType::from_raw_mode(held.st_mode) == FileType::Fifo
        && (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
}

fn is_memfd(fd: BorrowedFd<'_>, name: &str) -> bool {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    target.is_ok_and(|target| target == Path::new(&format!("/memfd:{name} (deleted)")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointOptions;
    use std::fs::remove_file;
    use std::os::fd::OwnedFd;

    fn open(text: &str) -> OwnedFd {
        text.parse::<Endpoint>().unwrap().open(&EndpointOptions::default()).unwrap()
    }

    fn is(fd: &OwnedFd, text: &str) -> bool {
        text.parse::<Endpoint>().unwrap().is(fd)
    }

    #[test]
    fn what_was_opened_is_what_it_was_opened_as_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |scheme: &str, name: &str| format!("{scheme}:{}/{name}", folder.path().display());
        let own = format!("unix:@fdholder-test-{}", std::process::id());
        let texts = [
            "tcp:127.0.0.1:0".to_owned(),
            "tcp:[::1]:0".to_owned(),
            "udp:127.0.0.1:0".to_owned(),
            at("unix", "stream"),
            at("unix-dgram", "dgram"),
            at("unix-seqpacket", "seqpacket"),
            own,
            at("fifo", "fifo"),
            "memfd:state".to_owned(),
            "memfd:other".to_owned(),
        ];
        let opened: Vec<_> = texts.iter().map(|text| open(text)).collect();
        for (i, fd) in opened.iter().enumerate() {
            for (j, text) in texts.iter().enumerate() {
                assert_eq!(is(fd, text), i == j, "{} {text}", texts[i]);
            }
        }
    }

    #[test]
    fn another_port_is_another_address() {
        let fd = open("tcp:127.0.0.1:0");
        let port = SocketAddr::try_from(getsockname(&fd).unwrap()).unwrap().port();
        assert!(is(&fd, &format!("tcp:127.0.0.1:{port}")));
        assert!(!is(&fd, &format!("tcp:127.0.0.1:{}", port ^ 1)));
        assert!(!is(&fd, &format!("tcp:0.0.0.0:{port}")));
        // Connected, but not listening.
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(!is(&client.into(), "tcp:127.0.0.1:0"));
    }

    #[test]
    fn what_was_removed_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        for scheme in ["unix", "fifo"] {
            let path = folder.path().join(scheme);
            let text = format!("{scheme}:{}", path.display());
            let fd = open(&text);
            assert!(is(&fd, &text));
            remove_file(&path).unwrap();
            assert!(!is(&fd, &text));
        }
    }
}
