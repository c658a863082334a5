//! The configuration file of a daemon: TOML.

use crate::commands::Wishes;
use crate::endpoint::{Endpoint, EndpointOptions};
use crate::failure::{exit, Failure};
use crate::similar;
use fdholder::Identifier;
use fdholder_daemon::confinement::advice;
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of a configuration at most: thousands of sockets.
const LEN_MAX: u64 = 1 << 20;

/// What a file says.
#[derive(Debug)]
pub struct Config {
    pub wishes: Wishes,
    pub sockets: Vec<Socket>,
}

/// What is to be open and held from the start.
#[derive(Debug, Clone)]
pub struct Socket {
    pub id: Identifier,
    pub endpoint: Endpoint,
    pub options: EndpointOptions,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Where what is wrong, and what may have been meant.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let file = path.display();
        let text = read(path).map_err(|error| {
            let advice = advice(error.kind());
            let failure = Failure::system(format!("read {file}"), error);
            Failure::new(failure.code(), format_args!("{failure}{advice}"))
        })?;
        Self::parse(&text)
            .map_err(|problem| Failure::new(exit::USAGE, format_args!("{file}{problem}")))
    }

    /// Reads a text. A problem reads behind the name of the file.
    fn parse(text: &str) -> Result<Self, String> {
        let wishes: Wishes = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or_else(String::new, |span| place(text, &span));
            format!("{place}: {}", with_suggestion(error.message()))
        })?;
        if wishes.rules_dir.is_some() && wishes.rules_file.is_some() {
            return Err(": rules_dir and rules_file: rules come from one of them".to_owned());
        }
        let sockets = wishes.sockets.iter().map(|(id, table)| {
            socket(id, table).map_err(|problem| format!(": sockets.\"{id}\": {problem}"))
        });
        let sockets: Vec<_> = sockets.collect::<Result<_, _>>()?;
        let mut seen = HashMap::new();
        for Socket { id, endpoint, options } in &sockets {
            let address = endpoint.to_string();
            let may_be_twice = endpoint.may_be_twice(options);
            if let Some(other) = seen.insert(address, id).filter(|_| !may_be_twice) {
                return Err(format!(": sockets.\"{id}\" has the address of sockets.\"{other}\""));
            }
        }
        Ok(Self { wishes, sockets })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // Something else could keep a daemon waiting that reads it again.
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    file.take(LEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LEN_MAX {
        return Err(std::io::Error::other(format!("it is longer than {LEN_MAX} bytes")));
    }
    Ok(text)
}

fn socket(id: &str, table: &toml::Value) -> Result<Socket, String> {
    let id = Identifier::new(id).map_err(|bad| bad.to_string())?;
    let mut table = table.as_table().cloned().ok_or("it is no table")?;
    let address = table.remove("address").ok_or("it has no address")?;
    let address = address.as_str().ok_or("its address is no text")?;
    let endpoint: Endpoint = address.parse().map_err(|problem| format!("address: {problem}"))?;
    let options = EndpointOptions::of_toml(&table, unknown_key)?;
    options.suit(&endpoint)?;
    let options = options.held_under(&id, &endpoint);
    Ok(Socket { id, endpoint, options })
}

/// Line and column, as compilers tell them.
fn place(text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&letter| letter != '\n').count() + 1;
    format!(":{line}:{column}")
}

/// What serde says of a key that it does not know, `` unknown field `a`, expected one of `b`,
/// `c` ``, for people.
fn with_suggestion(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    if !message.starts_with("unknown field") {
        return message;
    }
    let words: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = words.split_first() else { return message.clone() };
    let known: Vec<_> = known.iter().map(|word| (*word, *word)).collect();
    unknown_key(unknown, &known)
}

fn unknown_key(key: &str, known: &[(&str, &str)]) -> String {
    similar::unknown("key", key, known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_options_do_and_more() {
        let config = Config::parse(
            "path = '/run/holder'\n\
             max_fds = 5\n\
             standby = true\n\
             [sockets.web]\n\
             address = 'tcp:0.0.0.0:80'\n\
             nonblock = true\n\
             [sockets.'log/1']\n\
             address = 'unix-dgram:/run/log'\n\
             mode = '0600'\n\
             owner = 'root'\n",
        )
        .unwrap();
        assert_eq!(config.wishes.max_fds, Some(5));
        let ids: Vec<_> = config.sockets.iter().map(|socket| socket.id.to_string()).collect();
        assert_eq!(ids, ["log/1", "web"]);
        assert!(
            config.sockets[1].options.is_on("nonblock")
                && config.sockets[0].options.mode().is_some()
        );
    }

    #[test]
    fn problems_say_where_and_what_was_meant() {
        for (text, says) in [
            ("path = '/x'\nmax_fd = 5", ":2:1: unknown key 'max_fd': did you mean 'max_fds'?"),
            ("colour = 1", ":1:1: unknown key 'colour': there are path, backlog,"),
            ("max_fds = 'many'", ":1:11: invalid type: string \"many\", expected u32"),
            ("max_fds = -1", ":1:11: invalid value: integer `-1`, expected u32"),
            ("path = ", ":1:8: "),
            ("[sockets.web]\nbacklog = 5", ": sockets.\"web\": it has no address"),
            (
                "[sockets.web]\naddress = 'tcp:1.2.3.4:5'\nbaklog = 5",
                ": sockets.\"web\": unknown key 'baklog': did you mean 'backlog'?",
            ),
            ("[sockets.web]\naddress = 'tcp:80'", ": sockets.\"web\": address: say tcp:0.0.0.0:80"),
            (
                "[sockets.web]\naddress = 'tcp:1.2.3.4:5'\nmode = '0600'",
                ": sockets.\"web\": mode is for unix and fifo",
            ),
            (
                "[sockets.web]\naddress = 'unix:/x'\nmode = '0999'",
                ": sockets.\"web\": mode: it is not a mode such as 0660",
            ),
            (
                "[sockets.web]\naddress = 'tcp:1.2.3.4:5'\nDeferAcceptSec = 5",
                ": sockets.\"web\": unknown key 'DeferAcceptSec': did you mean 'defer-accept'?",
            ),
            (
                "[sockets.web]\naddress = 'tcp:1.2.3.4:5'\nkeepalive_tme = 5",
                ": sockets.\"web\": unknown key 'keepalive_tme': did you mean 'keepalive-time'?",
            ),
            (
                "[sockets.web]\naddress = 'tcp:1.2.3.4:5'\nkeepalive_time = 0",
                ": sockets.\"web\": keepalive_time: it is not a number from 1 to 32767",
            ),
            ("[sockets]\nweb = 5", ": sockets.\"web\": it is no table"),
            (
                "[sockets.a]\naddress = 'unix:/x'\n[sockets.b]\naddress = 'unix:/x'",
                ": sockets.\"b\" has the address of sockets.\"a\"",
            ),
            ("rules_dir = 'a'\nrules_file = 'b'", ": rules_dir and rules_file"),
        ] {
            let problem = Config::parse(text).unwrap_err();
            assert!(problem.starts_with(says), "{text}: {problem}");
            assert_eq!(problem.lines().count(), 1, "{problem}");
        }
    }
}
