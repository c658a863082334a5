//! The client: one connection to a holder, one operation at a time, each with a deadline.

use crate::deadline::Deadline;
use crate::error::{Cause, Error, Malformed};
use crate::frame::{Decoder, Frame};
use crate::id::Identifier;
use crate::limits::REPLY_PAYLOAD_MAX;
use crate::reply::{self, Answer};
use crate::request::{Entry, Request};
use crate::time::{Limit, Timestamp};
use crate::transport::{self, Wait};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{
    connect, socket_with, socketpair, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// How long to wait before trying again what nothing announces: room for descriptors in
/// flight (ETOOMANYREFS).
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// One read takes at most this much.
const READ_LEN: usize = 32 * 1024;

/// A connection to a holder.
///
/// Blocking; every operation takes the [`Deadline`] at which it gives up. Several
/// operations may follow one another. After an error other than a refusal
/// ([`Cause::Denied`]) the connection is of no further use and says so (ENOTCONN).
///
/// ```
/// use fdholder::{Client, Deadline};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("holder");
/// # let _holder = fdholder_daemon::embedded::Holder::start(&path)?;
/// let mut holder = Client::connect(&path, Deadline::NEVER)?;
/// for id in holder.list(Deadline::NEVER)? {
///     println!("{id}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    decoder: Decoder<OwnedFd>,
    buffer: Vec<u8>,
    /// Requests and replies are in step. False while one is under way, so that an error
    /// half-way leaves it false.
    pub(crate) in_step: bool,
    /// The holder has answered something that only a user that it lets in is answered.
    pub(crate) has_answered: bool,
    /// Which extensions the holder has said that it speaks.
    pub(crate) version: Option<u32>,
}

/// The connection, to be looked at: `SO_PEERCRED`, say.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Client {
    /// Connects to the holder that listens on `path`.
    ///
    /// # Errors
    ///
    /// [`Cause::Connect`]: ENOENT no such socket, ECONNREFUSED nobody listens there,
    /// ENAMETOOLONG a path of over 107 bytes, ETIMEDOUT …
    pub fn connect(path: impl AsRef<Path>, deadline: Deadline) -> Result<Self, Error> {
        let path = path.as_ref();
        connect_socket(path, deadline).map(Self::over).map_err(|errno| {
            let doing = format!("connect to a fd-holder daemon at {}", path.display());
            Error::new(doing, Cause::Connect(errno))
        })
    }

    /// A client over a connected socket that was made elsewhere.
    pub fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::new(REPLY_PAYLOAD_MAX),
            buffer: Vec::new(),
            in_step: true,
            has_answered: false,
            version: None,
        }
    }

    /// Has a copy of `fd` held under `id` until `limit`.
    ///
    /// # Errors
    ///
    /// EPERM the rules do not let this user store under that identifier · EBUSY the
    /// identifier is in use · ENFILE the holder is full · EBADF not a descriptor that can
    /// be passed · EPIPE this user may not connect.
    pub fn store(
        &mut self,
        id: &Identifier,
        limit: Limit,
        fd: impl AsFd,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let request = Request::Store(Entry { id: id.clone(), limit, fd: fd.as_fd() });
        self.ask(request, deadline, |frame| reply::parse_status(&frame))
            .map_err(|cause| Error::new("store fd", cause))
    }

    /// Closes what is held under `id`.
    ///
    /// # Errors
    ///
    /// ENOENT nothing is held under it · EPERM the rules do not let this user store, and
    /// so delete, under that identifier · EINPROGRESS it is not held any more, but closing it
    /// takes long (a socket lingers, a file server does not answer).
    pub fn delete(&mut self, id: &Identifier, deadline: Deadline) -> Result<(), Error> {
        self.ask(Request::Delete(id.clone()), deadline, |frame| reply::parse_status(&frame))
            .map_err(|cause| Error::new(format!("delete fd for id {id}"), cause))
    }

    /// Fails with EPERM if s6's daemon would not delete what it holds under `id`. Nothing but the
    /// right to store there tells: this stores under it, for which EBUSY is the answer. If nothing is
    /// held there any more, what was stored has expired already.
    pub(crate) fn may_delete(&mut self, id: &Identifier, deadline: Deadline) -> Result<(), Error> {
        let refused = |cause| Error::new(format!("delete fd for id {id}"), cause);
        let (nothing, _) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| refused(Cause::Exchange(errno)))?;
        let past = Limit::at(Timestamp::from_system(UNIX_EPOCH));
        match self.store(id, past, nothing, deadline) {
            Err(error) if error.cause() == Cause::Denied(Errno::PERM) => {
                Err(refused(error.cause()))
            }
            Err(error) if !matches!(error.cause(), Cause::Denied(_)) => Err(error),
            _ => Ok(()),
        }
    }

    /// A copy of the descriptor held under `id`, close-on-exec; the holder keeps its own.
    ///
    /// # Errors
    ///
    /// ENOENT nothing is held under it · EPERM the rules do not let this user retrieve it
    /// · ENFILE this process has no room for it.
    pub fn retrieve(&mut self, id: &Identifier, deadline: Deadline) -> Result<OwnedFd, Error> {
        self.retrieve_maybe_delete(id, false, deadline)
    }

    /// [`retrieve`](Self::retrieve), and with `delete` the holder lets go of its own;
    /// that takes the right to store under `id` as well.
    ///
    /// # Errors
    ///
    /// As [`retrieve`](Self::retrieve).
    pub fn retrieve_maybe_delete(
        &mut self,
        id: &Identifier,
        delete: bool,
        deadline: Deadline,
    ) -> Result<OwnedFd, Error> {
        let request = Request::Retrieve { id: id.clone(), delete };
        let mut is_lost = false;
        let retrieved = self.ask(request, deadline, |frame| {
            is_lost = frame.fds_lost;
            reply::parse_retrieved(frame)
        });
        retrieved.map_err(|cause| {
            let cause = match cause {
                // It is this process that has no room, not the holder.
                Cause::Denied(errno) if is_lost => Cause::Exchange(errno),
                cause => cause,
            };
            Error::new(format!("retrieve fd for id {id}"), cause)
        })
    }

    /// The identifiers of all that is held, in no particular order.
    ///
    /// # Errors
    ///
    /// EPERM without the right to list.
    pub fn list(&mut self, deadline: Deadline) -> Result<Vec<Identifier>, Error> {
        self.ask(Request::List, deadline, |frame| reply::parse_list(&frame))
            .map_err(|cause| Error::new("get fd list", cause))
    }

    /// Sends a request and reads its reply.
    pub(crate) fn ask<T>(
        &mut self,
        request: Request<BorrowedFd<'_>>,
        deadline: Deadline,
        read: impl FnOnce(Frame<'_, OwnedFd>) -> Result<Answer<T>, Malformed>,
    ) -> Result<T, Cause> {
        match self.send_request(request, deadline) {
            // Before it has hung up the holder may have said why.
            Err(cause) if cause.errno() != Errno::PIPE => return Err(cause),
            _ => {}
        }
        let answer = read(self.receive(deadline)?)?;
        self.in_step = true;
        answer.map_err(Cause::Denied)
    }

    /// Sends a request; whoever reads the reply puts the connection back in step.
    pub(crate) fn send_request(
        &mut self,
        request: Request<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<(), Cause> {
        if !std::mem::take(&mut self.in_step) {
            return Err(Cause::Exchange(Errno::NOTCONN));
        }
        let message = request.into_message();
        self.send(message.bytes(), message.fds(), deadline)
    }

    pub(crate) fn send(
        &self,
        mut bytes: &[u8],
        mut fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), Cause> {
        let deadline = deadline.of_message();
        while !bytes.is_empty() {
            match transport::send(&self.socket, bytes, fds, deadline.wait()) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fds = &[]; // They went with the first byte.
                }
                Err(Errno::AGAIN) => self.wait_for(PollFlags::OUT, deadline)?,
                Err(Errno::TOOMANYREFS) if !deadline.passed() => std::thread::sleep(RETRY_PAUSE),
                Err(Errno::TOOMANYREFS) => return Err(Cause::TimedOut),
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(self.closed()),
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
        Ok(())
    }

    /// The holder has closed the connection.
    pub(crate) fn closed(&self) -> Cause {
        if self.has_answered {
            Cause::BrokenOff
        } else {
            Cause::Exchange(Errno::PIPE)
        }
    }

    /// The next frame. What arrives beyond it waits in the decoder.
    pub(crate) fn receive(&mut self, deadline: Deadline) -> Result<Frame<'_, OwnedFd>, Cause> {
        let deadline = deadline.of_message();
        // Polonius would let the loop return the frame it found; until then it is asked
        // for again.
        while !self.decoder.has_frame() {
            self.fill(deadline)?;
        }
        self.has_answered = true;
        Ok(self.decoder.next()?.ok_or(Malformed("an incomplete message"))?)
    }

    fn fill(&mut self, deadline: Deadline) -> Result<(), Cause> {
        self.buffer.resize(READ_LEN, 0);
        loop {
            // Also when nothing bounds the wait: the kernel wakes a receiver for nothing when
            // the other end takes what was sent to it, but not one that polls to read.
            self.wait_for(PollFlags::IN, deadline)?;
            match transport::receive(&self.socket, &mut self.buffer, Wait::No) {
                // A holder that does not let us in closes the connection; if our request
                // was there already, the kernel calls that a reset.
                Ok(received) if received.len == 0 => return Err(self.closed()),
                Err(Errno::CONNRESET) => return Err(self.closed()),
                Ok(received) => {
                    let bytes = &self.buffer[..received.len];
                    self.decoder.push(bytes, received.fds, received.fds_lost);
                    return Ok(());
                }
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
    }

    /// The connection itself, for a wait that is not on it alone, or to hand it on.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wait_for(&self, what: PollFlags, deadline: Deadline) -> Result<(), Cause> {
        loop {
            let remaining = deadline.remaining();
            // A span that a timespec cannot hold is as good as none.
            let timeout = remaining.and_then(|span| Timespec::try_from(span).ok());
            match poll(&mut [PollFd::new(&self.socket, what)], timeout.as_ref()) {
                // What is there by then counts.
                Ok(0) if remaining == Some(Duration::ZERO) => return Err(Cause::TimedOut),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
    }
}

/// Connects a stream socket; the connection itself is blocking, its wait is bounded by
/// the socket's send timeout, which is what connect(2) heeds on a Unix socket whose
/// listener has a full queue.
fn connect_socket(path: &Path, deadline: Deadline) -> Result<OwnedFd, Errno> {
    let deadline = deadline.of_message();
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        if let Some(remaining) = deadline.remaining() {
            if remaining.is_zero() {
                return Err(Errno::TIMEDOUT);
            }
            // The kernel counts in ticks and takes 0 for "no timeout".
            let timeout = remaining.max(Duration::from_millis(1));
            set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        }
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // The timeout, or a signal; the loop's head tells which.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Client::over(ours), UnixStream::from(theirs))
    }

    #[test]
    fn a_deadline_that_passed_ends_the_wait_and_the_connection() {
        let (mut client, _server) = pair();
        let past = Deadline::after(Duration::ZERO);
        assert_eq!(client.list(past).unwrap_err().cause(), Cause::TimedOut);
        let error = client.list(Deadline::NEVER).unwrap_err();
        assert_eq!(error.cause(), Cause::Exchange(Errno::NOTCONN));
    }

    /// What has come of a message does not count: a holder that dribbles does not keep a client.
    #[test]
    fn message_that_does_not_come_in_its_time_ends_the_wait() {
        let (mut client, mut server) = pair();
        let each = Deadline::each(Duration::from_millis(20));
        server.write_all(b"\0\0\0\x01\0\0\x01").unwrap();
        assert_eq!(client.list(each).unwrap_err().cause(), Cause::Denied(Errno::PERM));
        server.write_all(b"\0\0\0\x01").unwrap();
        assert_eq!(client.list(each).unwrap_err().cause(), Cause::TimedOut);
        assert!(!each.passed() && Deadline::each(Duration::ZERO).passed());
    }

    #[test]
    fn a_closed_connection_is_epipe() {
        let (mut client, server) = pair();
        drop(server);
        assert_eq!(client.list(Deadline::NEVER).unwrap_err().cause(), Cause::Exchange(Errno::PIPE));
    }

    #[test]
    fn a_connection_closed_after_an_answer_is_broken_off() {
        let (mut client, mut server) = pair();
        server.write_all(b"\0\0\0\x01\0\0\x01").unwrap();
        client.list(Deadline::NEVER).unwrap_err();
        drop(server);
        let error = client.list(Deadline::NEVER).unwrap_err();
        assert_eq!((error.cause(), error.errno()), (Cause::BrokenOff, Errno::PIPE));
    }

    #[test]
    fn a_refusal_leaves_the_connection_usable() {
        let (mut client, mut server) = pair();
        server.write_all(b"\0\0\0\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0").unwrap();
        assert_eq!(client.list(Deadline::NEVER).unwrap_err().cause(), Cause::Denied(Errno::PERM));
        assert_eq!(client.list(Deadline::NEVER), Ok(vec![]));
    }

    #[test]
    fn garbage_is_malformed() {
        let (mut client, mut server) = pair();
        server.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        assert!(matches!(client.list(Deadline::NEVER).unwrap_err().cause(), Cause::Malformed(_)));
    }
}
