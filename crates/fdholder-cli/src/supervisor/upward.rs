//! What `run` tells whoever has started it: by `NOTIFY_SOCKET`, and a newline on `--notify-fd`.

use super::machine::Told;
use crate::failure::Failure;
use crate::passing::inherited;
use crate::start::notify::tell;
use nix::time::{clock_gettime, ClockId};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

/// Who is told.
#[derive(Debug)]
pub struct Upward {
    socket: Option<OsString>,
    /// Until the service is ready for the first time.
    newline: Option<File>,
    has_watchdog: bool,
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
        let has_watchdog = socket.is_some() && is_own && std::env::var("WATCHDOG_USEC").is_ok();
        Ok(Self { socket, newline: newline.transpose()?, has_watchdog, has_been_ready: false })
    }

    /// Whether systemd expects a sign of life.
    pub fn has_watchdog(&self) -> bool {
        self.has_watchdog
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
            Told::Stopping => text.push_str("STOPPING=1\n"),
        }
        if let Some(status) = status.filter(|_| told == Told::Ready) {
            let _ = writeln!(text, "STATUS={status}");
        }
        self.pass_on(&text);
    }

    /// Passes on what the program has said.
    pub fn pass_on(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // It may have gone, and the program is to go on.
            let _ = tell(socket, text, None);
        }
    }
}

/// As `sd_notify(3)` wants it with RELOADING=1.
fn monotonic_usec() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}
