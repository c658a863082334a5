//! Opening an endpoint.

use super::compare::number_of;
use super::options::{EndpointOptions, Mode};
use super::table::{How, ROWS};
use super::{Endpoint, IpProtocol, UnixAddress};
use fdholder::{strerror, Errno};
use fdholder_daemon::confinement::explain;
use fdholder_daemon::listen::{listen_at_prepared, Listen, ListenError, BACKLOG_DEFAULT};
use rustix::fs::{
    chmodat, chown, fstat, memfd_create, mkfifoat, open, AtFlags, FileType, Gid, MemfdFlags,
    OFlags, Uid, CWD,
};
use rustix::net::sockopt::{set_socket_reuseaddr, socket_acceptconn};
use rustix::net::{
    bind, listen, socket_with, AddressFamily, Protocol, RawProtocol, SocketAddrUnix, SocketFlags,
    SocketType,
};
use socket2::{SockAddr, SockRef};
use std::fmt;
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

    pub(super) fn of_file(doing: &str, errno: Errno) -> Self {
        Self::Other(format!("unable to {doing}: {}", explain(errno)))
    }
}

impl From<ListenError> for OpenError {
    fn from(error: ListenError) -> Self {
        let text = error.to_string();
        match error {
            ListenError::InUse { .. }
            // One of another type is there, and lives.
            | ListenError::System { errno: Errno::ADDRINUSE | Errno::PROTOTYPE, .. } => {
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
        let socket = self.bound(options)?;
        self.listen(&socket, options)?;
        Ok(socket)
    }

    /// Has it listen, if it is to and does not yet.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn listen(&self, socket: &OwnedFd, options: &EndpointOptions) -> Result<(), OpenError> {
        if self.is_listener() && socket_acceptconn(socket) != Ok(true) {
            listen(socket, backlog(options)).map_err(|errno| OpenError::system("listen", errno))?;
        }
        Ok(())
    }

    /// Whether it takes from others as soon as it is bound, though they have the address, too.
    pub fn receives_at_once(&self, options: &EndpointOptions) -> bool {
        !self.is_listener() && options.is_on("reuseport")
    }

    /// Opens it, but has it listen only where nobody else can have the address.
    ///
    /// # Errors
    ///
    /// [`OpenError`], as for [`open`](Self::open).
    pub fn bound(&self, options: &EndpointOptions) -> Result<OwnedFd, OpenError> {
        match self {
            Self::Unix { kind, address: UnixAddress::Path(path) } => {
                let listen = Listen {
                    backlog: backlog(options),
                    mode: mode(options),
                    owner: options.owner(),
                    kind: kind.socket_type(),
                    nonblocking: options.is_on("nonblock"),
                    ..Listen::stream_at(path)
                };
                // A client that comes at once finds them set.
                listen_at_prepared(&listen, |socket| self.prepare(socket, options))
            }
            Self::Fifo(path) => fifo(path, options),
            Self::Memfd(name) => memfd_create(name.as_str(), MemfdFlags::CLOEXEC)
                .map_err(|errno| OpenError::system("make a memfd", errno)),
            _ => {
                let failed = |doing| move |errno| OpenError::system(doing, errno);
                let socket = create(self).map_err(failed("create a socket"))?;
                self.prepare(&socket, options)?;
                self.bind(&socket).map_err(|errno| match (self, errno) {
                    (Self::Vsock { cid, .. }, Errno::ADDRNOTAVAIL) => OpenError::Other(format!(
                        "unable to bind: {} ({cid} is not the CID of this machine: say \
                         vsock::PORT for any)",
                        strerror(errno)
                    )),
                    _ => OpenError::system("bind", errno),
                })?;
                Ok(socket)
            }
        }
    }

    /// Sets the options that were asked for.
    fn prepare(&self, socket: &OwnedFd, options: &EndpointOptions) -> Result<(), OpenError> {
        for row in ROWS.iter().filter(|row| row.how != How::Otherwise && row.suits(self)) {
            if let Some(value) = options.get(row.name).and_then(|value| value.reading(row)) {
                row.set(socket, &value, self)
                    .map_err(|errno| OpenError::system(&format!("set {}", row.name), errno))?;
            }
        }
        Ok(())
    }

    /// Binds a socket to its address, which is no path.
    pub(super) fn bind(&self, socket: &OwnedFd) -> Result<(), Errno> {
        match self {
            Self::Ip { address, .. } => bind(socket, address),
            Self::Unix { address: UnixAddress::Abstract(name), .. } => {
                bind(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)
            }
            Self::Vsock { cid, port } => {
                let bound = SockRef::from(socket).bind(&SockAddr::vsock(*cid, *port));
                bound.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
            }
            _ => Err(Errno::INVAL),
        }
    }
}

/// A socket of this kind, on which nothing but `SO_REUSEADDR` was set.
///
/// # Errors
///
/// Those of socket(2); EINVAL for what is no socket.
pub fn create(endpoint: &Endpoint) -> Result<OwnedFd, Errno> {
    let (domain, kind, protocol) = match endpoint {
        Endpoint::Ip { protocol, address } => {
            let kind =
                if *protocol == IpProtocol::Udp { SocketType::DGRAM } else { SocketType::STREAM };
            let number = RawProtocol::new(number_of(*protocol).unsigned_abs());
            let domain = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            (domain, kind, number.map(Protocol::from_raw))
        }
        Endpoint::Unix { kind, .. } => (AddressFamily::UNIX, kind.socket_type(), None),
        Endpoint::Vsock { .. } => (AddressFamily::VSOCK, SocketType::STREAM, None),
        Endpoint::Fifo(_) | Endpoint::Memfd(_) => return Err(Errno::INVAL),
    };
    let socket = socket_with(domain, kind, SocketFlags::CLOEXEC, protocol)?;
    if protocol.is_some() && kind == SocketType::STREAM {
        // What an earlier listener's connections have left in TIME_WAIT is in nobody's way.
        set_socket_reuseaddr(&socket, true)?;
    }
    Ok(socket)
}

pub fn backlog(options: &EndpointOptions) -> i32 {
    let said = options.number("backlog");
    said.map_or(BACKLOG_DEFAULT, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Everybody who may search the folder may connect, unless a mode is said, as with systemd.
fn mode(options: &EndpointOptions) -> u32 {
    options.mode().map_or(0o666, |Mode(mode)| mode)
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
        if let Some(user) = options.owner() {
            chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
                .map_err(failed("set its owner"))?;
        }
    }
    // Both ends, so that neither readers nor writers see an end of it while it is held.
    let waits = if options.is_on("nonblock") { OFlags::NONBLOCK } else { OFlags::empty() };
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
