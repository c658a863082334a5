//! How `restart`, `status` and `metrics` reach a `run`: one end of a pair of sockets is held under
//! NAME/.run. A request has a descriptor with it, to which the answer is written.
//!
//! Who may retrieve that may ask, as the holder's rules say, and needs no path. When `run` ends, its
//! end of the pair closes, and a client that asks finds out at once.

use crate::connect;
use crate::failure::Failure;
use crate::program::Invocation;
use crate::start::notify::is_full;
use fdholder::transport::{receive, send, Wait};
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier, Limit};
use fdholder_daemon::notify::run_id;
use fdholder_daemon::ClientFd;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fstat, FileType};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{shutdown, socketpair, AddressFamily, Shutdown, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Bytes of a request at most.
const REQUEST_LEN_MAX: usize = 64;

/// Messages without a request that are dropped before anything else is done again.
const JUNK_PER_TURN: usize = 64;

/// How long to wait before the holder is asked again to hold the socket.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often to look whether the holder still holds the socket.
const CHECK_PAUSE: Duration = Duration::from_secs(30);

/// How long a holder may take to answer one request about it.
const HOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// The first line of every answer: the request has come.
const TAKEN: &[u8] = b"taken\n";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Restart,
    Status,
}

impl Request {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Restart => b"restart",
            Self::Status => b"status",
        }
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        [Self::Restart, Self::Status].into_iter().find(|request| request.bytes() == bytes)
    }
}

/// Where an answer goes. All copies are of one, which is closed when it is answered or has gone; by
/// another thread, as that may take long.
#[derive(Debug, Clone)]
pub struct Asker(Arc<Mutex<Option<ClientFd>>>);

impl Asker {
    /// `None` for what is no socket, or takes nothing: that is no way to answer.
    fn new(fd: ClientFd) -> Option<Self> {
        let kind = fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let takes = kind == Ok(FileType::Socket) && write(&fd, TAKEN).is_ok();
        takes.then(|| Self(Arc::new(Mutex::new(Some(fd)))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<ClientFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers. Who has gone need not know.
    pub fn answer(&self, text: &str) {
        if let Some(fd) = self.lock().take() {
            let _ = write(&fd, text.as_bytes());
            // It sees the end before another thread has closed this.
            let _ = shutdown(&fd, Shutdown::Both);
        }
    }

    /// Whether it still waits for the answer.
    pub fn waits(&self) -> bool {
        let mut fd = self.lock();
        fd.take_if(|fd| !is_alive(&*fd));
        fd.is_some()
    }
}

/// Writes all to a socket, or as much as it takes without waiting.
fn write(socket: &ClientFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let len = send(socket, bytes, &[], Wait::No)?;
        bytes = &bytes[len..];
    }
    Ok(())
}

/// Whether to take a name from a `run` that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// For a `run` that has just started.
    First,
    /// For one that has lost its name: the newer one keeps it.
    IfFree,
}

/// The end that `run` has.
#[derive(Debug)]
pub struct Control {
    socket: Arc<OwnedFd>,
    /// The other end, where the holder has refused it: without it this end would be closed.
    _refused: Arc<OnceLock<OwnedFd>>,
}

impl Control {
    /// Makes a pair, and has the holder hold the other end: from a thread, which goes on trying until
    /// there is a holder, or it says no, and while another `run` has the name that is not to be taken
    /// from it. `warn` is called where that may surprise, once for each reason.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2) and of starting a thread.
    pub fn register(
        holder: PathBuf,
        name: &OsStr,
        claim: Claim,
        warn: impl Fn(String) + Send + 'static,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::system("make a control socket", error);
        let id = run_id(name.as_bytes())
            .ok_or_else(|| failed(io::Error::other("--name is empty or too long")))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        let refused = Arc::new(OnceLock::new());
        let refusal = Arc::clone(&refused);
        let mut has_warned = false;
        let socket = Arc::new(socket);
        let place = Place { holder, id: id.clone(), own: Arc::downgrade(&socket) };
        let work = move || loop {
            match place.hold(&other, claim) {
                Ok(Held::Free) => {
                    return place.watch(other);
                }
                Ok(Held::Taken) => {
                    warn(format!(
                        "another run has this name, and goes on: {id} leads to this one from now on \
                         (--name gives another)"
                    ));
                    return place.watch(other);
                }
                Ok(Held::OfAnother) => {
                    if !std::mem::replace(&mut has_warned, true) {
                        warn(format!(
                            "another run has this name, and {id} leads to that one: fdholder restart \
                             and status reach this one when that one has ended"
                        ));
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
                    // It is set once.
                    let _ = refusal.set(other);
                    return warn(format!(
                        "fdholder restart and status cannot reach this process, SIGHUP can: {error}"
                    ));
                }
                Err(_) => std::thread::sleep(RETRY_PAUSE),
            }
        };
        std::thread::Builder::new().name("register".to_owned()).spawn(work).map_err(failed)?;
        Ok(Self { socket, _refused: refused })
    }

    /// What to wait for. `None` while too many descriptors wait to be closed: look again after
    /// [`UNCLOSED_PAUSE`](crate::start::notify::UNCLOSED_PAUSE).
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (!is_full()).then(|| self.socket.as_fd())
    }

    /// The next request. An error when nobody can ask any more: nobody holds the other end.
    ///
    /// # Errors
    ///
    /// Why no request can come.
    pub fn next(&self) -> Result<Option<(Request, Asker)>, Errno> {
        let mut buffer = [0; REQUEST_LEN_MAX];
        for _ in 0..JUNK_PER_TURN {
            if is_full() {
                return Ok(None);
            }
            let received = match receive(&*self.socket, &mut buffer, Wait::No) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            // An empty message looks like the end.
            if received.len == 0 && received.fds.is_empty() && !is_alive(&*self.socket) {
                return Err(Errno::PIPE);
            }
            for fd in &received.fds {
                // To close one would take as long as its other end likes. What is no socket fails.
                let _ = set_socket_linger(fd, None);
            }
            // Who may retrieve the other end may send anything.
            let fds = received.fds.into_iter().map(|fd| ClientFd::new(fd, u32::MAX));
            let fds: Vec<_> = fds.collect();
            let Some(asker) = fds.into_iter().next().and_then(Asker::new) else { continue };
            if let Some(request) = Request::of(&buffer[..received.len]) {
                return Ok(Some((request, asker)));
            }
            asker.answer("{\"error\":\"no such request\"}\n");
        }
        Ok(None)
    }
}

/// What has become of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// No other `run` had the name.
    Free,
    /// Another one had it, and goes on.
    Taken,
    /// Another one has it.
    OfAnother,
}

/// Where the other end is held, for the thread that looks after that.
struct Place {
    holder: PathBuf,
    id: Identifier,
    /// The end that `run` has, until it has gone.
    own: Weak<OwnedFd>,
}

impl Place {
    /// Has the other end held, in the place of one whose `run` has ended, or that is taken from it.
    fn hold(&self, other: &OwnedFd, claim: Claim) -> Result<Held, Error> {
        let deadline = Deadline::each(HOLDER_PATIENCE);
        let mut client = Client::connect(&self.holder, deadline)?;
        let mut outcome = Held::Free;
        loop {
            match client.store(&self.id, Limit::never(), other, deadline) {
                Err(error) if is_denied(&error, &[Errno::BUSY]) => {}
                result => return result.map(|()| outcome),
            }
            match client.retrieve(&self.id, deadline) {
                Ok(held) if is_alive(&held) && claim == Claim::IfFree => {
                    return Ok(Held::OfAnother);
                }
                Ok(held) if is_alive(&held) => outcome = Held::Taken,
                // Who may not see whether it lives must leave it.
                Err(error) if claim == Claim::IfFree && !is_denied(&error, &[Errno::NOENT]) => {
                    return Ok(Held::OfAnother);
                }
                _ => {}
            }
            match client.delete(&self.id, deadline) {
                Err(error) if !is_denied(&error, &[Errno::NOENT, Errno::INPROGRESS]) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// Ends the connection when the holder does not hold the other end any more. The kernel tells `run`
    /// of that only when nobody else has a copy, and a client may keep one.
    fn watch(self, other: OwnedFd) {
        let inode = inode_of(&other);
        drop(other);
        loop {
            std::thread::sleep(CHECK_PAUSE);
            if self.own.strong_count() == 0 {
                return;
            }
            let deadline = Deadline::each(HOLDER_PATIENCE);
            let held = Client::connect(&self.holder, deadline)
                .and_then(|mut client| client.retrieve(&self.id, deadline));
            let is_held = match held {
                Ok(held) => inode_of(&held) == inode,
                // Who does not answer, or may not, does not know.
                Err(error) => !is_denied(&error, &[Errno::NOENT]),
            };
            if !is_held {
                if let Some(own) = self.own.upgrade() {
                    let _ = shutdown(&*own, Shutdown::Both);
                }
                return;
            }
        }
    }
}

fn is_denied(error: &Error, errnos: &[Errno]) -> bool {
    matches!(error.cause(), Cause::Denied(errno) if errnos.contains(&errno))
}

fn inode_of(fd: &OwnedFd) -> Option<u64> {
    fstat(fd).ok().map(|stat| stat.st_ino)
}

fn is_alive(socket: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())) == Ok(0)
}

/// A question to the `run` of a service.
#[derive(Debug)]
pub struct Question {
    stream: UnixStream,
}

impl Question {
    /// Asks by the socket that is held for a service.
    ///
    /// # Errors
    ///
    /// EPIPE when that `run` has ended.
    pub fn ask(held: &OwnedFd, request: Request) -> Result<Self, Errno> {
        let (ours, theirs) = UnixStream::pair().map_err(|_| Errno::MFILE)?;
        match send(held, request.bytes(), &[theirs.as_fd()], Wait::No) {
            Ok(_) => Ok(Self { stream: ours }),
            Err(Errno::CONNRESET | Errno::PIPE | Errno::CONNREFUSED) => Err(Errno::PIPE),
            // It has not read what others have asked.
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(Errno::TIMEDOUT),
            Err(errno) => Err(errno),
        }
    }

    /// The answer, one line. It must be begun soon, and may take until the deadline.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT when the process does not answer, EPIPE when it has ended.
    pub fn answer(mut self, soon: Duration, deadline: Option<Duration>) -> Result<String, Errno> {
        let read = |stream: &mut UnixStream, buffer: &mut [u8]| match stream.read(buffer) {
            Ok(len) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::TIMEDOUT),
            Err(_) => Err(Errno::PIPE),
        };
        let wait =
            |stream: &UnixStream, span| stream.set_read_timeout(span).map_err(|_| Errno::INVAL);
        wait(&self.stream, Some(soon))?;
        let mut taken = [0; TAKEN.len()];
        let mut len = 0;
        while len < taken.len() {
            match read(&mut self.stream, &mut taken[len..])? {
                0 => return Err(Errno::PIPE),
                more => len += more,
            }
        }
        wait(&self.stream, deadline)?;
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match read(&mut self.stream, &mut buffer)? {
                0 if text.is_empty() => return Err(Errno::PIPE),
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                len if text.len() + len > ANSWER_LEN_MAX => return Err(Errno::MSGSIZE),
                len => text.extend_from_slice(&buffer[..len]),
            }
        }
    }
}

/// Bytes of an answer at most: a few lines for each of many generations.
const ANSWER_LEN_MAX: usize = 256 * 1024;

/// How long a `run` may take until it says that a request has come.
pub const SOON: Duration = Duration::from_secs(5);

/// The socket that is held for a service.
///
/// # Errors
///
/// ENOENT when no `run` of that name has ever registered.
pub fn find(invocation: &Invocation, name: &OsStr) -> Result<Option<OwnedFd>, Failure> {
    let (mut client, deadline) = connect::connect(invocation)?;
    let Some(id) = run_id(name.as_bytes()) else { return Ok(None) };
    match client.retrieve(&id, deadline) {
        Ok(held) => Ok(Some(held)),
        Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_answered() {
        let fd = |fd: OwnedFd| ClientFd::new(fd, 0);
        let file = tempfile::tempfile().unwrap();
        assert!(Asker::new(fd(file.try_clone().unwrap().into())).is_none());
        assert_eq!(file.metadata().unwrap().len(), 0);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let asker = Asker::new(fd(theirs.into())).unwrap();
        assert!(asker.waits());
        asker.clone().answer("one\n");
        // It sees the end although there is another copy.
        let mut text = String::new();
        { ours }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "taken\none\n");
        assert!(!asker.waits());
        // One that reads nothing, and blocks where it is written to.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let asker = Asker::new(fd(theirs.into())).unwrap();
        asker.answer(&"x".repeat(1 << 20));
        // One that has gone.
        let (gone, theirs) = UnixStream::pair().unwrap();
        let asker = Asker::new(fd(theirs.into())).unwrap();
        drop((gone, ours));
        assert!(!asker.waits());
    }
}
