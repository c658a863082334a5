//! Descriptors that systemd gives to a process, and what the process tells systemd.

use crate::failure::Failure;
use crate::passing::inherited;
use crate::passing::FIRST;
use fdholder::Errno;
use std::os::fd::OwnedFd;
use tracing::warn;

fn variable(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// How many descriptors were given to this very process; they may be for one that started it.
pub fn count() -> u32 {
    let is_own = variable("LISTEN_PID") == Some(std::process::id());
    variable("LISTEN_FDS").filter(|_| is_own).unwrap_or(0)
}

/// The descriptors that were given to this process, with their names. To be called once.
pub fn given() -> Vec<(String, OwnedFd)> {
    if count() == 0 {
        return Vec::new();
    }
    let (given, missing) = take();
    if let Some(errno) = missing {
        warn!("systemd gave a descriptor that is none: {}", fdholder::strerror(errno));
    }
    given
}

/// The same, whichever process they were given to.
///
/// # Errors
///
/// When one of them is not there.
pub fn passed_on() -> Result<Vec<(String, OwnedFd)>, Failure> {
    let (given, missing) = take();
    let count = given.len();
    let failed = |errno| {
        let doing = format!("take the descriptors that LISTEN_FDS tells of: after {count} of them");
        Failure::system(doing, errno)
    };
    missing.map_or(Ok(given), |errno| Err(failed(errno)))
}

/// Takes what the environment tells of, up to the first that is not there.
fn take() -> (Vec<(String, OwnedFd)>, Option<Errno>) {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut given = Vec::new();
    for offset in 0..variable("LISTEN_FDS").unwrap_or(0) {
        let name = names.next().unwrap_or_default().to_owned();
        match inherited::take(FIRST.saturating_add(offset)) {
            Ok(fd) => given.push((name, fd)),
            Err(errno) => return (given, Some(errno)),
        }
    }
    (given, None)
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
