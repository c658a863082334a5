//! What a service is given from outside: sockets it listens on, and the like, as text.
//!
//! `tcp:0.0.0.0:80`, `udp:[::1]:53`, `unix:/run/web.sock`, `fifo:/run/log`, `memfd:state`.

mod held;
mod open;
mod options;

pub use open::OpenError;
pub use options::{arguments, EndpointOptions, Mode};

use rustix::net::SocketType;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a service can be reached, or what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP listener. Port 0: one that is free.
    Tcp(SocketAddr),
    /// A UDP socket.
    Udp(SocketAddr),
    /// A Unix-domain socket: a listener, or one for datagrams.
    Unix { kind: UnixKind, address: UnixAddress },
    /// A named pipe.
    Fifo(PathBuf),
    /// Memory, to keep state in. The name is only to be looked at.
    Memfd(String),
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

/// The schemes, for who has mistyped one.
const SCHEMES: &str = "tcp:ADDRESS:PORT, udp:ADDRESS:PORT, unix:/PATH, unix-dgram:/PATH, \
                       unix-seqpacket:/PATH, fifo:/PATH or memfd:NAME";

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("there are no control characters in it".to_owned());
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(format!("'{text}' does not say what it is: {SCHEMES}"));
        };
        let unix = |kind| Ok(Self::Unix { kind, address: unix_address(rest)? });
        match scheme {
            "tcp" => ip_address(scheme, rest).map(Self::Tcp),
            "udp" => ip_address(scheme, rest).map(Self::Udp),
            "unix" | "unix-stream" => unix(UnixKind::Stream),
            "unix-dgram" => unix(UnixKind::Datagram),
            "unix-seqpacket" => unix(UnixKind::Seqpacket),
            "fifo" => absolute(rest).map(Self::Fifo),
            "memfd" if rest.is_empty() || rest.len() > MEMFD_NAME_MAX || rest.contains('\0') => {
                Err(format!("the name of a memfd has 1 to {MEMFD_NAME_MAX} bytes"))
            }
            "memfd" => Ok(Self::Memfd(rest.to_owned())),
            _ => Err(format!("'{scheme}:' is unknown: {SCHEMES}")),
        }
    }
}

fn ip_address(scheme: &str, text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("*:") {
        return Err(format!("say {scheme}:0.0.0.0:{port} (IPv4) or {scheme}:[::]:{port} (both)"));
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!("say {scheme}:0.0.0.0:{text} (IPv4) or {scheme}:[::]:{text} (both)"));
    }
    text.parse().map_err(|_| {
        format!(
            "'{text}' is not an IP address with a port, such as 127.0.0.1:80 or [::1]:80; names \
             are not looked up"
        )
    })
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
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
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
    }

    #[test]
    fn what_is_none_is_told_what_to_say() {
        for (text, says) in [
            ("web", "does not say what it is"),
            ("http:80", "'http:' is unknown: tcp:ADDRESS:PORT"),
            ("tcp:80", "say tcp:0.0.0.0:80 (IPv4) or tcp:[::]:80 (both)"),
            ("tcp:*:80", "say tcp:0.0.0.0:80"),
            ("tcp:localhost:80", "names are not looked up"),
            ("tcp:127.0.0.1", "with a port"),
            ("tcp:127.0.0.1:65536", "with a port"),
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
