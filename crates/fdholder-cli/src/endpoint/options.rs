//! How an endpoint is opened.

use super::{Endpoint, UnixAddress, UnixKind};
use crate::options::number;
use crate::program::Invocation;
use crate::users::read_owner;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction};
use fdholder_daemon::access::User;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// What may be said of an endpoint beside its address. By default what services expect: a
/// listener that waits in accept(2), and whatever the system has for the rest.
///
/// In a configuration file these are the names of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
// Each is an option of the kernel's, on or off.
#[allow(clippy::struct_excessive_bools)]
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
    #[serde(deserialize_with = "read_mode")]
    pub mode: Option<Mode>,
    /// The owner of the file.
    #[serde(deserialize_with = "read_user")]
    pub owner: Option<User>,
    /// accept(2) and read(2) do not wait (`O_NONBLOCK`).
    pub nonblock: bool,
}

/// The mode of a file, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Mode {
    pub fn read(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        mode.filter(|_| digits).map(Self).ok_or_else(|| "it is not a mode such as 0660".to_owned())
    }
}

fn read_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mode>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Mode::read(&text).map(Some).map_err(D::Error::custom)
}

fn read_user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<User>, D::Error> {
    let text = String::deserialize(deserializer)?;
    read_owner(&text).map(Some).map_err(D::Error::custom)
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
            .value_parser(|text: &str| read_owner(text))
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
    fn modes_are_read() {
        assert_eq!(Mode::read("0660"), Ok(Mode(0o660)));
        assert_eq!(Mode::read("7"), Ok(Mode(7)));
        for text in ["", "+7", "0x7", "888", "1777", "rw"] {
            assert!(Mode::read(text).is_err(), "{text}");
        }
    }
}
