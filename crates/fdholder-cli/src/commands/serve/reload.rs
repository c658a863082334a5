//! Reading a configuration again.

use super::sockets::Sockets;
use super::{mode, Wishes};
use crate::config::{Config, Socket};
use fdholder::Identifier;
use fdholder_daemon::{Reload, Reloaded};
use std::fs::{set_permissions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tracing::{info, warn};

/// From this file, beside what the command line says. What is not fit to be changed is told
/// of, and stays as it was when this process began.
pub fn by(file: PathBuf, said: Wishes, begun: Wishes, sockets: Vec<Socket>) -> Reload {
    let mut in_force = begun.clone();
    let mut before = sockets;
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
        let sockets = config.sockets;
        let is_in_file = |id: &Identifier| sockets.iter().any(|socket| socket.id == *id);
        for Socket { id, .. } in before.iter().filter(|socket| !is_in_file(&socket.id)) {
            if store.find_held(id).is_some() {
                info!("{id}: no longer in the file, and stays: delete releases it");
            }
        }
        let missing = Sockets::of(sockets.clone()).after(&before).missing_from(store);
        before = sockets;
        let entries = missing.said();
        let options = wishes.options();
        in_force = wishes;
        Some(Reloaded { rules, options, entries })
    })
}
