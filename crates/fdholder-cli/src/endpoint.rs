//! What a service is given from outside: sockets it listens on, and the like, as text.
//!
//! `tcp:0.0.0.0:80`, `udp:[::1]:53`, `unix:/run/web.sock`, `fifo:/run/log`, `memfd:state`.

mod address;
mod compare;
mod diag;
mod open;
mod options;
mod settle;
mod table;
#[cfg(test)]
mod tests_of_addresses;
#[cfg(test)]
mod tests_of_held;
mod users;

pub use address::{leads, Leads};
pub use diag::has_clients;
pub use open::OpenError;
pub use options::{arguments, EndpointOptions, Mode};
pub use settle::{
    fixed_differences, is_bound, is_reachable_at, left_behind, left_in_queue, limits, settle,
    NotSettled, Policy, Settled, Unasked,
};
pub use table::set_nonblocking;

use crate::options::number;
use crate::similar;
use rustix::net::netdevice::name_to_index;
use rustix::net::{socket_with, AddressFamily, SocketFlags, SocketType};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a service can be reached, or what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP or MPTCP listener, or a UDP socket. Port 0: one that is free.
    Ip { protocol: IpProtocol, address: SocketAddr },
    /// A Unix-domain socket: a listener, or one for datagrams.
    Unix { kind: UnixKind, address: UnixAddress },
    /// A listener for virtual machines: vsock(7).
    Vsock { cid: u32, port: u32 },
    /// A named pipe.
    Fifo(PathBuf),
    /// Memory, to keep state in. The name is only to be looked at.
    Memfd(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpProtocol {
    Tcp,
    Mptcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnixKind {
    Stream,
    Datagram,
    Seqpacket,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixAddress {
    Path(PathBuf),
    /// A name of Linux's, without the NUL before it.
    Abstract(String),
}

/// The longest path a socket can have: `sun_path` is 108 bytes, with a NUL at its end.
const SUN_PATH_MAX: usize = 107;

/// The longest name the kernel takes for a memfd.
const MEMFD_NAME_MAX: usize = 249;

impl UnixKind {
    pub fn socket_type(self) -> SocketType {
        match self {
            Self::Stream => SocketType::STREAM,
            Self::Datagram => SocketType::DGRAM,
            Self::Seqpacket => SocketType::SEQPACKET,
        }
    }
}

impl Endpoint {
    /// Whether two sockets can have this address at once: port 0 is another one each time, and a
    /// memfd has none.
    pub fn may_be_twice(&self, options: &EndpointOptions) -> bool {
        match self {
            Self::Ip { address, .. } => address.port() == 0 || options.is_on("reuseport"),
            Self::Memfd(_) | Self::Vsock { port: VSOCK_PORT_ANY, .. } => true,
            _ => false,
        }
    }

    /// Whether clients connect to it, and wait in its queue.
    pub fn is_listener(&self) -> bool {
        match self {
            Self::Ip { protocol, .. } => *protocol != IpProtocol::Udp,
            Self::Unix { kind, .. } => *kind != UnixKind::Datagram,
            Self::Vsock { .. } => true,
            Self::Fifo(_) | Self::Memfd(_) => false,
        }
    }

    /// The path that clients use, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Unix { address: UnixAddress::Path(path), .. } | Self::Fifo(path) => Some(path),
            _ => None,
        }
    }
}

/// What an address begins with.
struct Scheme {
    name: &'static str,
    /// What follows the colon; empty for another name of the one before.
    form: &'static str,
    read: fn(&str) -> Result<Endpoint, String>,
}

#[rustfmt::skip]
const SCHEMES: [Scheme; 10] = [
    Scheme { name: "tcp", form: "ADDRESS:PORT", read: |text| ip("tcp", IpProtocol::Tcp, text) },
    Scheme { name: "mptcp", form: "ADDRESS:PORT", read: |text| ip("mptcp", IpProtocol::Mptcp, text) },
    Scheme { name: "udp", form: "ADDRESS:PORT", read: |text| ip("udp", IpProtocol::Udp, text) },
    Scheme { name: "unix", form: "/PATH", read: |text| unix(UnixKind::Stream, text) },
    Scheme { name: "unix-stream", form: "", read: |text| unix(UnixKind::Stream, text) },
    Scheme { name: "unix-dgram", form: "/PATH", read: |text| unix(UnixKind::Datagram, text) },
    Scheme { name: "unix-seqpacket", form: "/PATH", read: |text| unix(UnixKind::Seqpacket, text) },
    Scheme { name: "vsock", form: "CID:PORT", read: vsock },
    Scheme { name: "fifo", form: "/PATH", read: |text| absolute(text).map(Endpoint::Fifo) },
    Scheme { name: "memfd", form: "NAME", read: memfd },
];

/// Whether an address may begin with this word and a colon.
pub fn is_scheme(word: &[u8]) -> bool {
    SCHEMES.iter().any(|scheme| scheme.name.as_bytes() == word)
}

/// All kinds of addresses, in words.
fn forms() -> String {
    let shown = SCHEMES.iter().filter(|scheme| !scheme.form.is_empty());
    let forms: Vec<_> = shown.map(|scheme| format!("{}:{}", scheme.name, scheme.form)).collect();
    match forms.split_last() {
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}

/// Any address of this machine: `VMADDR_CID_ANY`.
const CID_ANY: u32 = u32::MAX;

/// One that is free: `VMADDR_PORT_ANY`.
const VSOCK_PORT_ANY: u32 = u32::MAX;

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("there are no control characters in it".to_owned());
        }
        let Some((name, rest)) = text.split_once(':') else {
            return Err(format!("'{text}' does not say what it is: {}", forms()));
        };
        if let Some(scheme) = SCHEMES.iter().find(|scheme| scheme.name == name) {
            return (scheme.read)(rest);
        }
        let names = SCHEMES.map(|scheme| (scheme.name, scheme.name));
        Err(match similar::nearest(name, &names) {
            Some(meant) => format!("'{name}:' is unknown: did you mean '{meant}:'?"),
            None => format!("'{name}:' is unknown: {}", forms()),
        })
    }
}

fn ip(scheme: &str, protocol: IpProtocol, text: &str) -> Result<Endpoint, String> {
    Ok(Endpoint::Ip { protocol, address: ip_address(scheme, text)? })
}

fn unix(kind: UnixKind, text: &str) -> Result<Endpoint, String> {
    Ok(Endpoint::Unix { kind, address: unix_address(text)? })
}

fn memfd(name: &str) -> Result<Endpoint, String> {
    if name.is_empty() || name.len() > MEMFD_NAME_MAX || name.contains('\0') {
        return Err(format!("the name of a memfd has 1 to {MEMFD_NAME_MAX} bytes"));
    }
    Ok(Endpoint::Memfd(name.to_owned()))
}

fn ip_address(scheme: &str, text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("*:") {
        return Err(format!("say {scheme}:0.0.0.0:{port} (IPv4) or {scheme}:[::]:{port} (both)"));
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!("say {scheme}:0.0.0.0:{text} (IPv4) or {scheme}:[::]:{text} (both)"));
    }
    with_scope(text)?.parse().map_err(|_| {
        format!(
            "'{text}' is not an IP address with a port, such as 127.0.0.1:80 or [::1]:80; names \
             are not looked up"
        )
    })
}

/// The name of an interface as its number: `[fe80::1%eth0]:80`.
fn with_scope(text: &str) -> Result<String, String> {
    let named = text.split_once('%').and_then(|(ip, rest)| Some((ip, rest.split_once(']')?)));
    let Some((ip, (name, port))) = named.filter(|(_, (name, _))| name.parse::<u32>().is_err())
    else {
        return Ok(text.to_owned());
    };
    let flags = SocketFlags::CLOEXEC;
    let index = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .and_then(|socket| name_to_index(socket, name))
        .map_err(|_| format!("there is no interface '{name}'"))?;
    Ok(format!("{ip}%{index}]{port}"))
}

/// `CID:PORT`, as systemd writes it: without a CID it is any.
fn vsock(text: &str) -> Result<Endpoint, String> {
    let wrong = || format!("'{text}' is not CID:PORT, such as 2:1234, or :1234 for any CID");
    let (cid, port) = text.split_once(':').ok_or_else(wrong)?;
    let cid = if cid.is_empty() { Ok(CID_ANY) } else { number(cid) };
    Ok(Endpoint::Vsock { cid: cid.map_err(|_| wrong())?, port: number(port).map_err(|_| wrong())? })
}

fn unix_address(text: &str) -> Result<UnixAddress, String> {
    let too_long = || format!("the path of a socket has at most {SUN_PATH_MAX} bytes");
    if text.len() > SUN_PATH_MAX {
        return Err(too_long());
    }
    match text.strip_prefix('@') {
        Some("") => Err("an abstract address has a name: unix:@NAME".to_owned()),
        Some(name) => Ok(UnixAddress::Abstract(name.to_owned())),
        None => absolute(text).map(UnixAddress::Path),
    }
}

/// What is held must be told from others wherever it is asked for.
fn absolute(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(format!("'{text}' is not an absolute path, such as /run/web.sock"));
    }
    Ok(text.into())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { protocol, address } => {
                f.write_str(match protocol {
                    IpProtocol::Tcp => "tcp:",
                    IpProtocol::Mptcp => "mptcp:",
                    IpProtocol::Udp => "udp:",
                })?;
                address.fmt(f)
            }
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock::{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Unix { kind, address } => {
                f.write_str(match kind {
                    UnixKind::Stream => "unix:",
                    UnixKind::Datagram => "unix-dgram:",
                    UnixKind::Seqpacket => "unix-seqpacket:",
                })?;
                match address {
                    UnixAddress::Path(path) => write!(f, "{}", path.display()),
                    UnixAddress::Abstract(name) => write!(f, "@{name}"),
                }
            }
            Self::Fifo(path) => write!(f, "fifo:{}", path.display()),
            Self::Memfd(name) => write!(f, "memfd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written_alike() {
        for text in [
            "tcp:0.0.0.0:80",
            "tcp:[::]:443",
            "tcp:[fe80::1%1]:443",
            "mptcp:127.0.0.1:443",
            "vsock:2:1234",
            "vsock::1234",
            "udp:127.0.0.1:53",
            "unix:/run/web.sock",
            "unix-dgram:/run/log",
            "unix-seqpacket:@name",
            "fifo:/run/queue",
            "memfd:state",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("unix-stream:/x".parse::<Endpoint>(), "unix:/x".parse());
        assert_eq!("tcp:[fe80::1%lo]:80".parse::<Endpoint>(), "tcp:[fe80::1%1]:80".parse());
    }

    #[test]
    fn what_is_none_is_told_what_to_say() {
        for (text, says) in [
            ("web", "does not say what it is"),
            ("http:80", "'http:' is unknown: tcp:ADDRESS:PORT, mptcp:ADDRESS:PORT, udp:"),
            ("http:80", "vsock:CID:PORT, fifo:/PATH or memfd:NAME"),
            ("tpc:0.0.0.0:80", "'tpc:' is unknown: did you mean 'tcp:'?"),
            ("unix_dgram:/x", "did you mean 'unix-dgram:'?"),
            ("tcp:80", "say tcp:0.0.0.0:80 (IPv4) or tcp:[::]:80 (both)"),
            ("tcp:*:80", "say tcp:0.0.0.0:80"),
            ("tcp:localhost:80", "names are not looked up"),
            ("tcp:127.0.0.1", "with a port"),
            ("tcp:127.0.0.1:65536", "with a port"),
            ("tcp:[fe80::1%none]:80", "there is no interface 'none'"),
            ("vsock:2", "not CID:PORT"),
            ("vsock:x:5", "not CID:PORT"),
            ("unix:relative", "not an absolute path"),
            ("unix:@", "has a name"),
            ("fifo:", "not an absolute path"),
            ("memfd:", "1 to 249"),
            ("", "does not say what it is"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(long.parse::<Endpoint>().unwrap_err().contains("107"));
        assert!(long[..long.len() - 1].parse::<Endpoint>().is_ok());
    }
}
