//! A thread that sends a delivery.
//!
//! What takes more than one message is not for the loop: its other clients would wait, and
//! while one processor takes descriptors in at the destination, another can send them. A
//! single message is sent at once, as far as there is room: that takes no longer than an
//! answer. Nothing is ever read from a socket of a client's choice: whoever shares it could
//! make that wait longer than asked.
//!
//! Loop and courier are connected by a pair of sockets. The courier tells through it how it
//! went; when the loop lets go of its end, the courier ends.

use crate::clock;
use crate::closing::{self, ClientFd};
use crate::delivery::Delivery;
use crate::limits::{COURIERS_MAX, COURIER_STACK_LEN, DELIVERY_PATIENCE, SEND_PAUSE};
use crate::reading::is_transient;
use crate::thread::spawn;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::reply::Answer;
use fdholder::transport::{self, Wait};
use fdholder::Errno;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All couriers of a daemon.
#[derive(Debug)]
pub struct Crew {
    /// Each courier has one of these, for as long as it lives.
    badge: Arc<()>,
    patience: Duration,
}

fn patience(client_timeout: Option<Duration>) -> Duration {
    client_timeout.map_or(DELIVERY_PATIENCE, |span| span.min(DELIVERY_PATIENCE))
}

impl Crew {
    /// A crew that gives up a destination that takes nothing for as long as a client may
    /// be silent, if there is a limit on that.
    pub fn new(client_timeout: Option<Duration>) -> Self {
        Self { badge: Arc::new(()), patience: patience(client_timeout) }
    }

    /// The same for those that are sent off from now on.
    pub fn set_client_timeout(&mut self, client_timeout: Option<Duration>) {
        self.patience = patience(client_timeout);
    }

    /// Sends a courier off; but a single message goes at once, if there is room for it.
    ///
    /// # Errors
    ///
    /// EBUSY when too many are under way, or the system has nothing for one more; otherwise
    /// how sending at once has failed.
    pub fn dispatch(&self, delivery: Delivery<ClientFd>) -> Result<Dispatched, Errno> {
        check(delivery.to().as_fd())?;
        let mut ahead = 0;
        if delivery.len() <= MESSAGE_FDS_MAX {
            let Some(message) = delivery.messages().next() else {
                return Ok(Dispatched::Delivered(0));
            };
            let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
            match transport::send(delivery.to(), message.bytes(), &fds, Wait::No) {
                Ok(sent) if sent == message.bytes().len() => {
                    return Ok(Dispatched::Delivered(sent as u64));
                }
                Ok(sent) => ahead = sent,
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => {}
                Err(errno) => return Err(errno),
            }
        }
        if Arc::strong_count(&self.badge) > COURIERS_MAX {
            return Err(Errno::BUSY);
        }
        let (badge, patience) = (Arc::clone(&self.badge), self.patience);
        let lacking = |_: std::io::Error| Errno::BUSY;
        let (socket, mut ours) = UnixStream::pair().map_err(lacking)?;
        socket.set_nonblocking(true).map_err(lacking)?;
        let deliver = move || {
            // For those who look at its threads.
            let _ = rustix::thread::set_name(c"courier");
            let result = deliver(&delivery, ahead, ours.as_fd(), patience);
            // The destination sees the end of the connection when all who have it let go.
            drop(delivery);
            drop(closing::begun());
            // If nobody listens any more, nobody wants to know.
            let _ = ours.write_all(&encode(result));
            drop(badge);
        };
        spawn(COURIER_STACK_LEN, deliver).map_err(lacking)?;
        Ok(Dispatched::Courier(Courier { socket }))
    }
}

/// What became of a delivery.
#[derive(Debug)]
pub enum Dispatched {
    /// It has been made already; so many bytes.
    Delivered(u64),
    /// It is under way.
    Courier(Courier),
}

/// Refuses what is no Unix stream socket: what else `sendmsg` may do on a descriptor of a
/// client's choice is not ours to find out.
fn check(to: BorrowedFd<'_>) -> Result<(), Errno> {
    let is_unix_stream =
        socket_domain(to)? == AddressFamily::UNIX && socket_type(to)? == SocketType::STREAM;
    is_unix_stream.then_some(()).ok_or(Errno::PROTOTYPE)
}

/// A courier under way, as the loop knows it. Dropped, it is called off.
#[derive(Debug)]
pub struct Courier {
    socket: UnixStream,
}

impl Courier {
    /// What becomes readable when it has something to tell.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How it went: bytes that were sent, or why not. `None` while it is under way.
    pub fn ended(&mut self) -> Option<Answer<u64>> {
        let mut said = [0; 12];
        match self.socket.read(&mut said) {
            Ok(len) if len == said.len() => Some(decode(said)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            _ => Some(Err(Errno::IO)), // It has no other way to end.
        }
    }
}

fn encode(result: Answer<u64>) -> [u8; 12] {
    let (errno, bytes) = match result {
        Ok(bytes) => (0, bytes),
        Err(errno) => (errno.raw_os_error(), 0),
    };
    let mut said = [0; 12];
    said[..4].copy_from_slice(&errno.to_ne_bytes());
    said[4..].copy_from_slice(&bytes.to_ne_bytes());
    said
}

fn decode(said: [u8; 12]) -> Answer<u64> {
    let [e0, e1, e2, e3, bytes @ ..] = said;
    match i32::from_ne_bytes([e0, e1, e2, e3]) {
        0 => Ok(u64::from_ne_bytes(bytes)),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// Sends everything, or fails: ETIMEDOUT when the destination takes nothing for too long,
/// ECANCELED when the loop has let go. Of the first message so many bytes are there
/// already, and then its descriptors.
fn deliver(
    delivery: &Delivery<ClientFd>,
    mut ahead: usize,
    control: BorrowedFd<'_>,
    patience: Duration,
) -> Answer<u64> {
    let to = delivery.to().as_fd();
    let mut sent = 0;
    for message in delivery.messages() {
        let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
        let mut fds = if ahead == 0 { &fds[..] } else { &[] };
        let mut bytes = &message.bytes()[std::mem::take(&mut ahead)..];
        let mut progress = Instant::now();
        wait(control, None, Duration::ZERO)?;
        while !bytes.is_empty() {
            match transport::send(to, bytes, fds, Wait::No) {
                Ok(len) => {
                    bytes = &bytes[len..];
                    fds = &[]; // They went with the first byte.
                    progress = Instant::now();
                }
                Err(Errno::AGAIN) if progress.elapsed() < patience => {
                    wait(control, Some(to), patience)?;
                }
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                Err(errno) if !is_transient(errno) => return Err(errno),
                Err(_) if progress.elapsed() < patience => wait(control, None, SEND_PAUSE)?,
                Err(Errno::TOOMANYREFS) => return Err(Errno::TIMEDOUT),
                Err(errno) => return Err(errno),
            }
        }
        sent += message.bytes().len() as u64;
    }
    Ok(sent)
}

/// Waits until there is room, or for `span`; fails when the loop has let go.
fn wait(control: BorrowedFd<'_>, room_in: Option<BorrowedFd<'_>>, span: Duration) -> Answer<()> {
    let control = PollFd::from_borrowed_fd(control, PollFlags::IN);
    let room = room_in.map(|to| PollFd::from_borrowed_fd(to, PollFlags::OUT));
    let mut sockets: Vec<_> = std::iter::once(control).chain(room).collect();
    // The spans are ours, and short.
    let span = Timespec::try_from(span).map_err(|_| Errno::INVAL)?;
    match poll(&mut sockets, Some(&span)) {
        Ok(_) if !sockets[0].revents().is_empty() => Err(Errno::CANCELED),
        Ok(_) => Ok(()),
        Err(errno) if is_transient(errno) => {
            clock::pause(SEND_PAUSE);
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}
