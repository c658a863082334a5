//! What a thread looks at in the loop's place.
//!
//! Devices and kernel objects that hang up: terminals, `/dev/fuse`, pidfds. To ask a terminal
//! whether it has hung up can take as long as another process keeps its line discipline locked. A
//! file on a file server, which might never answer, is not asked at all.
//!
//! And listeners, of which there may be thousands: whether a process accepts from them.

mod listeners;

use self::listeners::Listeners;
pub(crate) use self::listeners::Unattended;
use crate::backlog::Backlog;
use crate::clock;
use crate::closing::ClientFd;
use crate::limits::{LISTENERS_LOOKED_AT_EVERY, WATCHER_STACK_LEN};
use crate::reading::{has_hung_up, if_it_applies, is_transient, RETRY_PAUSE};
use crate::store::Record;
use crate::thread::spawn;
use fdholder::{strerror, Errno, Listening};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{readlink, statx, AtFlags, FileType, StatxFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;
use tracing::{debug, warn};

type Held = Arc<Record<ClientFd>>;

/// The loop's side.
#[derive(Debug)]
pub(crate) struct Lookout {
    shared: Arc<Shared>,
    devices: BTreeSet<u32>,
    listeners: BTreeSet<u32>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    wake: OwnedFd,
    /// Wakes the loop.
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    orders: Backlog<Order>,
    news: News,
    has_ended: bool,
}

/// What the thread is to look at, by its place in the store.
#[derive(Debug)]
enum Order {
    /// Whether this hangs up.
    Watch(u32, Held),
    /// Whether somebody accepts from this.
    Listen(u32, Weak<Record<ClientFd>>),
    /// No device there any more.
    ForgetDevice(u32),
    /// No listener.
    ForgetListener(u32),
    /// All listeners, now.
    Measure,
}

/// What there is to tell.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// What has hung up.
    pub gone: Vec<Held>,
    /// From which nobody accepts.
    pub unattended: Vec<Unattended>,
    /// All listeners, if they were to be measured.
    pub listeners: Option<Vec<Listening>>,
}

impl Lookout {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it, or no thread can be started.
    pub fn begin() -> Result<Self, Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (wake, bell) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let shared = Arc::new(Shared { state: Mutex::default(), wake, bell });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let watcher = Watcher {
            shared: Arc::clone(&shared),
            epoll,
            watched: BTreeMap::new(),
            listeners: Listeners::default(),
            again: Vec::new(),
        };
        // pthread_create(3) knows no other.
        spawn(WATCHER_STACK_LEN, move || watcher.run()).map_err(|_| Errno::AGAIN)?;
        Ok(Self { shared, devices: BTreeSet::new(), listeners: BTreeSet::new() })
    }

    /// Watches what is held in a place of the store.
    pub fn watch(&mut self, slot: u32, record: Held) {
        self.devices.insert(slot);
        self.shared.order(Order::Watch(slot, record));
    }

    /// Looks at the queue of a listener there.
    pub fn listen(&mut self, slot: u32, record: &Held) {
        self.listeners.insert(slot);
        self.shared.order(Order::Listen(slot, Arc::downgrade(record)));
    }

    /// Watches no device there any more.
    pub fn forget_device(&mut self, slot: u32) {
        if self.devices.remove(&slot) {
            self.shared.order(Order::ForgetDevice(slot));
        }
    }

    /// Looks at no listener there any more.
    pub fn forget_listener(&mut self, slot: u32) {
        if self.listeners.remove(&slot) {
            self.shared.order(Order::ForgetListener(slot));
        }
    }

    /// Whether there is any listener to be measured.
    pub fn has_listeners(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Measures all listeners, which will be news.
    pub fn measure(&self) {
        self.shared.order(Order::Measure);
    }

    /// What there is to tell since this was asked last.
    pub fn take_news(&self) -> News {
        // There is nothing to read if it has not rung.
        let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        std::mem::take(&mut self.shared.lock().news)
    }
}

impl AsFd for Lookout {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        ring(&self.shared.wake);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        let mut state = self.lock();
        if !state.has_ended {
            state.orders.push_back(order);
        }
        drop(state);
        ring(&self.wake);
    }
}

fn ring(eventfd: &OwnedFd) {
    // It is never full: that would take 2^64 times.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// The token of what wakes the thread. Others are places in the store.
const WAKE: u64 = u64::MAX;

/// The thread's side.
struct Watcher {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    watched: BTreeMap<u32, Watched>,
    listeners: Listeners,
    /// What could not be watched for a moment.
    again: Vec<(u32, Held)>,
}

struct Watched {
    record: Held,
    /// A terminal whose first user has not come yet looks as one whose user has gone.
    is_unused: bool,
}

/// Whatever ends the thread: nobody takes orders any more, and none keeps anything open.
impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.has_ended = true;
        state.orders = Backlog::default();
    }
}

impl Watcher {
    fn run(mut self) {
        let mut events = Vec::with_capacity(16);
        let mut measures_at = Instant::now();
        loop {
            let measured = measures_at.saturating_duration_since(Instant::now());
            let measured = (!self.listeners.is_empty()).then_some(measured);
            let again = (!self.again.is_empty()).then_some(RETRY_PAUSE);
            let next = measured.into_iter().chain(again).min();
            let next = next.and_then(|span| Timespec::try_from(span).ok());
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, next.as_ref()) {
                Ok(_) => {}
                Err(errno) if is_transient(errno) || errno == Errno::AGAIN => {
                    clock::pause(RETRY_PAUSE);
                }
                Err(errno) => {
                    return warn!("nothing that hangs up is watched: {}", strerror(errno));
                }
            }
            for event in &events {
                match u32::try_from(event.data.u64()) {
                    Ok(slot) => self.hear(slot),
                    Err(_) => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                    }
                }
            }
            let mut state = self.shared.lock();
            if state.has_ended {
                return;
            }
            let mut orders = std::mem::take(&mut state.orders);
            drop(state);
            for (slot, record) in std::mem::take(&mut self.again) {
                self.watch(slot, record);
            }
            let mut is_asked = false;
            for order in orders.drain(usize::MAX) {
                is_asked |= matches!(order, Order::Measure);
                self.carry_out(order);
            }
            if is_asked || Instant::now() >= measures_at {
                measures_at = Instant::now() + LISTENERS_LOOKED_AT_EVERY;
                self.measure(is_asked);
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Watch(slot, record) => {
                self.forget(slot);
                self.watch(slot, record);
            }
            Order::Listen(slot, record) => self.listeners.add(slot, record),
            Order::ForgetDevice(slot) => self.forget(slot),
            Order::ForgetListener(slot) => self.listeners.remove(slot),
            Order::Measure => {}
        }
    }

    fn forget(&mut self, slot: u32) {
        self.again.retain(|(other, _)| *other != slot);
        if let Some(old) = self.watched.remove(&slot) {
            // It may have been given up already.
            let _ = epoll::delete(&self.epoll, &old.record.fd);
        }
    }

    fn measure(&mut self, is_asked: bool) {
        let now = Instant::now();
        let mut unattended = self.listeners.measure(now);
        if unattended.is_empty() && !is_asked {
            return;
        }
        let mut state = self.shared.lock();
        state.news.unattended.append(&mut unattended);
        if is_asked {
            state.news.listeners = Some(self.listeners.told(now));
        }
        drop(state);
        ring(&self.shared.bell);
    }

    fn watch(&mut self, slot: u32, record: Held) {
        // Level by level it would be told of an unused one all the time. By edges, each user that
        // leaves is one.
        let Ok(kind) = kind(&record.fd) else { return self.again.push((slot, record)) };
        let is_master = kind == Some(Kind::Master);
        let interest = if is_master { EventFlags::ET } else { EventFlags::empty() };
        let was_hung_up = is_master && looks_unused(&record.fd);
        match epoll::add(&self.epoll, &record.fd, EventData::new_u64(slot.into()), interest) {
            Ok(()) => {
                let is_unused = was_hung_up && looks_unused(&record.fd);
                self.watched.insert(slot, Watched { record, is_unused });
            }
            // It cannot hang up.
            Err(Errno::PERM) => {}
            Err(errno) if is_transient(errno) => self.again.push((slot, record)),
            Err(errno) => debug!("unable to watch {}: {}", record.id, strerror(errno)),
        }
    }

    fn hear(&mut self, slot: u32) {
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        if std::mem::take(&mut watched.is_unused) || !has_hung_up(&watched.record.fd) {
            return;
        }
        if let Some(Watched { record, .. }) = self.watched.remove(&slot) {
            let _ = epoll::delete(&self.epoll, &record.fd);
            self.shared.lock().news.gone.push(record);
            ring(&self.shared.bell);
        }
    }
}

/// Whether nobody has it open, and nobody has written what could be read.
fn looks_unused(master: &ClientFd) -> bool {
    let mut polled = [PollFd::new(master, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
        && polled[0].revents().contains(PollFlags::HUP)
        && !polled[0].revents().contains(PollFlags::IN)
}

/// What may be asked whether it has hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The end of a terminal that its user does not have.
    Master,
    Other,
}

/// Whether something may be watched: its driver is the kernel's own.
///
/// # Errors
///
/// What fails for a moment.
pub(crate) fn may_hang_up(fd: &ClientFd) -> Result<bool, Errno> {
    kind(fd).map(|kind| kind.is_some())
}

/// The file is not asked for it, nor the file server that it may be on.
fn kind(fd: &ClientFd) -> Result<Option<Kind>, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = if_it_applies(statx(fd, c"", flags, StatxFlags::TYPE))?;
    let Some(stat) = stat else { return Ok(None) };
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::CharacterDevice {
        return Ok(is_kernel_object(fd)?.then_some(Kind::Other));
    }
    Ok(match (stat.stx_rdev_major, stat.stx_rdev_minor) {
        (5, 2) | (2, _) => Some(Kind::Master),
        // Terminals, /dev/fuse, input devices, sound, USB, graphics: what services keep with
        // systemd. A driver with a number of its own choice may be a process (CUSE).
        (3..=5 | 13 | 116 | 136..=143 | 166 | 188 | 189 | 204 | 226, _) | (10, 229) => {
            Some(Kind::Other)
        }
        _ => None,
    })
}

/// A pidfd, say. But what another epoll instance watches may be anything.
fn is_kernel_object(fd: &ClientFd) -> Result<bool, Errno> {
    let link = readlink(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()), Vec::new());
    let name = if_it_applies(link)?.unwrap_or_default();
    let name = name.as_bytes();
    Ok(name.starts_with(b"anon_inode:") && name != b"anon_inode:[eventpoll]")
}
