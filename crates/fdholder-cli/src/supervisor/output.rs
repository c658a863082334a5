//! What PROG writes to stderr goes where it would have gone, and its last lines are kept.
//!
//! A process of its own copies: PROG can go on writing when `run` has been killed. It also has PROG
//! stop then: the kernel would not, once PROG is another user, and otherwise it may send the signal
//! once for each thread of `run`. If the process is killed, another takes its place.

use super::signals::Signals;
use crate::failure::{exit, Failure};
use crate::passing::inherited;
use crate::start::relay::{own_command, with_inherited};
use fdholder::transport::{receive, send, Wait};
use fdholder::Errno;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::io::{pread, pwrite};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};
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

/// The process beside one generation.
#[derive(Debug)]
pub struct Copier {
    pub pid: Pid,
    tail: OwnedFd,
    /// What it reads, for another one if it is killed: PROG would be by SIGPIPE.
    from: Option<OwnedFd>,
    /// It ends with `run`.
    lifeline: OwnedFd,
}

impl Copier {
    /// Starts one that sends a signal to PROG when `run` ends; returns what PROG gets as stderr. `None`
    /// where stderr is a terminal: PROG is to have that itself, and people see what it writes.
    ///
    /// # Errors
    ///
    /// Those of pipe(2), socketpair(2), `memfd_create(2)` and fork(2).
    pub fn start(stop_signal: i32) -> io::Result<(Self, Option<OwnedFd>)> {
        let tail = memfd_create("fdholder-stderr", MemfdFlags::CLOEXEC)?;
        let (mut from, mut stderr) = (None, None);
        if !io::stderr().is_terminal() {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (from, stderr) = (Some(reader), Some(writer));
        }
        let (pid, lifeline) = launch(&tail, from.as_ref(), stop_signal)?;
        Ok((Self { pid, tail, from, lifeline }, stderr))
    }

    /// Starts another one in the place of one that has ended before PROG.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2), fork(2) and sendmsg(2).
    pub fn start_again(&mut self, stop_signal: i32, program: Pid) -> io::Result<()> {
        (self.pid, self.lifeline) = launch(&self.tail, self.from.as_ref(), stop_signal)?;
        Ok(self.guard(program)?)
    }

    /// Tells it which process PROG is: one that this process has not waited for yet.
    ///
    /// # Errors
    ///
    /// Those of sendmsg(2).
    pub fn guard(&self, program: Pid) -> Result<(), Errno> {
        // Before Linux 5.3 there is none, and the kernel sends the signal.
        let program = pidfd_open(program, PidfdFlags::empty()).ok();
        let fds: Vec<_> = program.iter().map(AsFd::as_fd).collect();
        send(&self.lifeline, b"g", &fds, Wait::No).map(drop)
    }

    /// The last lines that PROG has written.
    pub fn last_lines(&self) -> Vec<String> {
        let mut bytes = [0; KEPT_LEN];
        let len = pread(&self.tail, &mut bytes, 0).unwrap_or(0);
        last_lines(&bytes[..len])
    }
}

/// Starts the process; returns its number and its lifeline.
fn launch(tail: &OwnedFd, from: Option<&OwnedFd>, stop_signal: i32) -> io::Result<(Pid, OwnedFd)> {
    let (lifeline, end) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let inherited = [tail.try_clone()?, end];
    let [tail, end] = inherited.each_ref().map(AsRawFd::as_raw_fd);
    let mut command = own_command();
    command.env(COPIER, format!("{tail} {end} {stop_signal}")).process_group(0);
    command.stdin(from.map_or(Ok(Stdio::null()), |from| from.try_clone().map(Stdio::from))?);
    command.stdout(Stdio::null());
    let child = with_inherited(&inherited, || command.spawn())?;
    Ok((Pid::from_child(&child), lifeline))
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
    let words = std::env::var(COPIER).unwrap_or_default();
    let numbers: Vec<u32> = words.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [tail, lifeline, signal] = numbers[..] else {
        return Err(Failure::new(exit::USAGE, format_args!("{COPIER} is for run alone")));
    };
    inherited::close_others(&[tail, lifeline]);
    let take = |number| inherited::take(number).map_err(|errno| failed(errno.into()));
    let (tail, lifeline) = (take(tail)?, take(lifeline)?);
    // A supervisor that stops all processes of the service is to lose no line of the others.
    let _signals = Signals::take().map_err(failed)?;
    // Beside the copying, which may have to wait for a reader.
    let guard = std::thread::Builder::new().spawn(move || guard(&lifeline, signal.cast_signed()));
    let guard = guard.map_err(failed)?;
    let (mut from, mut to) = (io::stdin().lock(), io::stderr().lock());
    let mut kept = Vec::with_capacity(2 * KEPT_LEN);
    let mut buffer = [0; 16 * 1024];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => {
                // PROG may have closed its stderr, and go on.
                let _ = guard.join();
                return Ok(ExitCode::SUCCESS);
            }
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

/// Waits for the end of PROG; if that of `run` comes first, PROG is to stop.
fn guard(lifeline: &OwnedFd, signal: i32) {
    // Without a process `run` has ended before it could start PROG.
    let Ok(received) = receive(lifeline, &mut [0], Wait::Yes) else { return };
    let Some(program) = received.fds.into_iter().next() else { return };
    let has_come = loop {
        let mut polled =
            [PollFd::new(&program, PollFlags::IN), PollFd::new(lifeline, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) => break polled.map(|it| !it.revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    };
    if let ([false, true], Some(signal)) = (has_come, Signal::from_named_raw(signal)) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&program, signal);
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
