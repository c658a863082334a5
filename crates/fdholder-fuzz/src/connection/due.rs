//! What a client must be answered.

use super::client::Copy;
use fdholder::extension;
use fdholder::frame::Frame;
use fdholder::reply::{self, Answer};
use fdholder::{Errno, Identifier, Malformed, Status};
use std::collections::{BTreeMap, BTreeSet};

/// One reply.
#[derive(Debug)]
pub enum Due {
    Status(Answer<()>),
    /// A refusal, for one of these reasons.
    Refused(Vec<Errno>),
    Retrieved(Copy),
    List(BTreeSet<Identifier>),
    DumpHead(u32),
    /// What has not come yet of a dump.
    Dump(BTreeMap<Identifier, u32>),
    SetHead,
    Hello,
    /// How many, and which, if that is told.
    Snapshot(u32, Option<BTreeSet<Identifier>>),
    Delivered(Answer<u64>),
    Released(u32),
    Taken,
    Upgraded,
    Inspected(BTreeSet<Identifier>),
    Told(Status),
    Why,
    MayStore(bool),
}

impl Due {
    pub fn no(errno: Errno) -> Self {
        Self::Refused(vec![errno])
    }

    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Descriptors that it carries.
    pub fn fds(&self) -> usize {
        match self {
            Self::Retrieved(_) => 1,
            Self::Dump(rest) => rest.len(),
            _ => 0,
        }
    }

    /// Checks what came in answer; returns what is still due of it.
    pub fn check(self, frame: Frame<'_, Copy>) -> Option<Self> {
        match self {
            Self::Status(answer) => assert_eq!(sane(reply::parse_status(&frame)), answer),
            Self::Refused(reasons) => match sane(reply::parse_status(&frame)) {
                Err(errno) if reasons.contains(&errno) => {}
                other => panic!("{other:?} where {reasons:?} is due"),
            },
            Self::Retrieved(copy) => assert_eq!(sane(reply::parse_retrieved(frame)), Ok(copy)),
            Self::List(ids) => {
                let list = done(sane(reply::parse_list(&frame)));
                assert_eq!(list.len(), ids.len());
                assert_eq!(BTreeSet::from_iter(list), ids);
            }
            Self::DumpHead(count) => assert_eq!(sane(reply::parse_getdump_head(&frame)), Ok(count)),
            Self::Dump(mut rest) => {
                let remaining = rest.len() as u32; // A store is smaller.
                for entry in sane(reply::parse_getdump_data(frame, remaining)) {
                    let (number, id) = entry.fd;
                    assert_eq!(entry.id, id);
                    assert_eq!(rest.remove(&id), Some(number));
                }
                return (!rest.is_empty()).then_some(Self::Dump(rest));
            }
            Self::SetHead => assert_eq!(sane(reply::parse_setdump_head(&frame)), Ok(())),
            Self::Hello => {
                assert_eq!(sane(extension::parse_hello(&frame)), Ok(extension::VERSION));
            }
            Self::Snapshot(count, listed) => {
                let told = done(sane(extension::parse_snapshot(&frame, listed.is_some())));
                assert_eq!(told.count, count);
                let ids = told.entries.into_iter().map(|entry| entry.id);
                assert_eq!(ids.collect::<BTreeSet<_>>(), listed.unwrap_or_default());
            }
            Self::Delivered(answer) => {
                assert_eq!(sane(extension::parse_delivered(&frame)), answer);
            }
            Self::Released(count) => {
                assert_eq!(sane(extension::parse_released(&frame)), Ok(count));
            }
            Self::Taken => drop(done(sane(extension::parse_taken(&frame)))),
            Self::Upgraded => drop(done(sane(extension::parse_upgraded(&frame)))),
            Self::Inspected(ids) => {
                let told = done(sane(extension::parse_inspected(&frame)));
                assert_eq!(told.into_iter().map(|one| one.id).collect::<BTreeSet<_>>(), ids);
            }
            Self::MayStore(may) => assert_eq!(sane(extension::parse_may_store(&frame)), Ok(may)),
            Self::Why => drop(done(sane(extension::parse_why(&frame)))),
            Self::Told(status) => assert_eq!(sane(extension::parse_status(&frame)), Ok(status)),
        }
        None
    }
}

/// The daemon speaks the protocol.
fn sane<T>(read: Result<T, Malformed>) -> T {
    match read {
        Ok(value) => value,
        Err(malformed) => panic!("an answer to another question: {malformed}"),
    }
}

/// It was not refused.
fn done<T>(answer: Answer<T>) -> T {
    match answer {
        Ok(value) => value,
        Err(errno) => panic!("refused: {errno}"),
    }
}
