//! A notify socket in front of the holder's: what programs say by `sd_notify(3)` goes to the service
//! manager, and what they store goes to the holder.

use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::Errno;
use fdholder_daemon::access::User;
use fdholder_daemon::credentials::Credentials;
use fdholder_daemon::datagram::receive;
use fdholder_daemon::listen::{listen_at, Listen};
use fdholder_daemon::privileges::raise_open_files;
use fdholder_daemon::{begin_closing, unclosed, ClientFd};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    connect, sendmsg, socket_with, AddressFamily, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, UCred,
};
use rustix::process::{geteuid, getpid, Gid, Pid, Uid};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of one datagram at most: what systemd takes.
const LEN_MAX: usize = 4096;

/// Bytes of the control messages of one datagram.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX), ScmCredentials(1));

/// Datagrams of others that are dropped before anything else is done again.
const STRANGERS_PER_TURN: usize = 64;

/// Descriptors of others that may be open and wait to be closed before nothing more is read.
const UNCLOSED_MAX: usize = 64;

/// Whether so many descriptors of others wait to be closed that nothing more is to be read.
pub fn is_full() -> bool {
    unclosed() > UNCLOSED_MAX
}

/// How long to wait until some are closed.
pub const UNCLOSED_PAUSE: Duration = Duration::from_millis(10);

/// Levels of parents that are looked at to find the generation that a sender belongs to.
const PARENTS_MAX: usize = 64;

/// A socket that PROG sends to.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    path: PathBuf,
    /// It is removed with this.
    file: Option<SocketFile>,
    /// Whether datagrams go to the holder as if their senders had sent them there.
    is_judged: bool,
    /// A datagram that the holder could not take yet: nothing more is read until it does.
    pending: Option<Pending>,
}

/// A datagram that waits.
#[derive(Debug)]
struct Pending {
    datagram: Box<Datagram>,
    holder: OwnedFd,
    /// For room in the holder's queue. Otherwise for memory, and nothing tells of that.
    is_for_room: bool,
}

/// What a process of the program has sent. Its descriptors are closed by other threads, as that may
/// take long.
#[derive(Debug)]
pub struct Datagram {
    pub said: Said,
    bytes: Vec<u8>,
    fds: Vec<ClientFd>,
    sender: Credentials,
}

/// What there is to read.
#[derive(Debug)]
pub enum Next {
    Datagram(Box<Datagram>),
    /// There may be more, after something else was done.
    Later,
    Nothing,
}

/// A datagram that the holder did not take.
#[derive(Debug)]
pub struct Unsent {
    pub datagram: Datagram,
    pub errno: Errno,
}

/// What a program has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    pub is_ready: bool,
    /// `EXTEND_TIMEOUT_USEC`.
    pub extends: Option<Duration>,
    /// Descriptors to store.
    pub stores: bool,
    /// For the holder alone: descriptors to store, to remove, or to close when that is done.
    pub is_for_store: bool,
    /// The status line.
    pub status: Option<String>,
    /// `MAINPID`.
    pub main_pid: Option<String>,
    /// What is for the service manager, without what that says itself.
    pub passed_on: String,
}

impl Said {
    /// Reads one datagram.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut said = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            match name {
                "READY" => said.is_ready |= value == "1",
                "STATUS" => said.status = Some(value.to_owned()),
                "FDSTORE" | "FDSTOREREMOVE" => {
                    said.stores |= name == "FDSTORE" && value == "1";
                    said.is_for_store = true;
                }
                "MAINPID" => said.main_pid = Some(value.to_owned()),
                // The holder closes what comes with it once it has done what came before.
                "BARRIER" => said.is_for_store = true,
                // Of the store, and of a process that is not told.
                "FDNAME" | "FDPOLL" | "MAINPIDFDID" => {}
                "EXTEND_TIMEOUT_USEC" => {
                    said.extends = value.parse().ok().map(Duration::from_micros);
                    said.pass_on(line);
                }
                _ => said.pass_on(line),
            }
        }
        said
    }

    /// Readiness or status, which the holder shows.
    pub fn is_state(&self) -> bool {
        self.is_ready || self.status.is_some()
    }

    /// What is for the service manager, with what `run` would say itself.
    pub fn for_supervisor(&self) -> String {
        let mut text = self.passed_on.clone();
        if self.is_ready {
            text.push_str("READY=1\n");
        }
        for (name, value) in [("STATUS", &self.status), ("MAINPID", &self.main_pid)] {
            if let Some(value) = value {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{name}={value}");
            }
        }
        text
    }

    fn pass_on(&mut self, line: &str) {
        self.passed_on.push_str(line);
        self.passed_on.push('\n');
    }
}

impl NotifySocket {
    /// Makes one in a folder. Root's is for everybody to send to, because PROG may be another user by
    /// then: who has sent something is looked at. But only PROG is told its name: the kernel tells
    /// everybody the one that it was bound to.
    ///
    /// # Errors
    ///
    /// When it cannot be bound.
    pub fn make(folder: &Path, mode: Option<u32>) -> Result<Self, String> {
        let mode = mode.unwrap_or(if geteuid().is_root() { 0o666 } else { 0o600 });
        let bound = folder.join("notify");
        let path = folder.join(secret_name().map_err(|error| error.to_string())?);
        // What can be bound, but not reached by its longer name, is of no use.
        SocketAddrUnix::new(&path).map_err(fdholder::strerror)?;
        let listen = Listen { mode, kind: SocketType::DGRAM, ..Listen::stream_at(&bound) };
        let socket = listen_at(&listen).map_err(|error| error.to_string())?;
        set_socket_passcred(&socket, true).map_err(fdholder::strerror)?;
        fs::rename(&bound, &path).map_err(|error| error.to_string())?;
        let file = Some(SocketFile(path.clone()));
        Ok(Self { socket, path, file, is_judged: true, pending: None })
    }

    /// The same, where the holder is this process's own: what it stores there is its own to allow.
    #[must_use]
    pub fn unjudged(self) -> Self {
        Self { is_judged: false, ..self }
    }

    /// One that this process was started with.
    pub fn of(socket: OwnedFd) -> Self {
        Self { socket, path: PathBuf::new(), file: None, is_judged: true, pending: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket alone: its file stays.
    pub fn into_inner(self) -> OwnedFd {
        let Self { socket, file, .. } = self;
        std::mem::forget(file);
        socket
    }

    /// What to wait for: a datagram, or that the holder can take one. `None` while too many
    /// descriptors wait to be closed, or there is no memory: try again after [`UNCLOSED_PAUSE`].
    pub fn awaited(&self) -> Option<(BorrowedFd<'_>, bool)> {
        match &self.pending {
            Some(it) if it.is_for_room => Some((it.holder.as_fd(), true)),
            Some(_) => None,
            None if is_full() => None,
            None => Some((self.socket.as_fd(), false)),
        }
    }

    /// The next datagram that `program`, a process that it has started, or this user has sent.
    pub fn next(&mut self, program: u32) -> Next {
        if self.pending.is_some() {
            return Next::Nothing;
        }
        let mut buffer = [0; LEN_MAX];
        for _ in 0..STRANGERS_PER_TURN {
            if is_full() {
                return Next::Later;
            }
            let Ok(datagram) = receive(&self.socket, &mut buffer) else { return Next::Nothing };
            let uid = datagram.sender.map_or(u32::MAX, |sender| sender.user.uid);
            let fds = datagram.fds.into_iter().map(|fd| ClientFd::new(fd, uid)).collect();
            let Some(sender) = datagram.sender.filter(|_| !datagram.is_cut) else { continue };
            if is_of(program, sender.user, sender.pid) {
                let bytes = buffer[..datagram.len].to_vec();
                let said = Said::parse(&bytes);
                return Next::Datagram(Box::new(Datagram { said, bytes, fds, sender }));
            }
        }
        Next::Later
    }

    /// Whether something waits for the holder.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Sends a datagram on to the holder, as its sender where that is possible; it is kept if the
    /// holder cannot take it yet.
    ///
    /// # Errors
    ///
    /// When the holder does not read there any more, or does not let this process speak for the
    /// sender.
    pub fn pass_to_holder(
        &mut self,
        address: &OsStr,
        datagram: Box<Datagram>,
    ) -> Result<(), Box<Unsent>> {
        match connected(address) {
            Ok(holder) => self.try_to_pass(datagram, holder),
            Err(errno) => Err(Box::new(Unsent { datagram: *datagram, errno })),
        }
    }

    /// Tries again.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn pass_pending(&mut self) -> Result<(), Box<Unsent>> {
        match self.pending.take() {
            Some(Pending { datagram, holder, .. }) => self.try_to_pass(datagram, holder),
            None => Ok(()),
        }
    }

    fn try_to_pass(&mut self, datagram: Box<Datagram>, holder: OwnedFd) -> Result<(), Box<Unsent>> {
        let Datagram { bytes, fds, sender, .. } = &*datagram;
        let fds: Vec<_> = fds.iter().take(MESSAGE_FDS_MAX).map(AsFd::as_fd).collect();
        match send_as(&holder, bytes, &fds, self.is_judged.then_some(*sender)) {
            Ok(()) => Ok(()),
            Err(errno @ (Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS)) => {
                let is_for_room = errno == Errno::AGAIN;
                self.pending = Some(Pending { datagram, holder, is_for_room });
                Ok(())
            }
            Err(errno) => Err(Box::new(Unsent { datagram: *datagram, errno })),
        }
    }
}

/// Has other threads close what is received from now on, and makes room for what they are busy with.
///
/// # Errors
///
/// When no thread can be started.
pub fn close_elsewhere() -> io::Result<()> {
    raise_open_files();
    Ok(begin_closing()?)
}

/// A name that nobody can guess.
fn secret_name() -> io::Result<String> {
    let mut bytes = [0; 12];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut name = "notify.".to_owned();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    Ok(name)
}

/// Writes the newline of `--notify-fd`. If there is no room for it a thread waits for that.
pub fn write_newline(mut to: File) {
    let has_room = {
        let mut polled = [PollFd::new(&to, PollFlags::OUT)];
        poll(&mut polled, Some(&Timespec::default())) == Ok(1)
    };
    // Nobody reads: nobody waits.
    let mut write = move || drop(to.write_all(b"\n"));
    if has_room {
        write();
    } else {
        drop(std::thread::Builder::new().spawn(write));
    }
}

/// Sends a datagram as if its sender had: root may do that. A user may only speak for itself.
fn send_as(
    socket: &OwnedFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    sender: Option<Credentials>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    // A sender who is root here needs no other to speak for it.
    let sender = sender.filter(|it| geteuid().is_root() && (it.user.uid != 0 || it.pid.is_some()));
    if let Some(Credentials { user, pid }) = sender {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let pid = pid.and_then(Pid::from_raw).unwrap_or_else(getpid);
        control.push(SendAncillaryMessage::ScmCredentials(UCred { pid, uid, gid }));
    }
    let parts = [IoSlice::new(bytes)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match (sendmsg(socket, &parts, &mut control, flags), sender) {
        // It has ended: but its user is known, and has no more rights for that.
        (Err(Errno::SRCH | Errno::PERM), Some(sender)) if sender.pid.is_some() => {
            let sender = Credentials { pid: None, ..sender };
            send_as(socket, bytes, fds, Some(sender))
        }
        (result, _) => result.map(drop),
    }
}

/// The file of a socket.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
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

/// Tells the service manager, if that listens, as if a sender had.
///
/// # Errors
///
/// Those of sending.
pub fn tell(address: &OsStr, text: &str, sender: Option<&Datagram>) -> Result<(), Errno> {
    let socket = connected(address)?;
    send_as(&socket, text.as_bytes(), &[], sender.map(|datagram| datagram.sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_is_split_between_holder_and_supervisor() {
        let said = Said::parse(
            b"READY=1\nSTATUS=up\nMAINPID=7\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=5000000\n",
        );
        assert!(said.is_ready && said.is_state() && !said.stores);
        assert_eq!(said.extends, Some(Duration::from_secs(5)));
        assert_eq!(said.status.as_deref(), Some("up"));
        assert_eq!(said.passed_on, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=5000000\n");
        let said = Said::parse(b"FDSTORE=1\nFDNAME=x\nFDPOLL=0");
        assert!(said.stores && said.is_for_store && said.passed_on.is_empty());
        let said = Said::parse(b"STOPPING=1\nERRNO=2\nEXIT_STATUS=3");
        assert!(!said.is_state());
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
