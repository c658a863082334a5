//! A client's turn: what has come is read and carried out, and what can be sent is sent.

use super::awaited::Awaited;
use super::{Gone, Peer};
use crate::audit::{Event, Verdict, Who};
use crate::clock;
use crate::closing::{self, ClientFd, Closes};
use crate::connection::{Deed, Step};
use crate::hold::Hold;
use crate::limits::{
    CLOSING_PER_USER_MAX, MEMORY_PIECE_LEN, MESSAGES_PER_TURN, READS_PER_TURN, READ_LEN,
    REQUESTS_PER_TURN, ROOM_PAUSE, SEND_PAUSE, SHORT_REQUEST_LEN,
};
use crate::memory::reserve;
use crate::shares::{Claimant, Ledger, Quotas, Resource};
use crate::store::Change;
use crate::unread::all_is_read;
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use fdholder::transport::{self, Received, Wait};
use fdholder::{Errno, Timestamp};
use rustix::event::epoll::EventFlags;
use std::os::fd::AsFd;
use std::time::Instant;

/// How sending to a client has ended.
#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    /// Nothing is left, or there is no room.
    AsMuchAsFits,
    /// It has not taken the last descriptors, and cannot take two messages of them together.
    Paced,
}

/// Whether something may succeed a little later: the kernel, or this process, has no room at
/// this moment.
pub fn is_for_now(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOMEM
            | Errno::NOBUFS
            | Errno::MFILE
            | Errno::NFILE
            | Errno::TOOMANYREFS
            | Errno::NOSPC
    )
}

impl Peer {
    /// Reads once, if the client may send more. Returns whether anything came.
    fn receive(&mut self, hold: &mut Hold) -> Result<bool, Gone> {
        if self.half_closed || !self.connection.wants_input() {
            return Ok(false);
        }
        self.waits_for_room = false;
        let Some(len) = self.may_bring(&mut hold.ledger) else {
            self.waits_for_room = true;
            self.again = Some(clock::now() + ROOM_PAUSE);
            return Ok(false);
        };
        match self.read(hold, len) {
            Ok(Some(received)) if received.len == 0 => self.half_closed = true,
            Ok(Some(received)) => {
                let bytes = &hold.buffer[..received.len];
                let uid = self.who.user.uid;
                let fds = received.fds.into_iter().map(|fd| ClientFd::new(fd, uid));
                self.connection.receive(bytes, fds, received.fds_lost);
            }
            Ok(None) => {
                self.waits_for_room = true;
                self.again = Some(clock::now() + ROOM_PAUSE);
                return Ok(false);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) if is_for_now(errno) => {
                self.again = Some(clock::now() + ROOM_PAUSE);
                return Ok(false);
            }
            Err(errno) => return Err(Gone::Failed(errno)),
        }
        Ok(true)
    }

    /// Reads what there is room for: `None` if that is not so for descriptors that come next.
    fn read(&self, hold: &mut Hold, len: usize) -> Result<Option<Received>, Errno> {
        let mut len = len.min(hold.buffer.len());
        if !self.may_bring_fds(hold) {
            match transport::peek_without_fds(&self.socket, &mut hold.buffer)? {
                // What comes right now may bring some.
                Some(without_fds) => len = len.min(without_fds),
                None => return Ok(None),
            }
        }
        transport::receive(&self.socket, &mut hold.buffer[..len], Wait::No).map(Some)
    }

    /// How many bytes it may bring. A whole request, if there is memory for that, or it is the first
    /// of its user's that wait: then it has this until it is whole. Otherwise as many as a request
    /// takes that is no set. A limit of its user's own is for replies: requests wait.
    fn may_bring(&mut self, ledger: &mut Ledger) -> Option<usize> {
        let come = self.connection.come_len();
        self.has_room &= come > 0;
        if !self.has_room {
            let who = Claimant { quotas: Quotas::default(), ..self.claimant() };
            if ledger.room(&who, Resource::Bytes) >= HEADER_LEN + REQUEST_PAYLOAD_MAX {
                ledger.line.leave(who.uid, &mut self.in_line);
                self.has_room = true;
            } else if come < SHORT_REQUEST_LEN {
                return Some(SHORT_REQUEST_LEN - come);
            } else if ledger.line.is_first(who.uid, &mut self.in_line) {
                self.has_room = true;
            } else {
                return None;
            }
        }
        // What has come and what comes is put together in one piece.
        let most = READ_LEN.min(MEMORY_PIECE_LEN.saturating_sub(come));
        // The next request has to wait for its own turn.
        Some(if self.in_line.is_some() { most.min(self.connection.missing_len()) } else { most })
    }

    /// A request was carried out. For the next one there may be no room.
    fn gives_up_its_room(&mut self, ledger: &mut Ledger) {
        self.has_room = false;
        ledger.line.leave(self.who.user.uid, &mut self.in_line);
    }

    /// Whether there is room for the descriptors of a whole message of its. Those that it has
    /// announced have a place; and one that waits for the rest of a message has those of it. But
    /// whoever leaves too much unclosed brings nothing.
    fn may_bring_fds(&self, hold: &mut Hold) -> bool {
        let leaving = hold.note_leaving(self.who.user.uid);
        let Hold { store, ledger, .. } = hold;
        let unused = store.capacity() - store.len();
        let has_room = || {
            let room = ledger.room_beside(&self.claimant(), Resource::Arriving, unused);
            let has_places = self.connection.is_mid_set() || self.connection.has_fds_of_a_part();
            has_places || room >= MESSAGE_FDS_MAX
        };
        leaving.own < CLOSING_PER_USER_MAX && has_room()
    }

    /// Reads what has come, carries out what was asked and sends what can be sent, until
    /// there is nothing to do, the client has to read first, its replies have to wait for
    /// followers, or its turn is over at `until`. The clock is read for each request. Returns whether
    /// anything was done.
    pub fn serve(&mut self, hold: &mut Hold, until: Instant) -> Result<bool, Gone> {
        self.again = None;
        let has_dropped = self.awaited.is_some();
        if self.awaits_closes(&hold.mirrors) || self.is_gated(&hold.mirrors) {
            // It will be served when that is over; nothing else matters until then. That it
            // has hung up is told once, not all the time.
            self.interest = EventFlags::ET;
            return Ok(false);
        }
        // One that has waited is watched, and not by edges, unless it waits for the client to
        // read as well: what has come meanwhile is told.
        let has_waited = self.gate.take().is_some() || has_dropped;
        let is_told = has_waited && !self.interest.contains(EventFlags::ET);
        // Nobody tells of what was left in the socket as there was no room for it.
        let is_told = is_told && !std::mem::take(&mut self.waits_for_room);
        let mut reads = if is_told { 0 } else { READS_PER_TURN };
        self.waits_for_readers = false;
        hold.note_leaving(self.who.user.uid);
        let (mut requests, mut messages) = (REQUESTS_PER_TURN, MESSAGES_PER_TURN);
        let mut progress = has_waited;
        let mut has_read_any = false;
        let mut paced;
        loop {
            let before = (requests, messages);
            loop {
                let has_read = reads > 0 && self.receive(hold)?;
                has_read_any |= has_read;
                self.carry_out(hold, &mut requests, until);
                // A set has many messages, whose answers may leave together.
                reads -= usize::from(has_read);
                let goes_on = has_read
                    && !reserve::is_short()
                    && self.broken.is_none()
                    && self.connection.is_mid_set();
                if !goes_on || clock::now() >= until {
                    break;
                }
            }
            reads = 0;
            self.dispatch(&hold.crew);
            if self.awaits_closes(&hold.mirrors) {
                return Ok(true);
            }
            self.gate = Some(hold.mirrors.ticket());
            if self.is_gated(&hold.mirrors) {
                return Ok(true);
            }
            self.gate = None;
            // Also when the next request is malformed: the replies before it are due.
            paced = self.flush(&mut messages, until, &mut hold.ledger)? == Flushed::Paced;
            if let Some(malformed) = self.broken {
                return Err(Gone::Malformed(malformed));
            }
            if before == (requests, messages) || self.again.is_some() {
                break;
            }
            progress = true;
            self.has_progressed = true;
            if requests == 0 || messages == 0 {
                self.again = Some(clock::now());
                break;
            }
            if self.connection.outbox().is_empty() && !self.connection.has_request() {
                break;
            }
        }
        if self.is_borrowing() {
            self.settle(hold)?;
            if !self.is_borrowing() && self.connection.has_request() {
                self.again = Some(clock::now());
            }
        }
        // Whoever waits for it to read is told by edges.
        let on_edge = paced || self.is_borrowing();
        if on_edge && has_read_any {
            // They tell only once of what can be read.
            self.again = Some(clock::now());
        }
        // A client that no longer listens wants no delivery.
        let done = self.again.is_none() && self.connection.outbox().is_empty();
        if self.half_closed && (done && !self.is_borrowing() || self.is_delivering()) {
            return Err(Gone::Closed);
        }
        self.update_interest(on_edge);
        Ok(progress || has_read_any)
    }

    /// What a request changed is dropped here, once it is taken down: descriptors that no
    /// reply carries, nor any message to a follower, close. What comes next waits for that.
    fn carry_out(&mut self, hold: &mut Hold, budget: &mut usize, until: Instant) {
        let mut now = Timestamp::now();
        hold.expire(now, 0);
        while *budget > 0 && self.broken.is_none() && self.awaited.is_none() {
            // What was dropped before is not what this one has dropped.
            drop(closing::begun());
            match self.connection.step(&mut hold.store, &hold.ledger, now) {
                Ok(Step::Did { changes, cost, deed }) => {
                    self.gives_up_its_room(&mut hold.ledger);
                    let mut closes = Closes::default();
                    if hold.store.has_cleared_the_way() {
                        // This is nothing that the client has dropped.
                        closes = closing::begun();
                        hold.expire(now, 0);
                        drop(closing::begun());
                    }
                    hold.tally.count(deed.operation, deed.refused.is_some());
                    hold.mirrors.record(&changes, &hold.store);
                    let releases = hold.mirrors.released(&changes);
                    if hold.auditor.is_on() {
                        self.write_down(&deed, &changes, hold, now);
                    }
                    drop(changes);
                    *budget = budget.saturating_sub(cost);
                    if reserve::is_short() {
                        // The next one might find nothing any more.
                        *budget = 0;
                    }
                    closes.join(closing::begun());
                    self.awaited = Awaited::new(closes, releases);
                    if self.awaited.is_none() {
                        self.connection.has_closed(true);
                    }
                    if self.connection.has_request() {
                        if clock::now() >= until {
                            *budget = 0;
                        }
                        now = Timestamp::now();
                        hold.expire(now, 0);
                    }
                }
                Ok(Step::Wait) => break,
                Err(malformed) => self.broken = Some(malformed),
            }
        }
    }

    fn write_down(
        &self,
        deed: &Deed,
        changes: &[Change<ClientFd>],
        hold: &mut Hold,
        now: Timestamp,
    ) {
        let (who, at) = (Who::from(self.who), clock::now());
        hold.auditor.changed(who, deed.audited, changes, &hold.store, now, at);
        let Some(errno) = deed.refused else { return };
        let short = self.connection.short();
        let verdict = match &short {
            Some(short) if short.errno() == errno => Verdict::DeniedAs(errno, short),
            _ => Verdict::Denied(errno),
        };
        let id = deed.id.as_ref();
        hold.auditor.note(&Event { who, operation: deed.audited, id, verdict }, at);
    }

    /// Sends until the socket is full, the client has as much unread as it may, or its turn is
    /// over.
    fn flush(
        &mut self,
        budget: &mut usize,
        until: Instant,
        ledger: &mut Ledger,
    ) -> Result<Flushed, Gone> {
        while *budget > 0 {
            let is_fdholder = self.connection.is_fdholder();
            let Some((_, entries)) = self.connection.outbox().front() else { break };
            let count = entries.len();
            if count > 0 {
                // s6's receiver fails when the descriptors of a message arrive before those
                // of the last one were taken.
                if self.gave_fds
                    && !is_fdholder
                    && !all_is_read(&self.socket).map_err(Gone::Failed)?
                {
                    return Ok(Flushed::Paced);
                }
                self.waits_for_readers = !self.may_leave_unread(count, ledger);
                if self.waits_for_readers {
                    self.again = Some(clock::now() + ROOM_PAUSE);
                    break;
                }
            }
            let Some((bytes, entries)) = self.connection.outbox().front() else { break };
            let fds: Vec<_> = entries.iter().map(|entry| entry.fd.as_fd()).collect();
            match transport::send(&self.socket, bytes, &fds, Wait::No) {
                Ok(sent) => {
                    self.gave_fds |= count > 0;
                    self.unread_fds += count;
                    self.connection.outbox().advance(sent);
                    *budget -= 1;
                    if reserve::is_short() {
                        // The next one might find nothing any more.
                        *budget = 0;
                    }
                    if !self.connection.outbox().is_empty() && clock::now() >= until {
                        *budget = 0;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::TOOMANYREFS) => {
                    self.again = Some(clock::now() + SEND_PAUSE);
                    break;
                }
                Err(errno) if is_for_now(errno) => {
                    self.again = Some(clock::now() + ROOM_PAUSE);
                    break;
                }
                Err(errno) => return Err(Gone::Failed(errno)),
            }
        }
        Ok(Flushed::AsMuchAsFits)
    }

    /// Whether it may be sent so many descriptors more before it reads. Whoever has read
    /// everything may be sent one message, whatever the limit. Who has not leaves one for each of
    /// its user's connections that have: that may wait for those before it reads this one.
    fn may_leave_unread(&mut self, count: usize, ledger: &mut Ledger) -> bool {
        self.recharge(ledger);
        let who = self.claimant();
        let fits = |peer: &Self, ledger: &Ledger| {
            let count_of = |resource| ledger.used(who.uid, resource);
            let left_to_others = match peer.unread_fds {
                0 => 0,
                _ => count_of(Resource::Connections).saturating_sub(count_of(Resource::Behind)),
            };
            ledger.room(&who, Resource::Unread) >= count + left_to_others
        };
        if fits(self, ledger) {
            return true;
        }
        self.look_at_unread();
        self.recharge(ledger);
        fits(self, ledger) || ledger.used(who.uid, Resource::Unread) == 0
    }

    fn update_interest(&mut self, on_edge: bool) {
        self.interest = EventFlags::empty();
        if !self.half_closed && self.connection.wants_input() && !self.waits_for_room {
            self.interest |= EventFlags::IN;
        }
        if !self.connection.outbox().is_empty() && self.again.is_none() {
            self.interest |= EventFlags::OUT;
        }
        if on_edge {
            // There is room already; each time the client takes something is an edge.
            self.interest |= EventFlags::OUT | EventFlags::ET;
        }
        if self.interest.is_empty() {
            // That it has hung up is told all the same: once, not all the time.
            self.interest = EventFlags::ET;
        }
    }
}
