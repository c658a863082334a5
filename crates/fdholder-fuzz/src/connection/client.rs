//! One client: what it sends, what the daemon must have understood, and what it is answered.

use super::due::Due;
use crate::ledger::{numbers, Fd};
use crate::wire::{Part, Wire};
use fdholder::extension::{Extension, OnConflict};
use fdholder::frame::Decoder;
use fdholder::limits::{MESSAGE_FDS_MAX, REPLY_PAYLOAD_MAX, REQUEST_PAYLOAD_MAX};
use fdholder::request::Parsed;
use fdholder::{Identifier, Malformed, Request};
use fdholder_daemon::limits::{REPLIES_PENDING_MAX, REPLY_BYTES_PENDING_MAX};
use fdholder_daemon::{Connection, Delivery, Record, Standing};
use std::collections::VecDeque;

/// A descriptor that a client was sent: its number, and under what it was held.
pub type Copy = (u32, Identifier);

#[derive(Debug)]
pub struct Client {
    pub standing: Standing,
    pub connection: Connection<Fd>,
    pub wire: Wire<Fd>,
    /// The descriptors of the next message are lost.
    pub loses: bool,
    /// What the daemon has read, read again, to know what it does.
    shadow: Decoder<u32>,
    /// Descriptors that it has read and no request has claimed.
    unclaimed: usize,
    /// A set that it is giving: how many were announced and came.
    pub set: Option<(usize, usize)>,
    pub on_conflict: OnConflict,
    /// Its last set was taken.
    pub has_given: bool,
    /// What it was lent.
    pub loan: Option<u32>,
    /// What its snapshot has, in its order.
    pub snapshot: Vec<Copy>,
    /// It has asked to follow.
    pub follows: bool,
    /// Its delivery, while that is being sent.
    pub under_way: Option<Delivery<Fd>>,
    pub due: VecDeque<Due>,
    replies: Decoder<Copy>,
}

impl Client {
    pub fn new(standing: Standing) -> Self {
        Self {
            connection: Connection::new(standing.clone()),
            standing,
            wire: Wire::default(),
            loses: false,
            shadow: Decoder::new(REQUEST_PAYLOAD_MAX),
            unclaimed: 0,
            set: None,
            on_conflict: OnConflict::default(),
            has_given: false,
            loan: None,
            snapshot: Vec::new(),
            follows: false,
            under_way: None,
            due: VecDeque::new(),
            replies: Decoder::new(REPLY_PAYLOAD_MAX),
        }
    }

    /// Sends bytes, and descriptors with the first.
    pub fn send(&mut self, bytes: Vec<u8>, fds: Vec<Fd>) {
        let fds_lost = self.loses && !fds.is_empty();
        self.loses &= !fds_lost;
        let fds = if fds_lost { Vec::new() } else { fds };
        self.wire.send(Part { bytes, fds, fds_lost });
    }

    pub fn ask(&mut self, request: Request<Fd>) {
        let (bytes, fds) = request.into_message().into_parts();
        self.send(bytes, fds);
    }

    /// The daemon reads, if it wants to. Returns whether anything came.
    pub fn receive(&mut self, len_max: usize) -> bool {
        if !self.connection.wants_input() {
            return false;
        }
        let Some(Part { bytes, fds, fds_lost }) = self.wire.receive(len_max) else { return false };
        self.unclaimed += fds.len();
        self.shadow.push(&bytes, numbers(&fds), fds_lost);
        self.connection.receive(&bytes, fds, fds_lost);
        // One message's worth, and one that has just come.
        assert!(self.unclaimed <= 2 * MESSAGE_FDS_MAX, "{} wait", self.unclaimed);
        true
    }

    /// The next request, as the daemon should understand it.
    pub fn next_request(&mut self) -> Result<Option<Parsed<u32>>, Malformed> {
        let Some(frame) = self.shadow.next()? else { return Ok(None) };
        self.unclaimed -= frame.fds.len();
        let parsed = Request::parse(frame)?;
        let is_let_in = self.standing.rights.is_some();
        match (&parsed, &mut self.set) {
            (Parsed::FdsLost, set) => *set = None,
            (Parsed::Request(Request::Extension(Extension::Unknown)), _) if is_let_in => {}
            (
                Parsed::Request(Request::Extension(Extension::Hello(_) | Extension::Follow { .. })),
                None,
            ) => {}
            _ if !is_let_in => return Err(Malformed::NOT_LET_IN),
            (Parsed::Request(Request::SetdumpData(_)), None) => {
                return Err(Malformed::UNANNOUNCED_SET);
            }
            (Parsed::Request(Request::SetdumpData(entries)), Some((announced, came))) => {
                *came += entries.len();
                if came > announced {
                    return Err(Malformed::SET_TOO_LONG);
                }
            }
            (Parsed::Request(_), Some(_)) => return Err(Malformed::MID_SET),
            (Parsed::Request(_), None) => {}
        }
        Ok(Some(parsed))
    }

    /// The client reads what waits, up to so many bytes. Returns whether there was anything.
    pub fn read(&mut self, len_max: usize) -> bool {
        let Some((bytes, carriers)) = self.connection.outbox().front() else { return false };
        let len = bytes.len().min(len_max);
        assert!(len > 0, "a reply without a byte");
        assert!(carriers.len() <= MESSAGE_FDS_MAX);
        let copies: Vec<_> = carriers.iter().map(|record| self.standing.check(record)).collect();
        self.replies.push(&bytes[..len], copies, false);
        self.connection.outbox().advance(len);
        loop {
            let frame = match self.replies.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(malformed) => panic!("the daemon sends nonsense: {malformed}"),
            };
            let Some(due) = self.due.pop_front() else {
                panic!("an answer to nothing: {:?}", frame.payload)
            };
            if let Some(rest) = due.check(frame) {
                self.due.push_front(rest);
            }
        }
        true
    }

    /// How many descriptors may be open because of it, beside those that are held.
    pub fn fds(&self) -> usize {
        let in_set = self.set.map_or(0, |(_, came)| came);
        let in_replies: usize = self.due.iter().map(Due::fds).sum();
        let to = usize::from(self.connection.is_delivering());
        let lent = usize::from(self.loan.is_some());
        let held_open = self.snapshot.len() + in_replies + to + lent;
        self.wire.fds() + self.unclaimed + in_set + held_open
    }

    /// Whether the daemon does nothing for it although it has asked.
    fn is_kept_waiting(&mut self) -> bool {
        self.connection.is_delivering()
            || self.connection.is_borrowing()
            || self.follows
            || self.connection.awaits_upgrade()
            || self.connection.question().is_some()
            || self.connection.awaits().is_some()
            || self.connection.outbox().is_full()
    }

    /// Nothing was done for it: there is nothing to do, or it waits for something.
    pub fn check_wait(&mut self) {
        assert!(self.is_kept_waiting() || !self.connection.has_request());
    }

    pub fn check(&mut self) {
        assert_eq!(self.connection.has_request(), self.shadow.has_frame());
        let (parts, bytes) = self.connection.outbox().waiting();
        // The last request may add the head of a dump and the dump.
        assert!(parts <= REPLIES_PENDING_MAX + 1, "{parts} replies wait");
        // None is as long as this, with so few descriptors.
        assert!(bytes <= REPLY_BYTES_PENDING_MAX + 8192, "{bytes} bytes wait");
        assert_eq!(self.connection.is_borrowing(), self.loan.is_some());
        assert_eq!(self.connection.is_mid_set(), self.set.is_some());
        if self.connection.outbox().is_empty() {
            assert!(!self.replies.is_mid_frame(), "the rest of a reply never comes");
            assert!(self.due.is_empty(), "no answer: {:?}", self.due);
        }
    }
}

/// What a client may be sent.
trait Check {
    fn check(&self, record: &Record<Fd>) -> Copy;
}

impl Check for Standing {
    fn check(&self, record: &Record<Fd>) -> Copy {
        let may = self.rights.as_ref().is_some_and(|it| it.getdump || it.may_retrieve(&record.id));
        assert!(may, "{} is sent what it may not have", record.id);
        (record.fd.number(), record.id.clone())
    }
}
