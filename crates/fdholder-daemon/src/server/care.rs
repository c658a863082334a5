//! What is held and looked after by the server itself: doors of services, which are read,
//! and what goes when its peer does.

use super::{Server, CARE};
use crate::datagram::{receive, Datagram};
use crate::limits::{NOTIFIED_PER_TURN, NOTIFY_LEN_MAX};
use crate::notify::{heed, service_of, status_file, status_id, Heeded, Message, Sender};
use crate::same_file::are_one;
use crate::store::{needs_care, Record};
use fdholder::{strerror, Entry, Errno, Limit, Service, Timestamp};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::sockopt::{set_socket_passcred, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use slab::Slab;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tracing::{debug, warn};

/// What is looked after, each with the place in the store where it is held.
///
/// A ward is kept open until epoll does not watch it any more: epoll goes on watching what
/// others have open, too.
#[derive(Debug, Default)]
pub(super) struct Wards {
    wards: Slab<Arc<Record<OwnedFd>>>,
    by_slot: HashMap<u32, usize>,
}

impl Server {
    /// Begins to watch what has come, and stops watching what has gone.
    pub(super) fn look_after_wards(&mut self) {
        for slot in self.hold.store.take_touched() {
            let held = self.hold.store.at(slot).filter(|record| needs_care(record));
            let held = held.map(Arc::clone);
            if let Some(&key) = self.wards.by_slot.get(&slot) {
                let ward = &self.wards.wards[key];
                if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, ward)) {
                    continue;
                }
                // What was never watched need not be.
                let _ = epoll::delete(&self.epoll, &ward.fd);
                self.wards.by_slot.remove(&slot);
                self.wards.wards.remove(key);
            }
            if let Some(held) = held {
                self.watch(slot, held);
            }
        }
    }

    fn watch(&mut self, slot: u32, record: Arc<Record<OwnedFd>>) {
        let interest = match service_of(&record.id) {
            // That its end has gone is always told.
            None => EventFlags::empty(),
            Some(_) if is_door(&record.fd) => EventFlags::IN,
            Some(_) => return warn!("{} is no Unix socket for datagrams", record.id),
        };
        if !interest.is_empty() {
            // Without it nobody could be judged.
            if let Err(errno) = set_socket_passcred(&record.fd, true) {
                return warn!("unable to read {}: {}", record.id, strerror(errno));
            }
        }
        let entry = self.wards.wards.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64 | CARE);
        match epoll::add(&self.epoll, &record.fd, data, interest) {
            Ok(()) => {
                self.wards.by_slot.insert(slot, entry.key());
                entry.insert(record);
            }
            // A file never hangs up.
            Err(Errno::PERM) => {}
            Err(errno) => warn!("unable to watch {}: {}", record.id, strerror(errno)),
        }
    }

    /// Something has happened with one of them. An event may speak of one that has just gone,
    /// or of the next in its place: either is harmless.
    pub(super) fn hear_ward(&mut self, key: usize) {
        let Some(record) = self.wards.wards.get(key).map(Arc::clone) else { return };
        match service_of(&record.id) {
            Some(service) => self.read_door(service, &record.fd),
            None => self.peer_has_gone(&record),
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

    fn read_door(&mut self, service: &[u8], door: &OwnedFd) {
        let mut buffer = [0; NOTIFY_LEN_MAX];
        for _ in 0..NOTIFIED_PER_TURN {
            match receive(door, &mut buffer) {
                Ok(datagram) => {
                    let answer = self.obey(service, &buffer[..datagram.len], datagram);
                    let count = &mut self.hold.tally;
                    match answer {
                        Ok(()) => count.notified += 1,
                        Err(problem) => {
                            count.notify_refused += 1;
                            warn!("service {}: {problem}", service.escape_ascii());
                        }
                    }
                }
                // One that cannot be read from is left alone: it hangs up, and is told of no more.
                Err(_) => return,
            }
        }
    }

    /// Carries out one datagram.
    fn obey(&mut self, service: &[u8], text: &[u8], datagram: Datagram) -> Result<(), String> {
        let sender = datagram.sender.ok_or("a datagram from nobody knows whom was dropped")?;
        if datagram.is_cut {
            return Err(format!("{sender} has sent more than {NOTIFY_LEN_MAX} bytes at once"));
        }
        let rights = self.rules.rights(sender.user, self.user);
        let rights = rights.map_err(|refusal| format!("{sender} refused: {refusal}"))?;
        let message = Message::parse(text);
        let by = Sender { uid: sender.user.uid, rights: &rights };
        let is_same = |a: &OwnedFd, b: &OwnedFd| are_one(a, b).unwrap_or(false);
        let (store, now) = (&mut self.hold.store, Timestamp::now());
        let Heeded { changes, refused } =
            heed(service, &message, datagram.fds, &by, is_same, store, now);
        self.hold.mirrors.record(&changes, &self.hold.store);
        let said = self.write_down(service, &message, &by, sender.pid);
        if message.stores && datagram.fds_lost {
            return Err(format!("there was no room for the descriptors of {sender}"));
        }
        let refused = refused.map_or(said, |(what, errno)| Err((what, errno)));
        refused
            .map_err(|(what, errno)| format!("unable to {what} for {sender}: {}", strerror(errno)))
    }

    /// Keeps what a service says of itself.
    fn write_down(
        &mut self,
        service: &[u8],
        message: &Message,
        by: &Sender<'_>,
        pid: Option<i32>,
    ) -> Result<(), (String, Errno)> {
        if message.ready.is_none() && message.status.is_none() {
            return Ok(());
        }
        let failed = |errno| ("keep its status".to_owned(), errno);
        let id = status_id(service).ok_or(failed(Errno::NAMETOOLONG))?;
        if !by.rights.may_store(&id) {
            return Err(failed(Errno::PERM));
        }
        if self.hold.store.find_held(&id).is_none() {
            let fd = status_file::create().map_err(failed)?;
            let entry = Entry { id: id.clone(), limit: Limit::never(), fd };
            let outcome = self.hold.store.store(entry, by.uid, Timestamp::now());
            self.hold.mirrors.record(&outcome.changes, &self.hold.store);
            outcome.answer.map_err(failed)?;
        }
        let Some(record) = self.hold.store.find_held(&id) else { return Ok(()) };
        let before = status_file::read(&record.fd).ok_or(failed(Errno::INVAL))?;
        let after = Service {
            ready: message.ready.unwrap_or(before.ready),
            pid: pid.map_or(0, i32::unsigned_abs),
            status: message.status.clone().unwrap_or(before.status),
            name: String::new(),
        };
        status_file::write(&record.fd, &after).map_err(failed)
    }

    /// What services that have a door say of themselves.
    pub(super) fn services(&self) -> Vec<Service> {
        let mut services: Vec<_> = self
            .wards
            .wards
            .iter()
            .filter_map(|(_, door)| {
                let name = service_of(&door.id)?;
                let file = status_id(name).and_then(|id| self.hold.store.find_held(&id));
                let said = file.and_then(|record| status_file::read(&record.fd));
                let name = name.escape_ascii().to_string();
                Some(Service { name, ..said.unwrap_or_default() })
            })
            .collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services
    }
}

fn is_door(fd: &OwnedFd) -> bool {
    socket_domain(fd) == Ok(AddressFamily::UNIX) && socket_type(fd) == Ok(SocketType::DGRAM)
}

/// Asked again, as an event may be another's.
fn has_hung_up(fd: &OwnedFd) -> bool {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR;
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
}
