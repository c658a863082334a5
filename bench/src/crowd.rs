//! Many clients at once of one holder.
//!
//! One thread plays them all, as it never waits for one of them: a thread or a process for
//! each would have the two sides share the processors with 64 others, and what is measured
//! would be those.

use crate::asker::Manner;
use crate::daemon::identifiers;
use crate::Result;
use fdholder::frame::{Decoder, Frame};
use fdholder::limits::REPLY_PAYLOAD_MAX;
use fdholder::transport::{receive, send, Wait};
use fdholder::{reply, Identifier, Limit, Request, Timestamp};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// In so many rounds there is one in which a client connects for each operation.
pub const ROUNDS_PER_ANEW: usize = 4;

/// In so many rounds there is one in which a client lists.
pub const ROUNDS_PER_LIST: usize = 16;

/// Longer than all is held. No two that are stored have the same limit: that s6's daemon
/// takes quadratic time for those is another section's.
const HOLD: Duration = Duration::from_secs(24 * 60 * 60);

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Store,
    RetrieveOwn,
    RetrieveShared,
    List,
    Delete,
}

/// What a client does in so many rounds. Each does something else in the same round, but
/// all do the same on the whole.
fn schedule(client: usize, rounds: usize) -> Vec<(Operation, Manner)> {
    let mut schedule = Vec::new();
    for round in (0..rounds).map(|round| round + client) {
        let anew = round % ROUNDS_PER_ANEW == 0;
        let manner = if anew { Manner::Anew } else { Manner::Steady };
        schedule.push((Operation::Store, manner));
        schedule.push((Operation::RetrieveOwn, manner));
        schedule.push((Operation::RetrieveShared, manner));
        if round % ROUNDS_PER_LIST == 1 {
            schedule.push((Operation::List, manner));
        }
        schedule.push((Operation::Delete, manner));
    }
    schedule
}

/// The bytes of each request, made once.
#[derive(Debug)]
struct Requests {
    store: Vec<u8>,
    retrieve_own: Vec<u8>,
    delete: Vec<u8>,
}

impl Requests {
    fn of(id: &Identifier, limit: Limit, null: &File) -> Self {
        let fd = null.as_fd();
        Self {
            store: bytes(Request::Store(fdholder::Entry { id: id.clone(), limit, fd })),
            retrieve_own: bytes(Request::Retrieve { id: id.clone(), delete: false }),
            delete: bytes(Request::Delete(id.clone())),
        }
    }
}

fn bytes(request: Request<BorrowedFd<'_>>) -> Vec<u8> {
    request.into_message().into_parts().0
}

/// What all clients have in common.
struct Common {
    path: PathBuf,
    epoll: OwnedFd,
    null: File,
    /// Retrieves of what is held for all.
    shared: Vec<Vec<u8>>,
    list: Vec<u8>,
    buffer: Vec<u8>,
}

/// A connection, over which nobody waits.
struct Connection {
    socket: UnixStream,
    decoder: Decoder<OwnedFd>,
}

impl Connection {
    fn open(common: &Common, token: usize) -> Result<Self> {
        let socket = UnixStream::connect(&common.path)?;
        let data = EventData::new_u64(token as u64);
        epoll::add(&common.epoll, &socket, data, EventFlags::IN)?;
        Ok(Self { socket, decoder: Decoder::new(REPLY_PAYLOAD_MAX) })
    }

    fn ask(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if send(&self.socket, bytes, fds, Wait::No)? == bytes.len() {
            Ok(())
        } else {
            Err("a request did not fit into an empty socket".into())
        }
    }

    /// Reads once: the reply, if it is whole.
    fn hear(&mut self, buffer: &mut [u8]) -> Result<Option<Frame<'_, OwnedFd>>> {
        let received = receive(&self.socket, buffer, Wait::No)?;
        if received.len == 0 {
            return Err("a client of many was let go".into());
        }
        self.decoder.push(&buffer[..received.len], received.fds, received.fds_lost);
        Ok(self.decoder.next()?)
    }
}

struct Client {
    token: usize,
    requests: Requests,
    steady: Connection,
    anew: Option<Connection>,
    schedule: Vec<(Operation, Manner)>,
    /// How much of it is done.
    done: usize,
    /// Which of what is shared it retrieves next.
    next_shared: usize,
}

impl Client {
    /// Asks for what is next; false when there is nothing any more.
    fn ask(&mut self, common: &Common) -> Result<bool> {
        let Some(&(operation, manner)) = self.schedule.get(self.done) else { return Ok(false) };
        if manner == Manner::Anew {
            self.anew = Some(Connection::open(common, self.token)?);
        }
        let connection = self.anew.as_ref().unwrap_or(&self.steady);
        match operation {
            Operation::Store => connection.ask(&self.requests.store, &[common.null.as_fd()])?,
            Operation::RetrieveOwn => connection.ask(&self.requests.retrieve_own, &[])?,
            Operation::RetrieveShared => {
                self.next_shared = (self.next_shared + 1) % common.shared.len();
                connection.ask(&common.shared[self.next_shared], &[])?;
            }
            Operation::List => connection.ask(&common.list, &[])?,
            Operation::Delete => connection.ask(&self.requests.delete, &[])?,
        }
        Ok(true)
    }

    /// Reads what has come. Whether that was the whole reply.
    fn hear(&mut self, common: &mut Common) -> Result<bool> {
        let connection = self.anew.as_mut().unwrap_or(&mut self.steady);
        let Some(frame) = connection.hear(&mut common.buffer)? else { return Ok(false) };
        match self.schedule[self.done].0 {
            Operation::Store | Operation::Delete => reply::parse_status(&frame)??,
            Operation::RetrieveOwn | Operation::RetrieveShared => {
                drop(reply::parse_retrieved(frame)??);
            }
            Operation::List => check_list(&frame, common.shared.len())?,
        }
        self.done += 1;
        self.anew = None;
        Ok(true)
    }
}

/// A list of no fewer. Reading all of it would take longer than making it.
fn check_list(frame: &Frame<'_, OwnedFd>, least: usize) -> Result<()> {
    match *frame.payload {
        [0, a, b, c, d, ..] if u32::from_be_bytes([a, b, c, d]) as usize >= least => Ok(()),
        _ => Err("a list is not what it should be".into()),
    }
}

/// Clients of a holder that has everything they share.
pub struct Crowd {
    common: Common,
    clients: Vec<Client>,
}

impl Crowd {
    /// So many, each of which has connected.
    pub fn gather(path: &Path, size: u32, shared: &[Identifier]) -> Result<Self> {
        let retrieve = |id: &Identifier| bytes(Request::Retrieve { id: id.clone(), delete: false });
        let common = Common {
            path: path.to_owned(),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            null: File::open("/dev/null")?,
            shared: shared.iter().map(retrieve).collect(),
            list: bytes(Request::List),
            buffer: vec![0; 64 * 1024],
        };
        let own = identifiers(shared.len() as u32 + size)?.split_off(shared.len());
        let moment = Timestamp::now().saturating_add(HOLD);
        let clients = (0..).zip(&own).map(|(number, id)| {
            let limit = Limit::at(moment.saturating_add(Duration::from_secs(number)));
            let token = number as usize;
            Ok(Client {
                token,
                requests: Requests::of(id, limit, &common.null),
                steady: Connection::open(&common, token)?,
                anew: None,
                schedule: Vec::new(),
                done: 0,
                next_shared: token * shared.len() / own.len(),
            })
        });
        let clients = clients.collect::<Result<_>>()?;
        Ok(Self { common, clients })
    }

    /// Has all go through so many rounds: how many operations that was, and how long it took.
    pub fn play(&mut self, rounds: usize) -> Result<(u32, Duration)> {
        let Self { common, clients } = self;
        let mut operations = 0;
        for client in &mut *clients {
            client.schedule = schedule(client.token, rounds);
            client.done = 0;
            operations += client.schedule.len() as u32;
        }
        let mut events = Vec::with_capacity(clients.len());
        let mut unfinished = 0;
        let start = Instant::now();
        for client in &mut *clients {
            unfinished += usize::from(client.ask(common)?);
        }
        while unfinished > 0 {
            events.clear();
            epoll::wait(&common.epoll, spare_capacity(&mut events), None)?;
            for event in &events {
                let client = &mut clients[event.data.u64() as usize];
                if client.hear(common)? && !client.ask(common)? {
                    unfinished -= 1;
                }
            }
        }
        Ok((operations, start.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clients_do_the_same_on_the_whole() {
        let count = |client, what| {
            schedule(client, 32).into_iter().filter(|&(operation, _)| operation == what).count()
        };
        for client in 0..64 {
            assert_eq!((count(client, Operation::Store), count(client, Operation::List)), (32, 2));
            let anew =
                schedule(client, 32).into_iter().filter(|&(_, manner)| manner == Manner::Anew);
            assert_eq!(anew.count(), 32 / ROUNDS_PER_ANEW * 4);
        }
    }

    #[test]
    fn what_is_stored_is_retrieved_and_deleted() {
        use Operation::{Delete, List, RetrieveOwn, RetrieveShared, Store};
        let operations: Vec<_> =
            schedule(1, 1).into_iter().map(|(operation, _)| operation).collect();
        assert_eq!(operations, [Store, RetrieveOwn, RetrieveShared, List, Delete]);
    }
}
