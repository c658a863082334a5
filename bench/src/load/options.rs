//! The command line of `fdholder-bench load`.

use crate::load::pace::Pace;
use crate::Result;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

pub const USAGE: &str = "\
usage: fdholder-bench load ADDRESS [--path PATH] [--rate N] [--seconds N] [--timeout N]
                           [--until-stdin-ends]
       fdholder-bench load ADDRESS --connections N --requests N [--path PATH] [--timeout N]
Send GET requests to ADDRESS (127.0.0.1:8080), each on a connection of its own.
The first form sends --rate a second [500] for --seconds [60]; latency counts from the moment
when a request was due. The second sends the next request when one of --connections is free.
--timeout N          a request that takes more than N seconds has failed [30]
--until-stdin-ends   stop before that when standard input, a pipe, is closed
Prints one line of JSON; times are in microseconds.";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub address: SocketAddr,
    pub path: String,
    pub pace: Pace,
    pub timeout: Duration,
    pub until_stdin_ends: bool,
}

impl Options {
    /// Reads the command line; `None` when only help is wanted.
    pub fn parse(arguments: &[OsString]) -> Result<Option<Self>> {
        let mut address = None;
        let mut path = "/".to_owned();
        let (mut rate, mut seconds, mut timeout) = (500, 60, 30);
        let (mut connections, mut requests) = (None, None);
        let mut until_stdin_ends = false;
        let mut arguments = arguments.iter().map(|it| it.to_str().unwrap_or_default());
        while let Some(argument) = arguments.next() {
            let value = &mut arguments;
            match argument {
                "--help" | "-h" => return Ok(None),
                "--path" => path = number(argument, value)?,
                "--rate" => rate = number(argument, value)?,
                "--seconds" => seconds = number(argument, value)?,
                "--timeout" => timeout = number(argument, value)?,
                "--connections" => connections = Some(number(argument, value)?),
                "--requests" => requests = Some(number(argument, value)?),
                "--until-stdin-ends" => until_stdin_ends = true,
                _ if address.is_none() => address = Some(argument.parse()?),
                _ => return Err(format!("'{argument}' is not an option\n{USAGE}").into()),
            }
        }
        let pace = match (connections, requests) {
            (None, None) if rate > 0 => Pace::open(rate, seconds),
            (Some(connections), Some(requests)) => Pace::Closed { connections, requests },
            (None, None) => return Err("--rate must not be 0".into()),
            _ => return Err("--connections and --requests need each other".into()),
        };
        let address = address.ok_or("missing ADDRESS")?;
        let timeout = Duration::from_secs(timeout);
        Ok(Some(Self { address, path, pace, timeout, until_stdin_ends }))
    }
}

fn number<'a, T: FromStr>(option: &str, rest: &mut impl Iterator<Item = &'a str>) -> Result<T> {
    let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
    value.parse().map_err(|_| format!("{option}: '{value}' is no such value").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>> {
        Options::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn default_is_an_open_loop_of_500_a_second_for_a_minute() {
        let options = parse("127.0.0.1:80").unwrap().unwrap();
        assert_eq!(options.pace, Pace::open(500, 60));
        assert_eq!(options.timeout, Duration::from_secs(30));
    }

    #[test]
    fn connections_and_requests_make_a_closed_loop() {
        let options = parse("127.0.0.1:80 --connections 10 --requests 99").unwrap().unwrap();
        assert_eq!(options.pace, Pace::Closed { connections: 10, requests: 99 });
        assert!(parse("127.0.0.1:80 --connections 10").is_err());
    }

    #[test]
    fn unknown_or_incomplete_arguments_are_refused() {
        for line in ["", "host:80", "127.0.0.1:80 --rate", "127.0.0.1:80 --rate 0", "[::1]:80 x"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--help").unwrap().is_none());
    }
}
