//! The notify socket of one generation: `sd_notify(3)`, and what is to go into the holder.

use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::transport::{self, Wait};
use fdholder::Errno;
use fdholder_daemon::access::User;
use fdholder_daemon::datagram::{receive, Datagram};
use fdholder_daemon::listen::{listen_at, Listen};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of one datagram at most: what systemd takes.
const LEN_MAX: usize = 4096;

/// Datagrams of others that are dropped before anything else is done again.
const STRANGERS_PER_TURN: usize = 64;

/// Levels of parents that are looked at to find the generation that a sender belongs to.
const PARENTS_MAX: usize = 64;

/// A socket that PROG sends to.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    path: PathBuf,
    /// A datagram that the holder could not take yet: nothing more is read until it does.
    pending: Option<(Vec<u8>, Vec<OwnedFd>, OwnedFd)>,
}

/// What a program has said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub is_ready: bool,
    /// `EXTEND_TIMEOUT_USEC`.
    pub extends: Option<Duration>,
    /// What is for the holder: descriptors to store or to remove, readiness and status.
    pub is_for_holder: bool,
    /// Descriptors to store.
    pub stores: bool,
    /// The status line.
    pub status: Option<String>,
    /// What is for whoever has started `run`, without what that says itself.
    pub passed_on: String,
}

impl Said {
    /// Reads one datagram.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut said = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            match name {
                "READY" => {
                    said.is_ready |= value == "1";
                    said.is_for_holder = true;
                }
                "STATUS" => {
                    said.status = Some(value.to_owned());
                    said.is_for_holder = true;
                }
                "FDSTORE" | "FDSTOREREMOVE" => {
                    said.stores |= name == "FDSTORE" && value == "1";
                    said.is_for_holder = true;
                }
                // Of the store; of this process; and what waits until the datagram is read.
                "FDNAME" | "FDPOLL" | "MAINPID" | "MAINPIDFDID" | "BARRIER" => {}
                "EXTEND_TIMEOUT_USEC" => {
                    said.extends = value.parse().ok().map(Duration::from_micros);
                    said.pass_on(line);
                }
                _ => said.pass_on(line),
            }
        }
        said
    }

    fn pass_on(&mut self, line: &str) {
        self.passed_on.push_str(line);
        self.passed_on.push('\n');
    }
}

impl NotifySocket {
    /// Makes one. Root's is for everybody to send to, because PROG may be another user by then: who
    /// has sent something is looked at.
    ///
    /// # Errors
    ///
    /// When it cannot be bound.
    pub fn make(path: PathBuf) -> Result<Self, String> {
        let mode = if geteuid().is_root() { 0o666 } else { 0o600 };
        let listen = Listen { mode, kind: SocketType::DGRAM, ..Listen::stream_at(&path) };
        let socket = listen_at(&listen).map_err(|error| error.to_string())?;
        set_socket_passcred(&socket, true).map_err(fdholder::strerror)?;
        Ok(Self { socket, path, pending: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to wait for: a datagram, or that the holder can take one.
    pub fn awaited(&self) -> (BorrowedFd<'_>, bool) {
        match &self.pending {
            Some((_, _, holder)) => (holder.as_fd(), true),
            None => (self.socket.as_fd(), false),
        }
    }

    /// The next datagram that a process of the generation has sent.
    pub fn next(&mut self, generation: u32) -> Option<(Said, Vec<u8>, Vec<OwnedFd>)> {
        if self.pending.is_some() {
            return None;
        }
        let mut buffer = [0; LEN_MAX];
        for _ in 0..STRANGERS_PER_TURN {
            let datagram: Datagram = receive(&self.socket, &mut buffer).ok()?;
            let sender = datagram.sender.map(|sender| (sender.user, sender.pid));
            let is_ours = sender.is_some_and(|(user, pid)| is_of(generation, user, pid));
            if is_ours && !datagram.is_cut {
                let bytes = buffer[..datagram.len].to_vec();
                return Some((Said::parse(&bytes), bytes, datagram.fds));
            }
        }
        None
    }

    /// Whether something waits for the holder.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Sends a datagram on to the holder; it is kept if that cannot take it yet.
    ///
    /// # Errors
    ///
    /// When the holder does not read there any more; the descriptors are closed.
    pub fn pass_to_holder(
        &mut self,
        address: &OsStr,
        bytes: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let holder = connected(address)?;
        self.try_to_pass(bytes, fds, holder)
    }

    /// Tries again.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn pass_pending(&mut self) -> Result<(), Errno> {
        match self.pending.take() {
            Some((bytes, fds, holder)) => self.try_to_pass(bytes, fds, holder),
            None => Ok(()),
        }
    }

    fn try_to_pass(
        &mut self,
        bytes: Vec<u8>,
        fds: Vec<OwnedFd>,
        holder: OwnedFd,
    ) -> Result<(), Errno> {
        let borrowed: Vec<_> = fds.iter().take(MESSAGE_FDS_MAX).map(AsFd::as_fd).collect();
        match transport::send(&holder, &bytes, &borrowed, Wait::No) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => {
                self.pending = Some((bytes, fds, holder));
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that sends to an address, which may be an abstract name behind an `@`.
///
/// # Errors
///
/// When nobody reads there.
pub fn connected(address: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(address)?,
    };
    connect(&socket, &address)?;
    Ok(socket)
}

/// Whether a sender may speak for a generation: it is this user, root, or a process that PROG has
/// started.
fn is_of(generation: u32, user: User, pid: Option<i32>) -> bool {
    user.uid == geteuid().as_raw()
        || user.uid == 0
        || pid.is_some_and(|pid| descends_from(generation, pid.unsigned_abs()))
}

/// Whether a process is another one, in its process group, or was started by one that is.
pub fn descends_from(ancestor: u32, mut pid: u32) -> bool {
    for _ in 0..PARENTS_MAX {
        if pid == ancestor {
            return true;
        }
        let Some((parent, group)) = parent_and_group(pid) else { return false };
        if group == ancestor {
            return true;
        }
        pid = parent;
    }
    false
}

fn parent_and_group(pid: u32) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have spaces and parentheses: see proc(5).
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_is_split_between_holder_and_supervisor() {
        let said = Said::parse(
            b"READY=1\nSTATUS=up\nMAINPID=7\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=5000000\n",
        );
        assert!(said.is_ready && said.is_for_holder && !said.stores);
        assert_eq!(said.extends, Some(Duration::from_secs(5)));
        assert_eq!(said.status.as_deref(), Some("up"));
        assert_eq!(said.passed_on, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=5000000\n");
        let said = Said::parse(b"FDSTORE=1\nFDNAME=x\nFDPOLL=0");
        assert!(said.stores && said.is_for_holder && said.passed_on.is_empty());
        let said = Said::parse(b"STOPPING=1\nERRNO=2\nEXIT_STATUS=3");
        assert!(!said.is_for_holder);
        assert_eq!(said.passed_on, "STOPPING=1\nERRNO=2\nEXIT_STATUS=3\n");
        assert_eq!(
            Said::parse(b"\xff=\n=\nREADY"),
            Said { passed_on: "\u{fffd}=\n=\n".into(), ..Said::default() }
        );
    }

    #[test]
    fn processes_have_parents_and_groups() {
        let own = std::process::id();
        assert!(descends_from(own, own));
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get().unsigned_abs();
        assert!(descends_from(parent, own));
        assert!(!descends_from(own, parent) || parent_and_group(parent).unwrap().1 == own);
    }
}
