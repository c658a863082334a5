//! What systemd is told, change by change.

use super::about::{self, About};
use super::recovery::Past;
use super::Notifier;
use crate::limits::FOLLOWER_PATIENCE;
use crate::replication::{Item, Mirrors};
use crate::same_file::are_one;
use crate::store::Record;
use fdholder::{strerror, Errno};
use rustix::fs::fstat;
use rustix::time::{clock_gettime, ClockId};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// How many are described one by one before a list of everything is made: each takes a
/// descriptor of its own, a list one for all.
pub(super) const LISTED_ONE_BY_ONE_MAX: usize = 64;

/// Messages in one turn of the loop.
const MESSAGES_PER_TURN: usize = 64;

/// How long to wait before systemd is tried again: its queue has room for a few messages.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// A message to systemd.
#[derive(Debug)]
struct Letter {
    text: String,
    fd: Option<Fd>,
}

#[derive(Debug)]
enum Fd {
    Held(Arc<Record<OwnedFd>>),
    Own(OwnedFd),
    /// Not to be closed by us.
    Shared(Arc<OwnedFd>),
}

/// What is known of a number that systemd keeps.
#[derive(Debug)]
struct Kept {
    record: Arc<Record<OwnedFd>>,
    home: u64,
    /// Device and inode.
    file: (u64, u64),
}

/// What systemd keeps, and what it is still to be told.
#[derive(Debug)]
pub(crate) struct Shelf {
    notifier: Notifier,
    /// Its key among the mirrors.
    pub mirror: usize,
    kept: BTreeMap<u64, Kept>,
    /// Numbers of what may be one open file.
    by_file: HashMap<(u64, u64), BTreeSet<u64>>,
    /// Numbers that have an `m`.
    described: BTreeSet<u64>,
    /// The name of the list that counts.
    list: Option<String>,
    letters: VecDeque<Letter>,
    /// The change after which they are the ones to send.
    up_to: u64,
    /// Everything was told once.
    is_complete: bool,
    /// Numbers of what went before it was told that it was held.
    gone: BTreeSet<u64>,
    /// Numbers whose descriptors systemd has already.
    has: BTreeSet<u64>,
    /// Names that mean nothing any more, to be forgotten when there is a list.
    stale: Vec<String>,
    /// When to try again what systemd did not take, and since when it does not.
    pub retry_at: Option<Instant>,
    stalled: Option<Instant>,
}

impl Shelf {
    /// A shelf for what a mirror tells item by item.
    pub fn new(notifier: Notifier, mirror: usize, past: Past) -> Self {
        Self {
            notifier,
            mirror,
            kept: BTreeMap::new(),
            by_file: HashMap::new(),
            described: BTreeSet::new(),
            list: None,
            letters: VecDeque::new(),
            up_to: 0,
            is_complete: false,
            gone: BTreeSet::new(),
            has: past.has,
            stale: past.stale,
            retry_at: None,
            stalled: None,
        }
    }

    /// Has systemd keep the listening socket.
    pub fn keep_listener(&mut self, fd: OwnedFd) {
        self.forget("l");
        self.store("l", Fd::Own(fd));
    }

    /// Has systemd keep the roll of followers, in the place of the one before; or none.
    pub fn keep_roll(&mut self, roll: Option<&Arc<OwnedFd>>) {
        self.forget("r");
        if let Some(roll) = roll {
            self.store("r", Fd::Shared(Arc::clone(roll)));
        }
    }

    /// Tells systemd what there is to tell, as far as it reads; `last` is the number of what
    /// was held last. Returns false when there is more, for the next turn.
    pub fn tell(&mut self, mirrors: &mut Mirrors<OwnedFd>, last: u64) -> bool {
        self.retry_at = None;
        for _ in 0..MESSAGES_PER_TURN {
            while let Some(letter) = self.letters.front() {
                let fd = letter.fd.as_ref().map(|fd| match fd {
                    Fd::Held(record) => record.fd.as_fd(),
                    Fd::Own(fd) => fd.as_fd(),
                    Fd::Shared(fd) => fd.as_fd(),
                });
                match self.notifier.send(&letter.text, fd) {
                    Ok(()) => {
                        self.stalled = None;
                        self.letters.pop_front();
                    }
                    Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::CONNREFUSED) => {
                        self.wait_for_systemd(mirrors);
                        return true;
                    }
                    Err(errno) => {
                        warn!("unable to have systemd keep a descriptor: {}", strerror(errno));
                        self.letters.pop_front();
                    }
                }
            }
            let Some(mirror) = mirrors.get_mut(self.mirror) else { return true };
            mirror.is_told(self.up_to);
            if let Some((number, item)) = mirror.pop() {
                self.up_to = number;
                self.take(item, last);
            } else if self.is_complete {
                return true;
            } else if let Some(record) = mirror.pop_copy() {
                if !self.gone.contains(&record.serial) {
                    self.hold(record, false);
                }
            } else {
                self.is_complete = true;
                self.gone.clear();
                self.make_list(last);
            }
        }
        false
    }

    /// systemd does not take anything now. Answers wait for it, but not for ever.
    fn wait_for_systemd(&mut self, mirrors: &mut Mirrors<OwnedFd>) {
        let now = Instant::now();
        self.retry_at = Some(now + RETRY_PAUSE);
        let since = *self.stalled.get_or_insert(now);
        if let Some(mirror) = mirrors.get_mut(self.mirror).filter(|mirror| mirror.counts()) {
            if now - since >= FOLLOWER_PATIENCE {
                warn!("systemd takes no descriptors; what is stored is not safe with it until it does");
                mirror.does_not_count();
            }
        }
    }

    fn take(&mut self, item: Item<OwnedFd>, last: u64) {
        match item {
            Item::Held(record) => self.hold(record, true),
            Item::Released(_, serial) | Item::Replaced(serial) => {
                if !self.is_complete {
                    self.gone.insert(serial);
                }
                self.release(serial, last);
            }
        }
        if self.is_complete && self.described.len() >= LISTED_ONE_BY_ONE_MAX {
            self.make_list(last);
        }
    }

    /// Something is held; if it is not new, systemd has what describes it, or will have a list.
    fn hold(&mut self, record: Arc<Record<OwnedFd>>, is_new: bool) {
        let serial = record.serial;
        if self.kept.contains_key(&serial) {
            return; // Several of a set under one identifier have one place.
        }
        let file = fstat(&record.fd).map_or((0, serial), |stat| (stat.st_dev, stat.st_ino));
        let twins = self.by_file.entry(file).or_default();
        let twin = twins.iter().filter_map(|twin| self.kept.get(twin));
        let home = twin
            .filter(|twin| twin.home == twin.record.serial)
            .find(|twin| are_one(&twin.record.fd, &record.fd))
            .map_or(serial, |twin| twin.record.serial);
        twins.insert(serial);
        let kept = Kept { record: Arc::clone(&record), home, file };
        if is_new {
            match about::write(0, std::iter::once(&kept.about())) {
                Ok(file) => {
                    self.store(&format!("m{serial}"), Fd::Own(file));
                    self.described.insert(serial);
                }
                Err(errno) => warn!("unable to describe a descriptor: {}", strerror(errno)),
            }
        }
        self.kept.insert(serial, kept);
        if home == serial && !self.has.contains(&serial) {
            self.store(&format!("h{serial}"), Fd::Held(record));
        }
    }

    fn release(&mut self, serial: u64, last: u64) {
        let Some(gone) = self.kept.remove(&serial) else {
            if !self.is_complete {
                // It was there before us, and systemd has it.
                self.forget(&format!("h{serial}"));
                self.forget(&format!("m{serial}"));
            }
            return;
        };
        let heirs: Vec<u64> = self.by_file.get_mut(&gone.file).map_or_else(Vec::new, |twins| {
            twins.remove(&serial);
            twins.iter().copied().filter(|twin| self.kept[twin].home == serial).collect()
        });
        if self.by_file.get(&gone.file).is_some_and(BTreeSet::is_empty) {
            self.by_file.remove(&gone.file);
        }
        if gone.home == serial {
            self.forget(&format!("h{serial}"));
        }
        if let Some(&first) = heirs.first() {
            // systemd takes it under another name only when it has let go of it.
            let record = Arc::clone(&self.kept[&first].record);
            self.store(&format!("h{first}"), Fd::Held(record));
            for heir in heirs {
                if let Some(kept) = self.kept.get_mut(&heir) {
                    kept.home = first;
                }
            }
        }
        if self.described.remove(&serial) {
            self.forget(&format!("m{serial}"));
        }
        // A list that still says where one was at home, or that it was held although
        // another one keeps its home, says something wrong.
        if self.is_complete && (gone.home != serial || self.by_file.contains_key(&gone.file)) {
            self.make_list(last);
        }
    }

    /// Describes everything anew, in one piece.
    fn make_list(&mut self, last: u64) {
        let all: Vec<_> = self.kept.values().map(Kept::about).collect();
        let written = match about::write(last, all.iter()) {
            Ok(written) => written,
            Err(errno) => {
                return warn!("unable to describe what is held: {}", strerror(errno));
            }
        };
        // A clock that never goes back, and begins anew only when systemd does.
        let now = clock_gettime(ClockId::Boottime);
        let name = format!("i{}{:09}", now.tv_sec, now.tv_nsec);
        self.store(&name, Fd::Own(written));
        for serial in std::mem::take(&mut self.described) {
            self.forget(&format!("m{serial}"));
        }
        if let Some(before) = self.list.replace(name) {
            self.forget(&before);
        }
        for name in std::mem::take(&mut self.stale) {
            self.forget(&name);
        }
        self.has.clear();
    }

    fn store(&mut self, name: &str, fd: Fd) {
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        self.letters.push_back(Letter { text, fd: Some(fd) });
    }

    fn forget(&mut self, name: &str) {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        self.letters.push_back(Letter { text, fd: None });
    }
}

impl Kept {
    fn about(&self) -> About {
        let Record { entry, owner, serial } = &*self.record;
        About {
            serial: *serial,
            home: self.home,
            owner: *owner,
            limit: entry.limit,
            id: entry.id.clone(),
        }
    }
}
