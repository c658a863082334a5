//! What systemd is told, change by change.

use super::letter::{is_for_a_moment, Fd, Letter};
use super::recovery::Past;
use super::Notifier;
use crate::backlog::Backlog;
use crate::clock;
use crate::closing::ClientFd;
use crate::limits::{FDSTORE_FDS_MAX, FOLLOWER_PATIENCE, MEMORY_PIECE_LEN};
use crate::memory::reserve::has_room;
use crate::replication::roll::Roll;
use crate::replication::{Item, Mirrors};
use crate::same_file::are_one;
use crate::store::{Record, Store};
use fdholder::{strerror, Errno};
use rustix::fs::{fstat, statx, AtFlags, StatxFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How many descriptions there are before a list of everything is made: each takes a
/// descriptor of its own, a list one for all.
pub(super) const DESCRIBED_MAX: usize = 64;

/// Names of lists. A new one takes the other name, and then those before it are forgotten.
const LISTS: [&str; 2] = ["i0", "i1"];

/// Names of rolls: of an even generation, of an odd one, and of any in versions before.
pub(super) const ROLLS: [&str; 3] = ["r0", "r1", "r"];

/// Messages in one turn of the loop.
const MESSAGES_PER_TURN: usize = 64;

/// How long to wait before systemd is tried again: its queue has room for a few messages.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// How long to wait when it has not read for long.
const LONG_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long at most when it cannot be told for another reason.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Bytes that are taken at most for what systemd is told, or told to forget, of a number when it is
/// told of everything, in small pieces.
const MEMORY_PER_TOLD: usize = 512;

const _: () = {
    // Whatever is told of all of them is made of pointers, in one piece.
    assert!(FDSTORE_FDS_MAX * size_of::<usize>() <= MEMORY_PIECE_LEN);
};

/// What changes nothing, to see whether systemd reads.
const NOTHING: &str = "FDSTOREREMOVE=1\nFDNAME=nothing";

/// What is known of a number that is held.
#[derive(Debug)]
struct Kept {
    record: Arc<Record<ClientFd>>,
    /// systemd has, or is to have, this very descriptor.
    is_direct: bool,
    /// It has, or may have, one that is wrapped.
    is_wrapped: bool,
    /// Device and inode.
    file: (u64, u64),
}

/// What systemd may have of what was held before, and when to begin anew.
#[derive(Debug)]
struct Lost {
    had: BTreeSet<u64>,
    again_at: Instant,
}

/// Where those are whose file is not known.
const UNKNOWN_FILE: (u64, u64) = (0, 0);

/// What systemd keeps, and what it is still to be told.
#[derive(Debug)]
pub(crate) struct Shelf {
    notifier: Arc<Notifier>,
    /// Its key among the mirrors.
    mirror: usize,
    /// The highest number of what systemd was told of, or may have been by others.
    last: u64,
    kept: BTreeMap<u64, Kept>,
    /// Numbers of what may be one open file.
    by_file: BTreeSet<((u64, u64), u64)>,
    /// What is held, of what belongs together and has not come yet.
    group: Vec<Arc<Record<ClientFd>>>,
    /// The names of descriptions that are in use, and the number of each that describes only
    /// one.
    described: BTreeMap<usize, Option<u64>>,
    /// Which of the names of lists is in use.
    list: usize,
    letters: Backlog<Letter>,
    /// The change after which they are the ones to send.
    up_to: u64,
    /// Numbers that systemd may not have, although it should.
    unsure: BTreeSet<u64>,
    /// When to try again what systemd did not take, and since when it does not.
    pub retry_at: Option<Instant>,
    stalled: Option<Instant>,
    /// It could not be told, or not for too long. It is not told of anything until it can be, and
    /// then of everything.
    lost: Option<Lost>,
    /// How long to wait before that when it cannot be told for a reason that does not pass.
    pause: Duration,
    /// What it keeps of the daemon's own.
    listener: Option<Arc<OwnedFd>>,
    roll: Option<(u64, Arc<OwnedFd>)>,
    /// What was so at the start is told, but for what systemd may have already.
    has_begun: bool,
}

/// Device and inode, as they are known here: no file server is asked.
fn file_of(fd: impl AsFd) -> Option<(u64, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, c"", flags, StatxFlags::INO).ok()?;
    let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
    Some((device, stat.stx_ino))
}

/// By this a daemon that has the same socket knows the name.
fn name_of_listener(listener: impl AsFd) -> String {
    fstat(listener).map_or_else(|_| "l".to_owned(), |stat| format!("l{}", stat.st_ino))
}

impl Shelf {
    /// A shelf for what is held, and then for what a mirror tells.
    pub fn new(
        notifier: impl Into<Arc<Notifier>>,
        mirrors: &mut Mirrors<ClientFd>,
        store: &Store<ClientFd>,
        past: &Past,
    ) -> Self {
        let mut shelf = Self {
            notifier: notifier.into(),
            mirror: mirrors.add_shelf(),
            last: store.last_serial(),
            kept: BTreeMap::new(),
            by_file: BTreeSet::new(),
            group: Vec::new(),
            described: BTreeMap::new(),
            list: 0,
            letters: Backlog::default(),
            up_to: mirrors.ticket().recorded(),
            unsure: BTreeSet::new(),
            retry_at: None,
            stalled: None,
            lost: None,
            pause: LONG_RETRY_PAUSE,
            listener: None,
            roll: None,
            has_begun: false,
        };
        for stale in past.listeners.iter().filter(|name| past.listener.as_ref() != Some(name)) {
            shelf.forget(stale);
        }
        let mut all = store.all();
        all.sort_unstable_by_key(|record| record.origin.serial);
        for record in all {
            let serial = record.origin.serial;
            let (direct, wrapped) = past.names.with(serial);
            if !(direct || wrapped) {
                shelf.unsure.insert(serial);
            }
            shelf.place(record);
            if let Some(kept) = shelf.kept.get_mut(&serial) {
                kept.is_direct = direct || kept.is_direct && !wrapped;
                kept.is_wrapped |= wrapped || !past.is_known;
            }
        }
        // Others may have used any of the names: once with each, and none of theirs is left.
        shelf.described = (0..DESCRIBED_MAX).map(|name| (name, None)).collect();
        for _ in LISTS {
            shelf.make_list();
        }
        let stale = |serial: &&u64| !shelf.kept.contains_key(*serial);
        let stale_direct: Vec<_> = past.names.direct.iter().filter(stale).collect();
        let stale_wrapped: Vec<_> = past.names.wrapped.iter().filter(stale).collect();
        for serial in stale_direct {
            shelf.forget(&format!("h{serial}"));
        }
        for serial in stale_wrapped {
            shelf.forget(&format!("b{serial}"));
        }
        shelf
    }

    /// Has systemd keep the listening socket, in the place of the one before. If it has this one
    /// from a daemon before, nothing changes.
    pub fn keep_listener(&mut self, listener: Arc<OwnedFd>) {
        let name = name_of_listener(&listener);
        self.store(&name, Fd::Shared(Arc::clone(&listener)));
        let before = self.listener.replace(listener).map(|before| name_of_listener(&before));
        if let Some(before) = before.filter(|before| *before != name) {
            self.forget(&before);
        }
    }

    /// Has systemd keep the roll of followers, in the place of those before; before anything
    /// else, as it says who serves.
    pub fn keep_roll(&mut self, roll: &Roll) {
        self.keep_roll_of(roll.generation(), Arc::clone(roll.file()));
    }

    fn keep_roll_of(&mut self, generation: u64, file: Arc<OwnedFd>) {
        let mut told = std::mem::take(&mut self.letters);
        let name = ROLLS[(generation % 2) as usize]; // 0 or 1.
        self.store(name, Fd::Shared(Arc::clone(&file)));
        for other in ROLLS.iter().filter(|other| **other != name) {
            self.forget(other);
        }
        told.drain(usize::MAX).for_each(|letter| self.letters.push_back(letter));
        self.roll = Some((generation, file));
    }

    /// Whether systemd has been told what is so at the start; or does not want to hear it.
    pub fn is_begun(&self) -> bool {
        self.has_begun || self.lost.is_some()
    }

    /// Whether systemd has all that is held.
    pub fn has_told_all(&self) -> bool {
        self.has_begun && self.lost.is_none() && self.letters.is_empty()
    }

    /// Tells systemd what there is to tell at the start, before anything changes: what systemd
    /// has that means nothing any more is known to nobody after us. Waits for it, but not for
    /// long.
    pub fn begin(&mut self) {
        let until = clock::now() + FOLLOWER_PATIENCE;
        while let Err(errno) = self.send_letters() {
            if !is_for_a_moment(errno) || clock::now() >= until {
                break;
            }
            clock::pause(RETRY_PAUSE);
        }
    }

    /// Tells systemd what there is to tell, as far as it reads. Returns false when there is
    /// more, for the next turn.
    pub fn tell(&mut self, mirrors: &mut Mirrors<ClientFd>, store: &Store<ClientFd>) -> bool {
        self.retry_at = None;
        if self.lost.is_some() && !self.begin_anew(mirrors, store) {
            return true;
        }
        for _ in 0..MESSAGES_PER_TURN {
            if let Err(errno) = self.send_letters() {
                self.wait_for_systemd(errno, mirrors);
                return true;
            }
            let Some(mirror) = mirrors.get_mut(self.mirror) else { return true };
            mirror.is_told(self.up_to);
            if let Some((number, goes_on, item)) = mirror.pop() {
                self.up_to = number;
                self.take(item, goes_on);
            } else if let Some(serial) = self.unsure.pop_first() {
                self.make_sure(serial);
            } else {
                self.pause = LONG_RETRY_PAUSE;
                return true;
            }
        }
        false
    }

    /// Sends what there is, in its order: the first that cannot be sent keeps the others waiting.
    fn send_letters(&mut self) -> Result<(), Errno> {
        while let Some(letter) = self.letters.front_mut() {
            letter.send(&self.notifier)?;
            self.stalled = None;
            self.letters.pop_front();
        }
        self.has_begun = true;
        Ok(())
    }

    /// systemd could not be told. If that may pass, answers wait for it, but not for ever.
    fn wait_for_systemd(&mut self, errno: Errno, mirrors: &mut Mirrors<ClientFd>) {
        let now = clock::now();
        let mut again_at = now + RETRY_PAUSE;
        let errno_text = strerror(errno);
        if is_for_a_moment(errno) {
            self.retry_at = Some(again_at);
            if now - *self.stalled.get_or_insert(now) < FOLLOWER_PATIENCE {
                return;
            }
            warn!(
                "systemd takes no descriptors ({errno_text}): what is stored is not safe with it \
                 until it does"
            );
        } else {
            again_at = now + self.pause;
            self.pause = (2 * self.pause).min(LONGEST_RETRY_PAUSE);
            warn!(
                "unable to have systemd keep descriptors: {errno_text}: what is stored is not safe \
                 with it until it can be told of everything anew"
            );
        }
        mirrors.remove(self.mirror);
        // Nothing is kept open for it.
        let mut had: BTreeSet<_> = std::mem::take(&mut self.kept).into_keys().collect();
        had.extend(self.letters.drain(usize::MAX).filter_map(|letter| letter.serial()));
        self.group.clear();
        self.by_file.clear();
        self.lost = Some(Lost { had, again_at });
        self.retry_at = Some(again_at);
    }

    /// Tells systemd of everything, if it reads again.
    fn begin_anew(&mut self, mirrors: &mut Mirrors<ClientFd>, store: &Store<ClientFd>) -> bool {
        let Some(lost) = &mut self.lost else { return true };
        let now = clock::now();
        let may_be_told = || {
            let told = store.len() + lost.had.len();
            has_room(told * MEMORY_PER_TOLD) && self.notifier.send(NOTHING, None).is_ok()
        };
        if now >= lost.again_at && !may_be_told() {
            lost.again_at = now + LONG_RETRY_PAUSE;
        }
        if now < lost.again_at {
            self.retry_at = Some(lost.again_at);
            return false;
        }
        info!("systemd reads again, and is told of everything");
        let held: BTreeSet<_> = store.all().iter().map(|record| record.origin.serial).collect();
        let past = Past::unknown(lost.had.difference(&held).copied());
        let (listener, roll, pause) = (self.listener.take(), self.roll.take(), self.pause);
        *self = Self::new(Arc::clone(&self.notifier), mirrors, store, &past);
        self.pause = pause;
        if let Some(listener) = listener {
            self.keep_listener(listener);
        }
        if let Some((generation, file)) = roll {
            self.keep_roll_of(generation, file);
        }
        true
    }

    fn take(&mut self, item: Item<ClientFd>, goes_on: bool) {
        match item {
            Item::Held(record) => {
                let serial = record.origin.serial;
                self.place(record);
                self.keep(serial);
                self.group.extend(self.kept.get(&serial).map(|kept| Arc::clone(&kept.record)));
            }
            Item::Released(_, serial) | Item::Replaced(serial) => self.release(serial),
        }
        if !goes_on {
            self.describe();
        }
    }

    /// Takes down what is held, and whether systemd can have it as it is: not if it has the
    /// same open file already.
    fn place(&mut self, record: Arc<Record<ClientFd>>) {
        let serial = record.origin.serial;
        let known = file_of(&record.fd);
        // In doubt it is wrapped, as systemd would not say that it has dropped it.
        let is_twin = |twin: &Record<ClientFd>| are_one(&twin.fd, &record.fd).unwrap_or(true);
        let mut others = self.twins(known.unwrap_or(UNKNOWN_FILE));
        let has_twin =
            known.is_none() || others.any(|twin| twin.is_direct && is_twin(&twin.record));
        drop(others);
        let file = known.unwrap_or(UNKNOWN_FILE);
        self.by_file.insert((file, serial));
        self.last = self.last.max(serial);
        let kept = Kept { record, is_direct: !has_twin, is_wrapped: has_twin, file };
        self.kept.insert(serial, kept);
    }

    /// What may be the same open file: of this file, or of one that is not known.
    fn twins(&self, file: (u64, u64)) -> impl Iterator<Item = &Kept> {
        let unknown = Some(UNKNOWN_FILE).filter(|unknown| *unknown != file);
        let numbers = [Some(file), unknown].into_iter().flatten();
        let numbers = numbers.flat_map(|file| self.by_file.range((file, 0)..=(file, u64::MAX)));
        numbers.filter_map(|(_, serial)| self.kept.get(serial))
    }

    /// Has systemd keep a descriptor.
    fn keep(&mut self, serial: u64) {
        let Some(kept) = self.kept.get(&serial) else { return };
        let record = Arc::clone(&kept.record);
        if kept.is_direct {
            self.store(&format!("h{serial}"), Fd::Held(record));
        } else {
            self.store(&format!("b{serial}"), Fd::Wrapped(record));
        }
    }

    /// Has systemd keep what it may have already, in one way or the other.
    fn make_sure(&mut self, serial: u64) {
        let Some(file) = self.kept.get(&serial).map(|kept| kept.file) else { return };
        let has_twin = self.twins(file).nth(1).is_some();
        let Some(kept) = self.kept.get_mut(&serial) else { return };
        if has_twin {
            // It may have another number's of the same open file, whichever that is.
            (kept.is_direct, kept.is_wrapped) = (false, true);
            self.forget(&format!("b{serial}"));
        }
        self.keep(serial);
    }

    /// Describes what belongs together, all of it with one message: what was not described
    /// is not held.
    fn describe(&mut self) {
        if self.described.len() >= DESCRIBED_MAX {
            self.group.clear();
            return self.make_list();
        }
        let group = std::mem::take(&mut self.group);
        let free = (0..DESCRIBED_MAX).find(|name| !self.described.contains_key(name));
        let (Some(name), Some(first)) = (free, group.first()) else { return };
        self.described.insert(name, (group.len() == 1).then_some(first.origin.serial));
        self.store(&format!("m{name}"), Fd::Written(0, group));
    }

    fn release(&mut self, serial: u64) {
        let Some(gone) = self.kept.remove(&serial) else { return };
        self.by_file.remove(&(gone.file, serial));
        self.forget(&format!("h{serial}"));
        if gone.is_wrapped {
            self.forget(&format!("b{serial}"));
        }
        let own = self.described.iter().find(|(_, of)| **of == Some(serial));
        if let Some(name) = own.map(|(name, _)| *name) {
            self.described.remove(&name);
            self.forget(&format!("m{name}"));
        }
    }

    /// Describes everything anew, in one piece, and forgets what did before.
    fn make_list(&mut self) {
        let all: Vec<_> = self.kept.values().map(|kept| Arc::clone(&kept.record)).collect();
        let before = self.list;
        self.list = (before + 1) % LISTS.len();
        self.store(LISTS[self.list], Fd::Written(self.last, all));
        self.forget(LISTS[before]);
        for name in std::mem::take(&mut self.described).into_keys() {
            self.forget(&format!("m{name}"));
        }
    }

    fn store(&mut self, name: &str, fd: Fd) {
        self.letters.push_back(Letter::keep(name, fd));
    }

    fn forget(&mut self, name: &str) {
        self.letters.push_back(Letter::forget(name));
    }
}
