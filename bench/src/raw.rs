//! What the kernel takes for the same by itself: processes that only start, or only hand
//! descriptors on, without a protocol or a store. Nothing that moves descriptors between
//! processes can be faster than this.
//!
//! The benchmark runs itself in these roles, over sockets that it made.

mod echo;

use crate::bench::time;
use crate::daemon::Helper;
use crate::Result;
pub use echo::Echo;
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX};
use fdholder::transport::{receive, send, Wait};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// The first argument of a process that plays a role.
pub const FLAG: &str = "--raw";

/// What a descriptor of ours takes in a message of a dump: time stamp, length, identifier
/// of 19 bytes, NUL. The bytes are to weigh the same here.
const ENTRY_LEN: usize = 12 + 1 + 19 + 1;

/// A process that starts and exits.
pub fn bare_start() -> Result<f64> {
    timed(&mut role("exit", 0)?)
}

/// A process that sends descriptors to another, and ends when that has them all.
pub fn one_hop(count: u32) -> Result<f64> {
    let (socket, _sink) = start_beside("sink", count)?;
    timed(role("push", count)?.stdin(OwnedFd::from(socket)))
}

/// A process that receives descriptors from one process and sends them to another, as a
/// transfer has to.
pub fn two_hops(count: u32) -> Result<f64> {
    let (from, _source) = start_beside("source", count)?;
    let (to, _sink) = start_beside("sink", count)?;
    timed(role("relay", count)?.stdin(OwnedFd::from(from)).stdout(OwnedFd::from(to)))
}

fn role(name: &str, count: u32) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([FLAG, name, &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

fn timed(command: &mut Command) -> Result<f64> {
    match time(command)? {
        (span, status) if status.success() => Ok(span),
        (_, status) => Err(format!("{command:?} failed: {status}").into()),
    }
}

/// Starts a process that is not timed, at the other end of a socket, and waits for it to
/// be ready.
fn start_beside(name: &str, count: u32) -> Result<(UnixStream, Helper)> {
    let (mut here, there) = UnixStream::pair()?;
    let helper = Helper::start(role(name, count)?.stdin(OwnedFd::from(there)))?;
    here.read_exact(&mut [0])?;
    Ok((here, helper))
}

/// Plays the role that the arguments name.
pub fn play(arguments: &[OsString]) -> Result<()> {
    let [name, count] = arguments else {
        return Err("a role and a count are needed".into());
    };
    let count: usize = count.to_str().unwrap_or_default().parse()?;
    match name.to_str() {
        Some("exit") => Ok(()),
        Some("push") => push(&mut stdin()?, count),
        Some("source") => source(&mut stdin()?, count),
        Some("relay") => relay(&mut stdin()?, count),
        Some("sink") => sink(&mut stdin()?, count),
        Some("echo") => echo::serve(),
        _ => Err("no such role".into()),
    }
}

fn stdin() -> Result<UnixStream> {
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

fn push(to: &mut UnixStream, count: usize) -> Result<()> {
    send_many(to, count)?;
    to.read_exact(&mut [0])?; // They are all there.
    Ok(())
}

fn source(to: &mut UnixStream, count: usize) -> Result<()> {
    to.write_all(b"\n")?; // Ready.
    to.read_exact(&mut [0])?; // Wanted now.
    send_many(to, count)
}

fn relay(from: &mut UnixStream, count: usize) -> Result<()> {
    let mut to = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    from.write_all(b"\n")?;
    receive_many(from, count, |bytes, fds| {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        Ok(send_all(&to, bytes, &fds)?)
    })?;
    to.read_exact(&mut [0])?;
    Ok(())
}

fn sink(from: &mut UnixStream, count: usize) -> Result<()> {
    from.write_all(b"\n")?; // Ready.
    let mut held = Vec::with_capacity(count);
    receive_many(from, count, |_, fds| {
        held.extend(fds);
        Ok(())
    })?;
    from.write_all(b"\n")?; // They are all here.
                            // They are kept until the other end has gone, so that closing them is not in its time.
    from.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn send_many(to: &UnixStream, count: usize) -> Result<()> {
    let null = File::open("/dev/null")?;
    let fds = [null.as_fd(); MESSAGE_FDS_MAX];
    let bytes = [0; HEADER_LEN + 1 + MESSAGE_FDS_MAX * ENTRY_LEN];
    let mut left = count;
    while left > 0 {
        let now = left.min(MESSAGE_FDS_MAX);
        send_all(to, &bytes[..=HEADER_LEN + now * ENTRY_LEN], &fds[..now])?;
        left -= now;
    }
    Ok(())
}

fn send_all(
    to: &UnixStream,
    mut bytes: &[u8],
    mut fds: &[BorrowedFd<'_>],
) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        let sent = send(to, bytes, fds, Wait::Yes)?;
        bytes = &bytes[sent..];
        fds = &[]; // They went with the first byte.
    }
    Ok(())
}

fn receive_many(
    from: &UnixStream,
    count: usize,
    mut take: impl FnMut(&[u8], Vec<OwnedFd>) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; 32 * 1024]; // Over three messages: none arrives in parts.
    let mut left = count;
    while left > 0 {
        let received = receive(from, &mut buffer, Wait::Yes)?;
        if received.len == 0 || received.fds_lost {
            return Err("descriptors are missing".into());
        }
        left = left.checked_sub(received.fds.len()).ok_or("more came than were sent")?;
        take(&buffer[..received.len], received.fds)?;
    }
    Ok(())
}
