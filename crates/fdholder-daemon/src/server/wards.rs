//! What is held and looked after by the server itself: doors of services, which are read,
//! and what goes when its peer does.

use super::{Server, CARE};
use crate::notify::service_of;
use crate::reading::has_hung_up;
use crate::replication::Ticket;
use crate::store::{needs_care, Record};
use fdholder::{strerror, Errno, Timestamp};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::sockopt::{set_socket_passcred, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tracing::{debug, warn};

/// What is looked after, each with the place in the store where it is held.
///
/// A ward is kept open until epoll does not watch it any more: epoll goes on watching what
/// others have open, too.
#[derive(Debug, Default)]
pub(super) struct Wards {
    pub all: Slab<Arc<Record<OwnedFd>>>,
    by_slot: HashMap<u32, usize>,
    /// What came through doors and is closed when followers have been told what came with it.
    pub leaving: VecDeque<(Ticket, Vec<OwnedFd>)>,
}

impl Server {
    /// Begins to watch what has come, and stops watching what has gone.
    pub(super) fn look_after_wards(&mut self) {
        for slot in self.hold.store.take_touched() {
            let held = self.hold.store.at(slot).filter(|record| needs_care(record));
            let held = held.map(Arc::clone);
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
        while wards.leaving.front().is_some_and(|(ticket, _)| hold.mirrors.has_passed(*ticket)) {
            wards.leaving.pop_front();
        }
    }

    fn watch(&mut self, slot: u32, record: Arc<Record<OwnedFd>>) {
        let interest = match service_of(&record.id) {
            // That its peer has gone is always told. Of nothing but these is it asked, as some
            // file server might have to answer.
            None if socket_domain(&record.fd).is_ok() || is_pipe(&record.fd) => EventFlags::empty(),
            None => return,
            Some(_) if is_door(&record.fd) => EventFlags::IN,
            Some(_) => return warn!("{} is no Unix socket for datagrams", record.id),
        };
        if !interest.is_empty() {
            // Without it nobody could be judged.
            if let Err(errno) = set_socket_passcred(&record.fd, true) {
                return warn!("unable to read {}: {}", record.id, strerror(errno));
            }
        }
        let entry = self.wards.all.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64 | CARE);
        match epoll::add(&self.epoll, &record.fd, data, interest) {
            Ok(()) => {
                self.wards.by_slot.insert(slot, entry.key());
                entry.insert(record);
            }
            Err(errno) => warn!("unable to watch {}: {}", record.id, strerror(errno)),
        }
    }

    /// Something has happened with one of them. An event may speak of one that has just gone,
    /// or of the next in its place: either is harmless.
    pub(super) fn hear_ward(&mut self, key: usize) {
        let Some(record) = self.wards.all.get(key).map(Arc::clone) else { return };
        let Some(service) = service_of(&record.id) else { return self.peer_has_gone(&record) };
        if let Err(errno) = self.read_door(service, &record.fd) {
            // It would be told of again and again.
            warn!("{} is not read any more: {}", record.id, strerror(errno));
            let _ = epoll::delete(&self.epoll, &record.fd);
        }
    }

    /// It is not held any longer, as systemd does it.
    fn peer_has_gone(&mut self, record: &Arc<Record<OwnedFd>>) {
        if has_hung_up(&record.fd) {
            debug!("the peer of {} has gone", record.id);
            let changes = self.hold.store.release(std::iter::once(record), Timestamp::now());
            self.hold.mirrors.record(&changes, &self.hold.store);
        }
    }
}

fn is_door(fd: &OwnedFd) -> bool {
    socket_domain(fd) == Ok(AddressFamily::UNIX) && socket_type(fd) == Ok(SocketType::DGRAM)
}

fn is_pipe(fd: &OwnedFd) -> bool {
    rustix::pipe::fcntl_getpipe_size(fd) != Err(Errno::BADF)
}
