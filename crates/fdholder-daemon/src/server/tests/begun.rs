//! Clients of one user with a request each that has begun, and no room for all of these.

use super::*;
use crate::limits::{MEMORY_PER_FD, SHORT_REQUEST_LEN};
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use proptest::prelude::*;
use std::collections::VecDeque;

/// A client that gives a set, each message of it when the one before is answered.
struct Giver {
    token: usize,
    socket: UnixStream,
    /// What is not answered yet: bytes, and how many descriptors come with the first of them.
    messages: VecDeque<(Vec<u8>, usize)>,
    sent: usize,
}

impl Giver {
    /// Of so many messages, with so many long identifiers each.
    fn new(server: &mut Server, (messages, entries): (usize, usize)) -> Self {
        let (token, socket) = connect(server);
        let null = File::open("/dev/null").unwrap();
        let count = u32::try_from(messages * entries).unwrap();
        let entry = |number| {
            let id = Identifier::new(format!("{token}/{number:0>200}")).unwrap();
            Entry { id, limit: Limit::never(), fd: null.as_fd() }
        };
        let data = (0..messages).map(|number| {
            let numbers = number * entries..(number + 1) * entries;
            Request::SetdumpData(numbers.map(entry).collect())
        });
        let requests = std::iter::once(Request::Setdump(count)).chain(data);
        let messages = requests.map(|request| {
            let (bytes, fds) = request.into_message().into_parts();
            (bytes, fds.len())
        });
        Self { token, socket, messages: messages.collect(), sent: 0 }
    }

    /// Sends so many bytes more, is served, and reads the answer if there is one.
    fn goes_on(&mut self, server: &mut Server, most: usize) {
        let Some((bytes, fds)) = self.messages.front() else { return };
        let null = File::open("/dev/null").unwrap();
        let fds = vec![null.as_fd(); if self.sent == 0 { *fds } else { 0 }];
        let part = &bytes[self.sent..bytes.len().min(self.sent.saturating_add(most))];
        if !part.is_empty() {
            self.sent += transport::send(&self.socket, part, &fds, Wait::No).unwrap_or(0);
        }
        serve_whole(server, self.token);
        let mut answer = [0; 64];
        let Ok(received) = transport::receive(&self.socket, &mut answer, Wait::No) else { return };
        assert!(self.sent == bytes.len() && received.len > HEADER_LEN);
        let is_announced = bytes.len() < SHORT_REQUEST_LEN;
        self.sent = 0;
        self.messages.pop_front();
        if is_announced && answer[HEADER_LEN] != 0 {
            assert_eq!(i32::from(answer[HEADER_LEN]), Errno::NFILE.raw_os_error());
            self.messages.clear();
        }
    }
}

/// Bytes that requests which are not whole have come to, or may: what is staged has its places.
fn begun(server: &Server) -> usize {
    let announced = server.hold.ledger.taken(Resource::Arriving);
    server.hold.ledger.taken(Resource::Bytes).saturating_sub(announced * MEMORY_PER_FD)
}

/// Each is in the middle of a set, and sends a message of which a part may come in any case.
#[test]
fn one_of_two_that_wait_for_each_other_goes_on() {
    let (_folder, mut server) = server();
    let sizes = Amounts::of(Resource::Connections, 9).with(Resource::Arriving, 1000);
    server.hold.ledger.resize(sizes, Amounts::default());
    let mut givers = [(); 2].map(|()| Giver::new(&mut server, (3, 20)));
    for part in [usize::MAX, usize::MAX, 1000, usize::MAX, usize::MAX, usize::MAX, usize::MAX] {
        for giver in &mut givers {
            giver.goes_on(&mut server, part);
            giver.goes_on(&mut server, 0);
        }
    }
    assert_eq!(server.held(), 120);
}

/// Else each could keep the beginning of its next one, which came with the last.
#[test]
fn who_goes_on_brings_no_more_than_its_request() {
    let (_folder, mut server) = server();
    server.hold.ledger.resize(Amounts::of(Resource::Connections, 9), Amounts::default());
    let clients = [(); 5].map(|()| connect(&mut server));
    let runs: Vec<_> = (0..5000).map(|number| 2 * number..2 * number + 1).collect();
    for (_, client) in &clients {
        for _ in 0..2 {
            say(
                client,
                Request::Extension(Extension::Release { runs: runs.clone(), only_ask: true }),
            );
        }
    }
    for _ in 0..40 {
        for (token, _) in &clients {
            serve_whole(&mut server, *token);
            let most = 5 * SHORT_REQUEST_LEN + HEADER_LEN + REQUEST_PAYLOAD_MAX;
            assert!(begun(&server) <= most);
        }
    }
    assert_eq!((begun(&server), answered(&clients)), (0, 5));
    let unread = |(token, _): &(usize, UnixStream)| server.peers[*token].socket();
    assert!(clients.iter().all(|client| ioctl_fionread(unread(client)).unwrap() == 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In whatever order, in whatever parts, however little room there is: a client that sends on gets
    /// an answer, and beyond the room there is one request at most.
    #[test]
    fn who_sends_on_gets_an_answer(
        sets in proptest::collection::vec((1usize..5, 3usize..60), 2..5),
        bytes in prop_oneof![0usize..100_000, 100_000usize..500_000],
        places in MESSAGE_FDS_MAX..1000,
        parts in proptest::collection::vec((0usize..4, 1usize..20_000), 0..60),
    ) {
        let (_folder, mut server) = server_with(Options { fds_max: 300, ..Options::default() });
        let sizes = Amounts::of(Resource::Connections, 9)
            .with(Resource::Arriving, places)
            .with(Resource::Bytes, bytes);
        server.hold.ledger.resize(sizes, Amounts::default());
        let mut givers: Vec<_> = sets.iter().map(|set| Giver::new(&mut server, *set)).collect();
        let short = givers.len() * SHORT_REQUEST_LEN;
        let most = bytes + short + HEADER_LEN + REQUEST_PAYLOAD_MAX;
        for (number, part) in parts {
            let number = number % givers.len();
            givers[number].goes_on(&mut server, part);
            prop_assert!(begun(&server) <= most);
        }
        // Each turn of all of them answers one at least, once all is sent.
        for _ in 0..100 {
            for giver in &mut givers {
                giver.goes_on(&mut server, usize::MAX);
                prop_assert!(begun(&server) <= most);
            }
            // A client that leaves much unclosed, as a set that was refused, waits for that.
            while server.hold.note_leaving(server.user.uid).own > 0 {
                std::thread::yield_now();
            }
        }
        prop_assert!(givers.iter().all(|giver| giver.messages.is_empty()));
    }
}
