//! Addresses of sockets, as the variables of servers write them.

use fdholder::Identifier;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{getsockname, SocketAddrUnix, SocketType};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Where a socket is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub place: Place,
    pub is_stream_listener: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Path(Vec<u8>),
    /// The abstract name of one.
    Abstract(Vec<u8>),
}

/// Why a variable cannot name a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamingError {
    NoSocket,
    NoAddress,
    NoStreamListener,
    NoFile,
    Relative,
    Scope,
    /// Its path has a byte that means something else there.
    Byte(u8),
    /// Its address is that of another.
    Twice(Identifier),
}

impl fmt::Display for NamingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSocket => "it is no socket",
            Self::NoAddress => "it has no address",
            Self::NoStreamListener => "it is no stream socket that listens",
            Self::NoFile => "an abstract name is no path",
            Self::Relative => "its path does not begin with /",
            Self::Scope => "its address is of one interface only",
            Self::Byte(byte) => return write!(f, "its path has a {}", byte.escape_ascii()),
            Self::Twice(other) => return write!(f, "{other} has the same address"),
        })
    }
}

/// Asks the kernel.
///
/// # Errors
///
/// Why there is no address.
pub fn address_of(fd: BorrowedFd<'_>) -> Result<Address, NamingError> {
    let kind = socket_type(fd).map_err(|_| NamingError::NoSocket)?;
    let is_stream_listener = kind == SocketType::STREAM && socket_acceptconn(fd) == Ok(true);
    let name = getsockname(fd).map_err(|_| NamingError::NoAddress)?;
    let place = if let Ok(unix) = SocketAddrUnix::try_from(name.clone()) {
        let name = unix.abstract_name().filter(|name| !name.is_empty());
        match (unix.path_bytes(), name) {
            (Some(path), _) => Place::Path(path.to_vec()),
            (None, Some(name)) => Place::Abstract(name.to_vec()),
            (None, None) => return Err(NamingError::NoAddress),
        }
    } else {
        let ip = SocketAddr::try_from(name).map_err(|_| NamingError::NoAddress)?;
        if ip.port() == 0 {
            return Err(NamingError::NoAddress);
        }
        Place::Ip(ip)
    };
    Ok(Address { place, is_stream_listener })
}

/// As `Server::Starter` does: `8080` for all of IPv4, `127.0.0.1:8080`, `[::1]:8080`, `/run/web`.
/// Who reads it splits at `;` and at the first `=`.
///
/// # Errors
///
/// Why it cannot be said.
pub fn starter_key(address: &Address) -> Result<Vec<u8>, NamingError> {
    Ok(match &address.place {
        Place::Ip(SocketAddr::V4(it)) if it.ip().is_unspecified() => it.port().to_string().into(),
        Place::Ip(SocketAddr::V4(it)) => it.to_string().into(),
        Place::Ip(SocketAddr::V6(it)) => format!("[{}]:{}", it.ip(), it.port()).into(),
        Place::Path(path) => absolute(path, b";=")?.to_vec(),
        Place::Abstract(_) => return Err(NamingError::NoFile),
    })
}

/// As php-fpm itself does: by `inet_ntop(3)`, `127.0.0.1:9000`, `::1:9000`, `/run/fpm`. It splits at
/// `,` and at the first `=`, and takes what has a `:` for no path.
///
/// # Errors
///
/// Why it cannot be said.
pub fn fpm_key(address: &Address) -> Result<Vec<u8>, NamingError> {
    Ok(match &address.place {
        Place::Ip(it) => format!("{}:{}", it.ip(), it.port()).into(),
        Place::Path(path) => absolute(path, b",=:")?.to_vec(),
        Place::Abstract(_) => return Err(NamingError::NoFile),
    })
}

/// As Puma itself does: `tcp://127.0.0.1:80`, `tcp://[::1]:80`, `unix:///run/web`, `unix://@name`. It
/// must be, letter by letter, what `bind` says, and has a space as `%20`.
///
/// # Errors
///
/// Why it cannot be said.
pub fn puma_url(address: &Address) -> Result<Vec<u8>, NamingError> {
    let (begin, name) = match &address.place {
        Place::Ip(SocketAddr::V6(it)) if it.scope_id() != 0 => return Err(NamingError::Scope),
        Place::Ip(it) => return Ok(format!("tcp://{it}").into()),
        Place::Path(path) => (&b"unix://"[..], absolute(path, b"")?),
        Place::Abstract(name) => (&b"unix://@"[..], &name[..]),
    };
    let mut url = begin.to_vec();
    for &byte in name {
        match byte {
            b' ' => url.extend_from_slice(b"%20"),
            b'-' | b'.' | b'_' | b'~' | b'/' => url.push(byte),
            byte if byte.is_ascii_alphanumeric() => url.push(byte),
            // These may stand in the path of a URL, and not in what is a host for Puma.
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':'
            | b'@'
                if matches!(address.place, Place::Path(_)) =>
            {
                url.push(byte);
            }
            byte => return Err(NamingError::Byte(byte)),
        }
    }
    Ok(url)
}

/// A path that is the same in every folder and has none of these bytes.
fn absolute<'a>(path: &'a [u8], but: &[u8]) -> Result<&'a [u8], NamingError> {
    if let Some(byte) = path.iter().find(|byte| but.contains(byte)) {
        return Err(NamingError::Byte(*byte));
    }
    if path.first() != Some(&b'/') {
        return Err(NamingError::Relative);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddrV6};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

    fn at(place: Place) -> Address {
        Address { place, is_stream_listener: true }
    }

    #[test]
    fn abstract_names_and_scopes_are_what_only_some_take() {
        let name = format!("fdholder-{}", std::process::id());
        let bound = UnixAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&bound).unwrap();
        let address = address_of(listener.as_fd()).unwrap();
        assert!(address.is_stream_listener);
        assert_eq!(puma_url(&address), Ok(format!("unix://@{name}").into_bytes()));
        assert_eq!(starter_key(&address), Err(NamingError::NoFile));
        assert_eq!(fpm_key(&address), Err(NamingError::NoFile));
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 2);
        let scoped = at(Place::Ip(scoped.into()));
        assert_eq!(puma_url(&scoped), Err(NamingError::Scope));
        assert_eq!(starter_key(&scoped).unwrap(), b"[fe80::1]:80");
        assert_eq!(fpm_key(&scoped).unwrap(), b"fe80::1:80");
        let relative = at(Place::Path(b"web".to_vec()));
        for key in [starter_key, fpm_key, puma_url] {
            assert_eq!(key(&relative), Err(NamingError::Relative));
        }
        assert_eq!(puma_url(&at(Place::Path(b"/a b".to_vec()))).unwrap(), b"unix:///a%20b");
    }

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            (any::<IpAddr>(), 1..=u16::MAX).prop_map(|it| Place::Ip(it.into())),
            "/[a-c/;=,:%? 0-9]{0,12}".prop_map(|path| Place::Path(path.into())),
            prop::collection::vec(1..=u8::MAX, 1..20)
                .prop_map(|rest| Place::Path([&b"/"[..], &rest].concat())),
            "[a-c./ :@0-9]{1,12}".prop_map(|name| Place::Abstract(name.into())),
        ]
    }

    /// Splits as the servers do, at the first of these.
    fn cut(text: &[u8], at: u8) -> (&[u8], &[u8]) {
        let place = text.iter().position(|byte| *byte == at).unwrap();
        (&text[..place], &text[place + 1..])
    }

    fn ip(text: &[u8]) -> SocketAddr {
        std::str::from_utf8(text).unwrap().parse().unwrap()
    }

    proptest! {
        /// What is said is read as the same again, in a list of several.
        #[test]
        fn what_is_said_is_read_by_the_servers_rules(places in prop::collection::vec(places(), 1..4)) {
            for (key_of, separator) in [(starter_key as fn(&_) -> _, b';'), (fpm_key, b',')] {
                let known = places.iter().filter_map(|place| {
                    Some((place, key_of(&at(place.clone())).ok()?))
                });
                let (known, keys): (Vec<_>, Vec<Vec<u8>>) = known.unzip();
                let values: Vec<_> = keys.iter().map(|key| [key, &b"=7"[..]].concat()).collect();
                let whole = values.join(&separator);
                let parts = whole.split(|byte| *byte == separator).filter(|it| !it.is_empty());
                let parts: Vec<_> = parts.collect();
                prop_assert_eq!(parts.len(), known.len());
                for (part, place) in parts.into_iter().zip(known) {
                    let (key, number) = cut(part, b'=');
                    prop_assert_eq!(number, b"7");
                    match place {
                        Place::Path(path) => prop_assert_eq!(key, &path[..]),
                        Place::Ip(address) if separator == b';' => {
                            let host = if key.contains(&b':') { "" } else { "0.0.0.0:" };
                            let whole = [host.as_bytes(), key].concat();
                            prop_assert_eq!(ip(&whole), *address);
                        }
                        Place::Ip(address) => {
                            let colon = key.iter().rposition(|byte| *byte == b':').unwrap();
                            let (host, port) = (&key[..colon], &key[colon + 1..]);
                            let host: IpAddr = std::str::from_utf8(host).unwrap().parse().unwrap();
                            let port: u16 = std::str::from_utf8(port).unwrap().parse().unwrap();
                            prop_assert_eq!(SocketAddr::new(host, port), *address);
                        }
                        Place::Abstract(_) => prop_assert!(false, "said"),
                    }
                }
            }
        }

        #[test]
        fn urls_are_read_as_puma_reads_them(place in places()) {
            let Ok(url) = puma_url(&at(place.clone())) else { return Ok(()) };
            let url = String::from_utf8(url).unwrap();
            prop_assert!(url.bytes().all(|byte| byte.is_ascii_graphic()), "{}", url);
            let read = if let Some(host) = url.strip_prefix("tcp://") {
                Place::Ip(host.parse().unwrap())
            } else if let Some(name) = url.strip_prefix("unix://@") {
                Place::Abstract(name.replace("%20", " ").into())
            } else {
                Place::Path(url.strip_prefix("unix://").unwrap().replace("%20", " ").into())
            };
            prop_assert_eq!(read, place);
        }
    }
}
