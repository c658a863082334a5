//! What PROG writes to stderr goes where it would have gone, and its last lines are kept.
//!
//! A process of its own copies: PROG can go on writing when `run` has been killed.

use super::signals::Signals;
use crate::failure::Failure;
use crate::passing::inherited;
use crate::start::relay::{own_command, with_inherited};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::io::{pread, pwrite};
use rustix::process::Pid;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};

/// The variable that names the file in memory for the last lines.
const COPIER: &str = "FDHOLDER_RUN_COPIER";

/// Bytes that are kept: a page, and far more than ten lines of most programs.
const KEPT_LEN: usize = 4096;

/// Lines that are shown of it.
const LINES_MAX: usize = 10;

/// The copying process of one generation.
#[derive(Debug)]
pub struct Copier {
    pub pid: Pid,
    tail: OwnedFd,
}

impl Copier {
    /// Starts one; returns what PROG gets as stderr. `None` where stderr is a terminal: PROG is to
    /// have that itself, and people see what it writes.
    ///
    /// # Errors
    ///
    /// Those of pipe(2), `memfd_create(2)` and fork(2).
    pub fn start() -> io::Result<Option<(Self, OwnedFd)>> {
        if io::stderr().is_terminal() {
            return Ok(None);
        }
        let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let tail = memfd_create("fdholder-stderr", MemfdFlags::CLOEXEC)?;
        let mut command = own_command();
        command.env(COPIER, tail.as_raw_fd().to_string()).process_group(0);
        command.stdin(Stdio::from(from)).stdout(Stdio::null());
        let tail = [tail];
        let started = with_inherited(&tail, || command.spawn());
        let [tail] = tail;
        let pid = Pid::from_child(&started?);
        Ok(Some((Self { pid, tail }, to)))
    }

    /// The last lines that PROG has written.
    pub fn last_lines(&self) -> Vec<String> {
        let mut bytes = [0; KEPT_LEN];
        let len = pread(&self.tail, &mut bytes, 0).unwrap_or(0);
        last_lines(&bytes[..len])
    }
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if bytes.len() >= KEPT_LEN {
        // It may be half a line.
        lines.drain(..1);
    }
    lines.drain(..lines.len().saturating_sub(LINES_MAX));
    lines
}

/// Whether this process is one that copies.
pub fn is_copier() -> bool {
    std::env::var_os(COPIER).is_some()
}

/// Copies until PROG, and everything it has started, has closed its stderr.
///
/// # Errors
///
/// When there is nothing to copy to or from.
pub fn copy() -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| Failure::system("copy what the program writes", error);
    let number = std::env::var(COPIER).ok().and_then(|number| number.parse().ok());
    let number = number.unwrap_or(u32::MAX);
    inherited::close_others(&[number]);
    let tail = inherited::take(number).map_err(|errno| failed(errno.into()))?;
    // A supervisor that stops all processes of the service is to lose no line of the others.
    let _signals = Signals::take().map_err(failed)?;
    let (mut from, mut to) = (io::stdin().lock(), io::stderr().lock());
    let mut kept = Vec::with_capacity(2 * KEPT_LEN);
    let mut buffer = [0; 16 * 1024];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(ExitCode::SUCCESS),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        keep(&mut kept, &buffer[..len]);
        // For a reader who looks while it is written a part is missing, no more.
        let _ = pwrite(tail.as_fd(), &kept, 0).and_then(|_| ftruncate(&tail, kept.len() as u64));
        // PROG must be able to write also where nobody reads.
        let _ = to.write_all(&buffer[..len]);
    }
}

fn keep(kept: &mut Vec<u8>, new: &[u8]) {
    kept.extend_from_slice(&new[new.len().saturating_sub(KEPT_LEN)..]);
    kept.drain(..kept.len().saturating_sub(KEPT_LEN));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_whole() {
        assert_eq!(last_lines(b"one\ntwo"), ["one", "two"]);
        let mut kept = Vec::new();
        for number in 0..2000 {
            keep(&mut kept, format!("line {number}\n").as_bytes());
            assert!(kept.len() <= KEPT_LEN);
        }
        let lines = last_lines(&kept);
        assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "line 1990"));
        keep(&mut kept, &[b'x'; 3 * KEPT_LEN]);
        assert_eq!((kept.len(), last_lines(&kept).len()), (KEPT_LEN, 0));
    }
}
