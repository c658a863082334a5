//! Held listeners from which no process accepts.

use super::Held;
use crate::accept_queue::AcceptQueues;
use crate::closing::ClientFd;
use crate::limits::{LISTENERS_TOLD_MAX, LISTENER_PATIENCE};
use crate::store::Record;
use fdholder::Listening;
use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// Those that are held.
#[derive(Default)]
pub(super) struct Listeners {
    queues: AcceptQueues,
    by_slot: BTreeMap<u32, Listener>,
}

struct Listener {
    /// Not kept open by it: its address is free once it is deleted.
    record: Weak<Record<ClientFd>>,
    len: u32,
    max: u32,
    /// Since when somebody waits, and nobody was seen to accept.
    since: Option<Instant>,
    is_warned_of: bool,
}

/// One from which nobody has accepted for long.
#[derive(Debug)]
pub(crate) struct Unattended {
    pub record: Held,
    pub len: u32,
    pub waiting: Duration,
}

impl Listeners {
    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    pub fn add(&mut self, slot: u32, record: Weak<Record<ClientFd>>) {
        let listener = Listener { record, len: 0, max: 0, since: None, is_warned_of: false };
        self.by_slot.insert(slot, listener);
    }

    pub fn remove(&mut self, slot: u32) {
        self.by_slot.remove(&slot);
    }

    /// Looks at all. Returns those of which nobody has been warned yet; many at once, or the rest
    /// another time.
    pub fn measure(&mut self, now: Instant) -> Vec<Unattended> {
        let Self { queues, by_slot } = self;
        let mut unattended = Vec::new();
        for listener in by_slot.values_mut() {
            let Some(record) = listener.record.upgrade() else { continue };
            let Some(queue) = queues.of(&record.fd) else { continue };
            listener.note(queue.len, now);
            listener.max = queue.max;
            let waiting = listener.waiting(now);
            let has_room = unattended.len() < LISTENERS_TOLD_MAX;
            if waiting >= LISTENER_PATIENCE
                && has_room
                && !std::mem::replace(&mut listener.is_warned_of, true)
            {
                unattended.push(Unattended { record, len: listener.len, waiting });
            }
        }
        unattended
    }

    /// As it was when it was measured last: where somebody waits for longest first.
    pub fn told(&self, now: Instant) -> Vec<Listening> {
        let told = |listener: &Listener| {
            Some(Listening {
                id: listener.record.upgrade()?.id.to_string(),
                queue: listener.len,
                queue_max: listener.max,
                waiting: listener.waiting(now).as_secs(),
            })
        };
        let mut first = Vec::with_capacity(2 * LISTENERS_TOLD_MAX.min(self.by_slot.len()));
        for listening in self.by_slot.values().filter_map(told) {
            if first.len() == 2 * LISTENERS_TOLD_MAX {
                sort(&mut first);
            }
            first.push(listening);
        }
        sort(&mut first);
        first
    }
}

/// Keeps as many as are told.
fn sort(all: &mut Vec<Listening>) {
    all.sort_by(|a, b| {
        let by_wait = (b.waiting, b.queue).cmp(&(a.waiting, a.queue));
        by_wait.then_with(|| a.id.cmp(&b.id))
    });
    all.truncate(LISTENERS_TOLD_MAX);
}

impl Listener {
    fn note(&mut self, len: u32, now: Instant) {
        self.since = match self.since {
            _ if len == 0 => None,
            // Fewer: somebody has accepted some.
            Some(since) if len >= self.len => Some(since),
            _ => Some(now),
        };
        self.len = len;
    }

    fn waiting(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::{Entry, Identifier, Limit, Origin, Tenure};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    fn held(listener: TcpListener) -> Held {
        let id = Identifier::new("web").unwrap();
        let entry = Entry { id, limit: Limit::never(), fd: ClientFd::new(listener.into(), 7) };
        let origin = Origin { owner: 7, tenure: Tenure::from_bits(0), serial: 1 };
        Arc::new(Record { entry, origin })
    }

    /// Whether it is said, and since when somebody waits, at each of these times.
    #[test]
    fn listener_from_which_nobody_accepts_is_told_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut listeners = Listeners::default();
        let start = Instant::now();
        let record = held(listener.try_clone().unwrap());
        listeners.add(5, Arc::downgrade(&record));
        let mut look = |secs: u64| {
            let now = start + Duration::from_secs(secs);
            let warned = listeners.measure(now).len();
            let told = listeners.told(now);
            assert_eq!((told.len(), told[0].id.as_str()), (1, "web"));
            assert!(told[0].queue_max >= 3);
            (warned, told[0].queue, told[0].waiting)
        };
        assert_eq!(look(0), (0, 0, 0));
        let mut clients = vec![TcpStream::connect(address).unwrap()];
        assert_eq!(look(10), (0, 1, 0));
        assert_eq!(look(20), (0, 1, 10));
        clients.push(TcpStream::connect(address).unwrap());
        assert_eq!(look(39), (0, 2, 29));
        // Somebody accepts: it is slow, and not away.
        listener.accept().unwrap();
        assert_eq!(look(41), (0, 1, 0));
        clients.push(TcpStream::connect(address).unwrap());
        assert_eq!(look(70), (0, 2, 29));
        assert_eq!(look(71), (1, 2, 30));
        assert_eq!(look(72), (0, 2, 31));
        drop((listener.accept().unwrap(), listener.accept().unwrap()));
        assert_eq!(look(80), (0, 0, 0));
        listeners.remove(5);
        assert!(listeners.is_empty() && listeners.told(start).is_empty());
    }
}
