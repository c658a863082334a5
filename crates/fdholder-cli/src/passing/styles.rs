//! How the environment tells a program of descriptors: the conventions of the programs that read it.

use super::addresses::{address_of, fpm_key, puma_url, starter_key, Address, NamingError};
use super::{usage, Passed, FIRST};
use crate::failure::Failure;
use crate::look::describe::describe;
use clap::builder::PossibleValue;
use clap::ValueEnum;
use fdholder::environ::{self, Variable};
use fdholder::{Entry, Identifier, Limit};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

/// How the environment tells of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvStyle {
    /// `sd_listen_fds(3)`.
    Systemd,
    Nginx,
    Angie,
    Einhorn,
    /// `Server::Starter` of Perl, and what took it over (h2o, Starlet).
    ServerStarter,
    Unicorn,
    Puma,
    PhpFpm,
    /// What `getdump` sets, and `setdump` reads.
    S6,
    UvicornFd,
}

impl ValueEnum for EnvStyle {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Systemd,
            Self::Nginx,
            Self::Angie,
            Self::Einhorn,
            Self::ServerStarter,
            Self::Unicorn,
            Self::Puma,
            Self::PhpFpm,
            Self::S6,
            Self::UvicornFd,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Systemd => "LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID",
            Self::Nginx => "NGINX=3;4;",
            Self::Angie => "ANGIE=3;4;",
            Self::Einhorn => "EINHORN_FD_COUNT and EINHORN_FD_i",
            Self::ServerStarter => "SERVER_STARTER_PORT=80=3;/run/web=4 and its GENERATION",
            Self::Unicorn => "UNICORN_FD=3,4",
            Self::Puma => "PUMA_INHERIT_0=3:tcp://[::1]:80 and so on, as bind says it",
            Self::PhpFpm => "FPM_SOCKETS=127.0.0.1:9000=3,/run/fpm=4, as listen says it",
            Self::S6 => "S6_FD#, S6_FD_i and S6_FDID_i, as getdump does",
            Self::UvicornFd => "UVICORN_FD, of one descriptor",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl EnvStyle {
    fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Nginx => "nginx",
            Self::Angie => "angie",
            Self::Einhorn => "einhorn",
            Self::ServerStarter => "server-starter",
            Self::Unicorn => "unicorn",
            Self::Puma => "puma",
            Self::PhpFpm => "php-fpm",
            Self::S6 => "s6",
            Self::UvicornFd => "uvicorn-fd",
        }
    }

    /// Whether PROG gets this variable in this style, or none: one that is inherited would be taken
    /// for ours.
    pub fn replaces(self, variable: &str) -> bool {
        match self {
            Self::ServerStarter => variable == PORT,
            Self::Unicorn => variable == "UNICORN_FD",
            Self::Puma => variable.starts_with("PUMA_INHERIT_"),
            Self::PhpFpm => variable.starts_with("FPM_SOCKETS"),
            _ => is_for_others(variable),
        }
    }
}

/// Variables whose descriptors are never passed on by themselves.
const OTHERS: [&str; 7] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NGINX",
    "ANGIE",
    "UVICORN_FD",
];

const PORT: &str = "SERVER_STARTER_PORT";

const GENERATION: &str = "SERVER_STARTER_GENERATION";

/// Whether a variable tells of descriptors that were meant for somebody else.
pub fn is_for_others(name: &str) -> bool {
    OTHERS.contains(&name) || name.starts_with("EINHORN_") || name.starts_with("S6_FD")
}

/// Whether a variable tells of descriptors that stay open, if they are: see `kept.rs`. If they are
/// not, it was meant for somebody else.
pub fn is_of_servers(name: &str) -> bool {
    const STYLES: [EnvStyle; 4] =
        [EnvStyle::ServerStarter, EnvStyle::Unicorn, EnvStyle::Puma, EnvStyle::PhpFpm];
    STYLES.iter().any(|style| style.replaces(name))
}

/// The processes that variables tell of.
#[derive(Debug, Clone, Copy)]
pub struct Pids {
    /// The one that is to take the descriptors; `None`: whichever finds the variables.
    pub own: Option<u32>,
    pub parent: u32,
}

/// What the environment says of descriptors that have these numbers. Standard streams are known
/// without it.
///
/// # Errors
///
/// When the style cannot say it.
pub fn variables<F: AsFd>(
    passed: &[Passed<F>],
    numbers: &[u32],
    style: EnvStyle,
    pids: Pids,
) -> Result<Vec<Variable>, Failure> {
    let mut variables: Vec<Variable> = OTHERS.iter().map(|&name| (name.to_owned(), None)).collect();
    let listed = passed.iter().zip(numbers.iter().copied());
    let mut listed: Vec<(&Passed<F>, u32)> =
        listed.filter(|(_, number)| *number >= FIRST).collect();
    if style == EnvStyle::Systemd {
        // One whose number was asked for is known by it.
        listed.retain(|(one, _)| one.number.is_none());
    }
    if listed.is_empty() && style != EnvStyle::S6 {
        return Ok(variables);
    }
    let mut set = |name: &str, value: Vec<u8>| {
        variables.push((name.to_owned(), Some(OsString::from_vec(value))));
    };
    let joined = |separator: &str| {
        let numbers: Vec<_> = listed.iter().map(|(_, number)| number.to_string()).collect();
        numbers.join(separator)
    };
    match style {
        EnvStyle::Systemd => {
            let names: Vec<_> = listed.iter().map(|(one, _)| one.name.as_str()).collect();
            set("LISTEN_FDS", names.len().to_string().into());
            set("LISTEN_FDNAMES", names.join(":").into());
            if let Some(pid) = pids.own {
                set("LISTEN_PID", pid.to_string().into());
            }
        }
        EnvStyle::Nginx => set("NGINX", (joined(";") + ";").into()),
        EnvStyle::Angie => set("ANGIE", (joined(";") + ";").into()),
        EnvStyle::Einhorn => {
            set("EINHORN_FD_COUNT", listed.len().to_string().into());
            // Its workers check that their parent is the master.
            set("EINHORN_MASTER_PID", pids.parent.to_string().into());
            for (index, (_, number)) in listed.iter().enumerate() {
                set(&format!("EINHORN_FD_{index}"), number.to_string().into());
            }
        }
        EnvStyle::ServerStarter => {
            set(PORT, entries(&listed, style, starter_key)?.join(&b';'));
            // One from outside counts on.
            if std::env::var_os(GENERATION).is_none() {
                set(GENERATION, b"1".to_vec());
            }
        }
        EnvStyle::Unicorn => set("UNICORN_FD", joined(",").into()),
        EnvStyle::Puma => {
            for (index, value) in entries(&listed, style, puma_url)?.into_iter().enumerate() {
                set(&format!("PUMA_INHERIT_{index}"), value);
            }
        }
        EnvStyle::PhpFpm => set("FPM_SOCKETS", entries(&listed, style, fpm_key)?.join(&b',')),
        EnvStyle::S6 => {
            let entry = |(one, fd): &(&Passed<F>, u32)| Entry {
                id: one.id.clone(),
                limit: Limit::never(),
                fd: *fd,
            };
            let entries: Vec<_> = listed.iter().map(entry).collect();
            variables.extend(environ::variables(&entries));
        }
        EnvStyle::UvicornFd => {
            let [(_, number)] = listed[..] else {
                let count = listed.len();
                return Err(usage(format_args!("uvicorn takes one descriptor, not {count}")));
            };
            set("UVICORN_FD", number.to_string().into());
        }
    }
    Ok(variables)
}

/// What a style that names addresses says of each.
///
/// # Errors
///
/// Which descriptor has none that the style could name.
fn entries<F: AsFd>(
    listed: &[(&Passed<F>, u32)],
    style: EnvStyle,
    key_of: fn(&Address) -> Result<Vec<u8>, NamingError>,
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut keys: Vec<(Vec<u8>, bool, &Identifier)> = Vec::new();
    let mut values = Vec::new();
    for (Passed { fd, id, .. }, number) in listed {
        let refused = |why: NamingError| {
            let (style, what) = (style.name(), describe(fd));
            usage(format_args!("--env-style {style} cannot name {id} ({what}): {why}"))
        };
        let address = address_of(fd.as_fd()).map_err(refused)?;
        if !address.is_stream_listener && style != EnvStyle::ServerStarter {
            return Err(refused(NamingError::NoStreamListener));
        }
        let key = key_of(&address).map_err(refused)?;
        let is_same = |(other, is_stream, _): &&(Vec<u8>, bool, _)| {
            *other == key && *is_stream == address.is_stream_listener
        };
        if let Some((_, _, other)) = keys.iter().find(is_same) {
            return Err(refused(NamingError::Twice((*other).clone())));
        }
        let number = number.to_string().into_bytes();
        values.push(match style {
            EnvStyle::Puma => [&number, &b":"[..], &key].concat(),
            _ => [&key, &b"="[..], &number].concat(),
        });
        keys.push((key, address.is_stream_listener, id));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::super::stand_in;
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn passed(wanted: Vec<(&str, Option<u32>, OwnedFd)>) -> Vec<Passed<OwnedFd>> {
        let one = |(id, number, fd): (&str, Option<u32>, OwnedFd)| Passed {
            fd,
            id: Identifier::new(id).unwrap(),
            name: stand_in(id.as_bytes()),
            is_named: false,
            number,
        };
        wanted.into_iter().map(one).collect()
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn nulls(wanted: &[(&str, Option<u32>)]) -> Vec<Passed<OwnedFd>> {
        passed(wanted.iter().map(|(id, number)| (*id, *number, null())).collect())
    }

    const PIDS: Pids = Pids { own: Some(17), parent: 16 };

    fn set(variables: Vec<Variable>) -> Vec<String> {
        let text = |(name, value): Variable| {
            value.map(|value| format!("{name}={}", value.to_str().unwrap()))
        };
        variables.into_iter().filter_map(text).collect()
    }

    #[test]
    fn every_style_says_it_in_its_own_way() {
        let wanted = nulls(&[("web", None), ("tcp:80", None)]);
        let say = |style| set(variables(&wanted, &[3, 4], style, PIDS).unwrap());
        assert_eq!(
            say(EnvStyle::Systemd),
            ["LISTEN_FDS=2", "LISTEN_FDNAMES=web:tcp%3A80", "LISTEN_PID=17"]
        );
        assert_eq!(say(EnvStyle::Nginx), ["NGINX=3;4;"]);
        assert_eq!(say(EnvStyle::Angie), ["ANGIE=3;4;"]);
        assert_eq!(say(EnvStyle::Unicorn), ["UNICORN_FD=3,4"]);
        assert_eq!(
            say(EnvStyle::Einhorn),
            ["EINHORN_FD_COUNT=2", "EINHORN_MASTER_PID=16", "EINHORN_FD_0=3", "EINHORN_FD_1=4"]
        );
        assert_eq!(
            say(EnvStyle::S6),
            ["S6_FD#=2", "S6_FD_0=3", "S6_FDID_0=web", "S6_FD_1=4", "S6_FDID_1=tcp:80"]
        );
        assert!(variables(&wanted, &[3, 4], EnvStyle::UvicornFd, PIDS).is_err());
        let one = variables(&wanted[..1], &[3], EnvStyle::UvicornFd, PIDS).unwrap();
        assert_eq!(set(one), ["UVICORN_FD=3"]);
    }

    #[test]
    fn styles_with_addresses_ask_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web");
        let (v4, any) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("0.0.0.0:0"));
        let (v4, any) = (v4.unwrap(), any.unwrap());
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let [v4_port, any_port, v6_port] =
            [&v4, &any, &v6].map(|it| it.local_addr().unwrap().port());
        let wanted = passed(vec![
            ("v4", None, v4.into()),
            ("any", Some(12), any.into()),
            ("v6", None, v6.into()),
            ("unix", None, unix.into()),
        ]);
        let say = |style| set(variables(&wanted, &[3, 12, 4, 5], style, PIDS).unwrap());
        let path = path.display();
        assert_eq!(
            say(EnvStyle::ServerStarter),
            [
                format!(
                    "SERVER_STARTER_PORT=127.0.0.1:{v4_port}=3;{any_port}=12;[::1]:{v6_port}=4;\
                     {path}=5"
                ),
                "SERVER_STARTER_GENERATION=1".to_owned()
            ]
        );
        assert_eq!(
            say(EnvStyle::Puma),
            [
                format!("PUMA_INHERIT_0=3:tcp://127.0.0.1:{v4_port}"),
                format!("PUMA_INHERIT_1=12:tcp://0.0.0.0:{any_port}"),
                format!("PUMA_INHERIT_2=4:tcp://[::1]:{v6_port}"),
                format!("PUMA_INHERIT_3=5:unix://{path}"),
            ]
        );
        let fpm = format!(
            "FPM_SOCKETS=127.0.0.1:{v4_port}=3,0.0.0.0:{any_port}=12,::1:{v6_port}=4,{path}=5"
        );
        assert_eq!(say(EnvStyle::PhpFpm), [fpm]);
    }

    #[test]
    fn what_a_style_cannot_name_is_an_error_with_the_id() {
        let folder = tempfile::tempdir().unwrap();
        let unix = |name: &str| -> OwnedFd {
            UnixListener::bind(folder.path().join(name)).unwrap().into()
        };
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let same = tcp.try_clone().unwrap();
        let udp = || -> OwnedFd { UdpSocket::bind("127.0.0.1:0").unwrap().into() };
        let unbound: OwnedFd = UnixDatagram::unbound().unwrap().into();
        let [starter, puma, fpm] = [EnvStyle::ServerStarter, EnvStyle::Puma, EnvStyle::PhpFpm];
        for (styles, fd, says) in [
            (&[starter, puma, fpm][..], null(), "(device /dev/null): it is no socket"),
            (&[starter, puma, fpm], unbound, "it has no address"),
            (&[puma, fpm], udp(), "it is no stream socket that listens"),
            (&[starter], unix("a;b"), "its path has a ;"),
            (&[starter, fpm], unix("a=b"), "its path has a ="),
            (&[fpm], unix("a:b"), "its path has a :"),
            (&[fpm], unix("a,b"), "its path has a ,"),
            (&[puma], unix("a?b"), "its path has a ?"),
            (&[starter, puma, fpm], same.into(), "web has the same address"),
        ] {
            for style in styles {
                let tcp = tcp.try_clone().unwrap();
                let wanted =
                    passed(vec![("web", None, tcp.into()), ("odd", None, fd.try_clone().unwrap())]);
                let failure = variables(&wanted, &[3, 4], *style, PIDS).unwrap_err().to_string();
                let begin = format!("--env-style {} cannot name odd (", style.name());
                assert!(failure.starts_with(&begin) && failure.ends_with(says), "{failure}");
            }
        }
        let udp = passed(vec![("dns", None, udp())]);
        assert_eq!(set(variables(&udp, &[3], starter, PIDS).unwrap()).len(), 2);
    }

    /// Standard streams are counted by no style, and need no address.
    #[test]
    fn standard_streams_are_not_told() {
        let wanted = nulls(&[("in", Some(0)), ("out", Some(1)), ("err", Some(2))]);
        for style in EnvStyle::value_variants() {
            let said = set(variables(&wanted, &[0, 1, 2], *style, PIDS).unwrap());
            let expected: &[&str] = if *style == EnvStyle::S6 { &["S6_FD#=0"] } else { &[] };
            assert_eq!(said, expected, "{style:?}");
        }
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = passed(vec![("in", Some(0), null()), ("web", None, tcp.into())]);
        for style in EnvStyle::value_variants() {
            let both = variables(&wanted, &[0, 3], *style, PIDS).unwrap();
            assert_eq!(both, variables(&wanted[1..], &[3], *style, PIDS).unwrap(), "{style:?}");
        }
    }

    #[test]
    fn a_number_that_was_asked_for_is_not_counted_by_systemd() {
        let wanted = nulls(&[("a", None), ("b", Some(10))]);
        let pids = Pids { own: None, ..PIDS };
        let said = variables(&wanted, &[3, 10], EnvStyle::Systemd, pids).unwrap();
        assert_eq!(set(said), ["LISTEN_FDS=1", "LISTEN_FDNAMES=a"]);
    }

    #[test]
    fn what_was_meant_for_others_is_unset() {
        let said = variables(&nulls(&[("a", None)]), &[3], EnvStyle::Nginx, PIDS).unwrap();
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "ANGIE"] {
            assert!(said.contains(&(name.to_owned(), None)), "{name}");
        }
    }

    #[test]
    fn variables_of_servers_are_known() {
        for name in ["SERVER_STARTER_PORT", "UNICORN_FD", "PUMA_INHERIT_7", "FPM_SOCKETS_1"] {
            assert!(is_of_servers(name) && !is_for_others(name), "{name}");
        }
        for name in ["SERVER_STARTER_GENERATION", "GUNICORN_FD", "PUMA_WORKERS", "PORT"] {
            assert!(!is_of_servers(name) && !is_for_others(name), "{name}");
        }
    }
}
