//! The kernel, as far as daemons and their clients notice it: descriptors, stream sockets
//! with descriptors in flight, a listening socket, and the roll's lock.
//!
//! Whoever holds the last reference to an end of a connection closes it by dropping it, be
//! it a process or a message on its way.

use super::random::Random;
use crate::replication::roll::{may_go_on, verdict, Succession};
use fdholder::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

/// A process, as the kernel knows it.
#[derive(Debug)]
pub struct Table {
    pub pid: u32,
    /// How often it has each descriptor of a client's open.
    open: RefCell<BTreeMap<u32, u32>>,
    /// So many system calls until it is killed.
    fuse: Cell<Option<u32>>,
    dead: Cell<bool>,
}

impl Table {
    pub fn new(pid: u32) -> Rc<Self> {
        let (open, fuse, dead) = (RefCell::default(), Cell::new(None), Cell::new(false));
        Rc::new(Self { pid, open, fuse, dead })
    }

    /// It is killed, after so many more system calls.
    pub fn kill_after(&self, calls: u32) {
        self.fuse.set(Some(calls));
    }

    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    pub fn is_doomed(&self) -> bool {
        self.is_dead() || self.fuse.get().is_some()
    }

    /// A system call with an effect on others: there are none after death.
    fn call(&self) -> bool {
        match self.fuse.get() {
            _ if self.dead.get() => return false,
            Some(0) => self.dead.set(true),
            Some(left) => self.fuse.set(Some(left - 1)),
            None => {}
        }
        !self.dead.get()
    }

    pub fn open_count(&self, number: u32) -> u32 {
        self.open.borrow().get(&number).copied().unwrap_or(0)
    }

    /// Everything that is open, and how often.
    pub fn open(&self) -> BTreeMap<u32, u32> {
        self.open.borrow().clone()
    }
}

/// What a descriptor refers to.
#[derive(Debug, Clone)]
pub enum File {
    /// Something that a client gave, each once.
    Content(u32),
    Socket(Rc<Socket>),
    Listener(Rc<Listener>),
    Roll(Rc<RollFile>),
}

/// An open descriptor of a process.
#[derive(Debug)]
pub struct Fd {
    pub file: File,
    table: Rc<Table>,
}

impl Fd {
    pub fn new(file: File, table: &Rc<Table>) -> Self {
        if let File::Content(number) = file {
            *table.open.borrow_mut().entry(number).or_default() += 1;
        }
        Self { file, table: Rc::clone(table) }
    }

    /// The number of a client's descriptor.
    pub fn number(&self) -> Option<u32> {
        match self.file {
            File::Content(number) => Some(number),
            _ => None,
        }
    }

    pub fn socket(&self) -> Option<&Rc<Socket>> {
        match &self.file {
            File::Socket(socket) => Some(socket),
            _ => None,
        }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        match &self.file {
            File::Content(number) => {
                let mut open = self.table.open.borrow_mut();
                if let Some(count) = open.get_mut(number) {
                    *count -= 1;
                    if *count == 0 {
                        open.remove(number);
                    }
                }
            }
            // A process that closes any descriptor of a file loses its locks, see fcntl(2).
            File::Roll(roll) if roll.locked_by.get() == Some(self.table.pid) => {
                roll.locked_by.set(None);
            }
            _ => {}
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket {
    pub wire: Rc<Wire>,
    side: usize,
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    pub number: u32,
    /// The user at the client's end.
    pub uid: u32,
    /// It is a daemon that wants to follow.
    pub follower: Option<Weak<Table>>,
    /// By who reads.
    pipes: [RefCell<Pipe>; 2],
}

/// What one end is to read.
#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<Piece>,
    bytes: usize,
    room: usize,
    writer_gone: bool,
    reader_gone: bool,
    /// For the reader's end: its other end was closed with something unread.
    error: Option<Errno>,
}

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    start: usize,
    files: Vec<File>,
}

/// What one read brought.
#[derive(Debug)]
pub struct Received {
    pub bytes: Vec<u8>,
    pub files: Vec<File>,
}

impl Wire {
    /// Both ends of a new connection: the daemon's, and the client's.
    pub fn pair(
        number: u32,
        uid: u32,
        follower: Option<Weak<Table>>,
        room: usize,
    ) -> (Rc<Socket>, Rc<Socket>) {
        let pipe = || RefCell::new(Pipe { room, ..Pipe::default() });
        let wire = Rc::new(Self { number, uid, follower, pipes: [pipe(), pipe()] });
        let end = |side| Rc::new(Socket { wire: Rc::clone(&wire), side });
        (end(0), end(1))
    }
}

impl Socket {
    /// Sends bytes, and with the first of them descriptors; a part, where there is not more
    /// room. `whole`: as the kernel does with what is short.
    pub fn send(
        &self,
        bytes: &[u8],
        files: Vec<File>,
        whole: bool,
        by: Option<&Table>,
        random: &mut Random,
    ) -> Result<usize, Errno> {
        if by.is_some_and(|table| !table.call()) {
            return Err(Errno::IO);
        }
        let mut pipe = self.wire.pipes[1 - self.side].borrow_mut();
        if pipe.reader_gone {
            return Err(Errno::PIPE);
        }
        let mut len = bytes.len();
        if !whole {
            len = len.min(pipe.room.saturating_sub(pipe.bytes));
            if len == 0 {
                return Err(Errno::AGAIN);
            }
            if random.one_in(64) {
                len = random.between(1, len);
            }
        }
        pipe.bytes += len;
        pipe.queue.push_back(Piece { bytes: bytes[..len].to_vec(), start: 0, files });
        Ok(len)
    }

    /// Receives bytes, at most so many, and the descriptors of one message at most: then,
    /// where its piece ends, the read ends. The end of one message and the beginning of the
    /// next with its descriptors come together.
    pub fn receive(&self, mut len_max: usize, by: Option<&Table>) -> Result<Received, Errno> {
        if by.is_some_and(|table| !table.call()) {
            return Err(Errno::IO);
        }
        let mut pipe = self.wire.pipes[self.side].borrow_mut();
        let mut received = Received { bytes: Vec::new(), files: Vec::new() };
        while len_max > 0 {
            let Some(piece) = pipe.queue.front_mut() else { break };
            let end = (piece.start + len_max).min(piece.bytes.len());
            received.bytes.extend_from_slice(&piece.bytes[piece.start..end]);
            let len = end - piece.start;
            received.files.append(&mut piece.files);
            piece.start = end;
            len_max -= len;
            let is_over = end == piece.bytes.len();
            pipe.bytes -= len;
            if !is_over {
                break;
            }
            pipe.queue.pop_front();
            if !received.files.is_empty() {
                break;
            }
        }
        if !received.bytes.is_empty() || len_max == 0 {
            return Ok(received);
        }
        if let Some(errno) = pipe.error.take() {
            return Err(errno);
        }
        if pipe.writer_gone {
            return Ok(received);
        }
        Err(Errno::AGAIN)
    }

    /// Whether a read would bring anything, be it the end.
    pub fn is_readable(&self) -> bool {
        let pipe = self.wire.pipes[self.side].borrow();
        !pipe.queue.is_empty() || pipe.writer_gone
    }

    pub fn has_hung_up(&self) -> bool {
        self.wire.pipes[self.side].borrow().writer_gone
    }

    /// Whether the other end has read everything (SIOCOUTQ).
    pub fn all_is_read(&self) -> bool {
        self.wire.pipes[1 - self.side].borrow().bytes == 0
    }

    /// What `SO_ERROR` tells, once.
    pub fn error(&self) -> Result<(), Errno> {
        self.wire.pipes[self.side].borrow_mut().error.take().map_or(Ok(()), Err)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let unread = {
            let mut mine = self.wire.pipes[self.side].borrow_mut();
            (mine.reader_gone, mine.bytes) = (true, 0);
            std::mem::take(&mut mine.queue)
        };
        let mut theirs = self.wire.pipes[1 - self.side].borrow_mut();
        theirs.writer_gone = true;
        if !unread.is_empty() {
            theirs.error = Some(Errno::CONNRESET);
        }
    }
}

/// A listening socket.
#[derive(Debug, Default)]
pub struct Listener {
    queue: RefCell<VecDeque<Rc<Socket>>>,
}

impl Listener {
    pub fn connect(&self, socket: Rc<Socket>) {
        self.queue.borrow_mut().push_back(socket);
    }

    pub fn accept(&self, by: &Table) -> Option<Rc<Socket>> {
        if !by.call() {
            return None;
        }
        self.queue.borrow_mut().pop_front()
    }

    pub fn is_waited_for(&self) -> bool {
        !self.queue.borrow().is_empty()
    }
}

/// The roll of followers, see [`crate::replication::roll`].
#[derive(Debug, Default)]
pub struct RollFile {
    locked_by: Cell<Option<u32>>,
    has_been_followed: Cell<bool>,
    given_up: RefCell<Vec<u32>>,
}

impl RollFile {
    pub fn lock(&self, by: &Table) -> bool {
        let is_free = self.locked_by.get().is_none_or(|pid| pid == by.pid);
        if is_free && by.call() {
            self.locked_by.set(Some(by.pid));
            return true;
        }
        false
    }

    pub fn let_go(&self, by: &Table) {
        if by.call() && self.locked_by.get() == Some(by.pid) {
            self.locked_by.set(None);
        }
    }

    pub fn give_up(&self, number: u32, by: &Table) {
        if by.call() {
            self.given_up.borrow_mut().push(number);
        }
    }

    pub fn is_given_up(&self, number: u32) -> bool {
        self.given_up.borrow().contains(&number)
    }

    pub fn has_been_followed(&self) -> bool {
        self.has_been_followed.get()
    }

    /// See [`crate::replication::roll::Roll::take_back`].
    pub fn take_back(&self, by: &Table) -> bool {
        let is_locked = self.lock(by);
        may_go_on(is_locked, self.has_been_followed())
    }

    /// The second half of [`crate::replication::roll::succeed`], when the lock was tried.
    pub fn succeed(&self, number: u32, is_locked: bool, by: &Table) -> Option<Succession> {
        let succession = verdict(is_locked, self.is_given_up(number), self.has_been_followed());
        if succession == Some(Succession::Ours) {
            if !by.call() {
                return None;
            }
            self.has_been_followed.set(true);
        }
        succession
    }
}
