//! A daemon that serves: what `server.rs` does, in its order, with simulated sockets.

use super::handover::HandingOver;
use super::kernel::{Fd, File, Listener, RollFile, Socket, Table};
use super::links::{Link, Standby};
use super::oracle::Oracle;
use super::random::Random;
use crate::access::Rights;
use crate::connection::{Connection, Standing};
use crate::replication::{Mirrors, Releases, Ticket};
use crate::shares::Quotas;
use crate::store::Store;
use fdholder::link::HandedClient;
use fdholder::Timestamp;
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
    pub gave_fds: bool,
    pub gate: Option<Ticket>,
    /// What followers are to close before its replies leave.
    pub awaited: Releases,
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
    pub mid_set: u64,
    /// Another process holds everything now.
    pub ended: bool,
}

impl Server {
    /// One that goes on where another has ended, or begins anew.
    pub fn inherit(
        table: &Rc<Table>,
        listener: Fd,
        store: Store<Fd>,
        clients: Vec<HandedClient<Arc<Fd>>>,
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
        // Some of it, or all.
        let most = [0, 1, 2, usize::MAX][turn.random.below(4)];
        self.expire(most, turn);
    }

    /// See `Hold::expire`.
    pub(super) fn expire(&mut self, most: usize, turn: &mut Turn<'_>) {
        let expired = self.store.expire(turn.now, most);
        turn.oracle.expires(self.table.pid, turn.now);
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
        // The message that hands it over shares it.
        #[allow(clippy::arc_with_non_send_sync)]
        let socket = Arc::new(Fd::new(File::Socket(socket), &self.table));
        self.admit(socket, connection, false)
    }

    fn resume(&mut self, handed: HandedClient<Arc<Fd>>, turn: &mut Turn<'_>) {
        let Some(socket) = handed.socket.socket() else { return };
        turn.note(|| format!("{} resumes {}", self.table.pid, socket.wire.number));
        let (connection, socket) = Connection::resume(standing(socket), handed);
        let token = self.admit(socket, connection, true);
        self.serve(token, turn);
    }

    fn admit(&mut self, socket: Arc<Fd>, connection: Connection<Fd>, gave_fds: bool) -> usize {
        self.peers.insert(Peer {
            socket,
            connection,
            half_closed: false,
            gave_fds,
            gate: None,
            awaited: Releases::default(),
        })
    }

    /// How much more it matters than usual if something goes wrong now.
    pub fn delicacy(&self, step: u64) -> usize {
        let is_behind = |link: &Link| self.mirrors.is_behind(link.mirror);
        match &self.handing {
            // One that does not come to an end is to be seen.
            Some(handing) if handing.deadline > step => 10,
            None if self.links.iter().any(|(_, link)| is_behind(link)) => 4,
            _ => 1,
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
            // Of whoever has gone nothing is to be known any more.
            && !self.borrowers.iter().any(|token| self.peers.contains(*token))
            && self.links.len() == 1
            && self.links.iter().all(|(_, link)| link.is_standby)
            && links.into_iter().all(|mirror| !self.mirrors.is_behind(mirror))
            && self.peers.iter().all(|(_, peer)| peer.is_quiet())
    }
}

fn standing(socket: &Socket) -> Standing {
    let is_own = socket.wire.follower.is_some();
    // Shares are not modelled.
    let quotas = Quotas { fds: Some(usize::MAX), ..Quotas::default() };
    let rights = Some(Arc::new(Rights { quotas, ..Rights::all() }));
    Standing { uid: socket.wire.uid, is_own, rights }
}
