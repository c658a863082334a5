//! Standard error, for a process that must not wait for it.

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{open, Mode, OFlags};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A terminal that is ready has room for so much, twice if it is all line ends: its buffers are made
/// of 256 bytes. (A pipe has room for a line: `PIPE_BUF` bytes.)
const PIECE: usize = 128;

pub struct Stderr {
    is_terminal: bool,
    /// A terminal, opened anew. Whether to wait for it is a matter of the open file, which is not
    /// only ours; and another process may fill it between looking and writing.
    anew: Option<File>,
    /// A line was not written to its end.
    is_torn: AtomicBool,
}

impl Stderr {
    /// To be opened before privileges are given up.
    pub fn open() -> Self {
        Self::of(io::stderr().as_fd(), "/proc/self/fd/2")
    }

    fn of(stderr: BorrowedFd<'_>, path: &str) -> Self {
        let is_terminal = stderr.is_terminal();
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = || fdholder_daemon::retried(|| open(path, flags, Mode::empty())).ok();
        let anew = is_terminal.then(open).flatten().map(File::from);
        Self { is_terminal, anew, is_torn: AtomicBool::new(false) }
    }

    /// Writes a line, if that can be done at once.
    pub fn write(&self, line: &[u8]) -> bool {
        match &self.anew {
            Some(terminal) => self.write_to(terminal, line),
            None => self.write_to(io::stderr(), line),
        }
    }

    fn write_to(&self, mut out: impl Write + AsFd, line: &[u8]) -> bool {
        let piece = if self.is_terminal { PIECE } else { line.len().max(1) };
        if self.is_torn.load(Ordering::Relaxed) {
            if !is_ready(out.as_fd()) || out.write_all(b"\n").is_err() {
                return false;
            }
            self.is_torn.store(false, Ordering::Relaxed);
        }
        for (number, piece) in line.chunks(piece).enumerate() {
            let has_begun = number > 0;
            if !is_ready(out.as_fd()) || out.write_all(piece).is_err() {
                self.is_torn.store(has_begun, Ordering::Relaxed);
                return false;
            }
        }
        true
    }
}

fn is_ready(out: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
    poll(&mut ready, Some(&Timespec::default())) == Ok(1)
        && ready[0].revents().contains(PollFlags::OUT)
        && !ready[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
    use std::io::Read;

    /// Opened anew or not, a terminal that nobody reads is not waited for, and each line that it took
    /// comes whole, on a line of its own.
    #[test]
    fn terminal_that_nobody_reads_is_not_waited_for() {
        for can_be_opened in [true, false] {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let mut master = File::from(openpt(flags).unwrap());
            grantpt(&master).unwrap();
            unlockpt(&master).unwrap();
            let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
            // As it is inherited: a writer waits.
            let user = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let user = File::from(open(&name, user, Mode::empty()).unwrap());
            let path = if can_be_opened { &name } else { "/nowhere" };
            let stderr = Stderr::of(user.as_fd(), path);
            assert_eq!(stderr.anew.is_some(), can_be_opened);
            let write = |line: &[u8]| match &stderr.anew {
                Some(terminal) => stderr.write_to(terminal, line),
                None => stderr.write_to(&user, line),
            };
            let line = [&[b'x'; 300][..], b"\n"].concat();
            let mut written = 0;
            while write(&line) {
                written += 1;
            }
            assert!(written > 0 && !write(&line));
            let mut read = Vec::new();
            let mut buffer = [0; 4096];
            // It has room again, and is asked until the last line has come.
            while !read.ends_with(b"last\r\n") {
                let len = master.read(&mut buffer).unwrap();
                read.extend_from_slice(&buffer[..len]);
                write(b"last\n");
            }
            let text = String::from_utf8(read).unwrap();
            let whole = "x".repeat(300);
            let is_whole = |line: &&str| *line == whole;
            assert_eq!(text.lines().filter(is_whole).count(), written, "{can_be_opened}");
            let is_torn = |line: &&str| whole.starts_with(line) && line.len() < whole.len();
            let others = text.lines().filter(|line| !is_whole(line) && !is_torn(line));
            assert!(others.into_iter().all(|line| line == "last"), "{text}");
        }
    }
}
