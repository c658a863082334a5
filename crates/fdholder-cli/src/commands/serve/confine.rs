//! What a daemon will need of the file system, by what it is told.

use super::Wishes;
use crate::config::Socket;
use crate::endpoint::{Endpoint, UnixAddress};
use crate::failure::{exit, Failure};
use fdholder_daemon::confinement::{confine, is_inherited, Confinement, ConfinementError, Outcome};
use fdholder_daemon::launch::Launch;
use std::fmt::Display;
use std::path::PathBuf;
use tracing::{debug, warn};

/// Names of users are looked up here.
const ETC: &str = "/etc/passwd";

/// What it was told, until it is needed.
#[derive(Debug, Default)]
pub struct Needs {
    rules: Option<Rules>,
    config: Option<PathBuf>,
    path: Option<PathBuf>,
    endpoints: Vec<Endpoint>,
    names_users: bool,
    /// What was said of it; without a word it depends on the paths.
    landlock: Option<bool>,
    as_s6: bool,
}

#[derive(Debug)]
enum Rules {
    Folder(PathBuf),
    File(PathBuf),
}

impl Needs {
    /// Of a daemon with these wishes, a file that they come from, and what that wants open; and
    /// whether it was called by a name of s6's.
    pub fn of(wishes: &Wishes, config: Option<PathBuf>, sockets: &[Socket], as_s6: bool) -> Self {
        let file = wishes.rules_file.clone().map(Rules::File);
        let names_users = wishes.sockets.values().any(|socket| {
            let owner = socket.get("owner").and_then(toml::Value::as_str).unwrap_or_default();
            owner.contains(char::is_alphabetic)
        });
        Self {
            rules: file.or_else(|| wishes.rules_dir.clone().map(Rules::Folder)),
            config,
            path: wishes.path.clone(),
            endpoints: sockets.iter().map(|socket| socket.endpoint.clone()).collect(),
            names_users,
            landlock: wishes.landlock,
            as_s6,
        }
    }

    /// Gives up the rest, as far as the kernel can do that. To be called while there is one
    /// thread, and nothing else is left to be opened.
    ///
    /// # Errors
    ///
    /// When something is needed of which it is not known whether it is there: the daemon could
    /// not open it later.
    pub fn give_up_the_rest(&self, successor: &Launch) -> Result<(), Failure> {
        if is_inherited() {
            if self.landlock == Some(false) {
                warn!("landlock = false counts when the daemon is started anew, which takes over");
            } else {
                debug!("opens only what the daemon before could");
            }
            return Ok(());
        }
        if self.landlock == Some(false) {
            return Ok(());
        }
        let freely = |why: &dyn Display| debug!("may open whatever its user may: {why}");
        if self.landlock.is_none() && self.as_s6 {
            freely(&"so does s6's");
            return Ok(());
        }
        match confine(|| self.confinement(successor), self.landlock.is_none()) {
            Ok(Outcome::Confined) => {
                debug!("opens only what it will need, from here on (Landlock)");
            }
            Ok(Outcome::Unsupported) => freely(&"this kernel has no Landlock"),
            Ok(Outcome::Movable(path)) => freely(&format_args!(
                "{} may lead to another folder later (--landlock restricts it all the same)",
                path.display()
            )),
            Err(error) if error.is_refusal() => warn!("may open whatever its user may: {error}"),
            Err(error) => {
                let problem = format_args!(
                    "unable to restrict file access with Landlock: {error}: start it again, or \
                     say --no-landlock"
                );
                return Err(Failure::new(exit::SYSTEM, problem));
            }
        }
        Ok(())
    }

    fn confinement(&self, successor: &Launch) -> Result<Confinement, ConfinementError> {
        let mut all = Confinement::with_program(successor)?;
        match &self.rules {
            Some(Rules::Folder(folder)) => all.read_folder(folder)?,
            Some(Rules::File(file)) => all.read_file(file)?,
            None => {}
        }
        if let Some(file) = &self.config {
            all.read_file(file)?;
        }
        if self.names_users {
            all.read_file(ETC.as_ref())?;
        }
        if let Some(path) = &self.path {
            // Whoever listens there may go just now, and then this one makes its own.
            all.make_socket(path)?;
            if self.landlock.is_none() {
                all.make_socket_anew(path)?;
            }
        }
        for endpoint in &self.endpoints {
            match endpoint {
                Endpoint::Unix { address: UnixAddress::Path(path), .. } => all.make_socket(path)?,
                Endpoint::Fifo(path) => all.make_fifo(path)?,
                _ => {}
            }
        }
        Ok(all)
    }
}
