//! Clients: they ask, ahead of answers or not, read at their own pace, or vanish.

use super::kernel::{File, Listener, Socket, Wire};
use super::serving::Turn;
use fdholder::extension::{Extension, OnConflict, VERSION};
use fdholder::{Entry, Errno, Identifier, Limit, Request, Timestamp};
use std::collections::VecDeque;
use std::rc::Rc;

/// What clients do in a world.
#[derive(Debug)]
pub struct Habits {
    /// Under these they store.
    pub ids: Vec<Identifier>,
    /// Some give sets that take several messages.
    pub large_sets: bool,
    /// One in so many turns is the last.
    pub vanish: usize,
}

#[derive(Debug, Default)]
pub struct Client {
    uid: u32,
    socket: Option<Rc<Socket>>,
    /// What is to be sent: bytes, descriptors, and how much was.
    out: VecDeque<(Vec<u8>, Vec<u32>, usize)>,
    /// Requests that are not answered.
    pub unanswered: usize,
    /// What it is to ask next.
    plan: VecDeque<Request<u32>>,
    window: usize,
    reads_one_in: usize,
    has_snapshot: bool,
}

impl Client {
    pub fn new(uid: u32) -> Self {
        Self { uid, ..Self::default() }
    }

    /// Whether it waits for nothing.
    pub fn is_idle(&self) -> bool {
        self.socket.is_none()
            || self.unanswered == 0
                && self.out.is_empty()
                && self.plan.is_empty()
                && !self.has_snapshot
    }

    pub fn wire(&self) -> Option<Rc<Wire>> {
        self.socket.as_ref().map(|socket| Rc::clone(&socket.wire))
    }

    fn number(&self) -> u32 {
        self.socket.as_ref().map_or(0, |socket| socket.wire.number)
    }

    pub fn act(
        &mut self,
        calm: bool,
        path: Option<&Rc<Listener>>,
        habits: &Habits,
        turn: &mut Turn<'_>,
    ) {
        if self.socket.is_none() {
            if let Some(path) = path.filter(|_| !calm) {
                self.connect(path, turn);
            }
            return;
        }
        let is_bored = calm && self.unanswered == 0 && self.has_snapshot;
        if is_bored || !calm && turn.random.one_in(habits.vanish) {
            turn.note(|| format!("client {} vanishes", self.number()));
            self.hang_up();
            return;
        }
        if self.plan.is_empty() && !calm && self.unanswered < self.window {
            self.make_plan(habits, turn);
        }
        if self.unanswered < self.window {
            if let Some(request) = self.plan.pop_front() {
                self.ask(request, turn);
            }
        }
        if self.send(turn).is_err() {
            // What it was answered is read first.
            self.out.clear();
        }
        if calm || turn.random.one_in(self.reads_one_in) {
            self.read(calm, turn);
        }
    }

    fn connect(&mut self, path: &Rc<Listener>, turn: &mut Turn<'_>) {
        turn.numbers.wire += 1;
        let room = 1 << turn.random.between(6, 12);
        let (theirs, ours) = Wire::pair(turn.numbers.wire, self.uid, None, room);
        path.connect(theirs);
        turn.oracle.connected(turn.numbers.wire, self.uid);
        *self = Self {
            uid: self.uid,
            socket: Some(ours),
            window: turn.random.between(1, 6),
            reads_one_in: [1, 2, 10][turn.random.below(3)],
            ..Self::default()
        };
        if turn.random.one_in(2) {
            self.plan.push_back(Request::Extension(Extension::Hello(VERSION)));
        }
    }

    fn hang_up(&mut self) {
        *self = Self::new(self.uid);
    }

    fn ask(&mut self, request: Request<u32>, turn: &mut Turn<'_>) {
        turn.note(|| format!("client {} asks {request:?}", self.number()));
        self.unanswered += 1;
        turn.oracle.asks(self.number(), request.clone());
        let (bytes, fds) = request.into_message().into_parts();
        self.out.push_back((bytes, fds, 0));
    }

    fn send(&mut self, turn: &mut Turn<'_>) -> Result<(), Errno> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while let Some((bytes, fds, sent)) = self.out.front_mut() {
            let files = fds.iter().map(|fd| File::Content(*fd)).collect();
            match socket.send(&bytes[*sent..], files, false, None, turn.random) {
                Ok(len) => {
                    fds.clear();
                    *sent += len;
                    if *sent == bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
            if turn.random.one_in(4) {
                break;
            }
        }
        Ok(())
    }

    fn read(&mut self, calm: bool, turn: &mut Turn<'_>) {
        let Some(socket) = &self.socket else { return };
        let len = if calm || turn.random.one_in(2) { 1 << 16 } else { turn.random.between(1, 30) };
        match socket.receive(len, None) {
            Ok(received) if !received.bytes.is_empty() => {
                self.unanswered -= turn.oracle.read(self.number(), received.bytes.len());
            }
            Err(Errno::AGAIN) => {}
            _ => {
                turn.note(|| format!("client {} is hung up on", self.number()));
                self.hang_up();
            }
        }
    }

    fn make_plan(&mut self, habits: &Habits, turn: &mut Turn<'_>) {
        let id = |turn: &mut Turn<'_>| habits.ids[turn.random.below(habits.ids.len())].clone();
        let request = match turn.random.below(100) {
            0..=34 => {
                let id = id(turn);
                Request::Store(entry(id, turn))
            }
            35..=52 => Request::Delete(id(turn)),
            53..=64 => Request::Retrieve { id: id(turn), delete: false },
            65..=80 => Request::Retrieve { id: id(turn), delete: true },
            81..=82 => Request::List,
            83..=84 => Request::Getdump,
            85..=86 => Request::Extension(Extension::OnConflict(
                [OnConflict::Replace, OnConflict::Keep, OnConflict::Fail][turn.random.below(3)],
            )),
            87 => {
                self.has_snapshot = true;
                Request::Extension(Extension::Snapshot { entries: true })
            }
            88..=89 => match turn.oracle.snapshot_len(self.number()) as usize {
                len if len > 0 && self.unanswered == 0 => {
                    let start = turn.random.below(len);
                    let end = turn.random.between(start + 1, len.min(start + 3));
                    let runs = std::iter::once(start as u32..end as u32).collect();
                    Request::Extension(Extension::Release { runs, only_ask: false })
                }
                _ => return,
            },
            _ => return self.plan_set(habits, turn),
        };
        self.plan.push_back(request);
    }

    fn plan_set(&mut self, habits: &Habits, turn: &mut Turn<'_>) {
        let is_large = habits.large_sets && turn.random.one_in(8);
        let count =
            if is_large { turn.random.between(250, 300) } else { turn.random.between(1, 5) };
        let first = turn.random.below(1000);
        let id = |index: usize, turn: &mut Turn<'_>| {
            if !is_large || turn.random.one_in(20) {
                return habits.ids[turn.random.below(habits.ids.len())].clone();
            }
            large_id((first + index) % 1000)
        };
        let mut entries = Vec::with_capacity(count);
        for index in 0..count {
            let id = id(index, turn);
            let entry = entry(id, turn);
            entries.push(if is_large { soon(entry, turn) } else { entry });
        }
        self.plan.push_back(Request::Setdump(count as u32));
        while !entries.is_empty() {
            let len = if is_large { 253 } else { turn.random.between(1, 3) };
            let part = entries.drain(..len.min(entries.len())).collect();
            self.plan.push_back(Request::SetdumpData(part));
        }
    }
}

fn large_id(number: usize) -> Identifier {
    Identifier::new(format!("of a large set {number:03}")).expect("it has no NUL")
}

/// A descriptor that nobody has given before. Limits differ, so that the order in which
/// things expire is known.
fn entry(id: Identifier, turn: &mut Turn<'_>) -> Entry<u32> {
    turn.numbers.fd += 1;
    let fd = turn.numbers.fd;
    let secs = match turn.random.below(20) {
        0 => 0,
        1..=6 => turn.random.between(1, 60) as u64,
        _ => return Entry { id, limit: Limit::never_from(turn.now), fd },
    };
    Entry { id, limit: limit(turn.now.label() + secs, fd), fd }
}

/// What would be held for long in great numbers makes everything slow.
fn soon(entry: Entry<u32>, turn: &mut Turn<'_>) -> Entry<u32> {
    let limit = limit(turn.now.label() + turn.random.below(10) as u64, entry.fd);
    Entry { limit, ..entry }
}

fn limit(label: u64, nanos: u32) -> Limit {
    Limit::at(Timestamp::new(label, nanos).expect("there are fewer descriptors"))
}
