//! What `run` tells whoever has started it: by `NOTIFY_SOCKET`, and a newline on `--notify-fd`.

use super::machine::Told;
use crate::failure::Failure;
use crate::passing::inherited;
use crate::start::notify::connected;
use fdholder::transport::{send, Wait};
use fdholder::Errno;
use nix::time::{clock_gettime, ClockId};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Messages that wait until their reader has room for them.
const WAITING_MAX: usize = 256;

/// Who is told.
#[derive(Debug)]
pub struct Upward {
    socket: Option<OsString>,
    /// Until the service is ready for the first time.
    newline: Option<File>,
    /// What waits until the reader has room, and a socket that tells when it has.
    waiting: VecDeque<String>,
    full: Option<OwnedFd>,
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
        let newline = newline.map(|number| {
            inherited::take(number).map(File::from).map_err(|errno| {
                Failure::system(format!("use descriptor {number} (--notify-fd)"), errno)
            })
        });
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty());
        // It may be for another process.
        let pid = std::env::var("WATCHDOG_PID").ok();
        let is_own = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        let watchdog = watchdog.filter(|usec| *usec > 0 && is_own && socket.is_some());
        Ok(Self {
            socket,
            newline: newline.transpose()?,
            waiting: VecDeque::new(),
            full: None,
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
                if let Some(mut newline) = self.newline.take() {
                    // Nobody reads: nobody waits.
                    let _ = newline.write_all(b"\n");
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
        self.pass_on(&text);
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
        if self.socket.is_some() && self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(text.to_owned());
        }
        self.send_waiting();
    }

    /// What to wait for until it has room.
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.full.as_ref().map(AsFd::as_fd)
    }

    /// Sends what has waited.
    pub fn send_waiting(&mut self) {
        self.full = None;
        let Some(address) = &self.socket else { return };
        while let Some(text) = self.waiting.front() {
            // It may have gone, and the program is to go on.
            let Ok(socket) = connected(address) else { return self.waiting.clear() };
            if let Err(Errno::AGAIN) = send(&socket, text.as_bytes(), &[], Wait::No) {
                self.full = Some(socket);
                return;
            }
            self.waiting.pop_front();
        }
    }
}

/// As `sd_notify(3)` wants it with RELOADING=1.
fn monotonic_usec() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}
