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
use crate::reading::{has_hung_up, if_it_applies, is_transient};
use crate::replication::Ticket;
use crate::store::Record;
use fdholder::{strerror, Errno, Timestamp};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{statx, AtFlags, FileType, StatxFlags};
use rustix::net::sockopt::{set_socket_passcred, socket_domain, socket_type};
use rustix::net::{getpeername, getsockname, AddressFamily, SocketType};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tracing::debug;

/// What is looked after.
///
/// A ward is kept open until epoll does not watch it any more: epoll goes on watching what
/// others have open, too.
#[derive(Debug, Default)]
pub(super) struct Wards {
    /// By the place in the store where each is held, which is also what epoll tells of it.
    pub all: BTreeMap<u32, Arc<Record<ClientFd>>>,
    /// Doors that are not read for a moment, as too much that came through them is not closed.
    resting: BTreeSet<u32>,
    /// Places in the store that could not be looked at for a moment: whether they need care, and
    /// whether they listen.
    unseen: BTreeSet<u32>,
    unheard: BTreeSet<u32>,
    /// Until when all these wait.
    pub rest_until: Option<Instant>,
    /// What came through doors and is closed when followers have carried out what came with it.
    pub leaving: VecDeque<(Ticket, Vec<ClientFd>)>,
}

impl Server {
    /// Begins to watch what has come, and stops watching what has gone.
    pub(super) fn look_after_wards(&mut self) {
        // If this process ended, its predecessor would go on without what they have brought.
        if self.is_pending() {
            return;
        }
        let mut touched = self.hold.store.take_touched();
        if self.wards.rest_until.is_none() {
            touched.append(&mut self.wards.unseen);
        }
        for slot in touched {
            self.wards.unseen.remove(&slot);
            let Hold { store, .. } = &self.hold;
            let held = store.at(slot).filter(|record| store.needs_care(record)).map(Arc::clone);
            self.lookout.forget_device(slot);
            if let Some(ward) = self.wards.all.get(&slot) {
                if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, ward)) {
                    continue;
                }
                // It may have been given up already.
                let _ = epoll::delete(&self.epoll, &ward.fd);
                self.wards.all.remove(&slot);
            }
            if let Some(held) = held {
                if let Err(errno) = self.watch(slot, &held) {
                    debug!("unable to watch {} yet: {}", held.id, strerror(errno));
                    self.wards.unseen.insert(slot);
                    self.wards.rest();
                }
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

    /// Begins to look after what needs it. An error passes, and it is to be tried again.
    fn watch(&mut self, slot: u32, record: &Arc<Record<ClientFd>>) -> Result<(), Errno> {
        let (id, owner) = (&record.id, Some(record.origin.owner));
        let interest = if service_of(id).is_some() {
            if !is_door(&record.fd)? {
                self.warn_of(owner, format_args!("{id} is no Unix socket for datagrams"));
                return Ok(());
            }
            // Without it nobody could be judged.
            if if_it_applies(set_socket_passcred(&record.fd, true))?.is_none() {
                self.warn_of(owner, format_args!("unable to read {id}: it tells no senders"));
                return Ok(());
            }
            EventFlags::IN
        } else if self.leads_here(&record.fd)? {
            self.let_go_of_itself(record);
            return Ok(());
        } else if if_it_applies(socket_domain(&record.fd))?.is_some() || is_pipe(&record.fd)? {
            // That its peer has gone is always told. Of nothing but these is it asked, as some
            // file server might have to answer.
            EventFlags::empty()
        } else {
            if may_hang_up(&record.fd)? {
                self.lookout.watch(slot, Arc::clone(record));
            }
            return Ok(());
        };
        let data = EventData::new_u64(u64::from(slot) | CARE);
        match if_it_applies(epoll::add(&self.epoll, &record.fd, data, interest))? {
            Some(()) => {
                self.wards.all.insert(slot, Arc::clone(record));
            }
            None => self.warn_of(owner, format_args!("unable to watch {id}: epoll refuses it")),
        }
        Ok(())
    }

    /// Whether a client of ours could be at this end: it would keep us as its peer, and we it.
    fn leads_here(&self, fd: &ClientFd) -> Result<bool, Errno> {
        // Of any other socket whoever is sending may keep the names locked.
        if if_it_applies(socket_domain(fd))? != Some(AddressFamily::UNIX) {
            return Ok(false);
        }
        let peer = if_it_applies(getpeername(fd))?.flatten();
        Ok(peer.is_some() && peer == if_it_applies(getsockname(&self.listener))?)
    }

    fn let_go_of_itself(&mut self, record: &Arc<Record<ClientFd>>) {
        let (id, owner) = (&record.id, Some(record.origin.owner));
        self.warn_of(owner, format_args!("{id} is a connection with this holder, and not held"));
        self.let_go_of(record);
    }

    /// Something has happened with one of them. An event may speak of one that has just gone,
    /// or of the next in its place: either is harmless.
    pub(super) fn hear_ward(&mut self, slot: u32) {
        let Some(record) = self.wards.all.get(&slot).map(Arc::clone) else { return };
        // It goes, by and by.
        if record.limit.expired(Timestamp::now()) {
            return;
        }
        let Some(service) = service_of(&record.id) else { return self.peer_has_gone(&record) };
        if !self.may_read_doors() {
            return self.rest(slot, &record);
        }
        match self.read_door(service, &record.fd) {
            Ok(()) => {}
            Err(errno) if is_transient(errno) => self.rest(slot, &record),
            // It would be told of again and again.
            Err(errno) => {
                let (id, problem) = (&record.id, strerror(errno));
                let owner = Some(record.origin.owner);
                self.warn_of(owner, format_args!("{id} is not read any more: {problem}"));
                let _ = epoll::delete(&self.epoll, &record.fd);
            }
        }
    }

    /// A door is not read for a moment.
    fn rest(&mut self, slot: u32, door: &Record<ClientFd>) {
        // Where that fails for a moment, too, it is told of again until it is tried again.
        if self.listen_at_door(slot, door, EventFlags::empty()).is_ok() {
            self.wards.resting.insert(slot);
            self.wards.rest();
        }
    }

    /// Looks again at what could not be looked at, and reads again the doors that have rested, if it
    /// is time.
    pub(super) fn wake_doors(&mut self, now: Instant) {
        if self.wards.rest_until.is_none_or(|until| now < until) {
            return;
        }
        self.wards.rest_until = None;
        for slot in std::mem::take(&mut self.wards.unheard) {
            self.look_whether_it_listens(slot);
        }
        for slot in std::mem::take(&mut self.wards.resting) {
            // Another one may be in its place, which does not matter.
            if let Some(door) = self.wards.all.get(&slot).map(Arc::clone) {
                let is_door = service_of(&door.id).is_some();
                if is_door && self.listen_at_door(slot, &door, EventFlags::IN).is_err() {
                    self.wards.resting.insert(slot);
                    self.wards.rest();
                }
            }
        }
    }

    /// An error passes.
    fn listen_at_door(
        &mut self,
        slot: u32,
        door: &Record<ClientFd>,
        interest: EventFlags,
    ) -> Result<(), Errno> {
        let data = EventData::new_u64(u64::from(slot) | CARE);
        let watched = if_it_applies(epoll::modify(&self.epoll, &door.fd, data, interest))?;
        if watched.is_none() {
            let owner = Some(door.origin.owner);
            self.warn_of(owner, format_args!("unable to watch {}: epoll refuses it", door.id));
        }
        Ok(())
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
            self.look_whether_it_listens(slot);
        }
    }

    fn look_whether_it_listens(&mut self, slot: u32) {
        let Some(record) = self.hold.store.at(slot) else { return };
        match if_it_applies(is_listener(&record.fd)) {
            Ok(Some(true)) => self.lookout.listen(slot, record),
            Ok(Some(false) | None) => {}
            Err(_) => {
                self.wards.unheard.insert(slot);
                self.wards.rest();
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

impl Wards {
    /// Something is to be tried again in a moment.
    fn rest(&mut self) {
        self.rest_until.get_or_insert_with(|| clock::now() + ROOM_PAUSE);
    }
}

fn is_door(fd: &ClientFd) -> Result<bool, Errno> {
    let is_unix = if_it_applies(socket_domain(fd))? == Some(AddressFamily::UNIX);
    Ok(is_unix && if_it_applies(socket_type(fd))? == Some(SocketType::DGRAM))
}

/// Without asking whoever has made it: neither a file server, nor who keeps a pipe locked.
fn is_pipe(fd: &ClientFd) -> Result<bool, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = if_it_applies(statx(fd, c"", flags, StatxFlags::TYPE))?;
    Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Fifo))
}
