//! Descriptors that clients have given, and who closes them.
//!
//! close(2) takes as long as whoever has made the descriptor likes: a socket may linger, a
//! file server may not answer, and a Unix socket may have such things unread in it. So the
//! loop closes nothing that has come from a client: a [`ClientFd`] that is dropped is handed
//! to other threads. Each of them may be kept waiting, but not all by one user: others find
//! one that is free.
//!
//! This is for the process as a whole, as its table of descriptors is.

use crate::backlog::Backlog;
use crate::clock;
use crate::limits::{CLOSERS_MAX, CLOSERS_PER_USER, CLOSER_STACK_LEN, CLOSE_SLOW};
use crate::shares::Leaving;
use crate::thread::spawn;
use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::fstat;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A descriptor that a client has given, or a client's connection. When it is dropped,
/// another thread closes it.
#[derive(Debug)]
pub struct ClientFd {
    /// There until it is dropped.
    fd: Option<OwnedFd>,
    /// The user who is kept waiting if it takes long.
    owner: u32,
    /// A hash of its file, once that was asked for; 0 until then.
    file: AtomicU32,
}

impl ClientFd {
    /// One that a user has given.
    pub fn new(fd: OwnedFd, owner: u32) -> Self {
        Self { fd: Some(fd), owner, file: AtomicU32::new(0) }
    }

    /// The user who is kept waiting if it takes long to close.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// It is another user's.
    pub fn set_owner(&mut self, owner: u32) {
        self.owner = owner;
    }

    /// A hash of the file: equal for two descriptors of one file, and rarely for those of two.
    pub fn file_hash(&self) -> u32 {
        let known = self.file.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        // What cannot be asked is compared with all others.
        let Ok(stat) = fstat(self) else { return 0 };
        let (device, inode) = (stat.st_dev, stat.st_ino);
        let mixed = (inode ^ device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = ((mixed >> 32) as u32).max(1);
        self.file.store(hash, Ordering::Relaxed);
        hash
    }

    /// The descriptor, for who knows that nothing can be waited for when it is closed, or
    /// that it is not.
    pub fn into_inner(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

impl AsFd for ClientFd {
    #[allow(clippy::expect_used)]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // `drop` and `into_inner` take it, and nobody has it afterwards.
        self.fd.as_ref().expect("a descriptor until it is dropped").as_fd()
    }
}

impl Drop for ClientFd {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if !MAY_START.load(Ordering::SeqCst) {
            return drop(fd);
        }
        let mut one = Some((fd, self.owner));
        // Not while this thread ends: then nobody asks it any more.
        let _ = DROPPED.try_with(|dropped| {
            let mut dropped = dropped.borrow_mut();
            dropped.gathered.extend(one.take());
            if !dropped.gathers || dropped.gathered.len() >= GATHERED_MAX {
                dropped.hand_over();
            }
        });
        hand_over(one.into_iter());
    }
}

/// Closes that were begun, by their numbers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Closes(Vec<Range<u64>>);

impl Closes {
    const NONE: Self = Self(Vec::new());

    /// These and those.
    pub fn join(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of them have ended.
    pub fn have_ended(&self) -> bool {
        lock().have_ended(self)
    }
}

/// Takes out what has been closed of these, so many at most.
pub(crate) fn take_ended<T>(closing: &mut Backlog<(T, Closes)>, most: usize) -> Vec<T> {
    let mut ended = Vec::new();
    if closing.is_empty() {
        return ended;
    }
    let state = lock();
    // Each is looked at once; those that are not closed come round in their order.
    for _ in 0..closing.len() {
        let Some((what, closes)) = closing.pop_front() else { break };
        if ended.len() < most && state.have_ended(&closes) {
            ended.push(what);
        } else {
            closing.push_back((what, closes));
        }
    }
    ended
}

/// How many are gathered at most: in one piece of memory.
const GATHERED_MAX: usize = 1024;

/// What a thread has dropped.
struct Dropped {
    /// Handed over since it was asked last.
    begun: Closes,
    /// To be handed over together; the user is who is kept waiting by it.
    gathered: Vec<(OwnedFd, u32)>,
    gathers: bool,
}

thread_local! {
    // Nothing is dropped when the thread ends: the C library would end the process if it had no
    // memory to remember that. So a thread asks what was `begun` before it ends.
    static DROPPED: RefCell<ManuallyDrop<Dropped>> = const {
        let none = Dropped { begun: Closes::NONE, gathered: Vec::new(), gathers: false };
        RefCell::new(ManuallyDrop::new(none))
    };
}

/// What this thread has dropped since it asked last; it is being closed from now on.
pub(crate) fn begun() -> Closes {
    DROPPED.with_borrow_mut(|dropped| {
        dropped.hand_over();
        std::mem::take(&mut dropped.begun)
    })
}

/// Has this thread hand over what it drops together: when it asks what was [begun], who is
/// [leaving], and when this is dropped. It has to ask before it waits for anything. A set that
/// replaces hundreds would have it wait for each behind those who close them.
pub(crate) struct Gathering(());

impl Gathering {
    /// From now on.
    pub fn begin() -> Self {
        DROPPED.with_borrow_mut(|dropped| dropped.gathers = true);
        Self(())
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        // If this thread ends there is nobody to ask.
        let _ = DROPPED.try_with(|dropped| {
            let mut dropped = dropped.borrow_mut();
            dropped.gathers = false;
            dropped.hand_over();
        });
    }
}

impl Dropped {
    fn hand_over(&mut self) {
        let Some(numbers) = hand_over(self.gathered.drain(..)) else { return };
        match self.begun.0.last_mut() {
            Some(last) if last.end == numbers.start => last.end = numbers.end,
            _ => self.begun.0.push(numbers),
        }
    }
}

/// Wakes a loop when something was closed, once each time that is wanted. Whoever watches it by
/// edges need not [hear](Self::hear) it, as each time that it rings is one.
#[derive(Debug)]
pub(crate) struct Bell {
    eventfd: OwnedFd,
    is_wanted: AtomicBool,
}

impl Bell {
    /// A new one.
    ///
    /// # Errors
    ///
    /// Those of eventfd(2).
    pub fn new() -> Result<Arc<Self>, Errno> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Self { eventfd, is_wanted: AtomicBool::new(false) });
        let mut state = lock();
        state.bells.retain(|bell| bell.strong_count() > 0);
        state.bells.push(Arc::downgrade(&bell));
        Ok(bell)
    }

    /// It is to ring when something is closed from now on. Ask whether what is waited for
    /// [has ended](Closes::have_ended) behind that.
    pub fn want(&self) {
        self.is_wanted.store(true, Ordering::SeqCst);
    }

    /// It has been heard, and is silent.
    pub fn hear(&self) {
        // There is nothing to read if it has not rung.
        let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
    }

    fn ring(&self) {
        if self.is_wanted.swap(false, Ordering::SeqCst) {
            // It is never full: that would take 2^64 times.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// What waits to be closed, and who closes it.
struct State {
    /// By user.
    queues: BTreeMap<u32, Backlog<(u64, OwnedFd)>>,
    /// How many closers are busy with each user's.
    busy: BTreeMap<u32, usize>,
    /// How long each user has kept closers busy: whoever has the least is the next. Only those who
    /// have something to close, or have had more than one of these.
    spent: BTreeMap<u32, Duration>,
    /// Numbers of what is not closed yet.
    open: BTreeSet<u64>,
    next: u64,
    /// All threads, the one that stands by included.
    closers: usize,
    /// There is one that stands by, or is about to be.
    has_standby: bool,
    /// How many of those that do not stand by have nothing to do.
    idle: usize,
    /// One of them has been told that there is something.
    is_waking: bool,
    /// Whoever stands by is to look, a little later, whether it is needed.
    is_alert: bool,
    bells: Vec<Weak<Bell>>,
}

static STATE: Mutex<State> = Mutex::new(State::new());

/// There is something to close.
static WORK: Condvar = Condvar::new();

/// All closers are busy, and there is more to close.
static ALERT: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    const fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            busy: BTreeMap::new(),
            spent: BTreeMap::new(),
            open: BTreeSet::new(),
            next: 0,
            closers: 0,
            has_standby: false,
            idle: 0,
            is_waking: false,
            is_alert: false,
            bells: Vec::new(),
        }
    }

    /// The user who is the next, of those who keep less than their part of the closers busy.
    fn next_user(&self) -> Option<u32> {
        let may_come = |user: &&u32| self.busy.get(user).is_none_or(|it| *it < CLOSERS_PER_USER);
        let spent = |user: &&u32| self.spent.get(user).copied().unwrap_or_default();
        self.queues.keys().filter(may_come).min_by_key(spent).copied()
    }

    /// The number of what is closed next.
    fn next_number(&mut self) -> Option<u64> {
        let user = self.next_user()?;
        self.queues.get_mut(&user)?.front_mut().map(|(number, _)| *number)
    }

    fn push(&mut self, fd: OwnedFd, user: u32) {
        let number = self.next;
        self.next += 1;
        self.open.insert(number);
        if !self.queues.contains_key(&user) {
            self.comes(user);
        }
        self.queues.entry(user).or_default().push_back((number, fd));
    }

    /// A user who comes has no more to its credit than those who are there.
    fn comes(&mut self, user: u32) {
        let others = self.queues.keys().chain(self.busy.keys());
        let spent = |other| self.spent.get(other).copied().unwrap_or_default();
        let Some(least) = others.map(spent).min() else { return self.spent.clear() };
        let spent = self.spent.entry(user).or_default();
        *spent = least.max(*spent);
        // Those who have gone and would come back as they are now need not be remembered.
        let Self { queues, busy, spent, .. } = self;
        let is_here = |user: &u32| queues.contains_key(user) || busy.contains_key(user);
        spent.retain(|other, spent| *other == user || *spent > least || is_here(other));
    }

    fn take(&mut self) -> Option<(u32, u64, OwnedFd)> {
        let user = self.next_user()?;
        let queue = self.queues.get_mut(&user)?;
        let (number, fd) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&user);
        }
        *self.busy.entry(user).or_default() += 1;
        if self.idle == 0 && !self.queues.is_empty() {
            self.alert();
        }
        Some((user, number, fd))
    }

    /// The number of what waits for somebody who closes it, if nobody has nothing to do.
    fn due(&mut self) -> Option<u64> {
        if self.idle > 0 {
            return None;
        }
        self.next_number()
    }

    /// Has whoever stands by look whether it is needed.
    fn alert(&mut self) {
        if !std::mem::replace(&mut self.is_alert, true) {
            ALERT.notify_one();
        }
    }

    fn have_ended(&self, closes: &Closes) -> bool {
        closes.0.iter().all(|numbers| self.open.range(numbers.clone()).next().is_none())
    }

    fn has_closed(&mut self, user: u32, number: u64, took: Duration) {
        self.open.remove(&number);
        *self.spent.entry(user).or_default() += took;
        if let Some(busy) = self.busy.get_mut(&user) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(&user);
            }
        }
        for bell in &self.bells {
            if let Some(bell) = bell.upgrade() {
                bell.ring();
            }
        }
    }
}

/// How many are not closed yet, and how many of those are a user's.
pub(crate) fn leaving(user: u32) -> Leaving {
    DROPPED.with_borrow_mut(|dropped| dropped.hand_over());
    let state = lock();
    if state.open.is_empty() {
        return Leaving { user, ..Leaving::default() };
    }
    let queued = state.queues.get(&user).map_or(0, Backlog::len);
    let own = queued + state.busy.get(&user).copied().unwrap_or_default();
    Leaving { user, own, all: state.open.len() }
}

/// How many are not closed yet, of all users.
pub fn unclosed() -> usize {
    leaving(u32::MAX).all
}

/// What nobody has begun to close: it is left to the program that this process is about to become,
/// which would not begin before all of it is closed.
pub(crate) fn leave() -> Vec<ClientFd> {
    DROPPED.with_borrow_mut(|dropped| dropped.hand_over());
    let mut state = lock();
    let mut left = Vec::new();
    for (user, mut queue) in std::mem::take(&mut state.queues) {
        for (number, fd) in queue.drain(usize::MAX) {
            state.open.remove(&number);
            left.push(ClientFd::new(fd, user));
        }
    }
    left
}

/// Starts the first who closes; others are started when they are needed. Before, while nobody is
/// served and the process may have to be alone to give up what it can do, everything is closed
/// where it is dropped.
///
/// # Errors
///
/// EAGAIN: the user may have no more threads, or there is no memory.
pub fn begin() -> Result<(), Errno> {
    if lock().closers == 0 {
        start_closer(close_for_ever)?;
    }
    MAY_START.store(true, Ordering::SeqCst);
    Ok(())
}

static MAY_START: AtomicBool = AtomicBool::new(false);

/// Has others close these, and returns their numbers.
fn hand_over(fds: impl Iterator<Item = (OwnedFd, u32)>) -> Option<Range<u64>> {
    let mut fds = fds.peekable();
    fds.peek()?;
    let mut state = lock();
    let first = state.next;
    for (fd, user) in fds {
        state.push(fd, user);
    }
    let numbers = first..state.next;
    let wakes = state.idle > 0 && !std::mem::replace(&mut state.is_waking, true);
    if state.idle == 0 {
        state.alert();
    }
    let is_to_start = !std::mem::replace(&mut state.has_standby, true);
    drop(state);
    if wakes {
        WORK.notify_one();
    }
    if is_to_start && start_closer(stand_by).is_err() {
        // The next who drops something tries again.
        lock().has_standby = false;
    }
    Some(numbers)
}

fn start_closer(what: fn()) -> Result<(), Errno> {
    let mut state = lock();
    if state.closers >= CLOSERS_MAX {
        return Err(Errno::AGAIN);
    }
    state.closers += 1;
    drop(state);
    let started = spawn(CLOSER_STACK_LEN, move || {
        // For those who look at its threads.
        let _ = rustix::thread::set_name(c"closer");
        what();
    });
    if started.is_err() {
        lock().closers -= 1;
    }
    started.map_err(|_| Errno::AGAIN) // pthread_create(3) knows no other.
}

/// How many are closed before those are let run who may wait for the processor: the loop, or
/// whoever it has answered. Otherwise they wait until the kernel thinks that it is their turn, some
/// milliseconds.
const CLOSES_PER_TURN: usize = 16;

/// Closes all, one after the other.
fn close_all(mut state: MutexGuard<'static, State>) -> MutexGuard<'static, State> {
    for count in 1.. {
        let Some((user, number, fd)) = state.take() else { break };
        drop(state);
        let begun = Instant::now();
        drop(fd);
        let took = begun.elapsed();
        state = lock();
        state.has_closed(user, number, took);
        if count % CLOSES_PER_TURN == 0 && !state.queues.is_empty() {
            drop(state);
            std::thread::yield_now();
            state = lock();
        }
    }
    state
}

/// A closer that panics is not counted any more; another is started when one is needed.
struct Lost {
    is_standby: bool,
}

impl Drop for Lost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = lock();
            state.closers -= 1;
            state.has_standby &= !self.is_standby;
        }
    }
}

/// Closes what there is. One that has nothing to do waits; a second one ends.
fn close_for_ever() {
    let _lost = Lost { is_standby: false };
    let mut state = lock();
    loop {
        state = close_all(state);
        if state.idle > 0 {
            state.closers -= 1;
            return;
        }
        state.idle += 1;
        state = WORK.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        state.is_waking = false;
    }
}

/// Waits until all who close are kept waiting, and then starts another, or tries to: what keeps
/// it from that may be over soon. They are when what is next was not begun for a while; more of
/// them than that takes would only take turns with the loop, and have it wait for their lock.
fn stand_by() {
    let _lost = Lost { is_standby: true };
    loop {
        let mut state = lock();
        while !state.is_alert {
            state = ALERT.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let due = state.due();
        drop(state);
        clock::pause(CLOSE_SLOW);
        let mut state = lock();
        let still_due = state.due();
        let is_needed = still_due.is_some() && still_due == due;
        // Nobody else may say so again.
        state.is_alert = still_due.is_some() && !is_needed;
        drop(state);
        if is_needed && start_closer(close_for_ever).is_err() {
            lock().is_alert = true;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
