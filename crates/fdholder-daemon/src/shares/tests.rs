use super::*;
use proptest::prelude::*;

fn user(uid: u32) -> Claimant {
    Claimant { uid, is_trusted: false, quotas: Quotas::default() }
}

fn ledger(size: usize) -> Ledger {
    Ledger::new(Amounts::of(Resource::Connections, size), Amounts::default())
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
fn users_who_take_all_they_may_get_what_the_formula_says() {
    let mut ledger = ledger(1000);
    for (uid, share) in (1..).zip([500, 166, 83, 50, 33, 24, 18, 14, 11, 9, 7, 6]) {
        assert_eq!(take_all(&mut ledger, &user(uid)), share, "user {uid}");
    }
    assert_eq!(take_all(&mut ledger, &Claimant::trusted(0)), 79);
    assert_eq!(take_all(&mut ledger, &user(20)), 0);
}

/// Who has none gets one unit as long as there is one, although its share is less.
#[test]
fn a_newcomer_whose_share_is_less_gets_one_unit() {
    let mut connections = ledger(256);
    let got: Vec<_> = (1..).map(|uid| take_all(&mut connections, &user(uid))).take(36).collect();
    assert_eq!(got[11..], [[1; 24].as_slice(), &[0]].concat(), "{got:?}");
    let places = Amounts::of(Resource::Arriving, 3 * MESSAGE_FDS_MAX);
    let mut ledger = Ledger::new(places, Amounts::default());
    let message = Amounts::of(Resource::Arriving, MESSAGE_FDS_MAX);
    for uid in 1..=3 {
        assert!(ledger.room(&user(uid), Resource::Arriving) >= MESSAGE_FDS_MAX, "user {uid}");
        ledger.recharge(uid, &mut Amounts::default(), message);
    }
    assert_eq!(ledger.room(&user(4), Resource::Arriving), 0);
}

/// Whatever it is, whichever user has taken it, and however little there is.
#[test]
fn root_and_the_daemons_user_have_a_reserve_each_whatever_is_taken() {
    use Resource::{Arriving, Bytes, Connections, Loans, Unread};
    for resource in [Connections, Arriving, Bytes, Unread, Loans] {
        for (size, reserve, others, room) in
            [(100, 8, 100, 8), (1, 8, 1, 8), (100, 8, 3, 97), (100, 0, 100, 0), (9, 8, 700, 8)]
        {
            let sizes = Amounts::of(resource, size);
            let mut ledger = Ledger::new(sizes, Amounts::of(resource, reserve));
            let case = format!("{others} of {size} {resource:?}, {reserve} reserved");
            ledger.recharge(7, &mut Amounts::default(), Amounts::of(resource, others));
            for trusted in [0, 5] {
                assert_eq!(ledger.room(&Claimant::trusted(trusted), resource), room, "{case}");
            }
            // Each has its own, whatever the other takes, and others have nothing of it.
            let all = Amounts::of(resource, room);
            ledger.recharge(5, &mut Amounts::default(), all);
            assert_eq!(ledger.room(&Claimant::trusted(5), resource), 0, "{case}");
            assert_eq!(ledger.room(&Claimant::trusted(0), resource), reserve, "{case}");
            assert_eq!(ledger.room(&user(8), resource), 0, "{case}");
        }
    }
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

/// What a user keeps takes places of its own first.
#[test]
fn what_is_not_closed_takes_places_of_what_arrives() {
    let places = Amounts::of(Resource::Arriving, 1000);
    let mut ledger = Ledger::new(places, Amounts::default());
    let room = |ledger: &Ledger, who: Claimant| ledger.room(&who, Resource::Arriving);
    ledger.note_leaving(Leaving { user: 1, own: 400, all: 500 });
    assert_eq!(room(&ledger, user(1)), 50);
    assert_eq!(room(&ledger, user(2)), 253);
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
    assert_eq!(ledger.room_beside(&user(1), Resource::Connections, 4), 2);
    ledger.resize(Amounts::of(Resource::Connections, 6), Amounts::default());
    assert_eq!(ledger.room(&user(1), Resource::Connections), 1);
    ledger.resize(Amounts::of(Resource::Connections, 1), Amounts::default());
    assert_eq!(ledger.room(&Claimant::trusted(0), Resource::Connections), 0);
    assert_eq!(ledger.taken(Resource::Connections), 2, "who has too much keeps it");
    ledger.recharge(1, &mut charged, Amounts::default());
    assert_eq!(ledger.room(&user(1), Resource::Connections), 1);
}

#[test]
fn who_gains_may_have_it_up_to_the_bound_alone() {
    for (allowance, gained, used, left, users, allows) in [
        (Allowance::All, 9, 9, 0, 1, true),
        (Allowance::AtMost(5), 3, 2, 0, 1, true),
        (Allowance::AtMost(5), 3, 3, 100, 1, false),
        (Allowance::AtMost(6), 2, 4, 0, 1, true),
        (Allowance::AtMost(6), 0, 7, 0, 1, true),
        (Allowance::Fair, 3, 2, 5, 1, true),
        (Allowance::Fair, 3, 2, 4, 1, false),
        (Allowance::Fair, 3, 2, 15, 3, true),
        (Allowance::Fair, 3, 2, 14, 3, false),
        (Allowance::Fair, 1, 0, 0, 9, true),
        (Allowance::Fair, 0, 7, 0, 1, true),
    ] {
        let usage = Usage { used, left, users, unit: 1 };
        let is = allowance.allows(gained, usage);
        assert_eq!(is, allows, "{allowance:?}: {gained} more, {usage:?}");
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
            Short::Full { capacity: 7, reserved: 0 },
            Errno::NFILE,
            "the holder is full: it holds 7 at most (-n)",
        ),
        (
            Short::Full { capacity: 7, reserved: 1 },
            Errno::NFILE,
            "the holder is full: it holds 7 at most (-n), the last 1 for root and the daemon's \
             own user",
        ),
        (Short::Arriving, Errno::NFILE, "too many descriptors of this user are on their way in"),
        (Short::Loans, Errno::DQUOT, "too many that this user was to have alone are not taken yet"),
        (
            Short::Fds(Allowance::AtMost(3)),
            Errno::NFILE,
            "this user may have 3 descriptors held at most (FDHOLDER_MAXFDS)",
        ),
        (
            Short::Connections(Allowance::Fair),
            Errno::DQUOT,
            "this user may have no more connections: it has its share, or none is left \
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
    /// However many ask, in whatever order, as often as they like, and whichever goes again: what
    /// the formula promises is left, and who comes next gets its share.
    #[test]
    fn users_in_any_order_leave_what_the_formula_promises(
        size in 1usize..2000,
        steps in proptest::collection::vec((0u32..60, -1isize..400), 0..200),
    ) {
        let mut ledger = ledger(size);
        let mut charged = [Amounts::default(); 60];
        for (uid, wanted) in steps {
            let charged = &mut charged[uid as usize];
            let used = charged.get(Resource::Connections);
            // As much as it may up to what it wants; or it gives back some, or all.
            let now = match usize::try_from(wanted) {
                Ok(wanted) if wanted < used => wanted,
                Ok(wanted) => {
                    used + ledger.room(&user(uid), Resource::Connections).min(wanted - used)
                }
                Err(_) => 0,
            };
            ledger.recharge(uid, charged, Amounts::of(Resource::Connections, now));
            let (users, taken) = (ledger.users(), ledger.taken(Resource::Connections));
            prop_assert!(taken <= size);
            // Those whose share is less than one got one all the same, of what was left.
            if users * (users + 1) <= size {
                let left = size - taken;
                prop_assert!(left * (users + 1) >= size, "{left} of {size} by {users}");
                let next = ledger.room(&user(99), Resource::Connections);
                let share = size / ((users + 1) * (users + 2));
                prop_assert!(next >= share.max(1), "{next} of {share}");
            }
        }
    }

    /// In whatever order all take what they may, give it back, and have less than there was: who
    /// is trusted gets in until it has its reserve, and never more is taken than there are places.
    #[test]
    fn who_is_trusted_always_gets_its_reserve(
        size in 1usize..300,
        reserve in 1usize..12,
        steps in proptest::collection::vec((0u32..9, 0usize..400), 0..100),
        lowered_to in 1usize..300,
    ) {
        let reserves = Amounts::of(Resource::Connections, reserve);
        let mut ledger = ledger(size);
        ledger.resize(Amounts::of(Resource::Connections, size), reserves);
        let claimant = |uid| if uid < 2 { Claimant::trusted(uid) } else { user(uid) };
        let mut charged = [Amounts::default(); 9];
        for (uid, wanted) in steps {
            let charged = &mut charged[uid as usize];
            let used = charged.get(Resource::Connections);
            let room = ledger.room(&claimant(uid), Resource::Connections);
            let now = wanted.min(used + room);
            ledger.recharge(uid, charged, Amounts::of(Resource::Connections, now));
            prop_assert!(ledger.taken(Resource::Connections) <= size + 2 * reserve);
        }
        ledger.resize(Amounts::of(Resource::Connections, lowered_to), reserves);
        for uid in 0..2 {
            let used = ledger.used(uid, Resource::Connections);
            let room = ledger.room(&claimant(uid), Resource::Connections);
            prop_assert!(used + room >= reserve, "{uid} has {used} and may have {room}");
        }
    }

    /// All who come get something, and as much as the formula says, up to the bound.
    #[test]
    fn greedy_users_in_turn_each_get_a_share(size in 2usize..100_000, users in 1usize..400) {
        let mut ledger = ledger(size);
        for number in 1..=users {
            let uid = number as u32;
            let room = ledger.room(&user(uid), Resource::Connections);
            let share = size / (number * (number + 1));
            prop_assert!(room >= share, "user {number}: {room} of {share}");
            if number * (number + 1) <= size {
                prop_assert!(room > 0, "user {number}");
            }
            let all = Amounts::of(Resource::Connections, room);
            ledger.recharge(uid, &mut Amounts::default(), all);
            prop_assert!(ledger.taken(Resource::Connections) <= size);
        }
    }

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
