//! How `restart`, `status` and `metrics` reach a `run`: one end of a pair of sockets is held under
//! NAME/.run. A request has a descriptor with it, to which the answer is written.
//!
//! Who may retrieve that may ask, as the holder's rules say, and needs no path. When `run` ends, its
//! end of the pair closes, and whoever asks finds out at once.

use crate::connect;
use crate::failure::Failure;
use crate::program::Invocation;
use fdholder::transport::{receive, send, Wait};
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier, Limit};
use fdholder_daemon::notify::run_id;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a request at most.
const REQUEST_LEN_MAX: usize = 64;

/// How long to wait before the holder is asked again to hold the socket.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

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

/// Where an answer goes.
#[derive(Debug)]
pub struct Asker(UnixStream);

impl Asker {
    /// Answers. Who has gone need not know.
    pub fn answer(mut self, text: &str) {
        let _ = self.0.write_all(text.as_bytes());
    }
}

/// The end that `run` has.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Makes a pair, and has the holder hold the other end: from a thread, which goes on trying until
    /// there is a holder, or it says no. `warn` is called then.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2) and of starting a thread.
    pub fn register(
        holder: PathBuf,
        name: &OsStr,
        warn: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::system("make a control socket", error);
        let id = run_id(name.as_bytes())
            .ok_or_else(|| failed(io::Error::other("--name is empty or too long")))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        let work = move || loop {
            match hold(&holder, &id, &other) {
                Ok(None) => return,
                Ok(Some(warning)) => return warn(warning),
                Err(error) if matches!(error.cause(), Cause::Denied(_)) => {
                    return warn(format!(
                        "fdholder restart and status cannot reach this process, SIGHUP can: {error}"
                    ));
                }
                Err(_) => std::thread::sleep(RETRY_PAUSE),
            }
        };
        std::thread::Builder::new().name("register".to_owned()).spawn(work).map_err(failed)?;
        Ok(Self { socket })
    }

    /// The next request. An error when nobody can ask any more: nobody holds the other end.
    ///
    /// # Errors
    ///
    /// Why no request can come.
    pub fn next(&self) -> Result<Option<(Request, Asker)>, Errno> {
        let mut buffer = [0; REQUEST_LEN_MAX];
        loop {
            let received = match receive(&self.socket, &mut buffer, Wait::No) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            if received.len == 0 && received.fds.is_empty() {
                return Err(Errno::PIPE);
            }
            let Some(fd) = received.fds.into_iter().next() else { continue };
            let asker = UnixStream::from(fd);
            // What is no socket, or takes nothing, is no way to answer.
            if asker.set_nonblocking(true).is_err() {
                continue;
            }
            let mut asker = Asker(asker);
            if asker.0.write_all(TAKEN).is_err() {
                continue;
            }
            if let Some(request) = Request::of(&buffer[..received.len]) {
                return Ok(Some((request, asker)));
            }
            asker.answer("{\"error\":\"no such request\"}\n");
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has the other end held, in the place of one whose `run` has ended. Returns a warning where one has
/// not.
fn hold(holder: &Path, id: &Identifier, other: &OwnedFd) -> Result<Option<String>, Error> {
    let deadline = Deadline::each(HOLDER_PATIENCE);
    let mut client = Client::connect(holder, deadline)?;
    let mut warning = None;
    loop {
        match client.store(id, Limit::never(), other, deadline) {
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::BUSY)) => {}
            result => return result.map(|()| warning),
        }
        match client.retrieve(id, deadline) {
            Ok(held) if is_alive(&held) => {
                warning = Some(format!(
                    "another run has this name, and goes on: {id} leads to this one from now on \
                     (--name gives another)"
                ));
            }
            _ => {}
        }
        match client.delete(id, deadline) {
            Err(error)
                if !matches!(error.cause(), Cause::Denied(Errno::NOENT | Errno::INPROGRESS)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
}

fn is_alive(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
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
