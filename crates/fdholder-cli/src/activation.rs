//! Descriptors that systemd gives to a process, and what the process tells systemd.

use crate::inherited;
use std::os::fd::OwnedFd;
use tracing::warn;

/// The first descriptor that is given in this way.
const FIRST: u32 = 3;

/// The descriptors that were given to this process, with their names. To be called once.
pub fn given() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    // They may be for a process that started this one.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut given = Vec::new();
    for offset in 0..number("LISTEN_FDS").unwrap_or(0) {
        let name = names.next().unwrap_or_default().to_owned();
        match inherited::take(FIRST.saturating_add(offset)) {
            Ok(fd) => given.push((name, fd)),
            Err(errno) => {
                warn!("systemd gave a descriptor that is none: {}", fdholder::strerror(errno));
                break;
            }
        }
    }
    given
}

/// Tells systemd, if it wants to know, that this process is ready. Whoever is to be served
/// does not wait until systemd reads that.
pub fn announce(status: String) {
    let announce = move || {
        let said = [sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)];
        if let Err(error) = sd_notify::notify(&said) {
            warn!("unable to tell systemd that this is ready: {error}");
        }
    };
    if let Err(error) = std::thread::Builder::new().spawn(announce) {
        warn!("unable to tell systemd that this is ready: {error}");
    }
}
