//! Mistakes that can be switched on, in tests only, at the places where they could be made:
//! to show that the simulator finds them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Outside of tests they are only named.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Bug {
    /// An answer leaves before what it tells of has been sent to followers.
    AnswersBeforeMirroring,
    /// The answer to a delete leaves before followers have carried it out.
    AnswersBeforeCarryingOut,
    /// The answer to a delete leaves before followers have closed what it is about.
    AnswersBeforeClosing,
    /// A follower is not told limits.
    ForgetsLimits,
    /// A follower is not told who gave a descriptor.
    ForgetsOwners,
    /// A follower is not told what is released.
    ForgetsReleases,
    /// The parts of a set do not wait for each other.
    TearsSets,
    /// A follower is believed to have everything when it has its copy, but not what has
    /// changed since.
    BelievesTooEarly,
    /// What changes while a follower gets its copy is not told.
    DropsChangesAmidCopy,
    /// A primary whose successor did not come does not go on.
    NeverGoesOn,
    /// A follower that was given up serves.
    GivenUpServes,
    /// A follower serves although another one does.
    SecondServes,
    /// A client that has vanished is believed to have what it was lent.
    VanishedHasLoan,
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this mistake is to be made.
#[cfg(test)]
pub(crate) fn active(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Never.
#[cfg(not(test))]
pub(crate) const fn active(_: Bug) -> bool {
    false
}

/// Has this thread make one mistake, or none.
#[cfg(test)]
pub(crate) fn make(bug: Option<Bug>) {
    ACTIVE.set(bug);
}
