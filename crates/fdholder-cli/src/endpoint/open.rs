//! Opening an endpoint.

use super::options::{EndpointOptions, Mode};
use super::{Endpoint, UnixAddress, UnixKind};
use crate::sockopt::set_tcp_fastopen;
use fdholder::{strerror, Errno};
use fdholder_daemon::confinement::explain;
use fdholder_daemon::listen::{listen_at, Listen, ListenError, BACKLOG_DEFAULT};
use rustix::fs::{
    chmodat, chown, fstat, memfd_create, mkfifoat, open, AtFlags, FileType, Gid, MemfdFlags,
    OFlags, Uid, CWD,
};
use rustix::net::{bind, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Why an endpoint could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Somebody has the address.
    InUse(String),
    /// Anything else, to read behind "unable to open …: ".
    Other(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::InUse(text) | Self::Other(text)) = self;
        f.write_str(text)
    }
}

impl OpenError {
    fn system(doing: &str, errno: Errno) -> Self {
        let text = format!("unable to {doing}: {}", strerror(errno));
        match errno {
            Errno::ADDRINUSE => Self::InUse(format!("{text} (ss -lpn shows who has it)")),
            Errno::ACCESS => Self::Other(format!("{text} (is it a port below 1024?)")),
            Errno::ADDRNOTAVAIL => {
                Self::Other(format!("{text} (no interface has that address: see freebind)"))
            }
            _ => Self::Other(text),
        }
    }

    fn of_file(doing: &str, errno: Errno) -> Self {
        Self::Other(format!("unable to {doing}: {}", explain(errno)))
    }
}

impl From<ListenError> for OpenError {
    fn from(error: ListenError) -> Self {
        let text = error.to_string();
        match error {
            ListenError::InUse { .. } | ListenError::System { errno: Errno::ADDRINUSE, .. } => {
                Self::InUse(text)
            }
            ListenError::System { .. } | ListenError::NotASocket(_) => Self::Other(text),
        }
    }
}

impl Endpoint {
    /// Opens it, close-on-exec. What suits is for [`EndpointOptions::suit`] to say.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing is left behind but a fifo that was just made.
    pub fn open(&self, options: &EndpointOptions) -> Result<OwnedFd, OpenError> {
        match self {
            Self::Tcp(address) => ip_socket(*address, Type::STREAM, options),
            Self::Udp(address) => ip_socket(*address, Type::DGRAM, options),
            Self::Unix { kind, address: UnixAddress::Path(path) } => Ok(listen_at(&Listen {
                backlog: backlog(options),
                mode: mode(options),
                owner: options.owner,
                kind: kind.socket_type(),
                nonblocking: options.nonblock,
                ..Listen::stream_at(path)
            })?),
            Self::Unix { kind, address: UnixAddress::Abstract(name) } => {
                abstract_socket(*kind, name, options)
            }
            Self::Fifo(path) => fifo(path, options),
            Self::Memfd(name) => memfd_create(name.as_str(), MemfdFlags::CLOEXEC)
                .map_err(|errno| OpenError::system("make a memfd", errno)),
        }
    }
}

fn backlog(options: &EndpointOptions) -> i32 {
    options.backlog.map_or(BACKLOG_DEFAULT, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Whoever may search the folder may connect, unless it is said otherwise, as with systemd.
fn mode(options: &EndpointOptions) -> u32 {
    options.mode.map_or(0o666, |Mode(mode)| mode)
}

fn ip_socket(
    address: SocketAddr,
    kind: Type,
    options: &EndpointOptions,
) -> Result<OwnedFd, OpenError> {
    let failed = |doing: &'static str| {
        move |error: io::Error| {
            OpenError::system(doing, Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
        }
    };
    let domain = Domain::for_address(address);
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(domain, kind, Some(protocol)).map_err(failed("create a socket"))?;
    if kind == Type::STREAM {
        // What an earlier listener's connections have left in TIME_WAIT is in nobody's way.
        socket.set_reuse_address(true).map_err(failed("set SO_REUSEADDR"))?;
    }
    if options.reuseport {
        socket.set_reuse_port(true).map_err(failed("set SO_REUSEPORT"))?;
    }
    if options.ipv6only {
        socket.set_only_v6(true).map_err(failed("set IPV6_V6ONLY"))?;
    }
    if options.freebind {
        let set = if address.is_ipv6() {
            socket.set_freebind_v6(true)
        } else {
            socket.set_freebind_v4(true)
        };
        set.map_err(failed("set IP_FREEBIND"))?;
    }
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes())).map_err(failed("set SO_BINDTODEVICE"))?;
    }
    if let Some(pending) = options.fastopen {
        set_tcp_fastopen(&socket, pending)
            .map_err(|errno| OpenError::system("set TCP_FASTOPEN", errno))?;
    }
    if options.nonblock {
        socket.set_nonblocking(true).map_err(failed("set O_NONBLOCK"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind"))?;
    if kind == Type::STREAM {
        socket.listen(backlog(options)).map_err(failed("listen"))?;
    }
    Ok(socket.into())
}

fn abstract_socket(
    kind: UnixKind,
    name: &str,
    options: &EndpointOptions,
) -> Result<OwnedFd, OpenError> {
    let failed = |doing: &'static str| move |errno| OpenError::system(doing, errno);
    let waits = if options.nonblock { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let flags = SocketFlags::CLOEXEC | waits;
    let socket = socket_with(AddressFamily::UNIX, kind.socket_type(), flags, None)
        .map_err(failed("create a socket"))?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("bind"))?;
    bind(&socket, &address).map_err(failed("bind"))?;
    if kind != UnixKind::Datagram {
        listen(&socket, backlog(options)).map_err(failed("listen"))?;
    }
    Ok(socket)
}

fn fifo(path: &Path, options: &EndpointOptions) -> Result<OwnedFd, OpenError> {
    let failed = |doing: &'static str| move |errno| OpenError::of_file(doing, errno);
    let wanted = rustix::fs::Mode::from_raw_mode(mode(options));
    let is_new = match mkfifoat(CWD, path, wanted) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(OpenError::of_file("make a fifo", errno)),
    };
    if is_new {
        // Whatever the umask is.
        chmodat(CWD, path, wanted, AtFlags::empty()).map_err(failed("set its mode"))?;
        if let Some(user) = options.owner {
            chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
                .map_err(failed("set its owner"))?;
        }
    }
    // Both ends, so that neither readers nor writers see an end of it while it is held.
    let waits = if options.nonblock { OFlags::NONBLOCK } else { OFlags::empty() };
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | waits;
    let fd = open(path, flags, rustix::fs::Mode::empty()).map_err(failed("open it"))?;
    let stat = fstat(&fd).map_err(failed("look at it"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(OpenError::Other(
            "it is there and no fifo: remove it, or choose another path".to_owned(),
        ));
    }
    Ok(fd)
}
