//! Doors of services: datagrams are read and carried out.

use super::Server;
use crate::audit::{Event, Operation, Verdict, Who};
use crate::clock;
use crate::closing::ClientFd;
use crate::credentials::Credentials;
use crate::datagram::{receive, Datagram};
use crate::hold::Hold;
use crate::limits::{
    CLOSING_MAX, NOTIFIED_PER_TURN, NOTIFY_LEAVING_MAX, NOTIFY_LEN_MAX, NOTIFY_WORK_PER_TURN,
    SERVICES_TOLD_MAX,
};
use crate::memory::reserve;
use crate::notify::{heed, service_of, status_file, status_id, Message, Refused, Sender};
use crate::reading::{if_it_applies, is_readable};
use crate::same_file::are_one;
use crate::shares::{Claimant, Resource};
use fdholder::extension::OnConflict;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::{strerror, Entry, Errno, Identifier, Limit, Service, Tenure, Timestamp};
use rustix::net::sockopt::set_socket_passcred;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

/// What the kernel says of a sender whom it does not know: one of a user namespace that is not
/// ours, or who has sent before anybody asked.
const OVERFLOW_UID: u32 = 65534;

impl Server {
    /// Reads what has come, as much as may be in one turn.
    ///
    /// # Errors
    ///
    /// When it cannot be read from, now or ever: ESHUTDOWN somebody has shut it down.
    pub(super) fn read_door(&mut self, service: &[u8], door: &ClientFd) -> Result<(), Errno> {
        let mut buffer = [0; NOTIFY_LEN_MAX];
        let mut work = 0;
        for number in 0..NOTIFIED_PER_TURN {
            if work > NOTIFY_WORK_PER_TURN || !self.may_read_doors() {
                return Ok(());
            }
            let datagram = match receive(door, &mut buffer) {
                Ok(datagram) => datagram,
                Err(Errno::AGAIN) if number == 0 && is_readable(door.as_fd()) => {
                    return Err(Errno::SHUTDOWN);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            };
            let uid = datagram.sender.as_ref().map(|sender| sender.user.uid);
            let tells_senders = datagram.sender.is_some();
            match self.obey(service, &buffer[..datagram.len], datagram, &mut work) {
                Ok(()) => self.hold.tally.notified += 1,
                Err(problem) => {
                    self.hold.tally.notify_refused += 1;
                    self.warn_of(
                        uid,
                        format_args!("service {}: {problem}", service.escape_ascii()),
                    );
                }
            }
            if !tells_senders {
                // Somebody who shares it has had it tell none; the next sender is heard.
                if_it_applies(set_socket_passcred(door, true))?;
            }
        }
        Ok(())
    }

    /// Whether there is room for what comes with one more datagram: what has none the kernel
    /// would close, and let us wait. From whom it comes is not known before.
    pub(super) fn may_read_doors(&mut self) -> bool {
        if reserve::is_short() {
            return false;
        }
        let leaving = self.hold.note_leaving(self.user.uid);
        if leaving.all >= CLOSING_MAX || self.wards.leaving.len() >= NOTIFY_LEAVING_MAX {
            return false;
        }
        let Hold { store, ledger, .. } = &self.hold;
        let (all, unused) = (Claimant::trusted(self.user.uid), store.capacity() - store.len());
        let room = ledger.room_beside(&all, Resource::Arriving, unused);
        let waiting: usize = self.wards.leaving.iter().map(|(_, fds)| fds.len()).sum();
        room >= waiting + MESSAGE_FDS_MAX
    }

    /// Carries out one datagram, and adds how much work it was, be it refused.
    fn obey(
        &mut self,
        service: &[u8],
        text: &[u8],
        datagram: Datagram,
        work: &mut usize,
    ) -> Result<(), String> {
        let uid = datagram.sender.map_or(OVERFLOW_UID, |sender| sender.user.uid);
        let fds: Vec<_> = datagram.fds.into_iter().map(|fd| ClientFd::new(fd, uid)).collect();
        let sender = datagram.sender.filter(is_known).ok_or("a sender nobody knows is ignored")?;
        let (who, at) = (Who::from(sender), clock::now());
        if datagram.is_cut {
            let problem = format!("more than {NOTIFY_LEN_MAX} bytes at once");
            self.note_refusal(who, Operation::Notify, None, Verdict::TurnedAway(&problem), at);
            return Err(format!("{sender} has sent {problem}"));
        }
        let rights = self.rules.rights(sender.user, self.user);
        let rights = rights.map_err(|refusal| {
            self.note_refusal(who, Operation::Notify, None, Verdict::TurnedAway(&refusal), at);
            format!("{sender} refused: {refusal}")
        })?;
        let message = Message::parse(text);
        let is_trusted = uid == 0 || uid == self.user.uid;
        let claimant = Claimant { uid, is_trusted, quotas: rights.quotas };
        let by = Sender { claimant, rights: &rights };
        // Half of what was sent is of no use.
        let fds = if datagram.fds_lost { Vec::new() } else { fds };
        // Most are of different files, which these numbers tell without a system call for each.
        let may_be = |a: u32, b: u32| a == b || a == 0 || b == 0;
        let is_same = |a: &ClientFd, b: &ClientFd| {
            may_be(a.file_hash(), b.file_hash()) && are_one(a, b).unwrap_or(false)
        };
        let now = Timestamp::now();
        self.hold.expire(now, 0);
        let heeded = heed(service, &message, fds, &by, is_same, &mut self.hold.store, now);
        *work += heeded.work;
        self.hold.expire(now, 0);
        let Hold { mirrors, auditor, store, .. } = &mut self.hold;
        mirrors.record(&heeded.changes, store);
        auditor.changed(who, Operation::Notify, &heeded.changes, store, now, at);
        let said = self.write_down(service, &message, &by, who);
        if !heeded.left.is_empty() {
            self.wards.leaving.push_back((self.hold.mirrors.ticket(), heeded.left));
        }
        let refused: Vec<_> = heeded.refused.into_iter().chain(said.err()).collect();
        for Refused { operation, id, errno, .. } in &refused {
            self.note_refusal(who, *operation, id.as_ref(), Verdict::Denied(*errno), at);
        }
        if message.stores && datagram.fds_lost {
            let problem = "no room for the descriptors";
            let verdict = Verdict::DeniedAs(Errno::NFILE, &problem);
            self.note_refusal(who, Operation::NotifyStore, None, verdict, at);
            return Err(format!("there was {problem} of {sender}"));
        }
        refused.into_iter().next().map_or(Ok(()), |Refused { what, errno, .. }| {
            Err(format!("unable to {what} for {sender}: {}", strerror(errno)))
        })
    }

    fn note_refusal(
        &mut self,
        who: Who,
        operation: Operation,
        id: Option<&Identifier>,
        verdict: Verdict<'_>,
        at: Instant,
    ) {
        self.hold.auditor.note(&Event { who, operation, id, verdict }, at);
    }

    /// Keeps what a service says of itself.
    fn write_down(
        &mut self,
        service: &[u8],
        message: &Message,
        by: &Sender<'_>,
        who: Who,
    ) -> Result<(), Refused> {
        if message.ready.is_none() && message.status.is_none() {
            return Ok(());
        }
        let operation = Operation::NotifyStatus;
        let failed =
            |id, errno| Refused { operation, id, what: "keep its status".to_owned(), errno };
        let id = status_id(service).ok_or_else(|| failed(None, Errno::NAMETOOLONG))?;
        if !by.rights.may_store(&id) {
            return Err(failed(Some(id), Errno::PERM));
        }
        let before = self.said_in(&id, Timestamp::now());
        let before = before.unwrap_or_default();
        let after = Service {
            ready: message.ready.unwrap_or(before.ready),
            pid: who.pid.map_or(0, i32::unsigned_abs),
            status: message.status.clone().unwrap_or(before.status),
            name: String::new(),
        };
        let created = status_file::create(&after);
        let fd = created.map_err(|errno| failed(Some(id.clone()), errno))?;
        let now = Timestamp::now();
        self.hold.expire(now, 0);
        let store = &mut self.hold.store;
        let fd = ClientFd::new(fd, by.claimant.uid);
        let entry = Entry { id: id.clone(), limit: Limit::never(), fd };
        let staged = store.stage(entry, by.claimant.uid, Tenure::from(now));
        let outcome = store.setdump(vec![staged], OnConflict::Replace, &by.claimant, now);
        self.hold.expire(now, 0);
        let Hold { store, mirrors, auditor, .. } = &mut self.hold;
        mirrors.record(&outcome.changes, store);
        auditor.changed(who, operation, &outcome.changes, store, now, clock::now());
        outcome.answer.map(|_taken| ()).map_err(|errno| failed(Some(id), errno))
    }

    fn said_in(&self, id: &Identifier, now: Timestamp) -> Option<Service> {
        let file = self.hold.store.find_held(id).filter(|file| !file.limit.expired(now))?;
        status_file::read(&file.fd)
    }

    /// What services that have a door say of themselves.
    pub(super) fn services(&self) -> Vec<Service> {
        let now = Timestamp::now();
        let doors = self.wards.all.values().filter(|door| !door.limit.expired(now));
        let mut names = BTreeSet::new();
        // One by one, as together they might not fit into a piece of memory.
        for door in doors {
            names.extend(service_of(&door.id));
        }
        let service = |name: &[u8]| {
            let said = status_id(name).and_then(|id| self.said_in(&id, now));
            let said = said.unwrap_or_default();
            Service { name: name.escape_ascii().to_string(), ..said }
        };
        names.into_iter().take(SERVICES_TOLD_MAX).map(service).collect()
    }
}

fn is_known(sender: &Credentials) -> bool {
    sender.pid.is_some() || sender.user.uid != OVERFLOW_UID
}
