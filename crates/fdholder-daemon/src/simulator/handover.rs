//! Handing over, as `server/handover.rs` does, but that anything else may happen between
//! two steps of it.

use super::kernel::Fd;
use super::serving::{Peer, Roll, Server, Turn};
use crate::peer::Gone;
use fdholder::link::HandedClient;
use fdholder::Errno;
use std::sync::Arc;

/// See [`crate::limits::FOLLOWER_PATIENCE`]; in steps.
const PATIENCE: u64 = 300;

/// How far it is.
#[derive(Debug)]
pub struct HandingOver {
    key: usize,
    pub deadline: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Everything that is held is told first.
    Changes,
    Clients(std::vec::IntoIter<HandedClient<Arc<Fd>>>),
    Yours,
    Commit,
    /// The lock is free.
    LetServe,
}

impl HandingOver {
    pub fn new(key: usize, step: u64) -> Self {
        Self { key, deadline: step + PATIENCE, stage: Stage::Changes }
    }
}

impl Peer {
    pub fn hand_over(&self) -> Option<HandedClient<Arc<Fd>>> {
        let idle = !self.half_closed && self.gate.is_none() && self.awaited.is_empty();
        idle.then(|| self.connection.hand_over(Arc::clone(&self.socket))).flatten()
    }
}

impl Server {
    pub fn cut_off_busy_clients(&mut self, turn: &mut Turn<'_>) {
        let busy = self.peers.iter().filter(|(_, peer)| peer.hand_over().is_none());
        let busy: Vec<_> = busy.map(|(token, _)| token).collect();
        for token in busy {
            self.let_go(token, &Gone::Failed(Errno::CANCELED), turn);
        }
    }

    pub fn go_on_handing_over(&mut self, turn: &mut Turn<'_>) {
        let Some(mut handing) = self.handing.take() else { return };
        match self.hand_on(&mut handing, turn) {
            Some(true) => {
                turn.note(|| format!("{} has handed over, and ends", self.table.pid));
                self.ended = true;
            }
            Some(false) => {
                self.lose(handing.key, "it did not serve", turn);
                turn.note(|| format!("{} goes on", self.table.pid));
            }
            None => self.handing = Some(handing),
        }
    }

    /// One step; whether that was the last, and it serves.
    fn hand_on(&mut self, handing: &mut HandingOver, turn: &mut Turn<'_>) -> Option<bool> {
        let key = handing.key;
        if matches!(handing.stage, Stage::LetServe) {
            return self.let_serve(handing, turn);
        }
        let Some(link) = self.links.get(key) else { return Some(false) };
        let mirror = link.mirror;
        if let Stage::Commit = handing.stage {
            if link.has_committed {
                let roll = self.roll.as_ref().and_then(Roll::file)?;
                roll.let_go(&self.table);
                if !self.table.is_dead() {
                    turn.note(|| format!("{} lets the lock go", self.table.pid));
                    turn.oracle.serving = None;
                    turn.oracle.heirs.extend(link.pid().map(|table| table.pid));
                }
                handing.stage = Stage::LetServe;
                return None;
            }
            return self.wait_for(handing, turn);
        }
        self.tell(key, turn.random.between(1, 4), turn);
        let Some(told) = self.mirrors.get_mut(mirror) else { return Some(false) };
        if told.front().is_some() || self.mirrors.is_behind(mirror) {
            return self.wait_for(handing, turn);
        }
        let told = self.mirrors.get_mut(mirror)?;
        match &mut handing.stage {
            Stage::Changes => {
                let peers = self.peers.iter();
                let clients: Vec<_> = peers.filter_map(|(_, peer)| peer.hand_over()).collect();
                handing.stage = Stage::Clients(clients.into_iter());
            }
            Stage::Clients(clients) => {
                if let Some(client) = clients.next() {
                    told.hand_over(&client);
                } else {
                    told.is_yours();
                    handing.stage = Stage::Yours;
                }
            }
            _ => handing.stage = Stage::Commit,
        }
        None
    }

    fn wait_for(&mut self, handing: &HandingOver, turn: &mut Turn<'_>) -> Option<bool> {
        if handing.deadline <= turn.step {
            return Some(false);
        }
        self.hear_link(handing.key, turn);
        None
    }

    fn let_serve(&mut self, handing: &HandingOver, turn: &mut Turn<'_>) -> Option<bool> {
        let roll = self.roll.as_ref().and_then(Roll::file)?;
        if roll.has_been_followed() {
            return Some(true);
        }
        let link = self.links.get(handing.key)?;
        let has_gone = link.socket.socket().is_some_and(|socket| socket.has_hung_up());
        if (has_gone || handing.deadline <= turn.step) && roll.take_back(&self.table) {
            let pid = self.table.pid;
            if let Some(serving) = turn.oracle.serving {
                turn.oracle.fail(|| format!("{pid} goes on, although {serving} serves"));
            }
            turn.oracle.serving = Some(pid);
            turn.oracle.heirs.clear();
            return Some(false);
        }
        None
    }
}
