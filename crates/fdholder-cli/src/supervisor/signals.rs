//! The signals of `run`.

use nix::sys::signal::Signal;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Signals that are passed on to PROG as they come.
const PASSED_ON: [Signal; 5] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    // Some servers take these for one worker more or less.
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGHUP: the next generation.
    Restart,
    /// SIGTERM, SIGINT or SIGQUIT: the end.
    Stop(Signal),
    /// SIGCHLD: a child has ended.
    Child,
    PassOn(Signal),
}

/// Signals that have come. They are caught, not blocked, so that programs which this process starts
/// get them as ever.
#[derive(Debug)]
pub struct Signals {
    wakes: UnixStream,
    caught: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches the signals of this process from now on.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2) and sigaction(2).
    pub fn take() -> io::Result<Self> {
        use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let (wakes, sender) = UnixStream::pair()?;
        wakes.set_nonblocking(true)?;
        let mut caught = Vec::new();
        for signal in [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().chain(PASSED_ON) {
            let flag = Arc::new(AtomicBool::new(false));
            // The flag is set before the wake-up, as they are carried out in this order.
            signal_hook::flag::register(signal as i32, Arc::clone(&flag))?;
            signal_hook::low_level::pipe::register(signal as i32, sender.try_clone()?)?;
            caught.push((signal, flag));
        }
        Ok(Self { wakes, caught })
    }

    /// What has come since the last time.
    pub fn come(&mut self) -> Vec<Asked> {
        let mut buffer = [0; 256];
        while matches!(self.wakes.read(&mut buffer), Ok(1..)) {}
        let has_come = |(_, flag): &&(Signal, Arc<AtomicBool>)| flag.swap(false, Ordering::AcqRel);
        self.caught.iter().filter(has_come).map(|(signal, _)| asked(*signal)).collect()
    }
}

fn asked(signal: Signal) -> Asked {
    match signal {
        Signal::SIGHUP => Asked::Restart,
        Signal::SIGCHLD => Asked::Child,
        Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => Asked::Stop(signal),
        other => Asked::PassOn(other),
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakes.as_fd()
    }
}

/// A signal by its name, with or without SIG, or its number.
///
/// # Errors
///
/// What is no signal.
pub fn read_signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&named)
        .ok()
        .or_else(|| Signal::try_from(text.parse::<i32>().ok()?).ok())
        .ok_or_else(|| format!("'{text}' is not a signal: say TERM, QUIT, USR1 or alike"))
}

/// The name of a signal, as SIGTERM.
pub fn name_of(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |it| it.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(read_signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        for text in ["", "0", "-1", "NOPE", "65", "TERM "] {
            assert!(read_signal(text).is_err(), "{text}");
        }
        assert_eq!((name_of(9), name_of(40)), ("SIGKILL".to_owned(), "signal 40".to_owned()));
    }
}
