//! The primary's side: what each follower has been told, and what may be answered.

use crate::bugs::{active, Bug};
use crate::limits::MIRROR_BACKLOG_MAX;
use crate::outbox::Departing;
use crate::store::{Change, Record, Store};
use fdholder::link::{self, Changes, HandedClient};
use fdholder::Identifier;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;

/// Everything that has been recorded at some moment: what an answer may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticket {
    recorded: u64,
    released: u64,
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
        self.mirrors.insert(Mirror {
            copy: store.all().into_iter(),
            queue: VecDeque::new(),
            departing: None,
            counts: false,
            departing_up_to: self.now.recorded,
            sent: self.now.recorded,
            carried_out: self.now.recorded,
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

    /// One of them.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut Mirror<F>> {
        self.mirrors.get_mut(key)
    }

    /// Takes down what a call of the store changed, right behind it.
    pub fn record(&mut self, changes: &[Change<F>], store: &Store<F>) {
        if self.mirrors.is_empty() {
            return;
        }
        for change in changes {
            match change {
                Change::Held(record) => self.push(&Item::Held(Arc::clone(record)), false),
                Change::HeldAll { slots, .. } => {
                    let mut records = slots.iter().filter_map(|slot| store.at(*slot)).peekable();
                    while let Some(record) = records.next() {
                        let goes_on = records.peek().is_some() && !active(Bug::TearsSets);
                        self.push(&Item::Held(Arc::clone(record)), goes_on);
                    }
                }
                Change::Released(_) if active(Bug::ForgetsReleases) => {}
                Change::Released(record) => self.push(&Item::Released(record.id.clone()), false),
            }
        }
    }

    fn push(&mut self, item: &Item<F>, goes_on: bool) {
        self.now.recorded += 1;
        if matches!(item, Item::Released(_)) {
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

    /// Whether an answer may leave: what it may depend on has been sent to every follower,
    /// and what is not held any more is not held by any.
    pub fn has_passed(&self, ticket: Ticket) -> bool {
        self.mirrors.iter().all(|(_, mirror)| mirror.has_passed(ticket))
    }
}

/// What owns a descriptor on its way to a follower.
#[derive(Debug)]
pub enum Carrier<F> {
    /// It is held.
    Record(Arc<Record<F>>),
    /// It is a client's connection.
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

#[derive(Debug)]
enum Item<F> {
    Held(Arc<Record<F>>),
    Released(Identifier),
}

impl<F> Clone for Item<F> {
    fn clone(&self) -> Self {
        match self {
            Self::Held(record) => Self::Held(Arc::clone(record)),
            Self::Released(id) => Self::Released(id.clone()),
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
    queue: VecDeque<(u64, bool, Item<F>)>,
    departing: Option<Departing<Carrier<F>>>,
    /// It has been told that it has everything: from then on answers wait for it.
    counts: bool,
    departing_up_to: u64,
    sent: u64,
    carried_out: u64,
}

impl<F> Mirror<F> {
    /// Whether it has been told that it has everything.
    pub fn has_everything(&self) -> bool {
        self.counts && self.departing.is_none()
    }

    fn is_behind(&self, now: Ticket) -> bool {
        self.departing.is_some() || !self.queue.is_empty() || !self.counts || !self.has_passed(now)
    }

    fn has_passed(&self, ticket: Ticket) -> bool {
        if self.counts {
            (self.sent >= ticket.recorded || active(Bug::AnswersBeforeMirroring))
                && (self.carried_out >= ticket.released || active(Bug::AnswersBeforeClosing))
        } else {
            // Whoever changes things faster than they can be copied has to wait.
            self.queue.len() <= MIRROR_BACKLOG_MAX
        }
    }

    /// It has carried out everything up to here.
    pub fn has_carried_out(&mut self, up_to: u64) {
        // What it has not been sent it cannot have carried out.
        self.carried_out = self.carried_out.max(up_to.min(self.sent));
    }

    /// What to send next: bytes, and the owners of the descriptors that go with the first.
    pub fn front(&mut self) -> Option<(&[u8], &[Carrier<F>])> {
        if self.departing.is_none() {
            self.departing = self.next();
        }
        self.departing.as_ref().map(Departing::rest)
    }

    fn next(&mut self) -> Option<Departing<Carrier<F>>> {
        let mut changes = Changes::default();
        while !changes.is_full() {
            let Some(record) = self.copy.next() else { break };
            put(&mut changes, record);
        }
        if active(Bug::BelievesTooEarly) && !self.counts && changes.is_empty() {
            self.counts = true;
            return Some(link::synced().into());
        }
        let mut goes_on_after = false;
        while !changes.is_full() {
            let Some((number, goes_on, item)) = self.queue.pop_front() else { break };
            match item {
                Item::Held(record) => put(&mut changes, record),
                Item::Released(id) => changes.released(&id),
            }
            (self.departing_up_to, goes_on_after) = (number, goes_on);
        }
        if !changes.is_empty() {
            return Some(changes.into_message(self.departing_up_to, goes_on_after).into());
        }
        if self.counts {
            return None;
        }
        // All that was recorded until now has been sent. What is recorded from now on is
        // waited for.
        self.counts = true;
        Some(link::synced().into())
    }

    /// Says that so many bytes of [`front`](Self::front) were sent, and its descriptors.
    pub fn advance(&mut self, len: usize) {
        if self.departing.as_mut().is_some_and(|departing| departing.advance(len)) {
            self.departing = None;
            self.sent = self.departing_up_to;
        }
    }

    /// A client for a follower that is to serve; it must not be behind.
    pub(crate) fn hand_over(&mut self, client: HandedClient<Arc<F>>) {
        let HandedClient { socket, is_fdholder, on_conflict, unread } = client;
        let socket = Carrier::Client(socket);
        self.departing =
            Some(link::client(HandedClient { socket, is_fdholder, on_conflict, unread }).into());
    }

    /// The end of that.
    pub fn is_yours(&mut self, for_next: bool) {
        self.departing = Some(link::yours(for_next).into());
    }
}

fn put<F>(changes: &mut Changes<Carrier<F>>, record: Arc<Record<F>>) {
    let (id, mut limit, mut owner) = (record.id.clone(), record.limit, record.owner);
    if active(Bug::ForgetsLimits) {
        limit = fdholder::Limit::never();
    }
    if active(Bug::ForgetsOwners) {
        owner = 0;
    }
    changes.held(&id, limit, owner, Carrier::Record(record));
}
