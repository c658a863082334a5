use super::*;

/// For another process: a path to the roll, and its number there, 0 if it recovers, or that it only
/// looks.
const ROLL: &str = "FDHOLDER_TEST_ROLL";
const NUMBER: &str = "FDHOLDER_TEST_NUMBER";

const LOOKS: &str = "looks";

const WAITS: i32 = 10;
const HAS_IT: i32 = 11;
const COMES_LATE: i32 = 12;
const IS_GIVEN_UP: i32 = 13;
const IS_ABANDONED: i32 = 14;

/// Locks belong to a process: what another one makes of the roll. It ends, and its lock
/// with it.
fn another(roll: &Roll, number: u32) -> i32 {
    another_as(roll, &number.to_string())
}

fn another_as(roll: &Roll, number: &str) -> i32 {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&**roll.file());
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "replication::roll::tests::be_another"])
        // Opened there, as our lock would end with a second descriptor that is closed here.
        .env(ROLL, format!("/proc/{}/fd/{fd}", std::process::id()))
        .env(NUMBER, number)
        .output()
        .unwrap()
        .status
        .code()
        .unwrap()
}

/// No test, but what that process does.
#[test]
fn be_another() {
    let Some(path) = std::env::var_os(ROLL) else { return };
    let roll = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let number = std::env::var(NUMBER).unwrap();
    if number == LOOKS {
        std::process::exit(if is_abandoned(&roll) { IS_ABANDONED } else { WAITS });
    }
    let succession = match number.parse().unwrap() {
        0 => try_recover(&roll),
        number => try_succeed(&roll, number, false),
    };
    std::process::exit(match succession.unwrap() {
        None => WAITS,
        Some(Succession::Ours) => HAS_IT,
        Some(Succession::Anothers) => COMES_LATE,
        Some(Succession::GivenUp) => IS_GIVEN_UP,
    });
}

#[test]
fn nobody_follows_while_the_primary_is_there() {
    let mut roll = Roll::new(1).unwrap();
    let (first, second) = (roll.enter(), roll.enter());
    assert_ne!(first, second);
    assert!(!roll.is_handed_over(Handed::Follows));
    assert_eq!((another(&roll, first), another(&roll, 0)), (WAITS, WAITS));
    roll.give_up(second).unwrap();
    assert_eq!(another(&roll, second), IS_GIVEN_UP, "that it need not wait to know");
    roll.let_go().unwrap();
    assert!(roll.take_back(second), "nobody came");
    assert_eq!((another(&roll, first), another(&roll, 0)), (WAITS, WAITS));
    roll.let_go().unwrap();
    assert_eq!(another(&roll, first), HAS_IT);
    assert!(roll.is_handed_over(Handed::Follows));
    let roll = Roll::new(1).unwrap();
    roll.let_go().unwrap();
    assert_eq!(another(&roll, 0), HAS_IT);
}

/// It has ended, and has told nobody anything: the lock is free and byte 0 does not say SERVES.
#[test]
fn primary_takes_lease_back_unless_another_served() {
    let mut roll = Roll::new(1).unwrap();
    let (dies, next) = (roll.enter(), roll.enter());
    roll.let_go().unwrap();
    assert_eq!(another(&roll, dies), HAS_IT);
    assert!(roll.is_handed_over(Handed::Follows) && !roll.is_handed_over(Handed::Serves));
    assert!(roll.take_back(dies));
    assert!(!roll.is_handed_over(Handed::Follows), "others may follow");
    assert_eq!((another(&roll, dies), another(&roll, next)), (IS_GIVEN_UP, WAITS));
    roll.let_go().unwrap();
    assert_eq!(another(&roll, dies), IS_GIVEN_UP);
    assert_eq!(another(&roll, next), HAS_IT);
    Place::of(roll.file().try_clone().unwrap(), next, None).serve();
    assert!(roll.is_handed_over(Handed::Serves) && !roll.take_back(next));
}

/// A primary that had not begun to serve has gone: either its predecessor goes on, or who follows it.
#[test]
fn one_of_predecessor_and_follower_gets_a_pending_place() {
    let pending = |roll: &Roll, number| Pending { roll: roll.file().try_clone().unwrap(), number };
    let mut roll = Roll::new(1).unwrap();
    let next = roll.enter();
    roll.let_go().unwrap();
    assert_eq!(another(&roll, next), HAS_IT);
    assert!(roll.take_back(next));
    assert_eq!(succeed_in_pending(&pending(&roll, next)), Ok(Succession::GivenUp));
    let mut roll = Roll::new(1).unwrap();
    let next = roll.enter();
    roll.let_go().unwrap();
    assert_eq!(another(&roll, next), HAS_IT);
    assert_eq!(succeed_in_pending(&pending(&roll, next)), Ok(Succession::Ours));
    assert!(is_undecided(roll.file()) && !roll.is_handed_over(Handed::Serves));
    let own = Roll::new(1).unwrap().file().try_clone().unwrap();
    let mut place = Place::of(own, 1, Some(pending(&roll, next)));
    assert_eq!(place.pending().number, next, "whom it follows may have that again");
    place.serve();
    assert!(roll.is_handed_over(Handed::Serves) && !roll.take_back(next));
    assert!(!is_undecided(roll.file()));
    for is_locked in [false, true] {
        for state in [0, FOLLOWED, RECOVERED, KEPT, SERVES, UNSETTLED] {
            let verdict = pending_verdict(is_locked, true, state);
            assert_eq!(verdict, Some(Succession::GivenUp));
        }
        assert_eq!(pending_verdict(is_locked, false, SERVES), Some(Succession::Ours));
        assert_eq!(pending_verdict(is_locked, false, RECOVERED), Some(Succession::Anothers));
    }
    assert_eq!(pending_verdict(true, false, 0), Some(Succession::Anothers));
    for state in [FOLLOWED, KEPT] {
        assert_eq!(pending_verdict(false, false, state), None);
        assert_eq!(pending_verdict(true, false, state), Some(Succession::Ours));
    }
    assert_eq!(pending_verdict(false, false, 0), None);
}

#[test]
fn in_doubt_another_serves() {
    assert!(may_go_on(true, false));
    assert!(!may_go_on(false, false) && !may_go_on(true, true) && !may_go_on(false, true));
    assert_eq!(verdict(false, false, false), None);
    assert_eq!(verdict(true, false, false), Some(Succession::Ours));
    for is_locked in [false, true] {
        assert_eq!(verdict(is_locked, false, true), Some(Succession::Anothers));
        assert_eq!(verdict(is_locked, true, true), Some(Succession::GivenUp));
        assert_eq!(verdict(is_locked, true, false), Some(Succession::GivenUp));
    }
}

#[test]
fn what_there_is_no_memory_for_is_tried_again() {
    let mut answers = [
        Err(Errno::NOLCK),
        Err(Errno::NOMEM),
        Err(Errno::INTR),
        Ok(None),
        Ok(Some(5)),
        Err(Errno::IO),
    ]
    .into_iter();
    assert_eq!(insist(|| answers.next().unwrap()), Ok(5));
    assert_eq!(insist(|| answers.next().unwrap()), Err::<i32, _>(Errno::IO));
}

/// Between processes see also `tests/succession`.
#[test]
fn one_follows_and_nobody_who_was_given_up() {
    let mut roll = Roll::new(1).unwrap();
    let (first, second, third) = (roll.enter(), roll.enter(), roll.enter());
    roll.give_up(second).unwrap();
    let file = roll.file().as_fd();
    assert_eq!(succeed(file, second, false), Ok(Succession::GivenUp));
    assert_eq!(succeed(file, third, false), Ok(Succession::Ours));
    assert_eq!(succeed(file, first, false), Ok(Succession::Anothers));
    assert_eq!(succeed(file, second, false), Ok(Succession::GivenUp));
}

/// A process that dies before it serves does not keep others from recovering; but followers do
/// not serve any more. Once somebody has served, there is nothing to recover.
#[test]
fn a_recovery_may_be_tried_again() {
    let mut roll = Roll::new(1).unwrap();
    let first = roll.enter();
    let file = roll.file().as_fd();
    assert_eq!(try_recover(file), Ok(Some(Succession::Ours)));
    assert_eq!(try_recover(file), Ok(Some(Succession::Ours)));
    assert_eq!(succeed(file, first, false), Ok(Succession::Anothers));
    let mut roll = Roll::new(1).unwrap();
    let first = roll.enter();
    let file = roll.file().as_fd();
    assert_eq!(succeed(file, first, false), Ok(Succession::Ours));
    assert_eq!(try_recover(file), Ok(Some(Succession::Ours)));
    Place::of(file.try_clone_to_owned().unwrap(), first, None).serve();
    assert_eq!(try_recover(file), Ok(Some(Succession::Anothers)));
}

/// A process that keeps everything changes nothing: when it goes, others may serve, until it has
/// let one serve.
#[test]
fn a_keeper_has_not_followed_yet() {
    let mut roll = Roll::new(1).unwrap();
    let (first, second, third) = (roll.enter(), roll.enter(), roll.enter());
    let file = roll.file().as_fd();
    assert_eq!(succeed(file, first, true), Ok(Succession::Ours));
    assert!(roll.is_handed_over(Handed::Follows), "the primary does not go on beside it");
    assert_eq!(try_recover(file), Ok(Some(Succession::Ours)));
    pwrite(file, &[KEPT], SUCCEEDED).unwrap();
    assert_eq!(succeed(file, second, true), Ok(Succession::Ours));
    Place::of(file.try_clone_to_owned().unwrap(), second, None).follow().unwrap();
    assert_eq!(succeed(file, third, false), Ok(Succession::Anothers));
}

/// Followers may serve all the same; who gets it from systemd asks first.
#[test]
fn roll_of_a_primary_that_does_not_serve_yet_says_so() {
    let mut roll = Roll::new(1).unwrap();
    let first = roll.enter();
    assert!(!is_undecided(roll.file()));
    roll.settle(false);
    assert!(is_undecided(roll.file()) && !roll.is_handed_over(Handed::Follows));
    assert_eq!(another(&roll, first), WAITS);
    roll.let_go().unwrap();
    assert_eq!(another(&roll, first), HAS_IT);
    let roll = Roll::new(1).unwrap();
    roll.settle(false);
    roll.settle(true);
    assert!(!is_undecided(roll.file()));
}

/// Nobody has it, and nobody has served in its place. To look takes it from nobody and says nothing.
#[test]
fn abandoned_roll_is_told_from_one_that_is_used() {
    let mut roll = Roll::new(1).unwrap();
    let next = roll.enter();
    let looks = |roll: &Roll| another_as(roll, LOOKS);
    assert_eq!(looks(&roll), WAITS, "its primary is there");
    roll.let_go().unwrap();
    assert_eq!((looks(&roll), looks(&roll)), (IS_ABANDONED, IS_ABANDONED));
    assert!(!roll.is_handed_over(Handed::Follows) && !is_undecided(roll.file()));
    assert_eq!(another(&roll, next), HAS_IT, "it may be followed");
    assert_eq!(looks(&roll), IS_ABANDONED, "that one has ended");
    Place::of(roll.file().try_clone().unwrap(), next, None).serve();
    assert_eq!(looks(&roll), WAITS, "its heir may live");
}

/// Where the generation stands no follower is given up.
#[test]
fn generation_is_kept_beside_followers() {
    for generation in [0, 1, u64::MAX] {
        let mut roll = Roll::new(generation).unwrap();
        for _ in 0..20 {
            let number = roll.enter();
            assert_eq!(is_set(roll.file().as_fd(), number.into()), Ok(false));
            roll.give_up(number).unwrap();
        }
        assert_eq!(super::generation(roll.file()), Ok(generation));
    }
}
