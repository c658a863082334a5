//! What is held and looked after by the server itself: doors of services, which are read,
//! and what goes when its peer does.

use super::{Server, CARE};
use crate::accept_queue::is_listener;
use crate::audit::{Operation, Who};
use crate::clock;
use crate::closing::ClientFd;
use crate::hold::Hold;
use crate::limits::{LISTENERS_SOUGHT_PER_TURN, ROOM_PAUSE};
use crate::lookout::{may_hang_up, News, Unattended};
use crate::notify::service_of;
use crate::reading::has_hung_up;
use crate::replication::Ticket;
use crate::store::Record;
use fdholder::{strerror, Timestamp};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{statx, AtFlags, FileType, StatxFlags};
use rustix::net::sockopt::{set_socket_passcred, socket_domain, socket_type};
use rustix::net::{getpeername, getsockname, AddressFamily, SocketType};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tracing::debug;

/// What is looked after, each with the place in the store where it is held.
///
/// A ward is kept open until epoll does not watch it any more: epoll goes on watching what
/// others have open, too.
#[derive(Debug, Default)]
pub(super) struct Wards {
    pub all: Slab<Arc<Record<ClientFd>>>,
    by_slot: HashMap<u32, usize>,
    /// Doors that are not read for a moment, as too much that came through them is not closed.
    resting: Vec<usize>,
    /// Until when.
    pub rest_until: Option<Instant>,
    /// What came through doors and is closed when followers have carried out what came with it.
    pub leaving: VecDeque<(Ticket, Vec<ClientFd>)>,
}

impl Server {
    /// Begins to watch what has come, and stops watching what has gone.
    pub(super) fn look_after_wards(&mut self) {
        // What they bring would be lost if this process ended before it serves.
        if self.settles_until.is_some() {
            return;
        }
        for slot in self.hold.store.take_touched() {
            let Hold { store, .. } = &self.hold;
            let held = store.at(slot).filter(|record| store.needs_care(record)).map(Arc::clone);
            self.lookout.forget_device(slot);
            if let Some(&key) = self.wards.by_slot.get(&slot) {
                let ward = &self.wards.all[key];
                if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, ward)) {
                    continue;
                }
                // It may have been given up already.
                let _ = epoll::delete(&self.epoll, &ward.fd);
                self.wards.by_slot.remove(&slot);
                self.wards.all.remove(key);
            }
            if let Some(held) = held {
                self.watch(slot, held);
            }
        }
    }

    /// Closes what has come through doors and is not held, when that may be known.
    pub(super) fn let_leave(&mut self) {
        let Self { wards, hold, .. } = self;
        let is_known = |ticket| hold.mirrors.is_carried_out(ticket);
        while wards.leaving.front().is_some_and(|(ticket, _)| is_known(*ticket)) {
            wards.leaving.pop_front();
        }
    }

    fn watch(&mut self, slot: u32, record: Arc<Record<ClientFd>>) {
        let (id, owner) = (record.id.clone(), Some(record.origin.owner));
        let interest = match service_of(&record.id) {
            // That its peer has gone is always told. Of nothing but these is it asked, as some
            // file server might have to answer.
            None if self.leads_here(&record.fd) => return self.let_go_of_itself(&record),
            None if socket_domain(&record.fd).is_ok() || is_pipe(&record.fd) => EventFlags::empty(),
            None if may_hang_up(&record.fd) => return self.lookout.watch(slot, record),
            None => return,
            Some(_) if is_door(&record.fd) => EventFlags::IN,
            Some(_) => {
                return self.warn_of(owner, format_args!("{id} is no Unix socket for datagrams"));
            }
        };
        if !interest.is_empty() {
            // Without it nobody could be judged.
            if let Err(errno) = set_socket_passcred(&record.fd, true) {
                let problem = strerror(errno);
                return self.warn_of(owner, format_args!("unable to read {id}: {problem}"));
            }
        }
        let entry = self.wards.all.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64 | CARE);
        match epoll::add(&self.epoll, &record.fd, data, interest) {
            Ok(()) => {
                self.wards.by_slot.insert(slot, entry.key());
                entry.insert(record);
            }
            Err(errno) => {
                let problem = strerror(errno);
                self.warn_of(owner, format_args!("unable to watch {id}: {problem}"));
            }
        }
    }

    /// Whether a client of ours could be at this end: it would keep us as its peer, and we it.
    fn leads_here(&self, fd: &ClientFd) -> bool {
        // Of any other socket whoever is sending may keep the names locked.
        if socket_domain(fd) != Ok(AddressFamily::UNIX) {
            return false;
        }
        let peer = getpeername(fd).ok().flatten();
        peer.is_some() && peer == getsockname(&self.listener).ok()
    }

    fn let_go_of_itself(&mut self, record: &Arc<Record<ClientFd>>) {
        let (id, owner) = (&record.id, Some(record.origin.owner));
        self.warn_of(owner, format_args!("{id} is a connection with this holder, and not held"));
        self.let_go_of(record);
    }

    /// Something has happened with one of them. An event may speak of one that has just gone,
    /// or of the next in its place: either is harmless.
    pub(super) fn hear_ward(&mut self, key: usize) {
        let Some(record) = self.wards.all.get(key).map(Arc::clone) else { return };
        // It goes, by and by.
        if record.limit.expired(Timestamp::now()) {
            return;
        }
        let Some(service) = service_of(&record.id) else { return self.peer_has_gone(&record) };
        if !self.may_read_doors() {
            return self.rest(key, &record);
        }
        if let Err(errno) = self.read_door(service, &record.fd) {
            // It would be told of again and again.
            let (id, problem) = (&record.id, strerror(errno));
            let owner = Some(record.origin.owner);
            self.warn_of(owner, format_args!("{id} is not read any more: {problem}"));
            let _ = epoll::delete(&self.epoll, &record.fd);
        }
    }

    /// A door is not read for a moment.
    fn rest(&mut self, key: usize, door: &Record<ClientFd>) {
        if self.listen_at_door(key, door, EventFlags::empty()) {
            self.wards.resting.push(key);
            self.wards.rest_until.get_or_insert(clock::now() + ROOM_PAUSE);
        }
    }

    /// Reads again the doors that have rested, if it is time.
    pub(super) fn wake_doors(&mut self, now: Instant) {
        if self.wards.rest_until.is_none_or(|until| now < until) {
            return;
        }
        self.wards.rest_until = None;
        for key in std::mem::take(&mut self.wards.resting) {
            // Another one may be in its place, which does not matter.
            if let Some(door) = self.wards.all.get(key).map(Arc::clone) {
                if service_of(&door.id).is_some() {
                    self.listen_at_door(key, &door, EventFlags::IN);
                }
            }
        }
    }

    fn listen_at_door(
        &mut self,
        key: usize,
        door: &Record<ClientFd>,
        interest: EventFlags,
    ) -> bool {
        let data = EventData::new_u64(key as u64 | CARE);
        let result = epoll::modify(&self.epoll, &door.fd, data, interest);
        if let Err(errno) = result {
            let (id, problem) = (&door.id, strerror(errno));
            let owner = Some(door.origin.owner);
            self.warn_of(owner, format_args!("unable to watch {id}: {problem}"));
        }
        result.is_ok()
    }

    /// It is not held any longer, as systemd does it.
    fn peer_has_gone(&mut self, record: &Arc<Record<ClientFd>>) {
        if has_hung_up(&record.fd) {
            debug!("the peer of {} has gone", record.id);
            self.let_go_of(record);
        }
    }

    /// Finds out what of that which has come listens, a part in each turn.
    pub(super) fn look_for_listeners(&mut self) {
        for slot in self.hold.store.take_fresh(LISTENERS_SOUGHT_PER_TURN) {
            self.lookout.forget_listener(slot);
            if let Some(record) = self.hold.store.at(slot).filter(|it| is_listener(&it.fd)) {
                self.lookout.listen(slot, record);
            }
        }
    }

    /// Devices have hung up that are held, or were; from listeners nobody accepts.
    pub(super) fn hear_lookout(&mut self) {
        let News { gone, unattended, listeners } = self.lookout.take_news();
        for record in gone {
            debug!("{} has hung up", record.id);
            self.let_go_of(&record);
        }
        for Unattended { record, len, waiting } in unattended {
            let (id, secs) = (&record.id, waiting.as_secs());
            let what = "no process accepts clients that wait at";
            let owner = Some(record.origin.owner);
            self.warn_of(owner, format_args!("{what} {id}: for {secs} s now, {len} in its queue"));
        }
        if let Some(listeners) = listeners {
            self.listening_told = listeners;
            self.tell_those_who_ask();
        }
    }

    fn let_go_of(&mut self, record: &Arc<Record<ClientFd>>) {
        let Hold { store, mirrors, auditor, .. } = &mut self.hold;
        let now = Timestamp::now();
        let changes = store.release(std::iter::once(record));
        mirrors.record(&changes, store);
        let who = Who::owner(record.origin.owner);
        auditor.changed(who, Operation::HangUp, &changes, store, now, clock::now());
    }
}

fn is_door(fd: &ClientFd) -> bool {
    socket_domain(fd) == Ok(AddressFamily::UNIX) && socket_type(fd) == Ok(SocketType::DGRAM)
}

/// Without asking whoever has made it: neither a file server, nor who keeps a pipe locked.
fn is_pipe(fd: &ClientFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, c"", flags, StatxFlags::TYPE)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Fifo)
}
