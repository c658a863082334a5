//! The primary's side: what each follower has been told, and what may be answered.

use crate::backlog::Backlog;
use crate::bugs::{active, Bug};
use crate::limits::{CLOSING_PER_USER_MAX, FORMER_LISTENERS_MAX, MIRROR_BACKLOG_MAX};
use crate::outbox::Departing;
use crate::store::{Change, Record, Store};
use fdholder::link::{self, Changes, Dropped, HandedClient, Heard};
use fdholder::Identifier;
use slab::Slab;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Everything that has been recorded at some moment: what an answer may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticket {
    recorded: u64,
    released: u64,
}

impl Ticket {
    /// How many changes that are.
    pub(crate) fn recorded(self) -> u64 {
        self.recorded
    }
}

/// What a request has had released, which followers are to close.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Releases {
    /// How far they must be to have dropped it.
    up_to: u64,
    dropped: Vec<Dropped>,
}

impl Releases {
    /// Whether there is nothing to close.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty()
    }
}

/// The followers, and how far each is.
#[derive(Debug)]
pub struct Mirrors<F> {
    /// How many changes were recorded, ever, and how many when the last one was a release.
    now: Ticket,
    mirrors: Slab<Mirror<F>>,
}

impl<F> Default for Mirrors<F> {
    fn default() -> Self {
        Self { now: Ticket::default(), mirrors: Slab::new() }
    }
}

impl<F> Mirrors<F> {
    /// A new follower, which is to have a copy of all that is held now.
    pub fn add(&mut self, store: &Store<F>) -> usize {
        self.add_with(store.all())
    }

    /// The same with a list of all that is held, which was made before.
    pub(crate) fn add_with(&mut self, all: Vec<Arc<Record<F>>>) -> usize {
        self.insert(all, false)
    }

    /// The same for one that knows what is held, is told of changes item by item, and that
    /// answers wait for from the start.
    pub(crate) fn add_shelf(&mut self) -> usize {
        self.insert(Vec::new(), true)
    }

    fn insert(&mut self, copy: Vec<Arc<Record<F>>>, counts: bool) -> usize {
        self.mirrors.insert(Mirror {
            copy: copy.into_iter(),
            queue: Backlog::default(),
            departing: None,
            counts,
            departing_up_to: self.now.recorded,
            sent: self.now.recorded,
            carried_out: self.now.recorded,
            is_shelf: counts,
            listeners: VecDeque::new(),
            closing: BTreeSet::new(),
        })
    }

    /// A follower has gone. Returns whether it had a whole copy.
    pub fn remove(&mut self, key: usize) -> bool {
        self.mirrors.try_remove(key).is_some_and(|mirror| mirror.counts)
    }

    /// Whether a follower has something to take or to carry out.
    pub fn is_behind(&self, key: usize) -> bool {
        self.mirrors.get(key).is_some_and(|mirror| mirror.is_behind(self.now))
    }

    /// How many changes wait for it.
    pub fn waiting(&self, key: usize) -> usize {
        self.mirrors.get(key).map_or(0, |mirror| mirror.queue.len())
    }

    /// One of them.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut Mirror<F>> {
        self.mirrors.get_mut(key)
    }

    /// Takes down what a call of the store changed, right behind it. If it was a set, all of
    /// it belongs together.
    pub fn record(&mut self, changes: &[Change<F>], store: &Store<F>) {
        if self.mirrors.is_empty() {
            return;
        }
        let is_set = |change: &Change<F>| matches!(change, Change::HeldAll { .. });
        let is_set = changes.iter().any(is_set) && !active(Bug::TearsSets);
        // What is put off until it is known whether it is the last.
        let mut last = None;
        let mut push = |item| {
            if let Some(item) = last.replace(item) {
                self.push(&item, is_set);
            }
        };
        for change in changes {
            match change {
                Change::Held(record) => push(Item::Held(Arc::clone(record))),
                Change::HeldAll { slots, .. } => {
                    let mut records: Vec<_> = slots.iter().filter_map(|it| store.at(*it)).collect();
                    // By number, and each once: several of a set may have one place.
                    records.sort_unstable_by_key(|record| record.origin.serial);
                    records.dedup_by_key(|record| record.origin.serial);
                    for record in records {
                        push(Item::Held(Arc::clone(record)));
                    }
                }
                Change::Released(_) if active(Bug::ForgetsReleases) => {}
                Change::Released(record) => {
                    push(Item::Released(record.id.clone(), record.origin.serial));
                }
            }
        }
        if let Some(item) = last {
            self.push(&item, false);
        }
        for change in changes {
            let Change::HeldAll { replaced, .. } = change else { continue };
            for record in replaced {
                self.push(&Item::Replaced(record.origin.serial), false);
            }
        }
    }

    fn push(&mut self, item: &Item<F>, goes_on: bool) {
        self.now.recorded += 1;
        if matches!(item, Item::Released(..)) {
            self.now.released = self.now.recorded;
        }
        for (_, mirror) in &mut self.mirrors {
            if active(Bug::DropsChangesAmidCopy) && !mirror.counts {
                continue;
            }
            mirror.queue.push_back((self.now.recorded, goes_on, item.clone()));
        }
    }

    /// For an answer that is given now.
    pub fn ticket(&self) -> Ticket {
        self.now
    }

    /// Whether an answer may leave: what it may depend on has been sent to every follower.
    pub fn has_passed(&self, ticket: Ticket) -> bool {
        self.mirrors.iter().all(|(_, mirror)| mirror.has_passed(ticket))
    }

    /// Whether, besides, what is not held any more is not held by any of them.
    pub fn is_carried_out(&self, ticket: Ticket) -> bool {
        self.mirrors.iter().all(|(_, mirror)| mirror.is_carried_out(ticket))
    }

    /// What has been released of that, once it is [recorded](Self::record).
    pub fn released(&self, changes: &[Change<F>]) -> Releases {
        if self.mirrors.is_empty() {
            return Releases::default();
        }
        let released = changes.iter().filter_map(|change| match change {
            Change::Released(record) => Some(record.origin.into()),
            Change::Held(_) | Change::HeldAll { .. } => None,
        });
        Releases { up_to: self.now.released, dropped: released.collect() }
    }

    /// Whether every follower has closed that. What else it has not closed does not matter.
    pub fn have_closed(&self, releases: &Releases) -> bool {
        releases.is_empty() || self.mirrors.iter().all(|(_, mirror)| mirror.has_closed(releases))
    }

    /// How many descriptors of a user some follower has dropped and not closed; not more than
    /// there may be.
    pub fn closing_of(&self, uid: u32) -> usize {
        let all = Dropped { owner: uid, serial: 0 }..=Dropped { owner: uid, serial: u64::MAX };
        // There may be many, and this is asked often.
        let of = |mirror: &Mirror<F>| {
            mirror.closing.range(all.clone()).take(CLOSING_PER_USER_MAX).count()
        };
        self.mirrors.iter().map(|(_, mirror)| of(mirror)).max().unwrap_or_default()
    }

    /// How many of all users.
    pub fn closing(&self) -> usize {
        self.mirrors.iter().map(|(_, mirror)| mirror.closing.len()).max().unwrap_or_default()
    }
}

/// What owns a descriptor on its way to a follower.
#[derive(Debug)]
pub enum Carrier<F> {
    /// It is held.
    Record(Arc<Record<F>>),
    /// It is a client's connection, or the listening socket.
    Client(Arc<F>),
}

impl<F> Carrier<F> {
    /// The descriptor.
    pub fn fd(&self) -> &F {
        match self {
            Self::Record(record) => &record.fd,
            Self::Client(socket) => socket,
        }
    }
}

/// A change, one by one.
#[derive(Debug)]
pub enum Item<F> {
    /// This is held.
    Held(Arc<Record<F>>),
    /// This is not held any more, nor anything else under its identifier.
    Released(Identifier, u64),
    /// What has this number has given way to something else that is held.
    Replaced(u64),
}

impl<F> Clone for Item<F> {
    fn clone(&self) -> Self {
        match self {
            Self::Held(record) => Self::Held(Arc::clone(record)),
            Self::Released(id, serial) => Self::Released(id.clone(), *serial),
            Self::Replaced(serial) => Self::Replaced(*serial),
        }
    }
}

/// What one follower is to be told.
#[derive(Debug)]
pub struct Mirror<F> {
    /// What it has not got yet of what was held when it came.
    copy: std::vec::IntoIter<Arc<Record<F>>>,
    /// What has changed since: the number of the change, and whether it belongs together
    /// with the next.
    queue: Backlog<(u64, bool, Item<F>)>,
    departing: Option<Departing<Carrier<F>>>,
    /// It has been told that it has everything: from then on answers wait for it.
    counts: bool,
    /// How far the follower is with that. It puts a message aside, whole changes too, until
    /// the last change in it is whole; so it is no further than before if that goes on.
    departing_up_to: u64,
    sent: u64,
    carried_out: u64,
    /// It is told item by item, and has carried out what it was sent.
    is_shelf: bool,
    /// Where clients come in besides, oldest first, if it has not been told so.
    listeners: VecDeque<Arc<F>>,
    /// What it has dropped and not closed, if it is one that tells.
    closing: BTreeSet<Dropped>,
}

impl<F> Mirror<F> {
    /// Whether it has been told that it has everything. For tests and simulators.
    #[cfg(test)]
    pub fn has_everything(&self) -> bool {
        self.counts && self.departing.is_none()
    }

    fn is_behind(&self, now: Ticket) -> bool {
        self.departing.is_some()
            || !self.listeners.is_empty()
            || !self.queue.is_empty()
            || !self.counts
            || !self.is_carried_out(now)
    }

    fn has_passed(&self, ticket: Ticket) -> bool {
        if self.counts {
            self.sent >= ticket.recorded || active(Bug::AnswersBeforeMirroring)
        } else {
            // Whoever changes things faster than they can be copied has to wait.
            self.queue.len() <= MIRROR_BACKLOG_MAX
        }
    }

    fn is_carried_out(&self, ticket: Ticket) -> bool {
        self.has_passed(ticket) && (!self.counts || self.carried_out >= ticket.released)
    }

    fn has_closed(&self, releases: &Releases) -> bool {
        // It may have it although it has not got everything: its copy does, then.
        let is_open = |dropped: &Dropped| self.closing.contains(dropped);
        self.is_shelf
            || (self.carried_out >= releases.up_to || active(Bug::AnswersBeforeCarryingOut))
                && (!releases.dropped.iter().any(is_open) || active(Bug::AnswersBeforeClosing))
    }

    /// The follower has said something. Returns whether it is about what it has dropped.
    pub fn hear(&mut self, heard: &Heard) -> bool {
        match heard {
            // What it has not been sent it cannot have carried out.
            Heard::UpTo(up_to) => self.carried_out = self.carried_out.max(*up_to.min(&self.sent)),
            Heard::Closing(dropped) => self.closing.extend(dropped),
            Heard::Closed(dropped) => {
                for dropped in dropped {
                    self.closing.remove(dropped);
                }
            }
            Heard::Synced | Heard::TakeOver | Heard::Commit | Heard::Stop => return false,
        }
        true
    }

    /// What to send next: bytes, and the owners of the descriptors that go with the first.
    pub fn front(&mut self) -> Option<(&[u8], &[Carrier<F>])> {
        if self.departing.is_none() {
            self.departing = self.next();
        }
        self.departing.as_ref().map(Departing::rest)
    }

    fn next(&mut self) -> Option<Departing<Carrier<F>>> {
        if let Some(listener) = self.listeners.pop_front() {
            return Some(link::listener(Carrier::Client(listener)).into());
        }
        let mut changes = Changes::default();
        while !changes.is_full() {
            let Some(record) = self.copy.next() else { break };
            put(&mut changes, record);
        }
        let mut last = None;
        if active(Bug::BelievesTooEarly) && !self.counts && changes.is_empty() {
            self.counts = true;
            return Some(link::synced().into());
        }
        while !changes.is_full() {
            let Some((number, goes_on, item)) = self.queue.pop_front() else { break };
            match item {
                Item::Held(record) => put(&mut changes, record),
                Item::Released(id, _) => changes.released(&id),
                // Whoever holds something under an identifier replaces it by itself.
                Item::Replaced(_) => {}
            }
            last = Some((number, goes_on));
        }
        let goes_on = last.is_some_and(|(_, goes_on)| goes_on);
        if let Some((number, false)) = last {
            self.departing_up_to = number;
        }
        if !changes.is_empty() {
            return Some(changes.into_message(self.departing_up_to, goes_on).into());
        }
        // What is no news to a follower counts as sent.
        self.sent = self.departing_up_to;
        if self.counts {
            return None;
        }
        // All that was recorded until now has been sent. What is recorded from now on is
        // waited for.
        self.counts = true;
        Some(link::synced().into())
    }

    /// What has changed, for one that is told item by item: the number of the change, and
    /// whether it belongs together with the next.
    pub(crate) fn pop(&mut self) -> Option<(u64, bool, Item<F>)> {
        self.queue.pop_front()
    }

    /// It has been told everything up to this change, and has carried it out.
    pub(crate) fn is_told(&mut self, up_to: u64) {
        self.sent = self.sent.max(up_to);
        self.carried_out = self.sent;
    }

    /// Says that so many bytes of [`front`](Self::front) were sent, and its descriptors.
    pub fn advance(&mut self, len: usize) {
        if self.departing.as_mut().is_some_and(|departing| departing.advance(len)) {
            self.departing = None;
            self.sent = self.departing_up_to;
        }
    }

    /// A client for a follower that is to serve; it must not be behind.
    pub(crate) fn hand_over(&mut self, client: &HandedClient<Arc<F>>) {
        let socket = Carrier::Client(Arc::clone(&client.socket));
        self.departing = Some(link::client(client, socket).into());
    }

    /// Clients come in by this socket from now on, and by those before, if they still do.
    pub(crate) fn comes_in_by(&mut self, listener: Arc<F>) {
        // The follower keeps no more of them.
        if self.listeners.len() > FORMER_LISTENERS_MAX {
            self.listeners.pop_front();
        }
        self.listeners.push_back(listener);
    }

    /// The end of that.
    pub fn is_yours(&mut self) {
        self.departing = Some(link::yours().into());
    }
}

fn put<F>(changes: &mut Changes<Carrier<F>>, record: Arc<Record<F>>) {
    let (id, mut limit) = (record.id.clone(), record.limit);
    let mut origin = record.origin;
    if active(Bug::ForgetsLimits) {
        limit = fdholder::Limit::never();
    }
    if active(Bug::ForgetsOwners) {
        origin.owner = 0;
    }
    changes.held(&id, limit, origin, Carrier::Record(record));
}

#[cfg(test)]
mod tests;
