//! What a daemon is told: by its command line, and by a file. Each thing has one name in
//! both.

use crate::failure::{exit, Failure};
use crate::log::{Destination, Format, Log};
use crate::options::{number, Milliseconds};
use crate::program::Invocation;
use fdholder::Errno;
use fdholder_daemon::access::Rules;
use fdholder_daemon::confinement::{explain, is_refused};
use fdholder_daemon::privileges::Become;
use fdholder_daemon::Options;
use serde::Deserialize;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;
use tracing::warn;

/// What was said; `None` where nothing was.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wishes {
    pub path: Option<PathBuf>,
    pub backlog: Option<u32>,
    pub rules_dir: Option<PathBuf>,
    pub rules_file: Option<PathBuf>,
    pub max_fds: Option<u32>,
    pub max_connections: Option<u32>,
    /// 0: none.
    pub client_timeout_ms: Option<u32>,
    /// 0: none.
    pub lame_duck_timeout_ms: Option<u32>,
    pub drop_hung_up: Option<bool>,
    pub standby: Option<bool>,
    pub fdstore: Option<bool>,
    pub landlock: Option<bool>,
    pub verbosity: Option<u32>,
    pub audit: Option<bool>,
    pub log_format: Option<Format>,
    pub log_to: Option<Destination>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
    /// What is to be open from the start; by identifier, each as in the file.
    pub sockets: toml::Table,
}

impl Wishes {
    /// What the command line says.
    pub fn of(invocation: &Invocation) -> Self {
        let flag = |id: &str| invocation.matches.get_flag(id).then_some(true);
        // Those of the daemon that makes its socket are unknown to the one that gets it.
        let known = |id: &str| invocation.matches.try_contains_id(id).is_ok();
        let optional = |id: &str| known(id).then(|| invocation.optional::<u32>(id)).flatten();
        let span = |id: &str| {
            let Milliseconds(span) = invocation.optional(id)?;
            Some(span.map_or(0, |span| span.as_millis() as u32)) // It was one.
        };
        Self {
            path: known("path").then(|| invocation.optional("path")).flatten(),
            backlog: optional("backlog"),
            rules_dir: invocation.optional("rulesdir"),
            rules_file: invocation.optional("rulesfile"),
            max_fds: optional("fds"),
            max_connections: optional("connections"),
            client_timeout_ms: span("client-timeout"),
            lame_duck_timeout_ms: span("lame-duck"),
            drop_hung_up: flag("drop-hung-up"),
            standby: flag("standby"),
            fdstore: flag("fdstore"),
            landlock: flag("landlock").or_else(|| flag("no-landlock").map(|no| !no)),
            verbosity: optional("verbosity"),
            audit: flag("audit"),
            log_format: invocation.optional("log-format"),
            log_to: invocation.optional("log-to"),
            uid: optional("uid"),
            gid: optional("gid"),
            groups: known("groups")
                .then(|| invocation.optional("groups").map(|Groups(groups)| groups))
                .flatten(),
            sockets: toml::Table::new(),
        }
    }

    /// What was said here counts, and what was not, as it was said there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        // Rules come from one place.
        let has_rules = self.rules_dir.is_some() || self.rules_file.is_some();
        let rules = if has_rules { &self } else { &other };
        Self {
            rules_dir: rules.rules_dir.clone(),
            rules_file: rules.rules_file.clone(),
            path: self.path.or(other.path),
            backlog: self.backlog.or(other.backlog),
            max_fds: self.max_fds.or(other.max_fds),
            max_connections: self.max_connections.or(other.max_connections),
            client_timeout_ms: self.client_timeout_ms.or(other.client_timeout_ms),
            lame_duck_timeout_ms: self.lame_duck_timeout_ms.or(other.lame_duck_timeout_ms),
            drop_hung_up: self.drop_hung_up.or(other.drop_hung_up),
            standby: self.standby.or(other.standby),
            fdstore: self.fdstore.or(other.fdstore),
            landlock: self.landlock.or(other.landlock),
            verbosity: self.verbosity.or(other.verbosity),
            audit: self.audit.or(other.audit),
            log_format: self.log_format.or(other.log_format),
            log_to: self.log_to.or(other.log_to),
            uid: self.uid.or(other.uid),
            gid: self.gid.or(other.gid),
            groups: self.groups.or(other.groups),
            sockets: if self.sockets.is_empty() { other.sockets } else { self.sockets },
        }
    }

    /// What is different there and does not take effect while a daemon runs.
    pub fn what_waits(&self, other: &Self) -> Vec<&'static str> {
        let all = [
            ("path", self.path != other.path),
            ("backlog", self.backlog != other.backlog),
            ("max_fds", self.max_fds != other.max_fds),
            ("standby", self.standby != other.standby),
            ("fdstore", self.fdstore != other.fdstore),
            ("verbosity", self.verbosity != other.verbosity),
            ("log_format", self.log_format != other.log_format),
            ("log_to", self.log_to != other.log_to),
            ("uid", self.uid != other.uid),
            ("gid", self.gid != other.gid),
            ("groups", self.groups != other.groups),
        ];
        all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// How to log.
    pub fn log(&self) -> Log {
        Log {
            verbosity: self.verbosity.unwrap_or(1),
            format: self.log_format.unwrap_or_default(),
            to: self.log_to.unwrap_or_default(),
        }
    }

    /// What the server is told.
    pub fn options(&self) -> Options {
        let defaults = Options::default();
        let span =
            |ms: Option<u32>| ms.filter(|ms| *ms != 0).map(|ms| Duration::from_millis(ms.into()));
        let count = |count: Option<u32>| count.map(|count| count as usize);
        Options {
            connections_max: count(self.max_connections).unwrap_or(defaults.connections_max),
            fds_max: count(self.max_fds).unwrap_or(defaults.fds_max),
            client_timeout: match self.client_timeout_ms {
                Some(_) => span(self.client_timeout_ms),
                None => defaults.client_timeout,
            },
            first_timeout: span(self.client_timeout_ms),
            lame_duck_timeout: span(self.lame_duck_timeout_ms),
            drop_hung_up: self.drop_hung_up.unwrap_or(false),
            audit: self.audit.unwrap_or(false),
        }
    }

    /// Whether nobody but the daemon's own user is to be served.
    pub fn is_owner_only(&self) -> bool {
        self.rules_dir.is_none() && self.rules_file.is_none()
    }

    /// The rules; a file of them is read now.
    ///
    /// # Errors
    ///
    /// When it cannot be.
    pub fn rules(&self) -> Result<Rules, Failure> {
        if let Some(file) = &self.rules_file {
            return Rules::in_cdb(file).map_err(|refusal| {
                Failure::new(exit::SYSTEM, format_args!("unable to read the rules: {refusal}"))
            });
        }
        let Some(dir) = &self.rules_dir else { return Ok(Rules::owner_only()) };
        if !dir.is_dir() {
            warn!("{} is not a folder: nobody may connect until it is", dir.display());
        }
        // Then nobody could connect, and why would be told to none who can do something.
        if is_refused(dir) {
            let (dir, why) = (dir.display(), explain(Errno::ACCESS));
            let problem = format_args!("unable to read the rules: {dir}: {why}");
            return Err(Failure::new(exit::SYSTEM, problem));
        }
        Ok(Rules::in_dir(dir))
    }

    /// Who to become. As with s6, 0 means: stay who you are. What the environment says
    /// counts, if it is to be asked.
    ///
    /// # Errors
    ///
    /// When a variable is no number.
    pub fn user(&self, ask_environment: bool) -> Result<Become, Failure> {
        let id = |id: Option<u32>| id.filter(|&id| id != 0);
        let mut user = Become { uid: id(self.uid), gid: id(self.gid), groups: self.groups.clone() };
        if ask_environment {
            let invalid = |name: &str, problem: String| {
                Failure::new(exit::USAGE, format_args!("invalid {name}: {problem}"))
            };
            let variable = |name: &str| {
                let value = std::env::var_os(name);
                value.map(|value| number(&value).map_err(|problem| invalid(name, problem)))
            };
            user.uid = variable("UID").transpose()?.or(user.uid);
            user.gid = variable("GID").transpose()?.or(user.gid);
            if let Some(list) = std::env::var_os("GIDLIST") {
                let Groups(list) = groups(&list).map_err(|problem| invalid("GIDLIST", problem))?;
                user.groups = Some(list);
            }
        }
        Ok(user)
    }
}

/// A list of groups.
#[derive(Debug, Clone)]
pub struct Groups(Vec<u32>);

/// Reads numbers with commas between.
///
/// # Errors
///
/// When one of them is none.
pub fn groups(text: &OsStr) -> Result<Groups, String> {
    let text = text.to_str().ok_or("it is not a list of numbers")?;
    let gids = text.split(',').filter(|gid| !gid.is_empty()).map(number);
    gids.collect::<Result<_, _>>().map(Groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_counts_more_than_the_file() {
        let said = Wishes { max_fds: Some(5), rules_dir: Some("a".into()), ..Wishes::default() };
        let file = Wishes {
            max_fds: Some(7),
            max_connections: Some(8),
            rules_file: Some("b".into()),
            standby: Some(true),
            ..Wishes::default()
        };
        let both = said.clone().or(file.clone());
        assert_eq!(
            (both.max_fds, both.max_connections, both.standby),
            (Some(5), Some(8), Some(true))
        );
        assert_eq!((both.rules_dir, both.rules_file), (Some("a".into()), None));
        let other = Wishes::default().or(file.clone());
        assert_eq!(other, file);
        assert_eq!(said.options().fds_max, 5);
    }
}
