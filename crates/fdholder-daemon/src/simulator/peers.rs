//! Clients served: what `server/clients.rs` and `peer.rs` do.

use super::kernel::Fd;
use super::links::Link;
use super::serving::{Server, Turn};
use crate::connection::Step;
use crate::peer::{has_taken, was_told_of_unread, Gone};
use crate::replication::Releases;
use crate::shares::Ledger;
use crate::store::Change;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::Errno;

impl Server {
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
        if self.awaits_closes(token) || self.is_gated(token) {
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
            if self.awaits_closes(token) {
                return Ok(());
            }
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

    /// See `Peer::awaits_closes`; here nobody loses patience. What this process drops is closed
    /// at once.
    fn awaits_closes(&mut self, token: usize) -> bool {
        let peer = &mut self.peers[token];
        if !self.mirrors.have_closed(&peer.awaited) {
            return true;
        }
        peer.awaited = Releases::default();
        peer.connection.has_closed(true);
        false
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
        self.expire(0, turn);
        let peer = &mut self.peers[token];
        let Some(wire) = peer.socket.socket().map(|socket| socket.wire.number) else {
            return Ok(());
        };
        while *budget > 0 && !self.table.is_dead() && peer.awaited.is_empty() {
            match peer.connection.step(&mut self.store, &Ledger::ample(), turn.now) {
                Ok(Step::Did { changes, cost, .. }) => {
                    turn.oracle.carries_out(wire, self.table.pid, turn.now);
                    let is_large = |change: &Change<Fd>| match change {
                        Change::HeldAll { slots, .. } => slots.len() > MESSAGE_FDS_MAX,
                        _ => false,
                    };
                    if changes.iter().any(is_large) {
                        self.mid_set = turn.step + 50;
                    }
                    let cleared = self.store.expire(turn.now, 0);
                    self.mirrors.record(&cleared, &self.store);
                    self.mirrors.record(&changes, &self.store);
                    peer.awaited = self.mirrors.released(&changes);
                    if peer.awaited.is_empty() {
                        peer.connection.has_closed(true);
                    }
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
        let has_it = |link: &Link| link.pid().is_some_and(|table| table.open_count(fd) > 0);
        if self.links.iter().any(|(_, link)| has_it(link)) {
            turn.oracle.fail(|| format!("{fd} is deleted, but a follower has it open"));
        }
        if self.table.open_count(fd) > 0 && !turn.oracle.may_be_open(fd) {
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

    fn end_loan(&mut self, token: usize, has_it: bool, turn: &mut Turn<'_>) {
        let peer = &mut self.peers[token];
        if !peer.connection.is_borrowing() || self.table.is_dead() {
            return;
        }
        self.expire(0, turn);
        let changes = self.peers[token].connection.settle(has_it, &mut self.store);
        if let Some(socket) = self.peers[token].socket.socket() {
            turn.oracle.ends_loan(socket.wire.number, has_it, turn.now);
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
}
