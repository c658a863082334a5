//! Reading a configuration again.

use super::sockets::{Missing, Sockets};
use super::{mode, Wishes};
use crate::config::Config;
use fdholder_daemon::{Reload, Reloaded};
use std::fs::{set_permissions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tracing::warn;

/// From this file, beside what the command line says. What is not fit to be changed is told
/// of, and stays as it was when this process began.
pub fn by(file: PathBuf, said: Wishes, begun: Wishes) -> Reload {
    let mut in_force = begun.clone();
    Reload::by(move |store| {
        let stays = |problem: &dyn std::fmt::Display| {
            warn!("the configuration in force stays: {problem}");
        };
        let config = Config::read(&file).map_err(|failure| stays(&failure)).ok()?;
        let wishes = said.clone().or(config.wishes);
        let rules = wishes.rules().map_err(|failure| stays(&failure)).ok()?;
        let later = begun.what_waits(&wishes);
        if !later.is_empty() {
            warn!("{} as before, until the daemon is upgraded", later.join(", "));
        }
        if begun.landlock != wishes.landlock {
            warn!("landlock as before, until the daemon is started anew, which takes over");
        }
        if let Some(path) = begun.path.as_ref().filter(|_| mode(&wishes) != mode(&in_force)) {
            if let Err(error) = set_permissions(path, Permissions::from_mode(mode(&wishes))) {
                warn!("{} keeps the mode it has: {error}", path.display());
            }
        }
        let Missing { entries, problems } = Sockets::of(config.sockets).missing_from(store);
        for problem in problems {
            warn!("unable to {problem}");
        }
        let options = wishes.options();
        in_force = wishes;
        Some(Reloaded { rules, options, entries })
    })
}
