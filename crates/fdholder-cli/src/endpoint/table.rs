//! The options of an endpoint, each in one line: what it is called, what its value is, what it
//! suits, how it is set and read back.

use super::{Endpoint, IpProtocol, UnixAddress};
use crate::sockopt::{get_int, set_int, IntOption};
use fdholder::Errno;
use rustix::fs::{fcntl_getfl, OFlags};
use socket2::SockRef;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

/// One option.
pub struct Row {
    /// On the command line, behind `--`, and in a configuration file.
    pub name: &'static str,
    /// In systemd.socket(5).
    pub systemd: &'static str,
    pub value: Kind,
    suits: Suits,
    pub how: How,
    /// Whether it can be changed on a socket that is bound.
    pub is_changeable: bool,
    pub help: &'static str,
}

/// What its value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Flag,
    /// From the one to the other.
    Number(u32, u32),
    /// Bytes: 65536, 64K.
    Size,
    /// The field of the IP header: a number, or a word of systemd's.
    Tos,
    /// A mode of a file.
    Mode,
    /// A user, perhaps with a group.
    Owner,
    /// The name of an interface.
    Name,
}

/// Which endpoints it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suits {
    Listeners,
    Tcp,
    Udp,
    Ip,
    /// The kernel sets it itself for one that is bound to a single address.
    AnyIpv6,
    Unix,
    IpAndUnix,
    Files,
    SocketsAndPipes,
}

/// How it is set and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By one of these, for IPv4 (or any other family) and IPv6.
    Int(IntOption, IntOption),
    /// By the second, or if that is not allowed by the first, which the kernel limits.
    Buffer(IntOption, IntOption),
    Device,
    Nonblock,
    /// By listen(2), and on files: not by a call on the socket alone.
    Otherwise,
}

/// What is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    Int(i32),
    Name(Option<String>),
}

const fn any(level: i32, name: i32) -> How {
    How::Int((level, name), (level, name))
}

const IPV6_TRANSPARENT: i32 = 75;
const SOCKET: i32 = libc::SOL_SOCKET;
const SECONDS_MAX: u32 = 32767;
const INT_MAX: u32 = i32::MAX as u32;

const fn row(
    (name, systemd): (&'static str, &'static str),
    value: Kind,
    suits: Suits,
    how: How,
    help: &'static str,
) -> Row {
    Row { name, systemd, value, suits, how, is_changeable: true, help }
}

impl Row {
    const fn fixed(self) -> Self {
        Self { is_changeable: false, ..self }
    }
}

/// In the order in which they are set: the type of service sets the priority, too.
#[rustfmt::skip]
pub const ROWS: [Row; 25] = [
    row(("backlog", "Backlog"), Kind::Number(0, u32::MAX), Suits::Listeners, How::Otherwise,
        "Clients that wait to be accepted at most [default: 4096]"),
    row(("mode", "SocketMode"), Kind::Mode, Suits::Files, How::Otherwise,
        "Mode of the file, such as 0660 [default: 0666]"),
    row(("owner", "SocketUser"), Kind::Owner, Suits::Files, How::Otherwise,
        "Owner of the file"),
    row(("nonblock", "NonBlocking"), Kind::Flag, Suits::SocketsAndPipes, How::Nonblock,
        "Set O_NONBLOCK, for programs that expect it, as nginx does"),
    row(("reuseport", "ReusePort"), Kind::Flag, Suits::Ip, any(SOCKET, libc::SO_REUSEPORT),
        "Let others listen on the same address (SO_REUSEPORT)"),
    row(("ipv6only", "BindIPv6Only"), Kind::Flag, Suits::AnyIpv6,
        any(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        "No IPv4 by way of [::]").fixed(),
    row(("fastopen", "FastOpen"), Kind::Number(0, u32::MAX), Suits::Tcp,
        any(libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
        "TCP Fast Open, with N unfinished handshakes at most"),
    row(("freebind", "FreeBind"), Kind::Flag, Suits::Ip,
        How::Int((libc::IPPROTO_IP, libc::IP_FREEBIND), (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)),
        "The address need not be there yet (IP_FREEBIND)"),
    row(("device", "BindToDevice"), Kind::Name, Suits::Ip, How::Device,
        "Only what comes over this interface (SO_BINDTODEVICE)").fixed(),
    row(("transparent", "Transparent"), Kind::Flag, Suits::Ip,
        How::Int((libc::IPPROTO_IP, libc::IP_TRANSPARENT), (libc::IPPROTO_IPV6, IPV6_TRANSPARENT)),
        "Any address, as a proxy needs it (IP_TRANSPARENT)"),
    row(("mark", "Mark"), Kind::Number(0, u32::MAX), Suits::Ip, any(SOCKET, libc::SO_MARK),
        "Mark of its packets, for the firewall (SO_MARK)"),
    row(("tos", "IPTOS"), Kind::Tos, Suits::Ip,
        How::Int((libc::IPPROTO_IP, libc::IP_TOS), (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)),
        "Type of service: 0 to 255, or low-delay, throughput, reliability, low-cost"),
    row(("ttl", "IPTTL"), Kind::Number(1, 255), Suits::Ip,
        How::Int((libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)),
        "Hops that its packets may take"),
    row(("priority", "Priority"), Kind::Number(0, INT_MAX), Suits::Ip,
        any(SOCKET, libc::SO_PRIORITY),
        "Priority of its packets (SO_PRIORITY)"),
    row(("keepalive", "KeepAlive"), Kind::Flag, Suits::Tcp, any(SOCKET, libc::SO_KEEPALIVE),
        "Find out when clients are gone (SO_KEEPALIVE)"),
    row(("keepalive-time", "KeepAliveTimeSec"), Kind::Number(1, SECONDS_MAX), Suits::Tcp,
        any(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        "Seconds of silence before that is tried"),
    row(("keepalive-interval", "KeepAliveIntervalSec"), Kind::Number(1, SECONDS_MAX), Suits::Tcp,
        any(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        "Seconds between two tries"),
    row(("keepalive-probes", "KeepAliveProbes"), Kind::Number(1, 127), Suits::Tcp,
        any(libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
        "Tries without an answer"),
    row(("nodelay", "NoDelay"), Kind::Flag, Suits::Tcp, any(libc::IPPROTO_TCP, libc::TCP_NODELAY),
        "Send small packets at once (TCP_NODELAY)"),
    row(("defer-accept", "DeferAcceptSec"), Kind::Number(0, SECONDS_MAX), Suits::Tcp,
        any(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
        "Accept a client when it has sent something, or after N seconds"),
    row(("receive-buffer", "ReceiveBuffer"), Kind::Size, Suits::IpAndUnix,
        How::Buffer((SOCKET, libc::SO_RCVBUF), (SOCKET, libc::SO_RCVBUFFORCE)),
        "Bytes that wait to be read at most (SO_RCVBUF)"),
    row(("send-buffer", "SendBuffer"), Kind::Size, Suits::IpAndUnix,
        How::Buffer((SOCKET, libc::SO_SNDBUF), (SOCKET, libc::SO_SNDBUFFORCE)),
        "Bytes that wait to be sent at most (SO_SNDBUF)"),
    row(("broadcast", "Broadcast"), Kind::Flag, Suits::Udp, any(SOCKET, libc::SO_BROADCAST),
        "May send to broadcast addresses (SO_BROADCAST)"),
    row(("pktinfo", "PassPacketInfo"), Kind::Flag, Suits::Udp,
        How::Int((libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)),
        "Datagrams say which address they were sent to (IP_PKTINFO)"),
    row(("passcred", "PassCredentials"), Kind::Flag, Suits::Unix, any(SOCKET, libc::SO_PASSCRED),
        "Messages say which process sent them (SO_PASSCRED)"),
];

/// The option of this name. A file may write `_` for `-`.
pub fn find(name: &str) -> Option<&'static Row> {
    let name = name.replace('_', "-");
    ROWS.iter().find(|row| row.name == name)
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Suits {
    fn is(self, endpoint: &Endpoint) -> bool {
        let is_ip = matches!(endpoint, Endpoint::Ip { .. });
        let is_udp = matches!(endpoint, Endpoint::Ip { protocol: IpProtocol::Udp, .. });
        let is_unix = matches!(endpoint, Endpoint::Unix { .. });
        match self {
            Self::Listeners => endpoint.is_listener(),
            Self::Tcp => is_ip && !is_udp,
            Self::Udp => is_udp,
            Self::Ip => is_ip,
            Self::AnyIpv6 => matches!(
                endpoint,
                Endpoint::Ip { address, .. } if address.is_ipv6() && address.ip().is_unspecified()
            ),
            Self::Unix => is_unix,
            Self::IpAndUnix => is_ip || is_unix,
            Self::Files => matches!(
                endpoint,
                Endpoint::Fifo(_) | Endpoint::Unix { address: UnixAddress::Path(_), .. }
            ),
            Self::SocketsAndPipes => !matches!(endpoint, Endpoint::Memfd(_)),
        }
    }
}

impl fmt::Display for Suits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listeners => "listeners",
            Self::Tcp => "tcp and mptcp",
            Self::Udp => "udp",
            Self::Ip => "tcp, mptcp and udp",
            Self::AnyIpv6 => "[::]",
            Self::Unix => "unix",
            Self::IpAndUnix => "tcp, mptcp, udp and unix",
            Self::Files => "unix and fifo with a path",
            Self::SocketsAndPipes => "sockets and pipes",
        })
    }
}

impl Row {
    pub fn suits(&self, endpoint: &Endpoint) -> bool {
        self.suits.is(endpoint)
    }

    /// That it does not.
    pub fn does_not_suit(&self, endpoint: &Endpoint) -> String {
        format!("{} is for {}, not for {endpoint}", self.name, self.suits)
    }

    /// Sets it, on a socket for this endpoint.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn set(&self, socket: impl AsFd, to: &Reading, endpoint: &Endpoint) -> Result<(), Errno> {
        let socket = socket.as_fd();
        match (self.how, to) {
            (How::Int(v4, v6), Reading::Int(value)) => {
                set_int(socket, if is_ipv6(endpoint) { v6 } else { v4 }, *value)
            }
            // The kernel doubles it, and says so when it is read.
            (How::Buffer(limited, forced), Reading::Int(value)) => {
                set_int(socket, forced, value / 2).or_else(|_| set_int(socket, limited, value / 2))
            }
            (How::Device, Reading::Name(name)) => {
                let name = name.as_deref().map(str::as_bytes);
                let set = SockRef::from(&socket).bind_device(name);
                set.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
            }
            (How::Nonblock, Reading::Int(value)) => set_nonblocking(socket, *value != 0),
            _ => Err(Errno::INVAL),
        }
    }

    /// What it is, on a descriptor for this endpoint; `None` where the kernel does not tell.
    pub fn read(&self, fd: impl AsFd, endpoint: &Endpoint) -> Option<Reading> {
        let fd = fd.as_fd();
        match self.how {
            How::Int(v4, v6) => {
                let value = get_int(fd, if is_ipv6(endpoint) { v6 } else { v4 }).ok()?;
                Some(Reading::Int(match self.value {
                    Kind::Flag => i32::from(value != 0),
                    _ => value,
                }))
            }
            How::Buffer(limited, _) => get_int(fd, limited).ok().map(Reading::Int),
            How::Device => {
                // Of one that is gone the name is not known any more: see `has_lost_its_device`.
                let device = SockRef::from(&fd).device().ok()?;
                let name = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                Some(Reading::Name(device.map(name)))
            }
            How::Nonblock => {
                let flags = fcntl_getfl(fd).ok()?;
                Some(Reading::Int(flags.contains(OFlags::NONBLOCK).into()))
            }
            How::Otherwise => None,
        }
    }

    /// What was read, as people write it.
    pub fn in_words(&self, reading: &Reading) -> String {
        match (reading, self.value) {
            (Reading::Int(0), Kind::Flag) => "off".to_owned(),
            (Reading::Int(_), Kind::Flag) => "on".to_owned(),
            (Reading::Int(value), Kind::Size) => (value / 2).to_string(),
            (Reading::Int(value), _) if self.name == "mark" => value.cast_unsigned().to_string(),
            (Reading::Int(value), _) => value.to_string(),
            (Reading::Name(name), _) => name.clone().unwrap_or_else(|| "none".to_owned()),
        }
    }
}

/// Sets or clears `O_NONBLOCK`, for every process that has it open.
///
/// # Errors
///
/// Those of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    let mut flags = fcntl_getfl(fd)?;
    flags.set(OFlags::NONBLOCK, on);
    rustix::fs::fcntl_setfl(fd, flags)
}

/// Whether a socket is bound to an interface that is not there any more.
pub fn has_lost_its_device(socket: BorrowedFd<'_>) -> bool {
    let device = SockRef::from(&socket).device();
    device.is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NODEV))
}

fn is_ipv6(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Ip { address, .. } if address.is_ipv6())
}
