//! The daemon: one store, its clients, and a follower that is told of every change.

use super::client::{Client, Copy};
use super::due::Due;
use crate::ledger::{Fd, Ledger};
use fdholder::frame::{Decoder, Frame};
use fdholder::link::{self, Dropped, Fed, Heard, LINK_PAYLOAD_MAX};
use fdholder::request::Parsed;
use fdholder::{Errno, Malformed, Request, Status, Timestamp};
use fdholder_daemon::access::pattern::Pattern;
use fdholder_daemon::access::{Ids, Rights};
use fdholder_daemon::limits::READ_LEN;
use fdholder_daemon::{
    Answered, Change, Connection, Mirrors, Question, Quotas, Releases, Replica, Standing, Step,
    Store, Told,
};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct World {
    pub ledger: Ledger,
    pub clients: Vec<Client>,
    pub now: Timestamp,
    pub store: Store<Fd>,
    mirrors: Mirrors<Fd>,
    mirror: usize,
    replica: Replica<u32>,
    link: Decoder<u32>,
    /// What was released since the follower was told last, and what that is.
    released: Vec<(Releases, Vec<Dropped>)>,
}

/// Carries out one request of a client.
fn step(
    connection: &mut Connection<Fd>,
    store: &mut Store<Fd>,
    now: Timestamp,
) -> Result<Step<Fd>, Malformed> {
    let step = connection.step(store, &fdholder_daemon::Ledger::ample(), now);
    // Whatever is dropped is closed at once.
    connection.has_closed(true);
    step
}

thread_local! {
    /// Compiling expressions takes longer than everything else.
    static RIGHTS: [Arc<Rights>; 4] = {
        let matching = |expression: &str| match Pattern::new(expression.as_bytes()) {
            Ok(pattern) => Ids::Matching(pattern),
            Err(problem) => panic!("{expression}: {problem}"),
        };
        // Shares are not what this is about.
        let quotas = Quotas { fds: Some(usize::MAX), ..Quotas::default() };
        let none = || Rights { quotas, ..Rights::default() };
        [
            Rights::all(),
            Rights { store: matching("^a"), retrieve: matching("^a|b"), list: true, ..none() },
            Rights { getdump: true, setdump: true, ..none() },
            Rights { store: Ids::All, retrieve: matching("^b"), setdump: true, ..none() },
        ]
        .map(Arc::new)
    };
}

/// One who may do everything, some who may not, and one of the daemon's own user that no rule
/// lets in.
fn standings() -> Vec<Standing> {
    let rights = RIGHTS.with(|rights| rights.each_ref().map(Arc::clone));
    let let_in = rights.into_iter().zip(1..).map(|(rights, uid)| Standing {
        uid,
        is_own: uid == 1,
        rights: Some(rights),
    });
    let_in.chain([Standing { uid: 1, is_own: true, rights: None }]).collect()
}

impl World {
    pub fn new(ledger: &Ledger, capacity: usize) -> Self {
        let Ok(now) = Timestamp::new((1 << 62) + 1_700_000_000, 0) else { panic!("it is one") };
        let store = Store::new(capacity);
        let mut mirrors = Mirrors::default();
        Self {
            ledger: ledger.clone(),
            clients: standings().into_iter().map(Client::new).collect(),
            now,
            mirror: mirrors.add(&store),
            mirrors,
            store,
            replica: Replica::new(capacity),
            link: Decoder::new(LINK_PAYLOAD_MAX),
            released: Vec::new(),
        }
    }

    /// The daemon reads once, and carries out so many requests.
    pub fn serve(&mut self, who: usize, len_max: usize, requests: usize) {
        self.clients[who].receive(len_max);
        for _ in 0..requests {
            if !self.carry_out(who) {
                break;
            }
        }
    }

    pub fn serve_all(&mut self, who: usize) {
        loop {
            let mut progress = self.clients[who].receive(READ_LEN);
            while self.carry_out(who) {
                progress = true;
            }
            progress |= self.read(who, usize::MAX);
            progress |= self.settle(who, true);
            if !progress {
                break;
            }
        }
    }

    pub fn read(&mut self, who: usize, len_max: usize) -> bool {
        self.clients[who].read(len_max)
    }

    fn carry_out(&mut self, who: usize) -> bool {
        let client = &mut self.clients[who];
        match step(&mut client.connection, &mut self.store, self.now) {
            Ok(Step::Wait) => {
                client.check_wait();
                false
            }
            Ok(Step::Did { changes, deed, .. }) => {
                let Ok(Some(parsed)) = client.next_request() else {
                    panic!("it has done what was not asked");
                };
                let cleared = self.store.expire(self.now, 0);
                self.record(&cleared);
                self.record(&changes);
                let due = self.due(who, parsed, &changes);
                assert_eq!(deed.refused.is_some(), due.iter().any(Due::is_refusal), "{due:?}");
                self.clients[who].due.extend(due);
                true
            }
            Err(malformed) => {
                match client.next_request() {
                    Err(expected) => assert_eq!(malformed, expected),
                    other => panic!("{malformed}: {other:?}"),
                }
                // The replies before are still due.
                while client.read(usize::MAX) {}
                assert!(client.due.is_empty());
                self.hang_up(who, false);
                false
            }
        }
    }

    fn record(&mut self, changes: &[Change<Fd>]) {
        self.mirrors.record(changes, &self.store);
        let what = changes.iter().filter_map(|change| match change {
            Change::Released(record) => Some(record.origin.into()),
            _ => None,
        });
        self.released.push((self.mirrors.released(changes), what.collect()));
    }

    /// It has read everything, or never will.
    pub fn settle(&mut self, who: usize, taken: bool) -> bool {
        let client = &mut self.clients[who];
        if !client.connection.is_borrowing() || !client.connection.outbox().is_empty() {
            return false;
        }
        self.end_loan(who, taken);
        true
    }

    fn end_loan(&mut self, who: usize, taken: bool) {
        let client = &mut self.clients[who];
        let changes = client.connection.settle(taken, &mut self.store);
        let Some(number) = client.loan.take() else { return };
        self.record(&changes);
        let held = self.store.iter().any(|record| record.fd.number() == number);
        assert!(!(taken && held), "what was taken is still held");
    }

    /// It hangs up, and comes again.
    pub fn hang_up(&mut self, who: usize, has_read: bool) {
        let client = &mut self.clients[who];
        if client.connection.is_borrowing() {
            let taken = has_read && client.connection.outbox().is_empty();
            self.end_loan(who, taken);
        }
        let client = &mut self.clients[who];
        *client = Client::new(client.standing.clone());
    }

    pub fn set_clock(&mut self, secs: i16) {
        self.now = if secs < 0 {
            let label = self.now.label() - u64::from(secs.unsigned_abs());
            Timestamp::new(label, self.now.nanos()).unwrap_or(self.now)
        } else {
            self.now.saturating_add(Duration::from_secs(secs.unsigned_abs().into()))
        };
        // What is left has expired all the same.
        let changes = self.store.expire(self.now, 1);
        self.record(&changes);
    }

    /// What a server does beside replies.
    pub fn tend(&mut self, who: usize, how: u8) {
        let client = &mut self.clients[who];
        if let Some(delivery) = client.connection.take_delivery() {
            client.under_way = Some(delivery);
        }
        if how & 1 != 0 {
            if let Some(delivery) = client.under_way.take() {
                let may = client.standing.rights.as_ref().is_some_and(|rights| rights.getdump);
                assert!(may);
                let mut bytes = 0;
                for message in delivery.messages() {
                    bytes += message.bytes().len() as u64;
                    check_delivered(&message, &client.snapshot);
                }
                let answer = if how & 2 != 0 { Ok(bytes) } else { Err(Errno::PIPE) };
                client.connection.delivery_ended(answer);
                client.due.push_back(Due::Delivered(answer));
            }
        }
        if client.connection.take_upgrade() || how & 1 != 0 && client.connection.awaits_upgrade() {
            client.connection.upgrade_ended(if how & 2 != 0 { Ok("1.2.3") } else { Err("no") });
            client.due.push_back(Due::Upgraded);
        }
        match client.connection.question() {
            Some(Question::Status) => {
                let status = Status { held: self.store.len() as u32, ..Status::default() };
                client.connection.answer(&Ok(Answered::Status(Box::new(status.clone()))));
                client.due.push_back(Due::Told(status));
            }
            Some(Question::MayStore(..)) => {
                client.connection.answer(&Ok(Answered::MayStore(how & 1 != 0)));
                client.due.push_back(Due::MayStore(how & 1 != 0));
            }
            None => {}
        }
        if client.connection.has_appeared(&self.store, self.now) {
            client.due.push_back(Due::Status(Ok(())));
        }
        if client.connection.take_follower().is_some() {
            assert!(client.follows && client.standing.is_own && client.due.is_empty());
            client.follows = false;
            if how & 4 == 0 {
                // Its connection is a link from now on.
                self.hang_up(who, false);
                return;
            }
            client.connection.refuse_follower(Errno::BUSY);
            client.due.push_back(Due::no(Errno::BUSY));
        }
    }

    /// Another daemon serves it from now on, if it is in the middle of nothing.
    pub fn hand_over(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(handed) = client.connection.hand_over(()) else { return };
        assert!(client.loan.is_none() && client.set.is_none() && client.due.is_empty());
        let awaits_upgrade = handed.awaits_upgrade;
        let (bytes, fds) = link::client(&handed, self.ledger.open()).into_parts();
        let mut link = Decoder::new(LINK_PAYLOAD_MAX);
        link.push(&bytes, fds, false);
        let fed = match link.next() {
            Ok(Some(frame)) => Fed::parse(frame),
            other => panic!("handed over as what is no message: {other:?}"),
        };
        let Ok(Fed::Client(handed)) = fed else { panic!("handed over as {fed:?}") };
        client.connection = Connection::resume(client.standing.clone(), handed).0;
        client.snapshot = Vec::new();
        if awaits_upgrade {
            client.due.push_back(Due::Upgraded);
        }
    }

    pub fn check(&mut self) {
        self.store.check();
        self.tell_follower();
        self.clients.iter_mut().for_each(Client::check);
        let open = self.ledger.open_count();
        let accounted: usize = self.clients.iter().map(Client::fds).sum();
        assert!(open <= self.store.len() + accounted, "{open} are open");
        assert!(open >= self.store.len());
    }

    /// The follower is told everything, and has then what the store has.
    fn tell_follower(&mut self) {
        let Some(mirror) = self.mirrors.get_mut(self.mirror) else { panic!("it was added") };
        let mut closing = Vec::new();
        while let Some((bytes, carriers)) = mirror.front() {
            let fds: Vec<_> = carriers.iter().map(|carrier| carrier.fd().number()).collect();
            self.link.push(bytes, fds, false);
            let len = bytes.len();
            mirror.advance(len);
            while let Some(frame) = next(&mut self.link) {
                let Ok(fed) = Fed::parse(frame) else { panic!("nonsense for a follower") };
                match self.replica.hear(fed) {
                    Ok(Told { answer, dropped }) => {
                        closing.extend(dropped.iter().map(|record| Dropped::from(record.origin)));
                        mirror.hear(&Heard::Closing(closing.clone()));
                        if let Some(heard) = answer {
                            mirror.hear(&heard);
                        }
                    }
                    Err(error) => panic!("it cannot follow: {error}"),
                }
            }
        }
        self.close(closing);
        assert!(self.mirrors.has_passed(self.mirrors.ticket()), "answers would wait for ever");
        let held = self.replica.store();
        held.check();
        assert_eq!(held.len(), self.store.len());
        for record in self.store.iter() {
            let Some(mirrored) = held.find_held(&record.id) else { panic!("it lacks {record:?}") };
            assert_eq!(mirrored.fd, record.fd.number());
            assert_eq!(mirrored.limit.timestamp(), record.limit.timestamp());
            assert_eq!(mirrored.origin, record.origin);
        }
    }

    /// The follower closes what it has dropped, in any order. Each answer waits for its own.
    fn close(&mut self, mut closing: Vec<Dropped>) {
        let released = std::mem::take(&mut self.released);
        // As good as any order, as identifiers are forgotten in theirs.
        closing.sort_unstable_by_key(|dropped| dropped.serial % 3);
        loop {
            for (releases, what) in &released {
                let is_closed = what.iter().all(|dropped| !closing.contains(dropped));
                assert_eq!(self.mirrors.have_closed(releases), is_closed, "{releases:?}");
            }
            assert_eq!(self.mirrors.closing(), closing.len());
            let (Some(dropped), Some(mirror)) = (closing.pop(), self.mirrors.get_mut(self.mirror))
            else {
                break;
            };
            mirror.hear(&Heard::Closed(vec![dropped]));
        }
    }

    /// Everybody goes.
    pub fn end(mut self) {
        for who in 0..self.clients.len() {
            self.hang_up(who, true);
        }
        self.check();
        assert_eq!(self.ledger.open_count(), self.store.len(), "open, and not held");
    }
}

fn next(link: &mut Decoder<u32>) -> Option<Frame<'_, u32>> {
    match link.next() {
        Ok(frame) => frame,
        Err(malformed) => panic!("a follower is sent nonsense: {malformed}"),
    }
}

/// A part of a delivery is a part of a set, of what the client has seen.
fn check_delivered(message: &fdholder::frame::Message<&Fd>, snapshot: &[Copy]) {
    let payload = &message.bytes()[fdholder::limits::HEADER_LEN..];
    let fds = message.fds().iter().map(|fd| fd.number()).collect();
    match Request::parse(Frame { payload, fds, fds_lost: false }) {
        Ok(Parsed::Request(Request::SetdumpData(entries))) => {
            for entry in entries {
                assert!(snapshot.contains(&(entry.fd, entry.id)));
            }
        }
        other => panic!("delivered as {other:?}"),
    }
}
