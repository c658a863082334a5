//! How an endpoint is opened.

use super::table::{find, Kind, Reading, Row, ROWS};
use super::Endpoint;
use crate::options::number;
use crate::program::Invocation;
use crate::users::read_owner;
use clap::{Arg, ArgAction};
use fdholder::Identifier;
use fdholder_daemon::access::User;
use fdholder_daemon::notify::service_of;
use rustix::fs::Stat;
use rustix::process::geteuid;
use std::collections::BTreeMap;

/// What was said of an endpoint beside its address, by the name of the option. By default it is
/// what services expect: a listener that waits in accept(2), and the system's values for the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointOptions(BTreeMap<&'static str, Value>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Flag(bool),
    /// Also a size, in bytes.
    Number(u32),
    Mode(Mode),
    Owner(User),
    Name(String),
    /// It was said before, and is no longer: the system's value.
    Unset,
}

/// The mode of a file, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

/// The opposite of `nonblock`.
const BLOCKING: &str = "blocking";

/// An interface has a shorter name than this: `IFNAMSIZ`.
const INTERFACE_NAME_LEN: usize = 16;

impl Mode {
    pub fn read(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        mode.filter(|_| digits).map(Self).ok_or_else(|| "it is not a mode such as 0660".to_owned())
    }
}

impl Value {
    fn read(kind: Kind, text: &str) -> Result<Self, String> {
        match kind {
            Kind::Flag => match text {
                "true" => Ok(Self::Flag(true)),
                "false" => Ok(Self::Flag(false)),
                _ => Err("it is true or false".to_owned()),
            },
            Kind::Number(least, most) => {
                let value = integer(text).filter(|value| (least..=most).contains(value));
                value
                    .map(Self::Number)
                    .ok_or_else(|| format!("it is not a number from {least} to {most}"))
            }
            Kind::Size => size(text)
                .map(Self::Number)
                .ok_or_else(|| "it is not a size such as 65536, 64K or 8M".to_owned()),
            Kind::Tos => tos(text).map(Self::Number).ok_or_else(|| {
                "it is not 0 to 255, low-delay, throughput, reliability or low-cost".to_owned()
            }),
            Kind::Mode => Mode::read(text).map(Self::Mode),
            Kind::Owner => read_owner(text).map(Self::Owner),
            Kind::Name if (1..INTERFACE_NAME_LEN).contains(&text.len()) => {
                Ok(Self::Name(text.to_owned()))
            }
            Kind::Name => Err("it is not the name of an interface".to_owned()),
        }
    }

    fn of_toml(kind: Kind, value: &toml::Value) -> Result<Self, String> {
        match (kind, value) {
            (Kind::Flag, toml::Value::Boolean(on)) => Ok(Self::Flag(*on)),
            (Kind::Flag, _) => Err("it is true or false".to_owned()),
            (Kind::Number(..) | Kind::Size | Kind::Tos, toml::Value::Integer(value)) => {
                Self::read(kind, &value.to_string())
            }
            (Kind::Number(..), _) => Self::read(kind, ""),
            (_, toml::Value::String(text)) => Self::read(kind, text),
            _ => Err("it is no text".to_owned()),
        }
    }

    /// As the kernel has it; `None` for the system's value.
    pub fn reading(&self, row: &Row) -> Option<Reading> {
        Some(match self {
            Self::Flag(on) => Reading::Int((*on).into()),
            // It has both signs there.
            Self::Number(value) if row.name == "mark" => Reading::Int(value.cast_signed()),
            Self::Number(value) => {
                let value = i32::try_from(*value).unwrap_or(i32::MAX);
                // It is read doubled.
                let factor = if row.value == Kind::Size { 2 } else { 1 };
                Reading::Int(value.saturating_mul(factor))
            }
            Self::Name(name) => Reading::Name(Some(name.clone())),
            Self::Mode(_) | Self::Owner(_) | Self::Unset => return None,
        })
    }
}

fn integer(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => number(text).ok(),
    }
}

/// Half of what an int can be, as the kernel doubles it.
fn size(text: &str) -> Option<u32> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) if text.ends_with('M') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text, 1),
    };
    let bytes = number(digits).ok()?.checked_mul(unit)?;
    (1..=i32::MAX as u32 / 2).contains(&bytes).then_some(bytes)
}

/// As in systemd.socket(5).
fn tos(text: &str) -> Option<u32> {
    match text {
        "low-delay" => Some(0x10),
        "throughput" => Some(0x08),
        "reliability" => Some(0x04),
        "low-cost" => Some(0x02),
        _ => integer(text).filter(|value| *value <= 255),
    }
}

impl EndpointOptions {
    /// What the command line says.
    pub fn of(invocation: &Invocation) -> Self {
        let mut options = Self::default();
        for row in &ROWS {
            let value = match row.value {
                Kind::Flag => invocation.matches.get_flag(row.name).then_some(Value::Flag(true)),
                _ => invocation.optional(row.name),
            };
            options.0.extend(value.map(|value| (row.name, value)));
        }
        if invocation.matches.get_flag(BLOCKING) {
            options.0.insert("nonblock", Value::Flag(false));
        }
        options
    }

    /// What a table of a configuration file says.
    ///
    /// # Errors
    ///
    /// Which key is unknown or wrong. `suggest` gets an unknown one, and all that there are by
    /// the names that they have here and in systemd.
    pub fn of_toml(
        table: &toml::Table,
        suggest: impl FnOnce(&str, &[(&str, &'static str)]) -> String,
    ) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in table {
            let Some(row) = find(key) else {
                let known =
                    ROWS.iter().flat_map(|row| [(row.name, row.name), (row.systemd, row.name)]);
                return Err(suggest(key, &known.collect::<Vec<_>>()));
            };
            let value =
                Value::of_toml(row.value, value).map_err(|problem| format!("{key}: {problem}"))?;
            if options.0.insert(row.name, value).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        Ok(options)
    }

    /// What words say: `nonblock`, `backlog=5`.
    ///
    /// # Errors
    ///
    /// Which word is unknown or wrong. `suggest` gets an unknown one, and all that there are.
    pub fn of_words(
        words: &[(&str, Option<&str>)],
        suggest: impl FnOnce(&str, &[(&str, &'static str)]) -> String,
    ) -> Result<Self, String> {
        let mut options = Self::default();
        for &(word, value) in words {
            let (name, value) = if word == BLOCKING {
                if value.is_some() {
                    return Err(format!("{word} takes no value"));
                }
                ("nonblock", Value::Flag(false))
            } else {
                let Some(row) = find(word) else {
                    let known = ROWS.iter().map(|row| row.name).chain([BLOCKING]);
                    return Err(suggest(word, &known.map(|name| (name, name)).collect::<Vec<_>>()));
                };
                let value = match (row.value, value) {
                    (Kind::Flag, None) => Ok(Value::Flag(true)),
                    (kind, None) => Err(format!("it takes a value, {word}={}", value_name(kind))),
                    (kind, Some(value)) => Value::read(kind, value),
                };
                (row.name, value.map_err(|problem| format!("{word}: {problem}"))?)
            };
            match options.0.insert(name, value) {
                Some(Value::Flag(before)) if options.get(name) != Some(&Value::Flag(before)) => {
                    return Err(format!("{name} is both on and off"));
                }
                Some(_) => return Err(format!("{name} is there twice")),
                None => {}
            }
        }
        Ok(options)
    }

    /// The same for what is held under an identifier: the notify socket of a service tells who
    /// sends, or the holder would ignore all senders.
    #[must_use]
    pub fn held_under(mut self, id: &Identifier, endpoint: &Endpoint) -> Self {
        if matches!(endpoint, Endpoint::Unix { .. }) && service_of(id).is_some() {
            self.0.entry("passcred").or_insert(Value::Flag(true));
        }
        self
    }

    /// What was said of an option, if anything.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some(&Value::Flag(true))
    }

    pub fn number(&self, name: &str) -> Option<u32> {
        match self.get(name) {
            Some(Value::Number(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn mode(&self) -> Option<Mode> {
        match self.get("mode") {
            Some(Value::Mode(mode)) => Some(*mode),
            _ => None,
        }
    }

    pub fn owner(&self) -> Option<User> {
        match self.get("owner") {
            Some(Value::Owner(owner)) => Some(*owner),
            _ => None,
        }
    }

    /// The same, with `O_NONBLOCK` set or cleared; `None` when the opposite is said.
    pub fn with_nonblock(&self, on: bool) -> Option<Self> {
        let mut all = self.clone();
        let said = all.0.entry("nonblock").or_insert(Value::Flag(on)).clone();
        (said == Value::Flag(on)).then_some(all)
    }

    /// The same, with others on the same address.
    #[must_use]
    pub fn with_reuseport(&self) -> Self {
        let mut all = self.clone();
        all.0.insert("reuseport", Value::Flag(true));
        all
    }

    /// The same, with the mode and owner that a file has where none was said; an owner that this
    /// process cannot give is left out.
    #[must_use]
    pub fn as_file(&self, file: &Stat) -> Self {
        let mut all = self.clone();
        all.0.entry("mode").or_insert(Value::Mode(Mode(file.st_mode & 0o777)));
        let owner = User { uid: file.st_uid, gid: file.st_gid };
        if geteuid().is_root() && owner != User::this_process() {
            all.0.entry("owner").or_insert(Value::Owner(owner));
        }
        all
    }

    /// The same, where what was said before and is not said now has the system's value again.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        let mut all = self.clone();
        for name in before.0.keys() {
            all.0.entry(name).or_insert(Value::Unset);
        }
        all
    }

    /// Whether all that is said is for this kind of endpoint.
    ///
    /// # Errors
    ///
    /// What is not.
    pub fn suit(&self, endpoint: &Endpoint) -> Result<(), String> {
        self.suit_one_of(&[endpoint])
    }

    /// Whether each that is said is for one of these endpoints; the others are without it.
    ///
    /// # Errors
    ///
    /// What is not.
    pub fn suit_one_of(&self, endpoints: &[&Endpoint]) -> Result<(), String> {
        let suits_none = |row: &&Row| !endpoints.iter().any(|endpoint| row.suits(endpoint));
        let mut said = ROWS.iter().filter(|row| self.0.contains_key(row.name));
        match (said.find(suits_none), endpoints.first()) {
            (Some(row), Some(endpoint)) => Err(row.does_not_suit(endpoint)),
            _ => Ok(()),
        }
    }
}

/// The options of the command line.
pub fn arguments() -> Vec<Arg> {
    let mut arguments = Vec::with_capacity(ROWS.len() + 1);
    for row in &ROWS {
        let argument = Arg::new(row.name).long(row.name).help(row.help);
        let argument = if row.name == "backlog" { argument.short('b') } else { argument };
        arguments.push(match row.value {
            Kind::Flag => argument.action(ArgAction::SetTrue),
            kind => argument
                .value_name(value_name(kind))
                .allow_hyphen_values(matches!(kind, Kind::Number(..)))
                .value_parser(move |text: &str| Value::read(kind, text)),
        });
        if row.name == "nonblock" {
            arguments.push(
                Arg::new(BLOCKING)
                    .long(BLOCKING)
                    .action(ArgAction::SetTrue)
                    .conflicts_with("nonblock")
                    .help("Clear it, even when a running program has the socket"),
            );
        }
    }
    arguments
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Flag | Kind::Number(..) => "N",
        Kind::Size => "BYTES",
        Kind::Tos => "TOS",
        Kind::Mode => "MODE",
        Kind::Owner => "USER[:GROUP]",
        Kind::Name => "NAME",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options that a text of TOML says.
    pub fn options(text: &str) -> EndpointOptions {
        EndpointOptions::of_toml(&text.parse().unwrap(), |key, _| panic!("{key}")).unwrap()
    }

    #[test]
    fn option_for_another_kind_is_refused() {
        let suits = |said: &str, text: &str| options(said).suit(&text.parse().unwrap());
        assert_eq!(suits("mode = '0600'", "unix:/x"), Ok(()));
        assert_eq!(
            suits("mode = '0600'", "tcp:1.2.3.4:5").unwrap_err(),
            "mode is for unix and fifo with a path, not for tcp:1.2.3.4:5"
        );
        for (said, fits, does_not) in [
            ("mode = '0600'", "fifo:/x", "unix:@x"),
            ("ipv6only = true", "udp:[::]:5", "udp:1.2.3.4:5"),
            ("ipv6only = true", "mptcp:[::]:5", "tcp:[::1]:5"),
            ("backlog = 5", "unix-seqpacket:/x", "unix-dgram:/x"),
            ("backlog = 5", "vsock::5", "udp:1.2.3.4:5"),
            ("nodelay = true", "mptcp:1.2.3.4:5", "udp:1.2.3.4:5"),
            ("pktinfo = true", "udp:[::1]:5", "tcp:1.2.3.4:5"),
            ("passcred = true", "unix-dgram:/x", "tcp:1.2.3.4:5"),
            ("receive-buffer = 5", "unix:@x", "fifo:/x"),
            ("nonblock = true", "vsock:2:5", "memfd:x"),
        ] {
            assert_eq!(suits(said, fits), Ok(()), "{said} {fits}");
            assert!(suits(said, does_not).is_err(), "{said} {does_not}");
        }
    }

    #[test]
    fn values_are_read_or_refused() {
        for (kind, text, value) in [
            (Kind::Number(0, u32::MAX), "0x1f", Some(31)),
            (Kind::Number(0, u32::MAX), "4294967295", Some(u32::MAX)),
            (Kind::Number(1, 255), "0", None),
            (Kind::Number(0, 5), "-1", None),
            (Kind::Number(0, 5), "0x+1", None),
            (Kind::Size, "64K", Some(65536)),
            (Kind::Size, "2M", Some(2 << 20)),
            (Kind::Size, "1G", None),
            (Kind::Size, "0", None),
            (Kind::Size, "K", None),
            (Kind::Tos, "low-delay", Some(16)),
            (Kind::Tos, "256", None),
        ] {
            assert_eq!(Value::read(kind, text).ok(), value.map(Value::Number), "{text}");
        }
        assert_eq!(Value::read(Kind::Mode, "0660"), Ok(Value::Mode(Mode(0o660))));
        for text in ["", "+7", "0x7", "888", "1777", "rw"] {
            assert!(Mode::read(text).is_err(), "{text}");
        }
        assert!(Value::read(Kind::Name, "an-interface-that-long").is_err());
        assert!(Value::of_toml(Kind::Flag, &toml::Value::Integer(1)).is_err());
        assert!(Value::of_toml(Kind::Mode, &toml::Value::Integer(0o600)).is_err());
    }

    #[test]
    fn option_that_is_no_longer_said_is_unset() {
        let before = options("nonblock = true\nbacklog = 5");
        let after = options("backlog = 6").after(&before);
        assert_eq!(after.get("nonblock"), Some(&Value::Unset));
        assert_eq!(after.number("backlog"), Some(6));
    }

    #[test]
    fn names_of_options_are_distinct() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
