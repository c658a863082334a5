//! What `run` tells the service manager: by `NOTIFY_SOCKET`, and a newline on `--notify-fd`.

use super::machine::Told;
use crate::failure::Failure;
use crate::start::notify::{connected, write_newline};
use crate::start::taken_for_newline;
use fdholder::transport::{send, Wait};
use fdholder::Errno;
use nix::time::{clock_gettime, ClockId};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Messages that wait until their reader has room for them.
const WAITING_MAX: usize = 256;

/// The pause before this process tries again what it lacked descriptors or memory for.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Messages for a reader that has no room. A later status takes the place of one that waits, and no
/// state is lost.
#[derive(Debug, Default)]
struct Waiting(VecDeque<String>);

impl Waiting {
    /// What `run` says itself.
    fn push(&mut self, text: &str) {
        if is_status(text) {
            self.0.retain(|older| !is_status(older));
        }
        // It says nothing new.
        if self.0.back().is_none_or(|last| last != text) {
            self.0.push_back(text.to_owned());
        }
    }

    /// What the program says.
    fn push_if_room(&mut self, text: &str) {
        let is_state = STATES.iter().any(|state| text.lines().any(|line| line == *state));
        let max = if is_state { 2 * WAITING_MAX } else { WAITING_MAX };
        if self.0.len() < max || is_status(text) {
            self.push(text);
        }
    }
}

/// What systemd acts upon.
const STATES: [&str; 3] = ["READY=1", "RELOADING=1", "STOPPING=1"];

fn is_status(text: &str) -> bool {
    text.lines().all(|line| line.starts_with("STATUS="))
}

/// Who is told.
#[derive(Debug)]
pub struct Upward {
    socket: Option<OsString>,
    /// Until the service is ready for the first time.
    newline: Option<File>,
    /// What waits until the reader has room, and a socket that tells when it has.
    waiting: Waiting,
    full: Option<OwnedFd>,
    /// When to try again, where this process lacked what it takes.
    retry_at: Option<Instant>,
    /// How often it expects a sign of life.
    watchdog: Option<Duration>,
    watchdog_at: Instant,
    /// The service was ready once.
    has_been_ready: bool,
}

impl Upward {
    /// By the variables that this process was started with, and the number of a descriptor.
    ///
    /// # Errors
    ///
    /// When that descriptor is not open.
    pub fn of_environment(newline: Option<u32>) -> Result<Self, Failure> {
        let newline = newline.map(|number| taken_for_newline(number).map(File::from));
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty());
        // It may be for another process.
        let pid = std::env::var("WATCHDOG_PID").ok();
        let is_own = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        let watchdog = watchdog.filter(|usec| *usec > 0 && is_own && socket.is_some());
        Ok(Self {
            socket,
            newline: newline.transpose()?,
            waiting: Waiting::default(),
            full: None,
            retry_at: None,
            watchdog: watchdog.map(Duration::from_micros),
            watchdog_at: Instant::now(),
            has_been_ready: false,
        })
    }

    /// Whether systemd expects a sign of life.
    pub fn has_watchdog(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Tells of a change of the service, and the status line of its program.
    pub fn tell(&mut self, told: Told, status: Option<&str>) {
        let mut text = String::new();
        match told {
            Told::Ready => {
                text.push_str("READY=1\n");
                if !self.has_been_ready {
                    // Writing to a string does not fail.
                    let _ = writeln!(text, "MAINPID={}", std::process::id());
                }
                if let Some(newline) = self.newline.take() {
                    write_newline(newline);
                }
                self.has_been_ready = true;
            }
            // The first start is none.
            Told::Reloading if !self.has_been_ready => return,
            Told::Reloading => {
                let _ = writeln!(text, "RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec());
            }
            Told::Stopping => {
                self.watchdog = None;
                text.push_str("STOPPING=1\n");
            }
        }
        if let Some(status) = status.filter(|_| told == Told::Ready) {
            let _ = writeln!(text, "STATUS={status}");
        }
        if self.socket.is_some() {
            self.waiting.push(&text);
        }
        self.send_waiting();
    }

    /// When to give a sign of life in the place of a program, where none serves.
    pub fn watchdog_at(&self, is_serving: bool) -> Option<Instant> {
        let is_mine = !is_serving && self.has_been_ready && self.watchdog.is_some();
        is_mine.then_some(self.watchdog_at)
    }

    /// Gives it, if it is due.
    pub fn keep_watchdog_quiet(&mut self, is_serving: bool, now: Instant) {
        if self.watchdog_at(is_serving).is_some_and(|at| at <= now) {
            self.pass_on("WATCHDOG=1\n");
            self.watchdog_at = now + self.watchdog.unwrap_or_default() / 2;
        }
    }

    /// Passes on what the program has said, in its order, as soon as the reader has room.
    pub fn pass_on(&mut self, text: &str) {
        if self.socket.is_some() {
            self.waiting.push_if_room(text);
        }
        self.send_waiting();
    }

    /// What to wait for until it has room.
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.full.as_ref().map(AsFd::as_fd)
    }

    /// When to try again to send what waits, where this process lacked what it takes.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries that, if it is due.
    pub fn retry(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.send_waiting();
        }
    }

    /// Sends what has waited.
    pub fn send_waiting(&mut self) {
        (self.full, self.retry_at) = (None, None);
        let Some(address) = &self.socket else { return };
        while let Some(text) = self.waiting.0.front() {
            let socket = connected(address);
            let sent = socket
                .as_ref()
                .map_err(|errno| *errno)
                .and_then(|socket| send(socket, text.as_bytes(), &[], Wait::No));
            match (sent, socket) {
                (Err(Errno::AGAIN), Ok(socket)) => {
                    self.full = Some(socket);
                    return;
                }
                (Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS), _) => {
                    self.retry_at = Some(Instant::now() + RETRY_PAUSE);
                    return;
                }
                // It may have gone, and the program is to go on.
                (_, Err(_)) => return self.waiting.0.clear(),
                (_, Ok(_)) => drop(self.waiting.0.pop_front()),
            }
        }
    }
}

/// As `sd_notify(3)` wants it with RELOADING=1.
fn monotonic_usec() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_not_lost_behind_others() {
        let mut waiting = Waiting::default();
        for number in 0..2 * WAITING_MAX {
            waiting.push_if_room(&format!("STATUS={number}\n"));
        }
        assert_eq!(waiting.0, ["STATUS=511\n"]);
        for number in 0..2 * WAITING_MAX {
            waiting.push_if_room(&format!("X_OWN={number}\n"));
        }
        assert_eq!(waiting.0.len(), WAITING_MAX);
        waiting.push_if_room("RELOADING=1\nMONOTONIC_USEC=5\n");
        waiting.push_if_room("READY=1\n");
        waiting.push_if_room("STATUS=last\n");
        waiting.push("STOPPING=1\n");
        let last: Vec<_> = waiting.0.iter().skip(WAITING_MAX - 1).map(String::as_str).collect();
        assert_eq!(
            last,
            ["RELOADING=1\nMONOTONIC_USEC=5\n", "READY=1\n", "STATUS=last\n", "STOPPING=1\n"]
        );
        // What comes again and again is said once.
        let mut waiting = Waiting::default();
        for _ in 0..3 {
            waiting.push_if_room("WATCHDOG=1\n");
        }
        assert_eq!(waiting.0.len(), 1);
    }
}
