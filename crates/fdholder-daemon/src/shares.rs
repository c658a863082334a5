//! What each user has of what there is for all.
//!
//! One formula for everything that a client can make grow. A user may have `used` of `size` if
//!
//! ```text
//! used × users ≤ left        (or used ≤ unit ≤ left before)
//! ```
//!
//! where `users` counts those who have any of it, this one included, and `left` is what nobody
//! has afterwards. So at least `size / (users + 1)` is left, in whatever order they ask, and the
//! k-th user gets at least `size / (k × (k + 1))`: of 1,000 the first gets 500, the next 166, the
//! tenth 9. Nobody gets less than one unit while `k × (k + 1)` units fit into `size`.
//!
//! A rule sets a number in its place. Root and the daemon's own user need no share, as they could
//! do worse. Each of the two has a reserve that nobody else can use: until it has as much as that,
//! it may have more, whatever is left. So `size` and two reserves are taken at most.

mod line;

use crate::limits::READ_LEN;
use fdholder::limits::MESSAGE_FDS_MAX;
use fdholder::Errno;
pub use line::Line;
use std::collections::BTreeMap;
use std::fmt;

/// How much of something a user may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Allowance {
    /// All that is left.
    All,
    /// So much, by a rule.
    AtMost(usize),
    /// A share, by the formula.
    #[default]
    Fair,
}

/// How much of something a user has, and what there is besides.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// What this user has.
    pub used: usize,
    /// What nobody has.
    pub left: usize,
    /// How many users have some, this one included.
    pub users: usize,
    /// What is of no use in smaller parts.
    pub unit: usize,
}

impl Allowance {
    /// How much more a user may have.
    pub fn room(self, usage: Usage) -> usize {
        let Usage { used, left, users, unit } = usage;
        match self {
            Self::All => left,
            Self::AtMost(most) => most.saturating_sub(used).min(left),
            Self::Fair => {
                // `(used + room) × users ≤ left - room`, solved.
                let share = left.saturating_sub(used.saturating_mul(users)) / (users + 1);
                share.max(unit.saturating_sub(used).min(left))
            }
        }
    }

    /// Whether a user may have so much more and leave `left`. Some of what it gains may be
    /// another user's now.
    pub fn allows(self, gained: usize, usage: Usage) -> bool {
        let Usage { used, left, users, unit } = usage;
        let used = used + gained;
        // What replaces its own is no more than it has, which may be more than it may have now.
        gained == 0
            || match self {
                Self::All => true,
                Self::AtMost(most) => used <= most,
                Self::Fair => used <= unit || used.saturating_mul(users) <= left,
            }
    }
}

/// What a client can make grow, besides what it has held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Its connections.
    Connections,
    /// Descriptors that have come and are not held yet, or were announced.
    Arriving,
    /// Bytes of requests that are not whole, and of replies that wait.
    Bytes,
    /// Descriptors that were sent and not taken yet.
    Unread,
    /// Connections with any of those: only counted.
    Behind,
    /// Descriptors lent until it is known whether they were taken.
    Loans,
    /// Connections that wait until something is held, or have: they do not count among its
    /// connections, so that many who are answered at once take no places of others.
    Waiting,
}

/// How many kinds there are.
const COUNT: usize = 7;

impl Resource {
    /// What a user who has none is to get if it is left.
    fn unit(self) -> usize {
        match self {
            Self::Arriving | Self::Unread => MESSAGE_FDS_MAX,
            Self::Bytes => READ_LEN,
            Self::Connections | Self::Behind | Self::Loans | Self::Waiting => 1,
        }
    }
}

/// So much of each [`Resource`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([usize; COUNT]);

impl Amounts {
    /// Nothing but so much of one.
    pub fn of(resource: Resource, amount: usize) -> Self {
        Self::default().with(resource, amount)
    }

    /// The same with so much of one.
    #[must_use]
    pub fn with(mut self, resource: Resource, amount: usize) -> Self {
        self.0[resource as usize] = amount;
        self
    }

    /// How much of one it is.
    pub fn get(&self, resource: Resource) -> usize {
        self.0[resource as usize]
    }

    /// One of each of which this is any.
    fn any(self) -> Self {
        Self(self.0.map(|amount| usize::from(amount > 0)))
    }

    fn change(&mut self, before: &Self, after: &Self) {
        for ((own, before), after) in self.0.iter_mut().zip(before.0).zip(after.0) {
            // What is given back was taken.
            *own = (*own + after).saturating_sub(before);
        }
    }
}

/// What a user may have of each kind, as far as rules say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Descriptors held.
    pub fds: Option<usize>,
    /// Connections at once.
    pub connections: Option<usize>,
    /// Bytes of requests and replies.
    pub bytes: Option<usize>,
    /// Descriptors sent and not taken.
    pub unread: Option<usize>,
}

impl Quotas {
    /// Those that are set, by their variables.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let all = [
            ("FDHOLDER_MAXFDS", self.fds),
            ("FDHOLDER_MAXCONN", self.connections),
            ("FDHOLDER_MAXBYTES", self.bytes),
            ("FDHOLDER_MAXUNREAD", self.unread),
        ];
        all.into_iter().filter_map(|(name, limit)| limit.map(|limit| (name, limit)))
    }
}

/// A user, and what it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    /// The user.
    pub uid: u32,
    /// It could do worse than take everything: root, or the daemon's own user.
    pub is_trusted: bool,
    /// What rules say.
    pub quotas: Quotas,
}

impl Claimant {
    /// One that may have everything.
    pub fn trusted(uid: u32) -> Self {
        Self { uid, is_trusted: true, quotas: Quotas::default() }
    }

    /// How many descriptors it may have held.
    pub fn may_hold(&self) -> Allowance {
        self.allowance(self.quotas.fds)
    }

    /// How much it may have of something.
    pub fn may_have(&self, resource: Resource) -> Allowance {
        self.allowance(match resource {
            Resource::Connections => self.quotas.connections,
            Resource::Bytes => self.quotas.bytes,
            Resource::Unread => self.quotas.unread,
            Resource::Arriving | Resource::Behind | Resource::Loans | Resource::Waiting => None,
        })
    }

    fn allowance(&self, quota: Option<usize>) -> Allowance {
        match quota {
            Some(most) => Allowance::AtMost(most),
            None if self.is_trusted => Allowance::All,
            None => Allowance::Fair,
        }
    }
}

/// Who may not have more, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// The holder is full.
    Full {
        /// How many it holds at most.
        capacity: usize,
        /// How many of those this user cannot have.
        reserved: usize,
    },
    /// The user has as many descriptors held as it may.
    Fds(Allowance),
    /// As many are on their way in.
    Arriving,
    /// It has as many connections as it may.
    Connections(Allowance),
    /// It leaves too much unread.
    Bytes(Allowance),
    /// It leaves too many unread that it is to have alone.
    Loans,
    /// Too many wait for what is not held.
    Waiting,
    /// The process has no memory for the answer.
    Memory,
}

impl Short {
    /// What a client is answered: ENFILE where descriptors have no room, as by s6's daemon;
    /// EDQUOT for what that does not know; ENOMEM where no user has any.
    pub fn errno(self) -> Errno {
        match self {
            Self::Full { .. } | Self::Fds(_) | Self::Arriving => Errno::NFILE,
            Self::Connections(_) | Self::Bytes(_) | Self::Loans | Self::Waiting => Errno::DQUOT,
            Self::Memory => Errno::NOMEM,
        }
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, allowance, variable) = match self {
            Self::Full { capacity, reserved: 0 } => {
                return write!(f, "the holder is full: it holds {capacity} at most (-n)");
            }
            Self::Full { capacity, reserved } => {
                return write!(
                    f,
                    "the holder is full: it holds {capacity} at most (-n), the last {reserved} for \
                     root and the daemon's own user"
                );
            }
            Self::Arriving => {
                return f.write_str("too many descriptors of this user are on their way in");
            }
            Self::Loans => {
                return f.write_str("too many that this user was to have alone are not taken yet");
            }
            Self::Waiting => {
                return f.write_str("too many clients wait already for what is not held");
            }
            Self::Memory => return f.write_str("the holder has no memory for the answer now"),
            Self::Fds(allowance) => ("descriptors held", allowance, "FDHOLDER_MAXFDS"),
            Self::Connections(allowance) => ("connections", allowance, "FDHOLDER_MAXCONN"),
            Self::Bytes(allowance) => ("bytes unread", allowance, "FDHOLDER_MAXBYTES"),
        };
        write!(f, "this user may have ")?;
        match allowance {
            Allowance::AtMost(most) => write!(f, "{most} {what} at most ({variable})"),
            Allowance::All => write!(f, "no more {what}: there is no room"),
            Allowance::Fair => {
                write!(
                    f,
                    "no more {what}: it has its share, or none is left ({variable} sets a number)"
                )
            }
        }
    }
}

/// Descriptors that are held no longer, and not closed yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Who is served.
    pub user: u32,
    /// How many are that user's.
    pub own: usize,
    /// And how many everybody's.
    pub all: usize,
}

/// Who has what.
#[derive(Debug)]
pub struct Ledger {
    sizes: Amounts,
    /// So much root may have besides, and as much the daemon's own user.
    reserves: Amounts,
    taken: Amounts,
    /// How many users have any.
    having: Amounts,
    /// What takes places of those that arrive.
    leaving: Leaving,
    /// Only those that have something: at most one for each connection.
    users: BTreeMap<u32, Amounts>,
    /// Who waits for room for the rest of a request.
    pub line: Line,
}

impl Ledger {
    /// Nobody has anything of what there is.
    pub fn new(sizes: Amounts, reserves: Amounts) -> Self {
        Self {
            sizes,
            reserves,
            taken: Amounts::default(),
            having: Amounts::default(),
            leaving: Leaving::default(),
            users: BTreeMap::new(),
            line: Line::default(),
        }
    }

    /// There is more of everything than anybody takes: for tests, simulators and fuzzers.
    pub fn ample() -> Self {
        Self::new(Amounts([usize::MAX / 4; COUNT]), Amounts::default())
    }

    /// There is so much of everything from now on; who has too much keeps it.
    pub fn resize(&mut self, sizes: Amounts, reserves: Amounts) {
        (self.sizes, self.reserves) = (sizes, reserves);
    }

    /// How much more of something a user may have.
    pub fn room(&self, who: &Claimant, resource: Resource) -> usize {
        self.room_beside(who, resource, 0)
    }

    /// The same where there is so much more of it for the moment.
    pub fn room_beside(&self, who: &Claimant, resource: Resource, more: usize) -> usize {
        let (mut used, mut taken) = (self.used(who.uid, resource), self.taken.get(resource));
        if resource == Resource::Arriving {
            taken += self.leaving.all;
            used += if self.leaving.user == who.uid { self.leaving.own } else { 0 };
        }
        let size = self.sizes.get(resource) + more;
        let reserve = if who.is_trusted { self.reserves.get(resource) } else { 0 };
        let has_none = self.used(who.uid, resource) == 0;
        let usage = Usage {
            used,
            left: size.saturating_sub(taken).max(reserve.saturating_sub(used)),
            users: self.having.get(resource) + usize::from(has_none),
            unit: resource.unit(),
        };
        who.may_have(resource).room(usage)
    }

    /// So many are not closed yet, for whom the next requests are.
    pub fn note_leaving(&mut self, leaving: Leaving) {
        self.leaving = leaving;
    }

    /// How much of something a user has.
    pub fn used(&self, uid: u32, resource: Resource) -> usize {
        self.users.get(&uid).map_or(0, |used| used.get(resource))
    }

    /// A user's part has changed: one of its connections had `charged`, and has `now`.
    pub fn recharge(&mut self, uid: u32, charged: &mut Amounts, now: Amounts) {
        if *charged == now {
            return;
        }
        self.taken.change(charged, &now);
        let user = self.users.entry(uid).or_default();
        let before = user.any();
        user.change(charged, &now);
        self.having.change(&before, &user.any());
        if *user == Amounts::default() {
            self.users.remove(&uid);
        }
        *charged = now;
    }

    /// How many users have something, be it a connection.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// What everybody has of something.
    pub fn taken(&self, resource: Resource) -> usize {
        self.taken.get(resource)
    }
}

#[cfg(test)]
mod tests;
