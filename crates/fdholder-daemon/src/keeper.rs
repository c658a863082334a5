//! Keeping everything while a daemon becomes another program.
//!
//! The keeper was handed everything, and serves nobody: it waits for the new program at the
//! other end of its connection to take over. If that does not come, it serves itself.

use crate::clock;
use crate::closing::ClientFd;
use crate::exchange::{Broken, Exchange};
use crate::inheritance::Inheritance;
use crate::limits::{FOLLOWER_PATIENCE, KEEP_PATIENCE, READ_LEN};
use crate::memory::reserve::has_room;
use crate::reading::{is_transient, read, RETRY_PAUSE};
use crate::replication::roll::{Handed, Place, Roll};
use crate::replication::{self, Mirrors};
use fdholder::extension::{self, Extension};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::link::{self, HandedClient, Head, Heard};
use fdholder::request::Parsed;
use fdholder::transport::{self, Wait};
use fdholder::{reply, Errno, Malformed, Request};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::geteuid;
use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;

/// Whether there is memory to keep so much: asked before anything is given up for it.
pub(crate) fn can_keep(held: usize) -> bool {
    has_room(held * size_of::<usize>())
}

/// Keeps everything until it is taken over; or gives it back, to be served. Until then others
/// may have to serve in its place. Once another process has taken its place, `stop` ends it.
///
/// # Errors
///
/// Those of pwrite(2): nobody can be told that this one serves.
pub(crate) fn keep(
    socket: &OwnedFd,
    inheritance: Inheritance,
    stop: BorrowedFd<'_>,
) -> Result<Option<Inheritance>, Errno> {
    let Inheritance { listener, former, store, clients, dropped, place } = inheritance;
    let kept = Kept {
        listeners: (&listener, &former),
        store: &store,
        clients: &clients,
        place: place.as_ref(),
        stop,
    };
    let Err(broken) = kept.wait_for_next(socket) else { return Ok(None) };
    warn!("the new program was to take over, and does not: {broken}");
    place.as_ref().map_or(Ok(()), Place::follow)?;
    Ok(Some(Inheritance { listener, former, store, clients, dropped, place }))
}

struct Kept<'a> {
    /// Where clients come in, and where they did before.
    listeners: (&'a OwnedFd, &'a [OwnedFd]),
    store: &'a crate::Store<ClientFd>,
    clients: &'a [HandedClient<Arc<ClientFd>>],
    place: Option<&'a Place>,
    stop: BorrowedFd<'a>,
}

impl Kept<'_> {
    fn wait_for_next(&self, socket: &OwnedFd) -> Result<(), Broken> {
        let deadline = clock::now() + KEEP_PATIENCE;
        let mut decoder = Decoder::new(REQUEST_PAYLOAD_MAX);
        let mut buffer = vec![0; READ_LEN];
        // The new program is the process that others watch: it must not end for a failed call here.
        let generation = self.place.map_or(0, Place::generation);
        let mut roll = until(deadline, || Roll::new(generation))?;
        loop {
            match next_request(socket, &mut decoder, &mut buffer, deadline)? {
                Extension::Hello(_) => say(socket, &extension::hello())?,
                Extension::Follow { capacity } if (capacity as usize) < self.store.len() => {
                    say(socket, &reply::status(Err(Errno::NFILE)))?;
                }
                Extension::Follow { .. } => break,
                _ => return Err(Malformed::INCOMPLETE.into()),
            }
        }
        let head = replication::head(&mut roll, self.store);
        let followed = self.be_followed(socket, head, &roll, &mut decoder, &mut buffer);
        if followed.is_err() {
            // It may only be slow, and must not serve beside us when it goes on.
            roll.give_up(head.number).map_err(Broken::Failed)?;
        }
        followed
    }

    /// Hands everything over to the new program.
    fn be_followed(
        &self,
        socket: &OwnedFd,
        head: Head,
        roll: &Roll,
        decoder: &mut Decoder<ClientFd>,
        buffer: &mut [u8],
    ) -> Result<(), Broken> {
        let (listener, former) = self.listeners;
        let oldest = former.first().unwrap_or(listener);
        say(socket, &link::head(head, oldest.as_fd(), roll.file().as_fd(), None))?;
        let mut mirrors = Mirrors::default();
        let mirror = mirrors.add(self.store);
        for newer in former.iter().chain([listener]).skip(1) {
            let newer = until(clock::now() + FOLLOWER_PATIENCE, || fcntl_dupfd_cloexec(newer, 0))?;
            let newer = Arc::new(ClientFd::new(newer, geteuid().as_raw()));
            mirrors.get_mut(mirror).ok_or(Broken::Gone)?.comes_in_by(newer);
        }
        let mirror = (&mut mirrors, mirror);
        let mut exchange = Exchange::new((socket, decoder), mirror, buffer, KEEP_PATIENCE);
        exchange.tell_all()?;
        exchange.wait_for(&Heard::TakeOver)?;
        // From here on the new program may serve, whatever becomes of this one.
        self.place.map_or(Ok(()), Place::follow).map_err(Broken::Failed)?;
        // Until it serves, this is the second copy.
        let clients = self.clients.iter().map(Cow::Borrowed);
        exchange.hand_over(clients, roll, head.number, Handed::Serves, self.stop)
    }
}

/// Tries again what fails for a moment.
fn until<T>(deadline: Instant, mut what: impl FnMut() -> Result<T, Errno>) -> Result<T, Broken> {
    loop {
        match what() {
            Err(errno) if is_transient(errno) && clock::now() < deadline => {
                clock::pause(RETRY_PAUSE);
            }
            result => return result.map_err(Broken::Failed),
        }
    }
}

fn next_request(
    socket: &OwnedFd,
    decoder: &mut Decoder<ClientFd>,
    buffer: &mut [u8],
    deadline: Instant,
) -> Result<Extension<ClientFd>, Broken> {
    while !decoder.has_frame() {
        if !read(socket, decoder, buffer, Some(deadline))? {
            return Err(Broken::Gone);
        }
    }
    let frame = decoder.next()?.ok_or(Malformed::INCOMPLETE)?;
    match Request::parse(frame)? {
        Parsed::Request(Request::Extension(extension)) => Ok(extension),
        _ => Err(Malformed::INCOMPLETE.into()),
    }
}

fn say(socket: &OwnedFd, message: &Message<BorrowedFd<'_>>) -> Result<(), Broken> {
    let deadline = clock::now() + FOLLOWER_PATIENCE;
    let send = || transport::send(socket, message.bytes(), message.fds(), Wait::No);
    match until(deadline, send)? {
        len if len == message.bytes().len() => Ok(()),
        _ => Err(Broken::Failed(Errno::MSGSIZE)),
    }
}
