//! What a daemon will need of the file system, by what it is told.

use super::Wishes;
use crate::config::Socket;
use crate::endpoint::{Endpoint, UnixAddress};
use crate::failure::{exit, Failure};
use fdholder_daemon::confinement::{
    confine, is_inherited, path_that_may_move, Confinement, ConfinementError,
};
use fdholder_daemon::launch::Launch;
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
        let failed = |error: ConfinementError| {
            let problem = format_args!(
                "unable to restrict file access with Landlock: {error}: start it again, or say \
                 --no-landlock"
            );
            Failure::new(exit::SYSTEM, problem)
        };
        match self.landlock {
            Some(true) => {}
            Some(false) => return Ok(()),
            None => {
                if let Some(why) = self.why_not(successor).map_err(failed)? {
                    debug!("may open whatever its user may: {why} (fdholder serve --landlock restricts it)");
                    return Ok(());
                }
            }
        }
        match confine(|| self.confinement(successor)) {
            Ok(true) => debug!("opens only what it will need, from here on (Landlock)"),
            Ok(false) => debug!("may open whatever its user may: this kernel has no Landlock"),
            Err(error) if error.is_refusal() => warn!("may open whatever its user may: {error}"),
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    /// Why Landlock could keep it from what it will need, if it could: rules are of folders, and a
    /// path may lead to another folder later.
    fn why_not(&self, successor: &Launch) -> Result<Option<String>, ConfinementError> {
        if self.as_s6 {
            return Ok(Some("s6's does, too".to_owned()));
        }
        let (file, folder) = match &self.rules {
            Some(Rules::File(file)) => (Some(file), None),
            Some(Rules::Folder(folder)) => (None, Some(folder.as_path())),
            None => (None, None),
        };
        let sockets = self.endpoints.iter().filter_map(|endpoint| match endpoint {
            Endpoint::Unix { address: UnixAddress::Path(path), .. } | Endpoint::Fifo(path) => {
                Some(path.as_path())
            }
            _ => None,
        });
        let files = [file, self.config.as_ref(), self.path.as_ref(), Some(&successor.program)];
        let paths: Vec<_> =
            files.into_iter().flatten().map(PathBuf::as_path).chain(sockets).collect();
        let movable = path_that_may_move(&paths, folder)?;
        Ok(movable.map(|path| format!("{} may lead to another folder later", path.display())))
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
