//! Descriptors that systemd gives to a process.

use crate::failure::Failure;
use crate::passing::inherited;
use crate::passing::FIRST;
use std::os::fd::OwnedFd;

fn variable(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// How many descriptors were given to this very process; they may be for one that started it.
pub fn count() -> u32 {
    let is_own = variable("LISTEN_PID") == Some(std::process::id());
    variable("LISTEN_FDS").filter(|_| is_own).unwrap_or(0)
}

/// The descriptors that were given to this process, with their names. To be called once.
///
/// # Errors
///
/// When one of them is not there: to go on without it is to lose it.
pub fn given() -> Result<Vec<(String, OwnedFd)>, Failure> {
    if count() == 0 {
        return Ok(Vec::new());
    }
    passed_on()
}

/// The same, whichever process they were given to.
///
/// # Errors
///
/// When one of them is not there.
pub fn passed_on() -> Result<Vec<(String, OwnedFd)>, Failure> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut given = Vec::new();
    for offset in 0..variable("LISTEN_FDS").unwrap_or(0) {
        let name = names.next().unwrap_or_default().to_owned();
        let fd = inherited::take(FIRST.saturating_add(offset)).map_err(|errno| {
            let doing = "take the descriptors that LISTEN_FDS tells of";
            Failure::system(format!("{doing}: after {} of them", given.len()), errno)
        })?;
        given.push((name, fd));
    }
    Ok(given)
}
