//! A daemon that serves: what `server.rs`, `server/clients.rs` and `peer.rs` do, in their
//! order, with simulated sockets.

use super::handover::HandingOver;
use super::kernel::{Fd, File, Listener, RollFile, Socket, Table};
use super::links::{Link, Standby};
use super::oracle::Oracle;
use super::random::Random;
use crate::access::Rights;
use crate::connection::{Connection, Standing, Step};
use crate::peer::{has_taken, was_told_of_unread, Gone};
use crate::replication::{Mirrors, Ticket};
use crate::store::{Change, Store};
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::link::HandedClient;
use fdholder::{Errno, Timestamp};
use slab::Slab;
use std::rc::Rc;
use std::sync::Arc;

/// What a process sees of the world in its turn.
pub struct Turn<'a> {
    pub random: &'a mut Random,
    pub oracle: &'a mut Oracle,
    pub now: Timestamp,
    /// The clock that never jumps.
    pub step: u64,
    /// What it has the kernel do.
    pub wants: &'a mut Vec<Want>,
    pub numbers: &'a mut Numbers,
    pub trace: bool,
}

/// Numbers that are given once.
#[derive(Debug, Default)]
pub struct Numbers {
    pub wire: u32,
    pub pid: u32,
    pub fd: u32,
}

/// What a process asks of the kernel about others.
#[derive(Debug)]
pub enum Want {
    /// Start a standby with this end of a connection.
    Standby(Rc<Socket>, Rc<Table>),
    Kill(u32),
}

impl Turn<'_> {
    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>8} {}", self.step, what());
        }
    }
}

#[derive(Debug)]
pub struct Peer {
    pub socket: Arc<Fd>,
    pub connection: Connection<Fd>,
    pub half_closed: bool,
    gave_fds: bool,
    pub gate: Option<Ticket>,
}

impl Peer {
    fn is_quiet(&self) -> bool {
        let is_here = self.socket.socket().is_some_and(|socket| !socket.has_hung_up());
        is_here && !self.half_closed && !self.connection.is_busy()
    }
}

#[derive(Debug)]
pub struct Roll {
    pub fd: Fd,
    pub last: u32,
}

impl Roll {
    pub fn file(&self) -> Option<&Rc<RollFile>> {
        match &self.fd.file {
            File::Roll(roll) => Some(roll),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub struct Server {
    pub table: Rc<Table>,
    pub listener: Fd,
    pub store: Store<Fd>,
    pub mirrors: Mirrors<Fd>,
    pub peers: Slab<Peer>,
    pub gated: Vec<usize>,
    pub borrowers: Vec<usize>,
    pub links: Slab<Link>,
    pub roll: Option<Roll>,
    pub standby: Standby,
    pub handing: Option<HandingOver>,
    /// Until when a set may be on its way that takes several messages.
    mid_set: u64,
    /// Another process holds everything now.
    pub ended: bool,
}

impl Server {
    /// One that goes on where another has ended, or begins anew.
    pub fn inherit(
        table: &Rc<Table>,
        listener: Fd,
        store: Store<Fd>,
        clients: Vec<HandedClient<Fd>>,
        turn: &mut Turn<'_>,
    ) -> Self {
        let mut server = Self {
            table: Rc::clone(table),
            listener,
            store,
            mirrors: Mirrors::default(),
            peers: Slab::new(),
            gated: Vec::new(),
            borrowers: Vec::new(),
            links: Slab::new(),
            roll: None,
            standby: Standby::new(turn.step),
            handing: None,
            mid_set: 0,
            ended: false,
        };
        for client in clients {
            server.resume(client, turn);
        }
        server
    }

    /// One round of the loop, with some of what has happened, in any order.
    pub fn take_turn(&mut self, turn: &mut Turn<'_>) {
        if self.handing.is_some() {
            self.go_on_handing_over(turn);
            return;
        }
        self.tend_followers(turn);
        if self.ended || self.handing.is_some() {
            return;
        }
        if self.listener().is_waited_for() && turn.random.one_in(2) {
            self.accept(turn);
        }
        let links: Vec<_> = self.links.iter().map(|(key, _)| key).collect();
        for key in links {
            if turn.random.one_in(2) {
                self.hear_link(key, turn);
            }
        }
        if !self.peers.is_empty() {
            let tokens: Vec<_> = self.peers.iter().map(|(token, _)| token).collect();
            for _ in 0..turn.random.between(1, 3) {
                self.serve(tokens[turn.random.below(tokens.len())], turn);
            }
        }
        let expired = self.store.expire(turn.now);
        turn.oracle.expires(turn.now);
        self.mirrors.record(&expired, &self.store);
    }

    fn listener(&self) -> Rc<Listener> {
        match &self.listener.file {
            File::Listener(listener) => Rc::clone(listener),
            _ => Rc::default(),
        }
    }

    fn accept(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..turn.random.between(1, 3) {
            if let Some(socket) = self.listener().accept(&self.table) {
                self.let_in(socket, turn);
            }
        }
    }

    pub fn let_in(&mut self, socket: Rc<Socket>, turn: &mut Turn<'_>) -> usize {
        let connection = Connection::new(standing(&socket));
        turn.note(|| format!("{} accepts {}", self.table.pid, socket.wire.number));
        self.admit(Fd::new(File::Socket(socket), &self.table), connection, false)
    }

    fn resume(&mut self, handed: HandedClient<Fd>, turn: &mut Turn<'_>) {
        let Some(socket) = handed.socket.socket() else { return };
        turn.note(|| format!("{} resumes {}", self.table.pid, socket.wire.number));
        let connection = Connection::resume(standing(socket), &handed);
        let token = self.admit(handed.socket, connection, true);
        self.serve(token, turn);
    }

    // The message that hands it over shares it.
    #[allow(clippy::arc_with_non_send_sync)]
    fn admit(&mut self, socket: Fd, connection: Connection<Fd>, gave_fds: bool) -> usize {
        let socket = Arc::new(socket);
        self.peers.insert(Peer { socket, connection, half_closed: false, gave_fds, gate: None })
    }

    pub fn is_gated(&self, token: usize) -> bool {
        let gate = self.peers.get(token).and_then(|peer| peer.gate);
        gate.is_some_and(|gate| !self.mirrors.has_passed(gate))
    }

    /// See `Server::serve`.
    pub fn serve(&mut self, token: usize, turn: &mut Turn<'_>) {
        self.settle_loans(turn);
        if !self.peers.contains(token) {
            return;
        }
        if let Err(gone) = self.serve_peer(token, turn) {
            self.let_go(token, &gone, turn);
            return;
        }
        if self.is_gated(token) {
            self.gated.push(token);
        }
        let peer = &mut self.peers[token];
        if peer.connection.is_borrowing() && !self.borrowers.contains(&token) {
            self.borrowers.push(token);
        }
        if let Some(capacity) = peer.connection.take_follower() {
            self.let_follow(token, capacity, turn);
        }
    }

    /// See `Peer::serve`.
    fn serve_peer(&mut self, token: usize, turn: &mut Turn<'_>) -> Result<(), Gone> {
        if self.is_gated(token) {
            return Ok(());
        }
        let has_waited = self.peers[token].gate.take().is_some();
        let mut reads = if has_waited { 0 } else { turn.random.between(1, 8) };
        let (mut requests, mut messages) = (turn.random.between(1, 8), turn.random.between(1, 8));
        let is_done = loop {
            let before = (requests, messages);
            loop {
                let has_read = reads > 0 && self.receive(token, turn)?;
                self.carry_out(token, &mut requests, turn)?;
                reads -= usize::from(has_read);
                if !has_read || !self.peers[token].connection.is_mid_set() {
                    break;
                }
            }
            reads = 0;
            self.peers[token].gate = Some(self.mirrors.ticket());
            if self.is_gated(token) {
                return Ok(());
            }
            self.peers[token].gate = None;
            self.flush(token, &mut messages, turn)?;
            if before == (requests, messages) {
                break true;
            }
            if requests == 0 || messages == 0 {
                break false;
            }
        };
        self.settle(token, turn)?;
        let peer = &mut self.peers[token];
        let is_done = is_done && peer.connection.outbox().is_empty();
        if peer.half_closed && is_done && !peer.connection.is_borrowing() {
            return Err(Gone::Closed);
        }
        Ok(())
    }

    fn receive(&mut self, token: usize, turn: &mut Turn<'_>) -> Result<bool, Gone> {
        let peer = &mut self.peers[token];
        if peer.half_closed || !peer.connection.wants_input() {
            return Ok(false);
        }
        let Some(socket) = peer.socket.socket() else { return Ok(false) };
        let len = if turn.random.one_in(4) { turn.random.between(1, 40) } else { 64 * 1024 };
        match socket.receive(len, Some(&self.table)) {
            Ok(received) if received.bytes.is_empty() => peer.half_closed = true,
            Ok(received) => {
                let fds = received.files.into_iter().map(|file| Fd::new(file, &self.table));
                peer.connection.receive(&received.bytes, fds, false);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(Gone::Failed(errno)),
        }
        Ok(true)
    }

    fn carry_out(
        &mut self,
        token: usize,
        budget: &mut usize,
        turn: &mut Turn<'_>,
    ) -> Result<(), Gone> {
        let peer = &mut self.peers[token];
        let Some(wire) = peer.socket.socket().map(|socket| socket.wire.number) else {
            return Ok(());
        };
        while *budget > 0 && !self.table.is_dead() {
            match peer.connection.step(&mut self.store, turn.now) {
                Ok(Step::Did { changes, cost }) => {
                    turn.oracle.carries_out(wire, self.table.pid, turn.now);
                    let is_large = |change: &Change<Fd>| match change {
                        Change::HeldAll { slots, .. } => slots.len() > MESSAGE_FDS_MAX,
                        _ => false,
                    };
                    if changes.iter().any(is_large) {
                        self.mid_set = turn.step + 50;
                    }
                    self.mirrors.record(&changes, &self.store);
                    *budget = budget.saturating_sub(cost);
                }
                Ok(Step::Wait) => break,
                Err(malformed) => {
                    turn.oracle.fail(|| format!("client {wire} has sent nonsense: {malformed}"));
                    return Err(Gone::Malformed(malformed));
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, token: usize, budget: &mut usize, turn: &mut Turn<'_>) -> Result<(), Gone> {
        let mut closed = Vec::new();
        let peer = &mut self.peers[token];
        let Some(socket) = peer.socket.socket() else { return Ok(()) };
        while *budget > 0 {
            let is_fdholder = peer.connection.is_fdholder();
            let Some((bytes, entries)) = peer.connection.outbox().front() else { break };
            if !entries.is_empty() && peer.gave_fds && !is_fdholder && !socket.all_is_read() {
                break;
            }
            let files: Vec<_> = entries.iter().map(|entry| entry.fd.file.clone()).collect();
            let fds: Vec<_> = entries.iter().filter_map(|entry| entry.fd.number()).collect();
            peer.gave_fds |= !files.is_empty();
            match socket.send(bytes, files, false, Some(&self.table), turn.random) {
                Ok(sent) => {
                    closed.extend(turn.oracle.sent(socket.wire.number, &bytes[..sent], fds));
                    peer.connection.outbox().advance(sent);
                    *budget -= 1;
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(Gone::Failed(errno)),
            }
        }
        for fd in closed {
            self.check_closed(fd, turn);
        }
        Ok(())
    }

    /// A client knows that this was deleted, so it is closed here and wherever it is
    /// mirrored, unless a reply or a snapshot has it.
    fn check_closed(&mut self, fd: u32, turn: &mut Turn<'_>) {
        let links: Vec<_> = self.links.iter().map(|(_, link)| (link.mirror, link.pid())).collect();
        let mut is_copying = false;
        for (mirror, table) in links {
            let Some(mirror) = self.mirrors.get_mut(mirror) else { continue };
            is_copying |= !mirror.has_everything();
            let open = table.map_or(0, |table| table.open_count(fd));
            if mirror.has_everything() && open > 0 {
                turn.oracle.fail(|| format!("{fd} is deleted, but a follower has it open"));
            }
        }
        let is_open = self.table.open_count(fd) > 0;
        if is_open && !is_copying && !turn.oracle.may_be_open(fd) {
            turn.oracle.fail(|| format!("{fd} is deleted, but still open"));
        }
    }

    /// See `Peer::settle`.
    fn settle(&mut self, token: usize, turn: &mut Turn<'_>) -> Result<(), Gone> {
        let peer = &mut self.peers[token];
        if !peer.connection.is_borrowing() || !peer.connection.outbox().is_empty() {
            return Ok(());
        }
        let Some(socket) = peer.socket.socket() else { return Ok(()) };
        if has_taken(socket.all_is_read(), || socket.error()).map_err(Gone::Failed)? {
            self.end_loan(token, true, turn);
        }
        Ok(())
    }

    fn end_loan(&mut self, token: usize, taken: bool, turn: &mut Turn<'_>) {
        let peer = &mut self.peers[token];
        if !peer.connection.is_borrowing() || self.table.is_dead() {
            return;
        }
        let changes = peer.connection.settle(taken, &mut self.store, turn.now);
        if let Some(socket) = peer.socket.socket() {
            turn.oracle.ends_loan(socket.wire.number, taken, turn.now);
        }
        self.mirrors.record(&changes, &self.store);
    }

    fn settle_loans(&mut self, turn: &mut Turn<'_>) {
        for token in std::mem::take(&mut self.borrowers) {
            if !self.peers.contains(token) {
                continue;
            }
            match self.settle(token, turn) {
                Ok(()) if self.peers[token].connection.is_borrowing() => self.borrowers.push(token),
                Ok(()) => {}
                Err(gone) => self.let_go(token, &gone, turn),
            }
        }
    }

    pub fn serve_gated(&mut self, turn: &mut Turn<'_>) {
        for token in std::mem::take(&mut self.gated) {
            if self.is_gated(token) {
                self.gated.push(token);
            } else {
                self.serve(token, turn);
            }
        }
    }

    /// See `Server::let_go` and `Peer::settle_finally`.
    pub fn let_go(&mut self, token: usize, why: &Gone, turn: &mut Turn<'_>) {
        if was_told_of_unread(why)
            || self.settle(token, turn).is_err()
            || self.peers[token].connection.is_borrowing()
        {
            self.end_loan(token, false, turn);
        }
        let peer = self.peers.remove(token);
        if let Some(socket) = peer.socket.socket() {
            turn.note(|| {
                format!("{} lets client {} go: {why}", self.table.pid, socket.wire.number)
            });
        }
        self.standby.notice_gone(token, turn);
    }

    /// How much more it matters than usual if something goes wrong now.
    pub fn delicacy(&self, step: u64) -> usize {
        let is_behind = |link: &Link| self.mirrors.is_behind(link.mirror);
        match &self.handing {
            // One that does not come to an end is to be seen.
            Some(handing) if handing.deadline > step => 10,
            Some(_) => 1,
            None if self.links.iter().any(|(_, link)| is_behind(link)) => 4,
            None => 1,
        }
    }

    /// Whether a part of a large set may have been mirrored, and another not.
    pub fn is_mid_set(&self, step: u64) -> bool {
        let is_behind = |link: &Link| self.mirrors.is_behind(link.mirror);
        self.mid_set > step && self.links.iter().any(|(_, link)| is_behind(link))
    }

    /// Whether there is nothing to do.
    pub fn is_quiet(&mut self) -> bool {
        let links: Vec<_> = self.links.iter().map(|(_, link)| link.mirror).collect();
        self.handing.is_none()
            && self.gated.is_empty()
            && self.borrowers.is_empty()
            && self.links.len() == 1
            && self.links.iter().all(|(_, link)| link.is_standby)
            && links.into_iter().all(|mirror| !self.mirrors.is_behind(mirror))
            && self.peers.iter().all(|(_, peer)| peer.is_quiet())
    }
}

fn standing(socket: &Socket) -> Standing {
    let is_own = socket.wire.follower.is_some();
    let rights = Some(Arc::new(Rights::all()));
    Standing { uid: socket.wire.uid, is_own, rights }
}
