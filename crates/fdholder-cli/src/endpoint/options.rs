//! How an endpoint is opened.

use super::{Endpoint, UnixAddress, UnixKind};
use crate::options::number;
use crate::program::Invocation;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction};
use fdholder_daemon::access::User;
use serde::Deserialize;
use std::fs;

/// What may be said of an endpoint beside its address. By default what services expect: a
/// listener that waits in accept(2), and whatever the system has for the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointOptions {
    /// Connections that wait until they are accepted, at most.
    pub backlog: Option<u32>,
    /// Others may listen on the same address (`SO_REUSEPORT`).
    pub reuseport: bool,
    /// No IPv4 by way of `[::]` (`IPV6_V6ONLY`).
    pub ipv6only: bool,
    /// TCP Fast Open, with so many unfinished ones at most.
    pub fastopen: Option<u32>,
    /// The address may not be there yet (`IP_FREEBIND`).
    pub freebind: bool,
    /// What comes over this interface alone (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// The mode of the file.
    pub mode: Option<Mode>,
    /// The owner of the file.
    pub owner: Option<Owner>,
    /// accept(2) and read(2) do not wait (`O_NONBLOCK`).
    pub nonblock: bool,
}

/// The mode of a file, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

/// The user and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub User);

impl Mode {
    pub fn read(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        mode.filter(|_| digits).map(Self).ok_or_else(|| "it is not a mode such as 0660".to_owned())
    }
}

impl Owner {
    /// `USER` or `USER:GROUP`, by name or number. Without a group it is the user's, or for a
    /// number the one with the same number.
    pub fn read(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        let (uid, its_gid) = match number(user) {
            Ok(uid) => (uid, uid),
            Err(_) => look_up("/etc/passwd", user)
                .ok_or_else(|| format!("there is no user '{user}' in /etc/passwd"))?,
        };
        let gid = match group {
            None => its_gid,
            Some(group) => match number(group) {
                Ok(gid) => gid,
                Err(_) => {
                    look_up("/etc/group", group)
                        .ok_or_else(|| format!("there is no group '{group}' in /etc/group"))?
                        .0
                }
            },
        };
        Ok(Self(User { uid, gid }))
    }
}

/// The third and fourth field of a line of passwd or group; the fourth of the latter is none.
///
/// Not by the C library: it would load modules at run time, which a static program cannot.
fn look_up(file: &str, name: &str) -> Option<(u32, u32)> {
    let content = fs::read_to_string(file).ok()?;
    content.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((id, fields.next().and_then(|gid| gid.parse().ok()).unwrap_or(id)))
    })
}

impl EndpointOptions {
    /// What the command line says.
    pub fn of(invocation: &Invocation) -> Self {
        let flag = |id: &str| invocation.matches.get_flag(id);
        Self {
            backlog: invocation.optional("backlog"),
            reuseport: flag("reuseport"),
            ipv6only: flag("ipv6only"),
            fastopen: invocation.optional("fastopen"),
            freebind: flag("freebind"),
            device: invocation.optional("device"),
            mode: invocation.optional("mode"),
            owner: invocation.optional("owner"),
            nonblock: flag("nonblock"),
        }
    }

    /// Whether all that is said is for this kind of endpoint.
    ///
    /// # Errors
    ///
    /// What is not.
    pub fn suit(&self, endpoint: &Endpoint) -> Result<(), String> {
        let tcp = matches!(endpoint, Endpoint::Tcp(_));
        let ip = tcp || matches!(endpoint, Endpoint::Udp(_));
        let ipv6 = matches!(
            endpoint,
            Endpoint::Tcp(address) | Endpoint::Udp(address) if address.is_ipv6()
        );
        let listener =
            tcp || matches!(endpoint, Endpoint::Unix { kind, .. } if *kind != UnixKind::Datagram);
        let file = matches!(
            endpoint,
            Endpoint::Fifo(_) | Endpoint::Unix { address: UnixAddress::Path(_), .. }
        );
        let memfd = matches!(endpoint, Endpoint::Memfd(_));
        let wrong = [
            (self.backlog.is_some(), listener, "backlog", "what is listened on"),
            (self.reuseport, ip, "reuseport", "tcp and udp"),
            (self.ipv6only, ipv6, "ipv6only", "IPv6 addresses"),
            (self.fastopen.is_some(), tcp, "fastopen", "tcp"),
            (self.freebind, ip, "freebind", "tcp and udp"),
            (self.device.is_some(), ip, "device", "tcp and udp"),
            (self.mode.is_some(), file, "mode", "unix and fifo with a path"),
            (self.owner.is_some(), file, "owner", "unix and fifo with a path"),
            (self.nonblock, !memfd, "nonblock", "sockets and pipes"),
        ];
        match wrong.into_iter().find(|(said, suits, ..)| *said && !suits) {
            Some((.., name, of)) => Err(format!("{name} is for {of}, not for {endpoint}")),
            None => Ok(()),
        }
    }
}

/// The options of the command line.
pub fn arguments() -> [Arg; 9] {
    let value = |id: &'static str, name: &'static str| Arg::new(id).long(id).value_name(name);
    let flag = |id: &'static str| Arg::new(id).long(id).action(ArgAction::SetTrue);
    let parse_number = || OsStringValueParser::new().try_map(|text| number(&text));
    [
        value("backlog", "N")
            .short('b')
            .value_parser(parse_number())
            .help("Clients that wait to be accepted at most [default: 4096]"),
        value("mode", "MODE")
            .value_parser(|text: &str| Mode::read(text))
            .help("Mode of the file, such as 0660 [default: 0666]"),
        value("owner", "USER[:GROUP]")
            .value_parser(|text: &str| Owner::read(text))
            .help("Owner of the file"),
        flag("nonblock").help("Set O_NONBLOCK, for programs that expect it, as nginx does"),
        flag("reuseport").help("Let others listen on the same address (SO_REUSEPORT)"),
        flag("ipv6only").help("No IPv4 by way of [::]"),
        value("fastopen", "N")
            .value_parser(parse_number())
            .help("TCP Fast Open, with N unfinished handshakes at most"),
        flag("freebind").help("The address need not be there yet (IP_FREEBIND)"),
        value("device", "NAME").help("Only what comes over this interface (SO_BINDTODEVICE)"),
    ]
}

/// The same as a table of a configuration file, with its address and identifier.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketTable {
    pub id: String,
    pub address: String,
    backlog: Option<u32>,
    #[serde(default)]
    reuseport: bool,
    #[serde(default)]
    ipv6only: bool,
    fastopen: Option<u32>,
    #[serde(default)]
    freebind: bool,
    device: Option<String>,
    mode: Option<String>,
    owner: Option<String>,
    #[serde(default)]
    nonblock: bool,
}

impl SocketTable {
    /// # Errors
    ///
    /// Which value is none.
    pub fn options(&self) -> Result<EndpointOptions, String> {
        let mode = self.mode.as_deref().map(Mode::read).transpose();
        let owner = self.owner.as_deref().map(Owner::read).transpose();
        Ok(EndpointOptions {
            backlog: self.backlog,
            reuseport: self.reuseport,
            ipv6only: self.ipv6only,
            fastopen: self.fastopen,
            freebind: self.freebind,
            device: self.device.clone(),
            mode: mode.map_err(|problem| format!("mode: {problem}"))?,
            owner: owner.map_err(|problem| format!("owner: {problem}"))?,
            nonblock: self.nonblock,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_for_another_kind_are_refused() {
        let suits = |options: EndpointOptions, text: &str| options.suit(&text.parse().unwrap());
        let mode = || EndpointOptions { mode: Some(Mode(0o600)), ..EndpointOptions::default() };
        assert_eq!(suits(mode(), "unix:/x"), Ok(()));
        assert_eq!(
            suits(mode(), "tcp:1.2.3.4:5").unwrap_err(),
            "mode is for unix and fifo with a path, not for tcp:1.2.3.4:5"
        );
        assert!(suits(mode(), "unix:@x").is_err());
        let only = || EndpointOptions { ipv6only: true, ..EndpointOptions::default() };
        assert_eq!(suits(only(), "udp:[::]:5"), Ok(()));
        assert!(suits(only(), "udp:1.2.3.4:5").is_err());
        let backlog = || EndpointOptions { backlog: Some(5), ..EndpointOptions::default() };
        assert_eq!(suits(backlog(), "unix-seqpacket:/x"), Ok(()));
        assert!(suits(backlog(), "unix-dgram:/x").is_err());
        assert!(suits(backlog(), "udp:1.2.3.4:5").is_err());
    }

    #[test]
    fn modes_and_owners_are_read() {
        assert_eq!(Mode::read("0660"), Ok(Mode(0o660)));
        assert_eq!(Mode::read("7"), Ok(Mode(7)));
        for text in ["", "+7", "0x7", "888", "1777", "rw"] {
            assert!(Mode::read(text).is_err(), "{text}");
        }
        assert_eq!(Owner::read("root"), Ok(Owner(User { uid: 0, gid: 0 })));
        assert_eq!(Owner::read("5"), Ok(Owner(User { uid: 5, gid: 5 })));
        assert_eq!(Owner::read("5:root"), Ok(Owner(User { uid: 5, gid: 0 })));
        assert!(Owner::read("nobody-of-that-name").unwrap_err().contains("/etc/passwd"));
        assert!(Owner::read("0:nobody-of-that-name").unwrap_err().contains("/etc/group"));
    }
}
