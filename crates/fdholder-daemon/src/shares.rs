//! What each user has of what there is for all.
//!
//! One rule for everything that a client can make grow: who runs as root or as the daemon
//! itself may have all that is left, as they could do worse; others have what a rule grants
//! them, or else as much as they leave. So one user alone gets half, the next one half of the
//! rest, and however many there are, something is left for one more.

use fdholder::Errno;
use std::collections::BTreeMap;
use std::fmt;

/// How much of something a user may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Allowance {
    /// All that is left.
    All,
    /// So much, by a rule.
    AtMost(usize),
    /// As much as is left for others.
    #[default]
    Fair,
}

impl Allowance {
    /// How much more a user may have who has `used`, when `taken` of `size` is.
    pub fn room(self, used: usize, taken: usize, size: usize) -> usize {
        let left = size.saturating_sub(taken);
        match self {
            Self::All => left,
            Self::AtMost(most) => most.saturating_sub(used).min(left),
            Self::Fair => left.saturating_sub(used),
        }
    }

    /// Whether a user who has `used` may have so much more when there is `left` of it, some of
    /// which may be others' now.
    pub fn allows(self, gained: usize, used: usize, left: usize) -> bool {
        match self {
            Self::All => true,
            Self::AtMost(most) => used + gained <= most,
            Self::Fair => used + gained <= left,
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
}

/// How many kinds there are.
const COUNT: usize = 6;

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
            Resource::Arriving | Resource::Behind | Resource::Loans => None,
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
    /// The process has no memory for the answer.
    Memory,
}

impl Short {
    /// What a client is answered: ENFILE where descriptors have no room, as by s6's daemon;
    /// EDQUOT for what that does not know; ENOMEM where no user has any.
    pub fn errno(self) -> Errno {
        match self {
            Self::Full { .. } | Self::Fds(_) | Self::Arriving => Errno::NFILE,
            Self::Connections(_) | Self::Bytes(_) | Self::Loans => Errno::DQUOT,
            Self::Memory => Errno::NOMEM,
        }
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, allowance, variable) = match self {
            Self::Full { capacity } => {
                return write!(f, "the holder is full: it holds {capacity} at most (-n)");
            }
            Self::Arriving => {
                return f.write_str("too many descriptors of this user are on their way in");
            }
            Self::Loans => {
                return f.write_str("too many that this user was to have alone are not taken yet");
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
                write!(f, "no more {what} than are left for others ({variable} sets a number)")
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
    taken: Amounts,
    /// What takes places of those that arrive.
    leaving: Leaving,
    /// Only those that have something: at most one for each connection.
    users: BTreeMap<u32, Amounts>,
}

impl Ledger {
    /// Nobody has anything of what there is.
    pub fn new(sizes: Amounts) -> Self {
        let (taken, leaving) = (Amounts::default(), Leaving::default());
        Self { sizes, taken, leaving, users: BTreeMap::new() }
    }

    /// There is more of everything than anybody takes: for tests, simulators and fuzzers.
    pub fn ample() -> Self {
        Self::new(Amounts([usize::MAX / 4; COUNT]))
    }

    /// There is so much of everything from now on; who has too much keeps it.
    pub fn resize(&mut self, sizes: Amounts) {
        self.sizes = sizes;
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
        who.may_have(resource).room(used, taken, self.sizes.get(resource) + more)
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
        user.change(charged, &now);
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(uid: u32) -> Claimant {
        Claimant { uid, is_trusted: false, quotas: Quotas::default() }
    }

    fn ledger(size: usize) -> Ledger {
        Ledger::new(Amounts::of(Resource::Connections, size))
    }

    /// Takes all that it may, one by one.
    fn take_all(ledger: &mut Ledger, who: &Claimant) -> usize {
        for count in 0..=ledger.sizes.get(Resource::Connections) {
            if ledger.room(who, Resource::Connections) == 0 {
                return count;
            }
            let one = Amounts::of(Resource::Connections, 1);
            ledger.recharge(who.uid, &mut Amounts::default(), one);
        }
        panic!("more than there is");
    }

    #[test]
    fn each_leaves_as_much_as_it_has() {
        let mut ledger = ledger(1000);
        assert_eq!(take_all(&mut ledger, &user(1)), 500);
        assert_eq!(take_all(&mut ledger, &user(2)), 250);
        assert_eq!(take_all(&mut ledger, &user(3)), 125);
        assert_eq!(take_all(&mut ledger, &Claimant::trusted(0)), 125);
        assert_eq!(take_all(&mut ledger, &user(4)), 0);
    }

    #[test]
    fn a_rule_counts_also_for_who_is_trusted() {
        let quotas = Quotas { connections: Some(700), ..Quotas::default() };
        let mut ledger = ledger(1000);
        assert_eq!(take_all(&mut ledger, &Claimant { quotas, ..user(1) }), 700);
        assert_eq!(take_all(&mut ledger, &Claimant { quotas, ..Claimant::trusted(0) }), 300);
    }

    #[test]
    fn a_single_one_is_for_whoever_comes() {
        assert_eq!(take_all(&mut ledger(1), &user(1)), 1);
    }

    /// What a user does not let go of takes places of its own first.
    #[test]
    fn what_is_not_closed_takes_places_of_what_arrives() {
        let mut ledger = Ledger::new(Amounts::of(Resource::Arriving, 1000));
        let room = |ledger: &Ledger, who: Claimant| ledger.room(&who, Resource::Arriving);
        ledger.note_leaving(Leaving { user: 1, own: 400, all: 500 });
        assert_eq!(room(&ledger, user(1)), 100);
        assert_eq!(room(&ledger, user(2)), 500);
        assert_eq!(room(&ledger, Claimant::trusted(0)), 500);
        ledger.note_leaving(Leaving { user: 1, own: 1100, all: 1100 });
        assert_eq!(room(&ledger, Claimant::trusted(1)), 0);
        assert_eq!(ledger.room(&user(1), Resource::Connections), 0);
    }

    #[test]
    fn whoever_goes_leaves_what_it_had() {
        let mut ledger = ledger(4);
        let mut charged = Amounts::default();
        ledger.recharge(1, &mut charged, Amounts::of(Resource::Connections, 2));
        assert_eq!(charged, Amounts::of(Resource::Connections, 2));
        assert_eq!(ledger.used(1, Resource::Connections), 2);
        assert_eq!(ledger.used(2, Resource::Connections), 0);
        assert_eq!(ledger.used(1, Resource::Bytes), 0, "each kind is counted by itself");
        assert_eq!(ledger.room(&user(1), Resource::Connections), 0);
        assert_eq!(ledger.room_beside(&user(1), Resource::Connections, 3), 3);
        ledger.resize(Amounts::of(Resource::Connections, 5));
        assert_eq!(ledger.room(&user(1), Resource::Connections), 1);
        ledger.resize(Amounts::of(Resource::Connections, 1));
        assert_eq!(ledger.room(&Claimant::trusted(0), Resource::Connections), 0);
        assert_eq!(ledger.taken(Resource::Connections), 2, "who has too much keeps it");
        ledger.recharge(1, &mut charged, Amounts::default());
        assert_eq!(ledger.room(&user(1), Resource::Connections), 1);
    }

    #[test]
    fn who_gains_may_have_it_up_to_the_bound_alone() {
        for (allowance, gained, used, left, allows) in [
            (Allowance::All, 9, 9, 0, true),
            (Allowance::AtMost(5), 3, 2, 0, true),
            (Allowance::AtMost(5), 3, 3, 100, false),
            (Allowance::AtMost(6), 2, 4, 0, true),
            (Allowance::Fair, 3, 2, 5, true),
            (Allowance::Fair, 3, 2, 4, false),
            (Allowance::Fair, 0, 0, 0, true),
        ] {
            let is = allowance.allows(gained, used, left);
            assert_eq!(is, allows, "{allowance:?}: {gained} more than {used}, {left} left");
        }
    }

    #[test]
    fn a_rule_limits_what_it_names() {
        let quotas = Quotas { fds: Some(1), connections: Some(2), bytes: Some(3), unread: Some(4) };
        let who = Claimant { quotas, ..user(1) };
        assert_eq!(who.may_hold(), Allowance::AtMost(1));
        for (resource, allowance) in [
            (Resource::Connections, Allowance::AtMost(2)),
            (Resource::Bytes, Allowance::AtMost(3)),
            (Resource::Unread, Allowance::AtMost(4)),
            (Resource::Arriving, Allowance::Fair),
            (Resource::Loans, Allowance::Fair),
        ] {
            assert_eq!(who.may_have(resource), allowance, "{resource:?}");
            assert_eq!(user(1).may_have(resource), Allowance::Fair, "{resource:?}");
            assert_eq!(Claimant::trusted(1).may_have(resource), Allowance::All, "{resource:?}");
        }
        assert_eq!(
            quotas.set().collect::<Vec<_>>(),
            [
                ("FDHOLDER_MAXFDS", 1),
                ("FDHOLDER_MAXCONN", 2),
                ("FDHOLDER_MAXBYTES", 3),
                ("FDHOLDER_MAXUNREAD", 4),
            ]
        );
        let quotas = Quotas { bytes: Some(0), ..Quotas::default() };
        assert_eq!(quotas.set().collect::<Vec<_>>(), [("FDHOLDER_MAXBYTES", 0)]);
    }

    #[test]
    fn who_may_not_have_more_is_told_of_what_and_why() {
        for (short, errno, text) in [
            (
                Short::Full { capacity: 7 },
                Errno::NFILE,
                "the holder is full: it holds 7 at most (-n)",
            ),
            (
                Short::Arriving,
                Errno::NFILE,
                "too many descriptors of this user are on their way in",
            ),
            (
                Short::Loans,
                Errno::DQUOT,
                "too many that this user was to have alone are not taken yet",
            ),
            (
                Short::Fds(Allowance::AtMost(3)),
                Errno::NFILE,
                "this user may have 3 descriptors held at most (FDHOLDER_MAXFDS)",
            ),
            (
                Short::Connections(Allowance::Fair),
                Errno::DQUOT,
                "this user may have no more connections than are left for others \
                 (FDHOLDER_MAXCONN sets a number)",
            ),
            (
                Short::Bytes(Allowance::All),
                Errno::DQUOT,
                "this user may have no more bytes unread: there is no room",
            ),
        ] {
            assert_eq!(short.errno(), errno, "{short:?}");
            assert_eq!(short.to_string(), text);
        }
    }

    #[test]
    fn where_there_is_plenty_everybody_may_have_what_they_like() {
        let mut ledger = Ledger::ample();
        let much = Amounts::of(Resource::Bytes, usize::MAX / 64);
        for uid in 0..3 {
            ledger.recharge(uid, &mut Amounts::default(), much);
            assert!(ledger.room(&user(uid), Resource::Bytes) > usize::MAX / 64);
        }
    }

    proptest! {
        /// However users come and go, what is counted is what they have; nobody gets more
        /// than there is, and who has nothing leaves no trace.
        #[test]
        fn nothing_is_lost_or_made_up(
            steps in proptest::collection::vec((0u32..5, 0usize..8, 0usize..40), 0..100),
        ) {
            let mut ledger = ledger(100);
            let mut connections = [[Amounts::default(); 8]; 5];
            for (uid, which, wanted) in steps {
                let room = ledger.room(&user(uid), Resource::Connections);
                let charged = &mut connections[uid as usize][which];
                let had = charged.get(Resource::Connections);
                let now = if wanted <= had + room { wanted } else { had };
                ledger.recharge(uid, charged, Amounts::of(Resource::Connections, now));
                let all = connections.iter().flatten().map(|it| it.get(Resource::Connections));
                let total: usize = all.sum();
                prop_assert_eq!(ledger.taken(Resource::Connections), total);
                prop_assert!(total <= 100);
            }
            for (uid, user) in (0..).zip(&mut connections) {
                for charged in user {
                    ledger.recharge(uid, charged, Amounts::default());
                }
            }
            prop_assert!(ledger.users.is_empty());
            prop_assert_eq!(ledger.taken, Amounts::default());
        }
    }
}
