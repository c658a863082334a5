//! What a client has asked on one connection, and what must be answered.

use super::model::Held;
use fdholder::extension::{self, OnConflict};
use fdholder::frame::Decoder;
use fdholder::limits::HEADER_LEN;
use fdholder::reply::{self, Answer};
use fdholder::{Entry, Identifier, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A reply that is due.
#[derive(Debug)]
pub enum Due {
    Status(Answer<()>),
    Retrieved(Answer<u32>),
    List(BTreeSet<Identifier>),
    DumpHead(u32),
    /// Entries of a dump that have not been sent.
    Dump(BTreeMap<Identifier, Held>),
    SetHead,
    Hello,
    /// The entries, and what has been sent is remembered.
    Snapshot(BTreeMap<Identifier, Held>),
    Released(u32),
}

#[derive(Debug)]
pub struct Expected {
    pub due: Due,
    /// How many changes had been made when it was given.
    pub changes: u64,
    /// What was deleted, and is to be closed once this is answered.
    pub deleted: Option<u32>,
    pub is_loan: bool,
    /// The last part of a reply.
    pub is_last: bool,
}

/// One connection of a client, over all daemons that serve it.
#[derive(Debug)]
pub struct Session {
    pub uid: u32,
    /// What was asked and not carried out.
    pub asked: VecDeque<Request<u32>>,
    pub expected: VecDeque<Expected>,
    pub decoder: Decoder<u32>,
    /// Bytes of whole replies.
    pub sent: u64,
    pub read: u64,
    /// Where replies end that were not read.
    pub ends: VecDeque<u64>,
    pub set: Option<(usize, Vec<Entry<u32>>)>,
    pub on_conflict: OnConflict,
    /// What it was lent, and where the reply ends.
    pub loan: Option<(Identifier, u32, Option<u64>)>,
    /// What the snapshot has, in its order.
    pub snapshot: Vec<(Identifier, u32)>,
}

impl Session {
    /// Takes what has been sent; what was deleted and answered is told.
    pub fn take_replies(
        &mut self,
        settled: &mut u64,
        deleted: &mut Vec<u32>,
    ) -> Result<(), String> {
        while let Some(frame) = self.decoder.next().map_err(|error| error.to_string())? {
            self.sent += (HEADER_LEN + frame.payload.len()) as u64;
            let Some(mut expected) = self.expected.pop_front() else {
                return Err(format!("it is answered what it has not asked: {:?}", frame.payload));
            };
            let malformed = |error: fdholder::Malformed| error.to_string();
            let answer = match &mut expected.due {
                Due::Status(answer) => (reply::parse_status(&frame).map_err(malformed)? != *answer)
                    .then(|| format!("{answer:?}")),
                Due::Retrieved(answer) => (reply::parse_retrieved(frame).map_err(malformed)?
                    != *answer)
                    .then(|| format!("descriptor {answer:?}")),
                Due::List(ids) => {
                    let list = reply::parse_list(&frame).map_err(malformed)?;
                    let same = list.as_ref().is_ok_and(|list| {
                        list.len() == ids.len() && list.iter().all(|id| ids.contains(id))
                    });
                    (!same).then(|| format!("the list {ids:?}, not {list:?}"))
                }
                Due::DumpHead(count) => (reply::parse_getdump_head(&frame).map_err(malformed)?
                    != Ok(*count))
                .then(|| format!("a dump of {count}")),
                Due::Dump(entries) => {
                    let count = entries.len() as u32;
                    let part = reply::parse_getdump_data(frame, count).map_err(malformed)?;
                    for Entry { id, limit, fd } in part {
                        let held = entries.remove(&id);
                        if held.is_none_or(|h| (h.fd, h.limit) != (fd, limit.timestamp())) {
                            return Err(format!("its dump has {id}, {limit:?}, {fd}: {held:?}"));
                        }
                    }
                    if !entries.is_empty() {
                        self.expected.push_front(expected);
                        continue;
                    }
                    None
                }
                Due::SetHead => (reply::parse_setdump_head(&frame).map_err(malformed)? != Ok(()))
                    .then(|| "a set".to_owned()),
                Due::Hello => {
                    extension::parse_hello(&frame)
                        .map_err(malformed)?
                        .map_err(|e| e.to_string())?;
                    None
                }
                Due::Snapshot(entries) => {
                    let told = extension::parse_snapshot(&frame, true).map_err(malformed)?;
                    let told = told.map_err(|errno| errno.to_string())?.entries;
                    let of = |entry: &Entry<()>| {
                        let held = entries.get(&entry.id)?;
                        let same = held.limit == entry.limit.timestamp();
                        same.then(|| (entry.id.clone(), held.fd))
                    };
                    self.snapshot = told.iter().filter_map(of).collect();
                    (self.snapshot.len() != entries.len() || told.len() != entries.len())
                        .then(|| format!("a snapshot of {entries:?}, not {told:?}"))
                }
                Due::Released(count) => (extension::parse_released(&frame).map_err(malformed)?
                    != Ok(*count))
                .then(|| format!("{count} released")),
            };
            if let Some(answer) = answer {
                return Err(format!("its answer was to be {answer}"));
            }
            deleted.extend(expected.deleted);
            *settled = (*settled).max(expected.changes);
            if expected.is_last {
                self.ends.push_back(self.sent);
            }
            if let Some(loan) = self.loan.as_mut().filter(|_| expected.is_loan) {
                loan.2 = Some(self.sent);
            }
        }
        Ok(())
    }
}
