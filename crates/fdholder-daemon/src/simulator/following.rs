//! A process that follows, as `follower.rs` does.

use super::kernel::{Fd, File, RollFile, Socket, Table};
use super::serving::Turn;
use crate::replication::roll::Succession;
use crate::replication::{Replica, Told};
use crate::store::Record;
use fdholder::extension::{self, Extension, VERSION};
use fdholder::frame::Decoder;
use fdholder::link::{Dropped, Fed, Heard, LINK_PAYLOAD_MAX};
use fdholder::{reply, Errno, Request};
use std::rc::Rc;
use std::sync::Arc;

/// How long a primary may say nothing to who wants to take over; in steps.
const PATIENCE: u64 = 1500;

/// Steps that it takes to close something at most, if it takes long.
const CLOSE_LEN_MAX: usize = 60;

#[derive(Debug)]
pub struct Following {
    table: Rc<Table>,
    socket: Rc<Socket>,
    decoder: Decoder<Fd>,
    stage: Stage,
    listener: Option<Fd>,
    roll: Option<Fd>,
    number: u32,
    pub replica: Replica<Fd>,
    /// What takes long to close, and until when.
    closing: Vec<(u64, Arc<Record<Fd>>)>,
    takes_over: bool,
    has_asked: bool,
    deadline: u64,
    has_lock: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Hello,
    Head,
    Following,
    /// The primary has gone, or lets us serve.
    Succeeding,
}

/// What becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Follows,
    Serves,
    Ends(&'static str),
}

impl Following {
    pub fn begin(
        table: &Rc<Table>,
        socket: Rc<Socket>,
        capacity: usize,
        takes_over: bool,
        turn: &mut Turn<'_>,
    ) -> Self {
        let ask = |extension| Request::<File>::Extension(extension).into_message().into_parts().0;
        let mut bytes = ask(Extension::Hello(VERSION));
        bytes.extend(ask(Extension::Follow { capacity: capacity as u32 }));
        let _ = socket.send(&bytes, Vec::new(), true, Some(table), turn.random);
        Self {
            table: Rc::clone(table),
            socket,
            decoder: Decoder::new(LINK_PAYLOAD_MAX),
            stage: Stage::Hello,
            listener: None,
            roll: None,
            number: 0,
            replica: Replica::new(capacity),
            closing: Vec::new(),
            takes_over,
            has_asked: false,
            deadline: turn.step + PATIENCE,
            has_lock: false,
        }
    }

    /// Whether it has everything, and nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.replica.is_synced() && !self.socket.is_readable() && self.closing.is_empty()
    }

    pub fn into_parts(self) -> (Option<Fd>, Replica<Fd>) {
        (self.listener, self.replica)
    }

    fn say(&self, what: Heard, turn: &mut Turn<'_>) -> Result<(), Errno> {
        let message = what.into_message::<File>();
        let sent =
            self.socket.send(message.bytes(), Vec::new(), true, Some(&self.table), turn.random);
        sent.map(drop)
    }

    pub fn take_turn(&mut self, turn: &mut Turn<'_>) -> Fate {
        self.close(turn);
        match self.stage {
            Stage::Hello | Stage::Head => self.get_in(turn),
            Stage::Following if self.takes_over => self.take_over(turn),
            Stage::Following => self.hear(turn).unwrap_or(Fate::Follows),
            Stage::Succeeding => self.succeed(turn),
        }
    }

    /// Reads once; `None` when there is nothing, false at the end.
    fn read(&mut self, turn: &mut Turn<'_>) -> Option<bool> {
        // What is said to one that is not let in yet is short and comes whole.
        let is_cut = self.stage == Stage::Following && turn.random.one_in(4);
        let len = if is_cut { turn.random.between(1, 60) } else { 64 * 1024 };
        match self.socket.receive(len, Some(&self.table)) {
            Ok(received) if received.bytes.is_empty() => Some(false),
            Ok(received) => {
                let table = &self.table;
                let fds = received.files.into_iter().map(|file| Fd::new(file, table));
                self.decoder.push(&received.bytes, fds, false);
                Some(true)
            }
            Err(Errno::AGAIN | Errno::IO) => None,
            Err(_) => Some(false),
        }
    }

    /// Somebody else closes what it has dropped, and it tells when that is done.
    fn close(&mut self, turn: &mut Turn<'_>) {
        let is_due = |(at, _): &mut (u64, _)| *at <= turn.step;
        let closed: Vec<_> = self.closing.extract_if(.., is_due).map(|(_, it)| it).collect();
        if !closed.is_empty() {
            let told = dropped(&closed);
            drop(closed);
            let _ = self.say(Heard::Closed(told), turn);
        }
    }

    fn get_in(&mut self, turn: &mut Turn<'_>) -> Fate {
        match self.read(turn) {
            None if turn.step >= self.deadline => return Fate::Ends("it waits for too long"),
            None => return Fate::Follows,
            Some(false) => return Fate::Ends("nobody is to be followed"),
            Some(true) => {}
        }
        if self.stage == Stage::Hello {
            let Ok(Some(frame)) = self.decoder.next() else { return Fate::Follows };
            let hello = extension::parse_hello(&frame);
            if hello != Ok(Ok(VERSION)) {
                turn.oracle.fail(|| format!("a hello was answered with {hello:?}"));
                return Fate::Ends("no fdholder");
            }
            self.stage = Stage::Head;
        }
        let Ok(Some(frame)) = self.decoder.next() else { return Fate::Follows };
        if let Ok(Err(_)) = reply::parse_status(&frame) {
            return Fate::Ends("it is refused");
        }
        let fed = Fed::parse(frame);
        let Ok(Fed::Head { head, listener, roll, pending: _ }) = fed else {
            turn.oracle.fail(|| format!("a link begins with {fed:?}"));
            return Fate::Ends("no head");
        };
        self.number = head.number;
        (self.listener, self.roll) = (Some(listener), Some(roll));
        self.stage = Stage::Following;
        self.deadline = turn.step + PATIENCE;
        Fate::Follows
    }

    /// See `Follower::take_over`.
    fn take_over(&mut self, turn: &mut Turn<'_>) -> Fate {
        if self.replica.is_ours() {
            let _ = self.say(Heard::Commit, turn);
            self.stage = Stage::Succeeding;
            return Fate::Follows;
        }
        if self.replica.is_synced() && !self.has_asked {
            let _ = self.say(Heard::TakeOver, turn);
            self.has_asked = true;
            self.deadline = turn.step + PATIENCE;
        }
        match self.hear(turn) {
            None if turn.step >= self.deadline => Fate::Ends("it waits for too long"),
            None => Fate::Follows,
            Some(fate) => {
                self.deadline = turn.step + PATIENCE;
                fate
            }
        }
    }

    /// See `Follower::hear`; `None` when nothing has come.
    fn hear(&mut self, turn: &mut Turn<'_>) -> Option<Fate> {
        if !self.read(turn)? {
            self.stage = Stage::Succeeding;
            return Some(Fate::Follows);
        }
        let (mut answer, mut slow) = (None, Vec::new());
        loop {
            let frame = match self.decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => {
                    turn.oracle.fail(|| format!("a primary has sent nonsense: {malformed}"));
                    return Some(Fate::Ends("nonsense"));
                }
            };
            let heard =
                Fed::parse(frame).map_err(Into::into).and_then(|fed| self.replica.hear(fed));
            match heard {
                Ok(told) => {
                    let Told { answer: heard, mut dropped } = told;
                    answer = heard.or(answer);
                    slow.extend(dropped.extract_if(.., |_| turn.random.one_in(3)));
                }
                Err(error) => {
                    turn.oracle.fail(|| format!("a follower cannot go on: {error}"));
                    return Some(Fate::Ends("it cannot go on"));
                }
            }
        }
        if !slow.is_empty() {
            let _ = self.say(Heard::Closing(dropped(&slow)), turn);
            let until = turn.step + turn.random.between(1, CLOSE_LEN_MAX) as u64;
            self.closing.extend(slow.into_iter().map(|record| (until, record)));
        }
        if let Some(answer) = answer {
            let _ = self.say(answer, turn);
        }
        Some(Fate::Follows)
    }

    /// See [`crate::replication::roll::succeed`]; between the lock and what is written there
    /// is time.
    fn succeed(&mut self, turn: &mut Turn<'_>) -> Fate {
        if !self.replica.is_synced() {
            return Fate::Ends("it has not got everything");
        }
        let Some(File::Roll(roll)) = self.roll.as_ref().map(|roll| &roll.file) else {
            return Fate::Ends("no roll");
        };
        let roll: &Rc<RollFile> = roll;
        if !self.has_lock {
            self.has_lock = roll.lock(&self.table);
            if turn.random.one_in(2) {
                return Fate::Follows;
            }
        }
        match roll.succeed(self.number, self.has_lock, &self.table) {
            None => Fate::Follows,
            Some(Succession::Ours) => Fate::Serves,
            Some(Succession::Anothers) => Fate::Ends("another one serves"),
            Some(Succession::GivenUp) => Fate::Ends("it was given up"),
        }
    }
}

fn dropped(records: &[Arc<Record<Fd>>]) -> Vec<Dropped> {
    records.iter().map(|record| record.origin.into()).collect()
}
