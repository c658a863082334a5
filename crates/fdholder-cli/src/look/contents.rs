//! Everything that a holder holds, in as much detail as it tells and lets us see.

use crate::failure::Failure;
use crate::look::describe::{describe, Description};
use crate::passing::natural;
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier, Inspected, Limit, Origin};
use fdholder_daemon::privileges::raise_open_files;
use std::collections::HashMap;
use std::path::Path;

/// One descriptor. What is `None` is not known.
#[derive(Debug)]
pub struct Seen {
    pub id: Identifier,
    /// Until when it is held.
    pub limit: Option<Limit>,
    /// Who gave it, and when. Only a fdholder tells.
    pub origin: Option<Origin>,
    /// What it is, for who may retrieve it.
    pub what: Option<Description>,
    /// For how many seconds clients have waited at it, and no process was seen to accept.
    pub waiting: Option<u64>,
}

/// Everything, ordered by identifier.
#[derive(Debug)]
pub struct Contents {
    pub seen: Vec<Seen>,
    /// The holder is a fdholder.
    pub is_fdholder: bool,
}

impl Contents {
    /// Looks at a holder: what it tells, and copies of its descriptors, which are closed
    /// again.
    ///
    /// # Errors
    ///
    /// When it does not even list identifiers.
    pub fn of(path: &Path, deadline: Deadline) -> Result<Self, Failure> {
        raise_open_files();
        let mut holder = Client::connect_negotiated(path, deadline)?;
        let is_fdholder = holder.version().is_some();
        let inspected = if is_fdholder { inspect(&mut holder, deadline)? } else { None };
        let mut found = Found::default();
        match found.by_dump(&mut holder, deadline) {
            Ok(()) => {}
            Err(error) if error.cause() == Cause::TimedOut => return Err(error.into()),
            Err(error) => {
                // s6's daemon of Debian 12 breaks off when there is more than fits.
                if !matches!(error.cause(), Cause::Denied(_)) {
                    holder = Client::connect_negotiated(path, deadline)?;
                }
                let ids = match &inspected {
                    Some(inspected) => inspected.iter().map(|it| it.id.clone()).collect(),
                    None => holder.list(deadline)?,
                };
                found.one_by_one(ids, &mut holder, deadline)?;
            }
        }
        let waiting = if is_fdholder { waiting(&mut holder, deadline) } else { HashMap::new() };
        let mut seen: Vec<_> = match inspected {
            Some(inspected) => inspected.into_iter().map(|it| found.complete(it)).collect(),
            None => found.into_seen(),
        };
        for seen in &mut seen {
            seen.waiting = waiting.get(&seen.id.to_string()).copied();
        }
        seen.sort_by(|a: &Seen, b| natural(a.id.as_bytes(), b.id.as_bytes()));
        Ok(Self { seen, is_fdholder })
    }
}

fn inspect(holder: &mut Client, deadline: Deadline) -> Result<Option<Vec<Inspected>>, Error> {
    match holder.inspect(deadline) {
        Ok(inspected) => Ok(Some(inspected)),
        // One of an earlier version.
        Err(error) if matches!(error.cause(), Cause::Denied(Errno::OPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// For how long clients wait, as far as the holder tells: not one of an earlier version.
fn waiting(holder: &mut Client, deadline: Deadline) -> HashMap<String, u64> {
    let listeners = holder.status(deadline).map(|status| status.listeners).unwrap_or_default();
    listeners.into_iter().map(|listener| (listener.id, listener.waiting)).collect()
}

/// What could be seen of descriptors themselves.
#[derive(Default)]
struct Found(HashMap<Identifier, (Option<Limit>, Option<Description>)>);

impl Found {
    /// A message at a time, so that there is room for any number of them.
    fn by_dump(&mut self, holder: &mut Client, deadline: Deadline) -> Result<(), Error> {
        let mut incoming = holder.begin_getdump(deadline)?;
        while let Some(entries) = incoming.next_entries(deadline)? {
            for entry in entries {
                self.0.insert(entry.id, (Some(entry.limit), Some(describe(&entry.fd))));
            }
        }
        Ok(())
    }

    fn one_by_one(
        &mut self,
        ids: Vec<Identifier>,
        holder: &mut Client,
        deadline: Deadline,
    ) -> Result<(), Error> {
        for id in ids {
            match holder.retrieve(&id, deadline) {
                Ok(fd) => {
                    // A dump that broke off may have told its limit.
                    self.0.entry(id).or_default().1 = Some(describe(fd));
                }
                Err(error) => match error.cause() {
                    Cause::Denied(Errno::NOENT) => {}
                    Cause::Denied(_) => {
                        self.0.entry(id).or_default();
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn complete(&mut self, Inspected { id, limit, origin }: Inspected) -> Seen {
        let what = self.0.remove(&id).and_then(|(_, what)| what);
        Seen { id, limit: Some(limit), origin: Some(origin), what, waiting: None }
    }

    fn into_seen(self) -> Vec<Seen> {
        let seen = |(id, (limit, what))| Seen { id, limit, origin: None, what, waiting: None };
        self.0.into_iter().map(seen).collect()
    }
}
