//! What must be answered to a request, from what is held once it was carried out.

use super::client::Copy;
use super::due::Due;
use super::world::World;
use crate::ledger::Fd;
use fdholder::extension::Extension;
use fdholder::request::Parsed;
use fdholder::{Errno, Identifier, OnConflict, Request, Timestamp};
use fdholder_daemon::access::Rights;
use fdholder_daemon::{Change, Record};
use std::collections::BTreeSet;
use std::ops::Range;

fn has_expired(record: &Record<Fd>, now: Timestamp) -> bool {
    record.limit.moment().is_some_and(|moment| moment <= now)
}

impl World {
    /// What is held and not lent.
    fn seen(&self) -> impl Iterator<Item = Copy> + '_ {
        let is_seen = |number: u32| self.clients.iter().all(|client| client.loan != Some(number));
        self.store
            .iter()
            .filter(|record| !has_expired(record, self.now))
            .map(|record| (record.fd.number(), record.id.clone()))
            .filter(move |(number, _)| is_seen(*number))
    }

    fn seen_under(&self, id: &Identifier) -> Option<Copy> {
        self.seen().find(|(_, held)| held == id)
    }

    fn seen_ids(&self) -> BTreeSet<Identifier> {
        self.seen().map(|(_, id)| id).collect()
    }

    /// What must be answered now to a request that was carried out, or nothing yet.
    pub fn due(&mut self, who: usize, parsed: Parsed<u32>, changes: &[Change<Fd>]) -> Vec<Due> {
        let Parsed::Request(request) = parsed else { return vec![Due::no(Errno::NFILE)] };
        let standing = self.clients[who].standing.clone();
        let nothing = Rights::default();
        let rights = standing.rights.as_deref().unwrap_or(&nothing);
        let (mut stored, mut has_set, mut let_go) = (None, false, 0);
        for change in changes {
            match change {
                Change::Held(record) => {
                    assert!(rights.may_store(&record.id));
                    assert_eq!(record.origin.owner, standing.uid);
                    stored = Some(record.fd.number());
                }
                Change::HeldAll { .. } => {
                    assert!(rights.setdump);
                    has_set = true;
                }
                Change::Released(record) if has_expired(record, self.now) => {}
                Change::Released(record) => {
                    assert!(rights.may_store(&record.id));
                    let_go += 1;
                }
            }
        }
        if let Request::Extension(extension) = request {
            return self.due_beyond(who, extension, rights, let_go).into_iter().collect();
        }
        let client = &mut self.clients[who];
        let due = match request {
            Request::Store(entry) if !rights.may_store(&entry.id) => Due::no(Errno::PERM),
            Request::Store(entry) if stored == Some(entry.fd) => Due::Status(Ok(())),
            Request::Store(_) if self.store.len() >= self.store.capacity() => Due::no(Errno::NFILE),
            Request::Store(entry) => {
                assert!(self.store.find_held(&entry.id).is_some());
                Due::no(Errno::BUSY)
            }
            Request::Delete(id) if !rights.may_store(&id) => Due::no(Errno::PERM),
            Request::Delete(_) if let_go == 1 => Due::Status(Ok(())),
            Request::Delete(id) => {
                assert_eq!(self.seen_under(&id), None);
                Due::no(Errno::NOENT)
            }
            Request::Retrieve { id, delete }
                if !rights.may_retrieve(&id) || delete && !rights.may_store(&id) =>
            {
                Due::no(Errno::PERM)
            }
            Request::Retrieve { id, delete } => match self.seen_under(&id) {
                Some(copy) => {
                    self.clients[who].loan = delete.then_some(copy.0);
                    Due::Retrieved(copy)
                }
                None => Due::no(Errno::NOENT),
            },
            Request::List if !rights.list => Due::no(Errno::PERM),
            Request::List => Due::List(self.seen_ids()),
            Request::Getdump if !rights.getdump => Due::no(Errno::PERM),
            Request::Getdump => {
                let dump = Due::Dump(self.seen().map(|(number, id)| (id, number)).collect());
                let count = dump.fds() as u32; // A store is smaller.
                let head = Due::DumpHead(count);
                return if count == 0 { vec![head] } else { vec![head, dump] };
            }
            Request::Setdump(_) if !rights.setdump => Due::no(Errno::PERM),
            Request::Setdump(count) if count as usize > self.store.capacity() => {
                Due::no(Errno::NFILE)
            }
            Request::Setdump(count) => {
                client.set = (count > 0).then_some((count as usize, 0));
                Due::SetHead
            }
            Request::SetdumpData(_) => match client.set {
                Some((announced, came)) if came < announced => Due::Status(Err(Errno::AGAIN)),
                _ => {
                    client.set = None;
                    client.has_given = has_set;
                    let mut reasons = vec![Errno::NFILE];
                    if client.on_conflict == OnConflict::Fail {
                        reasons.push(Errno::EXIST);
                    }
                    if has_set {
                        Due::Status(Ok(()))
                    } else {
                        Due::Refused(reasons)
                    }
                }
            },
            Request::Extension(_) => unreachable!("returned above"),
        };
        vec![due]
    }

    fn due_beyond(
        &mut self,
        who: usize,
        extension: Extension<u32>,
        rights: &Rights,
        let_go: u32,
    ) -> Option<Due> {
        let may_look = rights.list || rights.getdump;
        let is_own = self.clients[who].standing.is_own;
        Some(match extension {
            Extension::Hello(_) => Due::Hello,
            Extension::Snapshot { .. } | Extension::Inspect | Extension::Status if !may_look => {
                Due::no(Errno::PERM)
            }
            Extension::Snapshot { entries } => {
                let seen: Vec<_> = self.seen().collect();
                let is_counted_only = !(entries || rights.getdump);
                let count = if is_counted_only { self.store.count(self.now) } else { seen.len() };
                let ids = entries.then(|| self.seen_ids());
                if rights.getdump {
                    self.clients[who].snapshot = seen;
                }
                Due::Snapshot(count as u32, ids) // A store is smaller.
            }
            Extension::Deliver { .. } if !rights.getdump => Due::no(Errno::PERM),
            Extension::Deliver { runs, .. } if self.positions(who, &runs).is_none() => {
                Due::no(Errno::INVAL)
            }
            Extension::Deliver { .. } => {
                assert!(self.clients[who].connection.is_delivering());
                return None;
            }
            Extension::Release { runs, only_ask } => match self.positions(who, &runs) {
                None => Due::no(Errno::INVAL),
                Some(all) if !all.iter().all(|(_, id)| rights.may_store(id)) => {
                    Due::no(Errno::PERM)
                }
                Some(all) if only_ask => {
                    let is_held = |copy: &&Copy| {
                        let held = self.store.find_held(&copy.1);
                        held.is_some_and(|it| {
                            it.fd.number() == copy.0 && !has_expired(it, self.now)
                        })
                    };
                    Due::Released(all.iter().filter(is_held).count() as u32)
                }
                Some(_) => Due::Released(let_go),
            },
            Extension::OnConflict(way)
                if !rights.setdump || way != OnConflict::Replace && !may_look =>
            {
                Due::no(Errno::PERM)
            }
            Extension::OnConflict(on_conflict) => {
                self.clients[who].on_conflict = on_conflict;
                Due::Status(Ok(()))
            }
            Extension::Taken if self.clients[who].has_given => Due::Taken,
            Extension::Taken => Due::no(Errno::NODATA),
            Extension::Follow { .. } | Extension::Upgrade if !is_own => Due::no(Errno::PERM),
            Extension::Follow { .. } => {
                self.clients[who].follows = true;
                return None;
            }
            Extension::Inspect => Due::Inspected(self.seen_ids()),
            Extension::Upgrade | Extension::Status => return None,
            Extension::Why => Due::Why,
            Extension::MayStore { .. } => {
                if !is_own && self.clients[who].standing.uid != 0 {
                    return Some(Due::no(Errno::PERM));
                }
                return None;
            }
            Extension::Await { id, is_prefix } => {
                if !(is_prefix && rights.list || !is_prefix && rights.may_retrieve(&id)) {
                    return Some(Due::no(Errno::PERM));
                }
                if self.clients[who].connection.awaits().is_some() {
                    assert!(!self.store.sees(&id, is_prefix, self.now));
                    return None;
                }
                Due::Status(Ok(()))
            }
            Extension::Unknown => Due::no(Errno::OPNOTSUPP),
        })
    }

    /// What stands at these positions of a client's snapshot, if they are in order.
    fn positions(&self, who: usize, runs: &[Range<u32>]) -> Option<Vec<Copy>> {
        let snapshot = &self.clients[who].snapshot;
        let mut end = 0;
        let mut all = Vec::new();
        for run in runs {
            let part = snapshot.get(run.start as usize..run.end as usize);
            all.extend_from_slice(part.filter(|_| run.start >= end)?);
            end = run.end;
        }
        Some(all)
    }
}
