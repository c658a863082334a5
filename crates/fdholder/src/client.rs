//! The client: one connection to a holder, one operation at a time, each with a deadline.

use crate::error::{Cause, Error, Malformed};
use crate::frame::{Decoder, Frame, Message};
use crate::id::Identifier;
use crate::limits::{MESSAGE_FDS_MAX, REPLY_PAYLOAD_MAX};
use crate::reply::{self, Answer};
use crate::request::{setdump_data_from_getdump, Entry, Request};
use crate::time::Limit;
use crate::transport::{self, Wait};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// When an operation gives up, by the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// The operation waits as long as it takes.
    pub const NEVER: Self = Self(None);

    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        // An instant that the clock cannot express is further away than any wait.
        Self(Instant::now().checked_add(span))
    }

    /// What is left: `None` when there is no end, zero once it has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// Calls that can wait by themselves do so when nothing bounds the wait.
    fn wait(self) -> Wait {
        if self.0.is_none() {
            Wait::Yes
        } else {
            Wait::No
        }
    }
}

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
/// ```no_run
/// use fdholder::{Client, Deadline};
/// let mut holder = Client::connect("/run/holder", Deadline::NEVER)?;
/// for id in holder.list(Deadline::NEVER)? {
///     println!("{id}");
/// }
/// # Ok::<(), fdholder::Error>(())
/// ```
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    decoder: Decoder<OwnedFd>,
    buffer: Vec<u8>,
    /// Requests and replies are in step. False while one is under way, so that an error
    /// half-way leaves it false.
    in_step: bool,
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
        connect_socket(path, deadline)
            .map(Self::over)
            .map_err(|errno| {
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
        let request = Request::Store(Entry {
            id: id.clone(),
            limit,
            fd: fd.as_fd(),
        });
        self.ask(request, deadline, |frame| reply::parse_status(&frame))
            .map_err(|cause| Error::new("store fd", cause))
    }

    /// Closes what is held under `id`.
    ///
    /// # Errors
    ///
    /// ENOENT nothing is held under it · EPERM the rules do not let this user store, and
    /// so delete, under that identifier.
    pub fn delete(&mut self, id: &Identifier, deadline: Deadline) -> Result<(), Error> {
        self.ask(Request::Delete(id.clone()), deadline, |frame| {
            reply::parse_status(&frame)
        })
        .map_err(|cause| Error::new(format!("delete fd for id {id}"), cause))
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
        let request = Request::Retrieve {
            id: id.clone(),
            delete,
        };
        self.ask(request, deadline, reply::parse_retrieved)
            .map_err(|cause| Error::new(format!("retrieve fd for id {id}"), cause))
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

    /// Copies of everything, with identifiers and limits.
    ///
    /// # Errors
    ///
    /// EPERM without the right · ENFILE this process has no room for them all (raise
    /// RLIMIT_NOFILE, or take the dump in parts with [`begin_getdump`](Self::begin_getdump)).
    pub fn getdump(&mut self, deadline: Deadline) -> Result<Vec<Entry<OwnedFd>>, Error> {
        let mut incoming = self.begin_getdump(deadline)?;
        let mut dump = Vec::new();
        while let Some(entries) = incoming.next_entries(deadline)? {
            dump.extend(entries);
        }
        Ok(dump)
    }

    /// Adds a set to what is held, replacing what is held under the same identifiers.
    ///
    /// A fdholder daemon takes all of it or nothing; s6's may be left with a part when
    /// this fails half-way. A descriptor is only borrowed.
    ///
    /// # Errors
    ///
    /// EPERM without the right · ENFILE the holder has no room for the set.
    pub fn setdump<F: AsFd>(
        &mut self,
        entries: &[Entry<F>],
        deadline: Deadline,
    ) -> Result<(), Error> {
        let count = u32::try_from(entries.len())
            .map_err(|_| Error::new("set dump", Cause::Exchange(Errno::NFILE)))?;
        let mut outgoing = self.begin_setdump(count, deadline)?;
        for part in entries.chunks(MESSAGE_FDS_MAX) {
            outgoing.send_entries(part, deadline)?;
        }
        Ok(())
    }

    /// Asks for a dump, to be taken in parts of up to 253 descriptors.
    ///
    /// # Errors
    ///
    /// As [`getdump`](Self::getdump).
    pub fn begin_getdump(&mut self, deadline: Deadline) -> Result<Incoming<'_>, Error> {
        let remaining = self
            .ask(Request::Getdump, deadline, |frame| {
                reply::parse_getdump_head(&frame)
            })
            .map_err(|cause| Error::new(GET_DUMP, cause))?;
        self.in_step = remaining == 0;
        Ok(Incoming {
            client: self,
            remaining,
        })
    }

    /// Announces a set of `count` descriptors, to be sent in parts of up to 253.
    ///
    /// Nothing is sent for a set of none.
    ///
    /// # Errors
    ///
    /// As [`setdump`](Self::setdump).
    pub fn begin_setdump(&mut self, count: u32, deadline: Deadline) -> Result<Outgoing<'_>, Error> {
        if count != 0 {
            self.ask(Request::Setdump(count), deadline, |frame| {
                reply::parse_setdump_head(&frame)
            })
            .map_err(|cause| Error::new(SET_DUMP, cause))?;
            self.in_step = false;
        }
        Ok(Outgoing {
            client: self,
            remaining: count,
        })
    }

    /// Sends a request and reads its reply.
    fn ask<T>(
        &mut self,
        request: Request<BorrowedFd<'_>>,
        deadline: Deadline,
        read: impl FnOnce(Frame<'_, OwnedFd>) -> Result<Answer<T>, Malformed>,
    ) -> Result<T, Cause> {
        if !std::mem::take(&mut self.in_step) {
            return Err(Cause::Exchange(Errno::NOTCONN));
        }
        let message = request.into_message();
        self.send(message.bytes(), message.fds(), deadline)?;
        let answer = read(self.receive(deadline)?)?;
        self.in_step = true;
        answer.map_err(Cause::Denied)
    }

    fn send(
        &self,
        mut bytes: &[u8],
        mut fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), Cause> {
        while !bytes.is_empty() {
            match transport::send(&self.socket, bytes, fds, deadline.wait()) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fds = &[]; // They went with the first byte.
                }
                Err(Errno::AGAIN) => self.wait_for(PollFlags::OUT, deadline)?,
                Err(Errno::TOOMANYREFS) if !deadline.passed() => std::thread::sleep(RETRY_PAUSE),
                Err(Errno::TOOMANYREFS) => return Err(Cause::TimedOut),
                Err(Errno::CONNRESET) => return Err(Cause::Exchange(Errno::PIPE)),
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
        Ok(())
    }

    /// The next frame. What arrives beyond it waits in the decoder.
    fn receive(&mut self, deadline: Deadline) -> Result<Frame<'_, OwnedFd>, Cause> {
        // Polonius would let the loop return the frame it found; until then it is asked
        // for again.
        while !self.decoder.has_frame() {
            self.fill(deadline)?;
        }
        Ok(self
            .decoder
            .next()?
            .ok_or(Malformed("an incomplete message"))?)
    }

    fn fill(&mut self, deadline: Deadline) -> Result<(), Cause> {
        self.buffer.resize(READ_LEN, 0);
        loop {
            match transport::receive(&self.socket, &mut self.buffer, deadline.wait()) {
                // A holder that does not let us in closes the connection; if our request
                // was there already, the kernel calls that a reset.
                Ok(received) if received.len == 0 => return Err(Cause::Exchange(Errno::PIPE)),
                Err(Errno::CONNRESET) => return Err(Cause::Exchange(Errno::PIPE)),
                Ok(received) => {
                    let bytes = &self.buffer[..received.len];
                    self.decoder.push(bytes, received.fds, received.fds_lost);
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.wait_for(PollFlags::IN, deadline)?,
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
    }

    fn wait_for(&self, what: PollFlags, deadline: Deadline) -> Result<(), Cause> {
        loop {
            let remaining = deadline.remaining();
            if remaining == Some(Duration::ZERO) {
                return Err(Cause::TimedOut);
            }
            // A span that a timespec cannot hold is as good as none.
            let timeout = remaining.and_then(|span| Timespec::try_from(span).ok());
            match poll(&mut [PollFd::new(&self.socket, what)], timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Cause::Exchange(errno)),
            }
        }
    }
}

const GET_DUMP: &str = "get dump";
const SET_DUMP: &str = "set dump";

/// A dump that is being taken from a holder.
#[derive(Debug)]
pub struct Incoming<'a> {
    client: &'a mut Client,
    remaining: u32,
}

impl Incoming<'_> {
    /// How many descriptors are still to come.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The next part of the dump; `None` when all has come.
    ///
    /// # Errors
    ///
    /// As [`Client::getdump`]; the descriptors of the part are closed.
    pub fn next_entries(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Vec<Entry<OwnedFd>>>, Error> {
        self.next_frame(deadline, |frame, remaining| {
            let entries = reply::parse_getdump_data(frame, remaining)?;
            Ok((entries.len() as u32, entries)) // 253 at most.
        })
    }

    /// The next part as the message that hands it on to another holder.
    pub(crate) fn next_message(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Message<OwnedFd>>, Error> {
        self.next_frame(deadline, |frame, remaining| {
            reply::check_getdump_data(&frame, remaining)?;
            let count = frame.fds.len() as u32; // 253 at most.
            Ok((count, setdump_data_from_getdump(frame.payload, frame.fds)))
        })
    }

    fn next_frame<T>(
        &mut self,
        deadline: Deadline,
        read: impl FnOnce(Frame<'_, OwnedFd>, u32) -> Result<(u32, T), Malformed>,
    ) -> Result<Option<T>, Error> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let remaining = self.remaining;
        let part = self.client.receive(deadline).and_then(|frame| {
            if frame.fds_lost {
                return Err(Cause::Exchange(Errno::NFILE));
            }
            Ok(read(frame, remaining)?)
        });
        let (count, part) = part.map_err(|cause| Error::new(GET_DUMP, cause))?;
        self.remaining -= count;
        self.client.in_step = self.remaining == 0;
        Ok(Some(part))
    }
}

/// A set that is being given to a holder.
///
/// The holder answers each part before the next is sent: s6's daemon has room for the
/// descriptors of one message only, and fails when the next one's come early.
#[derive(Debug)]
pub struct Outgoing<'a> {
    client: &'a mut Client,
    remaining: u32,
}

impl Outgoing<'_> {
    /// How many descriptors are still to be sent.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Sends the next part of the set, 1 to 253 descriptors, and waits for the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::setdump`]. EINVAL when the part is none or larger than what remains.
    pub fn send_entries<F: AsFd>(
        &mut self,
        entries: &[Entry<F>],
        deadline: Deadline,
    ) -> Result<(), Error> {
        if entries.is_empty() || entries.len() > MESSAGE_FDS_MAX {
            return Err(Error::new(SET_DUMP, Cause::Exchange(Errno::INVAL)));
        }
        let entries = entries.iter().map(|entry| Entry {
            id: entry.id.clone(),
            limit: entry.limit,
            fd: entry.fd.as_fd(),
        });
        let message = Request::SetdumpData(entries.collect()).into_message();
        self.send_part(message.bytes(), message.fds(), deadline)
            .and_then(|()| self.read_answer(deadline))
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Sends a message that [`Incoming::next_message`] made, without waiting for the
    /// answer: [`confirm`](Self::confirm) does, before the next is sent.
    pub(crate) fn send_message(
        &mut self,
        message: &Message<OwnedFd>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
        self.send_part(message.bytes(), &fds, deadline)
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Reads the answer to the message sent last.
    pub(crate) fn confirm(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.read_answer(deadline)
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    fn send_part(
        &mut self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), Cause> {
        let count = fds.len() as u32; // 253 at most.
        let remaining = self
            .remaining
            .checked_sub(count)
            .ok_or(Cause::Exchange(Errno::INVAL))?;
        self.client.send(bytes, fds, deadline)?;
        self.remaining = remaining;
        Ok(())
    }

    fn read_answer(&mut self, deadline: Deadline) -> Result<(), Cause> {
        let answer = reply::parse_status(&self.client.receive(deadline)?)?;
        match (answer, self.remaining) {
            // EAGAIN is "go on", and only that while there is more to come.
            (Ok(()), 0) => self.client.in_step = true,
            (Err(Errno::AGAIN), 1..) => {}
            (Err(Errno::AGAIN), 0) => {
                return Err(Malformed("the set is whole, not so for it").into())
            }
            (Ok(()), 1..) => return Err(Malformed("an end before the set is whole").into()),
            (Err(errno), _) => return Err(Cause::Denied(errno)),
        }
        Ok(())
    }
}

/// Connects a stream socket; the connection itself is blocking, its wait is bounded by
/// the socket's send timeout, which is what connect(2) heeds on a Unix socket whose
/// listener has a full queue.
fn connect_socket(path: &Path, deadline: Deadline) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
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
    use rustix::net::{socketpair, SocketFlags};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
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

    #[test]
    fn a_closed_connection_is_epipe() {
        let (mut client, server) = pair();
        drop(server);
        assert_eq!(
            client.list(Deadline::NEVER).unwrap_err().cause(),
            Cause::Exchange(Errno::PIPE)
        );
    }

    #[test]
    fn a_refusal_leaves_the_connection_usable() {
        let (mut client, mut server) = pair();
        server
            .write_all(b"\0\0\0\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0")
            .unwrap();
        assert_eq!(
            client.list(Deadline::NEVER).unwrap_err().cause(),
            Cause::Denied(Errno::PERM)
        );
        assert_eq!(client.list(Deadline::NEVER), Ok(vec![]));
    }

    #[test]
    fn garbage_is_malformed() {
        let (mut client, mut server) = pair();
        server.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        assert!(matches!(
            client.list(Deadline::NEVER).unwrap_err().cause(),
            Cause::Malformed(_)
        ));
    }
}
