//! Followers, as `server/followers.rs` has them.

use super::handover::HandingOver;
use super::kernel::{Fd, File, RollFile, Table, Wire};
use super::serving::{Roll, Server, Turn, Want};
use crate::limits::FOLLOWERS_MAX;
use crate::peer::Gone;
use fdholder::frame::Decoder;
use fdholder::limits::REQUEST_PAYLOAD_MAX;
use fdholder::link::{self, Head, Heard};
use fdholder::Errno;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// See [`crate::limits::FOLLOWER_PATIENCE`]; time is counted in steps.
const FOLLOWER_PATIENCE: u64 = 400;

/// See [`crate::limits::HANDOVER_GRACE`].
const HANDOVER_GRACE: u64 = 100;

/// Until another standby is started; twice as long each time.
const RESTART_PAUSE: u64 = 20;
const RESTART_PAUSE_MAX: u64 = 320;

#[derive(Debug)]
pub struct Link {
    pub socket: Fd,
    decoder: Decoder<Fd>,
    pub mirror: usize,
    number: u32,
    pub is_standby: bool,
    pub wants_over: Option<u64>,
    pub has_committed: bool,
    progress: u64,
}

impl Link {
    /// The process at the other end.
    pub fn pid(&self) -> Option<Rc<Table>> {
        self.socket.socket()?.wire.follower.as_ref()?.upgrade()
    }
}

/// The standby that a server keeps.
#[derive(Debug)]
pub struct Standby {
    child: Option<Weak<Table>>,
    token: Option<usize>,
    start_at: Option<u64>,
    pause: u64,
}

impl Standby {
    pub fn new(step: u64) -> Self {
        Self { child: None, token: None, start_at: Some(step), pause: RESTART_PAUSE }
    }

    fn again(&mut self, was_good: bool, turn: &mut Turn<'_>) {
        if let Some(child) = self.child.as_ref().and_then(Weak::upgrade) {
            turn.wants.push(Want::Kill(child.pid));
        }
        self.token = None;
        self.pause = if was_good { RESTART_PAUSE } else { (self.pause * 2).min(RESTART_PAUSE_MAX) };
        let pause = if was_good { 0 } else { self.pause };
        self.start_at = Some(turn.step + pause);
    }

    /// A client has gone. If it was the standby, there must be another.
    pub fn notice_gone(&mut self, token: usize, turn: &mut Turn<'_>) {
        if self.token == Some(token) {
            self.again(false, turn);
        }
    }
}

impl Server {
    pub fn let_follow(&mut self, token: usize, capacity: u32, turn: &mut Turn<'_>) {
        if let Err(errno) = self.accept_follower(token, capacity, turn) {
            turn.note(|| format!("{} refuses a follower: {errno}", self.table.pid));
            if let Some(peer) = self.peers.get_mut(token) {
                peer.connection.refuse_follower(errno);
                self.serve(token, turn);
            }
        }
    }

    fn accept_follower(
        &mut self,
        token: usize,
        capacity: u32,
        turn: &mut Turn<'_>,
    ) -> Result<(), Errno> {
        let takes_over = self.links.iter().any(|(_, link)| link.wants_over.is_some());
        if takes_over || self.links.len() >= FOLLOWERS_MAX {
            return Err(Errno::BUSY);
        }
        let held = self.store.len();
        if (capacity as usize) < held {
            return Err(Errno::NFILE);
        }
        if self.roll.is_none() {
            let file = Rc::new(RollFile::default());
            file.lock(&self.table);
            self.roll = Some(Roll { fd: Fd::new(File::Roll(file), &self.table), last: 0 });
        }
        let roll = self.roll.as_mut().ok_or(Errno::NOMEM)?;
        roll.last += 1;
        let number = roll.last;
        let capacity = self.store.capacity() as u32;
        let about = Head { number, pid: self.table.pid, count: held as u32, capacity };
        let first = link::head(about, self.listener.file.clone(), roll.fd.file.clone(), None);
        let socket = self.peers[token].socket.socket().ok_or(Errno::BADF)?;
        let (bytes, files) = first.into_parts();
        socket.send(&bytes, files, true, Some(&self.table), turn.random)?;
        let is_standby = self.standby.token == Some(token);
        if is_standby {
            self.standby.token = None;
        }
        let Some(socket) = Arc::into_inner(self.peers.remove(token).socket) else { return Ok(()) };
        turn.note(|| format!("{} is followed, number {number}", self.table.pid));
        self.links.insert(Link {
            socket,
            decoder: Decoder::new(REQUEST_PAYLOAD_MAX),
            mirror: self.mirrors.add(&self.store),
            number,
            is_standby,
            wants_over: None,
            has_committed: false,
            progress: turn.step,
        });
        Ok(())
    }

    pub fn tend_followers(&mut self, turn: &mut Turn<'_>) {
        self.tend_standby(turn);
        if self.links.is_empty() {
            return self.serve_gated(turn);
        }
        loop {
            for key in self.link_keys() {
                let budget = turn.random.between(1, 4);
                self.tell(key, budget, turn);
            }
            let waiting = self.gated.len();
            self.serve_gated(turn);
            if waiting == self.gated.len() {
                break;
            }
        }
        for key in self.link_keys() {
            let is_behind = self.mirrors.is_behind(self.links[key].mirror);
            if is_behind && self.links[key].progress + FOLLOWER_PATIENCE <= turn.step {
                self.lose(key, "it hangs", turn);
            }
        }
        self.hand_over_if_due(turn);
    }

    fn link_keys(&self) -> Vec<usize> {
        self.links.iter().map(|(key, _)| key).collect()
    }

    /// Sends a follower so many messages at most.
    pub fn tell(&mut self, key: usize, budget: usize, turn: &mut Turn<'_>) {
        let Some(link) = self.links.get_mut(key) else { return };
        let Some(mirror) = self.mirrors.get_mut(link.mirror) else { return };
        let Some(socket) = link.socket.socket() else { return };
        let mut is_lost = false;
        for _ in 0..budget {
            let Some((bytes, carriers)) = mirror.front() else { break };
            let files = carriers.iter().map(|carrier| carrier.fd().file.clone()).collect();
            match socket.send(bytes, files, false, Some(&self.table), turn.random) {
                Ok(len) => {
                    mirror.advance(len);
                    link.progress = turn.step;
                }
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    is_lost = true;
                    break;
                }
            }
        }
        if is_lost {
            self.lose(key, "it has gone", turn);
        }
    }

    pub fn hear_link(&mut self, key: usize, turn: &mut Turn<'_>) {
        let Some(link) = self.links.get_mut(key) else { return };
        let Some(socket) = link.socket.socket() else { return };
        match socket.receive(64 * 1024, Some(&self.table)) {
            Err(Errno::AGAIN) => return,
            Ok(received) if !received.bytes.is_empty() => {
                link.decoder.push(&received.bytes, Vec::new(), false);
                while let Ok(Some(frame)) = link.decoder.next() {
                    link.progress = turn.step;
                    let heard = Heard::parse(&frame);
                    if let (Ok(heard), Some(mirror)) = (&heard, self.mirrors.get_mut(link.mirror)) {
                        mirror.hear(heard);
                    }
                    match heard {
                        Ok(Heard::TakeOver) => link.wants_over = Some(turn.step),
                        Ok(Heard::Commit) => link.has_committed = true,
                        Ok(
                            Heard::UpTo(_) | Heard::Closing(_) | Heard::Closed(_) | Heard::Synced,
                        ) => {}
                        other => turn.oracle.fail(|| format!("a follower has said {other:?}")),
                    }
                }
                return;
            }
            _ => {}
        }
        self.lose(key, "it has gone", turn);
    }

    /// Gives a follower up.
    pub fn lose(&mut self, key: usize, why: &str, turn: &mut Turn<'_>) {
        if self.table.is_dead() {
            // It only seemed so.
            return;
        }
        let Some(link) = self.links.try_remove(key) else { return };
        turn.note(|| format!("{} gives follower {} up: {why}", self.table.pid, link.number));
        if let Some(roll) = self.roll.as_ref().and_then(Roll::file) {
            roll.give_up(link.number, &self.table);
        }
        let was_good = self.mirrors.remove(link.mirror);
        if link.is_standby {
            self.standby.again(was_good, turn);
        }
    }

    fn tend_standby(&mut self, turn: &mut Turn<'_>) {
        if self.standby.start_at.is_none_or(|at| at > turn.step) {
            return;
        }
        if self.standby.child.as_ref().is_some_and(|child| child.upgrade().is_some()) {
            // It is killed, but has not ended.
            self.standby.start_at = Some(turn.step + RESTART_PAUSE);
            return;
        }
        turn.numbers.pid += 1;
        turn.numbers.wire += 1;
        let table = Table::new(turn.numbers.pid);
        let room = 1 << turn.random.between(7, 15);
        let follower = Some(Rc::downgrade(&table));
        let (ours, theirs) = Wire::pair(turn.numbers.wire, 0, follower.clone(), room);
        self.standby = Standby {
            child: follower,
            token: Some(self.let_in(ours, turn)),
            start_at: None,
            pause: self.standby.pause,
        };
        turn.wants.push(Want::Standby(theirs, table));
    }

    /// The client that a standby is until it follows is not for the next daemon.
    pub fn leave_standby(&mut self, turn: &mut Turn<'_>) {
        if let Some(token) = self.standby.token {
            self.let_go(token, &Gone::Closed, turn);
        }
    }

    /// See `Server::hand_over_if_due`.
    fn hand_over_if_due(&mut self, turn: &mut Turn<'_>) {
        let wanted = self.links.iter().find_map(|(key, link)| Some((key, link.wants_over?)));
        let Some((key, since)) = wanted else { return };
        let all_idle = self.peers.iter().all(|(_, peer)| peer.hand_over().is_some());
        if all_idle || since + HANDOVER_GRACE <= turn.step {
            turn.note(|| format!("{} hands over", self.table.pid));
            self.handing = Some(HandingOver::new(key, turn.step));
            self.leave_standby(turn);
            self.cut_off_busy_clients(turn);
        }
    }

    /// Who has everything, by what was sent.
    pub fn heirs(&mut self) -> Vec<u32> {
        let mut heirs = Vec::new();
        for (_, link) in &self.links {
            let has_everything =
                self.mirrors.get_mut(link.mirror).is_some_and(|mirror| mirror.has_everything());
            let table = link.pid().filter(|table| has_everything && !table.is_doomed());
            heirs.extend(table.map(|table| table.pid));
        }
        heirs
    }
}
