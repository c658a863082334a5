//! A loop, turn by turn, as nobody else drives it.

use super::*;
use crate::closing::tests::lingering;
use crate::shares::{Amounts, Resource};
use fdholder::extension::{Extension, VERSION};
use fdholder::request::Request;
use fdholder::transport::{self, Wait};
use fdholder::{Entry, Identifier, Limit};
use rustix::buffer::spare_capacity;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::ioctl_fionread;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

mod begun;
mod pending;

/// A server, and the folder that its socket is in.
fn server() -> (tempfile::TempDir, Server) {
    server_with(Options::default())
}

fn server_with(options: Options) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("holder")).unwrap();
    let signals = Signals::none().unwrap();
    let rules = Rules::owner_only();
    let server = Server::new(listener.into(), rules, signals, options).unwrap();
    (folder, server)
}

/// The other end of a new client, and its token.
fn connect(server: &mut Server) -> (usize, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (server.let_in(ours.into(), Instant::now()).unwrap(), theirs)
}

fn id(number: usize) -> Identifier {
    Identifier::new(number.to_string()).unwrap()
}

fn say(client: &UnixStream, request: Request<BorrowedFd<'_>>) {
    let (bytes, fds) = request.into_message().into_parts();
    assert_eq!(transport::send(client, &bytes, &fds, Wait::No), Ok(bytes.len()));
}

fn hold_one(server: &mut Server) {
    let fd = ClientFd::new(File::open("/dev/null").unwrap().into(), 1);
    let entry = Entry { id: id(1), limit: Limit::never(), fd };
    server.hold.store.store(entry, 1, Timestamp::now()).answer.unwrap();
}

/// A client that has a snapshot of the one descriptor that is held.
fn connect_with_snapshot(server: &mut Server) -> (usize, UnixStream) {
    hold_one(server);
    let (token, client) = connect(server);
    say(&client, Request::Extension(Extension::Hello(VERSION)));
    say(&client, Request::Extension(Extension::Snapshot { entries: false }));
    serve_whole(server, token);
    transport::receive(&client, &mut [0; 64], Wait::No).unwrap();
    (token, client)
}

fn deliver(client: &UnixStream, to: &impl AsFd) {
    let run = 0..1;
    say(client, Request::Extension(Extension::Deliver { runs: vec![run], to: to.as_fd() }));
}

fn store(client: &UnixStream, number: usize, fd: &impl AsFd) {
    let entry = Entry { id: id(number), limit: Limit::never(), fd: fd.as_fd() };
    say(client, Request::Store(entry));
}

/// More requests than are carried out in one turn.
fn ask_much(client: &UnixStream) {
    let request: Request<BorrowedFd<'_>> = Request::Delete(id(usize::MAX));
    let bytes = request.into_message().into_parts().0.repeat(1000);
    assert_eq!(transport::send(client, &bytes, &[], Wait::No), Ok(bytes.len()));
}

/// However long this process has to wait for the processor meanwhile.
fn serve_whole(server: &mut Server, token: usize) {
    let now = Instant::now();
    server.serve_until(token, now, now + Duration::from_secs(3600));
}

fn answered(clients: &[(usize, UnixStream)]) -> usize {
    let is_answered = |client: &UnixStream| {
        let mut ready = [PollFd::new(client, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec::default())).unwrap() > 0
    };
    clients.iter().filter(|(_, client)| is_answered(client)).count()
}

/// Not all of a user's clients are served in one turn of the loop, and none is forgotten.
fn are_served_in_turn(server: &mut Server, clients: &[(usize, UnixStream)]) {
    let few = answered(clients);
    assert!(few < clients.len() / 2, "{few}");
    for _ in 0..100 * clients.len() {
        server.take_turn(&[]);
    }
    assert_eq!(answered(clients), clients.len());
}

/// Another user's, in the place of ours.
fn connect_as(server: &mut Server, uid: u32) -> (usize, UnixStream) {
    let (token, client) = connect(server);
    let (peer, ledger) = (&mut server.peers[token], &mut server.hold.ledger);
    peer.discharge(ledger);
    peer.who.user.uid = uid;
    peer.recharge(ledger);
    (token, client)
}

/// However many others' requests came before.
#[test]
fn who_asks_for_little_is_served_first() {
    let (_folder, mut server) = server();
    let null = File::open("/dev/null").unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| connect_as(&mut server, 1)).collect();
    clients.push(connect_as(&mut server, 2));
    for (number, (_, client)) in clients.iter().enumerate() {
        store(client, number, &null);
    }
    let event = |(token, _): &(usize, UnixStream)| epoll::Event {
        flags: epoll::EventFlags::IN,
        data: epoll::EventData::new_u64(*token as u64),
    };
    let events: Vec<_> = clients.iter().map(event).collect();
    let later = Instant::now() + Duration::from_secs(3600);
    server.rota.note(1, later, Duration::from_secs(1));
    server.rota.end_turn(Instant::now());
    server.take_turn(&events);
    let first = server.hold.store.iter().min_by_key(|record| record.origin.serial).unwrap();
    assert_eq!(first.id, id(20));
    // The others are after it, and nobody is forgotten.
    for _ in 0..100 * clients.len() {
        server.take_turn(&[]);
    }
    assert_eq!(server.held(), clients.len());
}

/// A turn ends behind one who has had all of it, and the others are the first in the next one.
#[test]
fn a_turn_is_no_longer_for_many_users() {
    let (_folder, mut server) = server();
    let clients: Vec<_> = (1..4).map(|uid| (uid, connect_as(&mut server, uid))).collect();
    let now = Instant::now();
    for (uid, (token, client)) in &clients {
        ask_much(client);
        server.rota.put_off(*uid, *token, &mut server.peers[*token].turn, now);
    }
    assert_eq!(server.serve_put_off(1, now, Duration::from_nanos(1)), Duration::ZERO);
    assert_eq!(server.rota.users(now)[..2], [2, 3]);
    assert_eq!(server.serve_put_off(2, now, Duration::ZERO), Duration::ZERO);
    let answered: Vec<_> =
        clients.iter().map(|(_, it)| answered(std::slice::from_ref(it))).collect();
    assert_eq!(answered, [1, 0, 0]);
}

/// What has come is told in the same order all the time, and the first have always more to do.
#[test]
fn nobody_is_put_off_again_and_again() {
    let (_folder, mut server) = server();
    let clients: Vec<_> = (0..100).map(|_| connect(&mut server)).collect();
    let event = |(token, _): &(usize, UnixStream)| epoll::Event {
        flags: epoll::EventFlags::IN,
        data: epoll::EventData::new_u64(*token as u64),
    };
    let events: Vec<_> = clients.iter().map(event).collect();
    for (_, client) in &clients {
        ask_much(client);
    }
    for _ in 0..20 * clients.len() {
        server.take_turn(&events);
        if answered(&clients[99..]) == 1 {
            return;
        }
        for (_, client) in &clients[..50] {
            let mut answers = vec![0; 7000];
            if transport::receive(client, &mut answers, Wait::No).is_ok() {
                let request: Request<BorrowedFd<'_>> = Request::Delete(id(usize::MAX));
                let bytes = request.into_message().into_parts().0.repeat(500);
                let _ = transport::send(client, &bytes, &[], Wait::No);
            }
        }
    }
    panic!("the last one was never served");
}

/// There may be hundreds of them, who would keep the daemon busy until there is.
#[test]
fn who_has_gone_while_there_is_no_room_is_told_of_once() {
    let (_folder, mut server) = server_with(Options { fds_max: 100, ..Options::default() });
    let places = |count| Amounts::of(Resource::Connections, 2).with(Resource::Arriving, count);
    server.hold.ledger.resize(places(0), Amounts::default());
    let (token, client) = connect(&mut server);
    store(&client, 1, &File::open("/dev/null").unwrap());
    server.serve(token, Instant::now());
    assert!(server.peers[token].again().is_some() && server.held() == 0);
    drop(client);
    let told = |server: &Server| {
        let mut events = Vec::with_capacity(4);
        let now = Timespec::default();
        epoll::wait(&server.epoll, spare_capacity(&mut events), Some(&now)).unwrap();
        events
    };
    told(&server);
    assert!(told(&server).is_empty());
    // It is served all the same.
    server.hold.ledger.resize(places(1000), Amounts::default());
    let start = Instant::now();
    while server.peers.contains(token) {
        assert!(start.elapsed() < Duration::from_secs(30), "it was never served");
        let events = told(&server);
        server.take_turn(&events);
    }
    assert_eq!(server.held(), 1);
}

#[test]
fn who_has_waited_for_followers_is_served_in_turn() {
    let (_folder, mut server) = server();
    let mirror = server.hold.mirrors.add_shelf();
    // More than twice as many as can be answered in a turn.
    let clients: Vec<_> = (0..200).map(|_| connect(&mut server)).collect();
    for (number, (token, client)) in clients.iter().enumerate() {
        store(client, number, client);
        ask_much(client);
        server.serve(*token, Instant::now());
    }
    assert_eq!((server.gated.len(), answered(&clients)), (200, 0));
    server.hold.mirrors.get_mut(mirror).unwrap().is_told(u64::MAX);
    server.rota.end_turn(Instant::now());
    assert!(server.serve_gated());
    are_served_in_turn(&mut server, &clients);
}

#[test]
fn who_has_waited_for_closes_is_served_in_turn() {
    let (_folder, mut server) = server();
    let clients: Vec<_> = (0..50).map(|_| connect(&mut server)).collect();
    let mut others = Vec::new();
    for (number, (token, client)) in clients.iter().enumerate() {
        let (ours, theirs) = lingering();
        store(client, number, &ours);
        say(client, Request::Delete(id(number)));
        ask_much(client);
        drop(ours);
        others.push(theirs);
        while !server.closing.waiting.contains(token) {
            server.serve(*token, Instant::now());
        }
    }
    // What was stored may have been answered.
    for (_, client) in &clients {
        let _ = transport::receive(client, &mut [0; 7], Wait::No);
    }
    assert_eq!((server.closing.waiting.len(), answered(&clients)), (50, 0));
    drop(others);
    while server.peers.iter().any(|(_, peer)| !peer.closes_have_ended(&server.hold.mirrors)) {
        std::thread::yield_now();
    }
    server.rota.end_turn(Instant::now());
    server.closing.some_is_closed = true;
    server.serve_closed();
    are_served_in_turn(&mut server, &clients);
}

/// Nobody waits for more than some of them.
#[test]
fn what_expires_at_once_is_released_in_many_turns() {
    let (_folder, mut server) = server();
    let now = Timestamp::now();
    let before = Timestamp::new(now.label() - 1, 0).unwrap();
    for number in 0..=2 * EXPIRED_PER_TURN {
        let fd = ClientFd::new(File::open("/dev/null").unwrap().into(), 1);
        let entry = Entry { id: id(number), limit: Limit::at(now), fd };
        server.hold.store.store(entry, 1, before).answer.unwrap();
    }
    for left in [EXPIRED_PER_TURN + 1, 1, 0] {
        // The timer rings at once for what is left.
        server.expiry_timer.set(server.hold.store.next_expiry());
        let mut events = Vec::with_capacity(4);
        epoll::wait(&server.epoll, spare_capacity(&mut events), None).unwrap();
        server.take_turn(&events);
        assert_eq!(server.held(), left);
    }
}

/// A user may wait for the answer on any of its connections before it reads the others.
#[test]
fn one_connection_leaves_room_for_the_others_of_its_user() {
    let (_folder, mut server) = server();
    let plenty = [Resource::Connections, Resource::Arriving, Resource::Bytes, Resource::Loans];
    let plenty = plenty.iter().fold(Amounts::default(), |all, kind| all.with(*kind, 1 << 20));
    server.hold.ledger.resize(plenty.with(Resource::Unread, 5), Amounts::default());
    let clients = [(); 3].map(|()| connect(&mut server));
    hold_one(&mut server);
    for (token, client) in &clients {
        // Who has not said hello is sent one at a time anyway.
        say(client, Request::Extension(Extension::Hello(VERSION)));
        serve_whole(&mut server, *token);
        transport::receive(client, &mut [0; 64], Wait::No).unwrap();
    }
    let mut come = [0; 3];
    for ((token, client), come) in clients.iter().zip(&mut come) {
        for _ in 0..7 {
            say(client, Request::Retrieve { id: id(1), delete: false });
        }
        serve_whole(&mut server, *token);
        // Each answer has seven bytes.
        *come = ioctl_fionread(client).unwrap() / 7;
    }
    assert_eq!(come, [3, 1, 1]);
}

/// What was announced there has its places until then, and the client may try another way.
#[test]
fn a_delivery_is_answered_when_its_destination_is_closed() {
    let (_folder, mut server) = server();
    let (token, client) = connect_with_snapshot(&mut server);
    // To close it closes what is unread there.
    let ((lingers, other), (to, far)) = (lingering(), UnixStream::pair().unwrap());
    transport::send(&far, b"x", &[lingers.as_fd()], Wait::No).unwrap();
    drop(lingers);
    deliver(&client, &to);
    drop(to);
    serve_whole(&mut server, token);
    let clients = [(token, client)];
    assert_eq!((server.closing.waiting.len(), answered(&clients)), (1, 0));
    drop(other);
    while !server.peers[token].closes_have_ended(&server.hold.mirrors) {
        std::thread::yield_now();
    }
    server.closing.some_is_closed = true;
    server.serve_closed();
    assert_eq!(answered(&clients), 1);
}

/// What it has asked is done by then: if it was let go it would have what it was to have alone, and
/// so would we.
#[test]
fn who_cannot_be_watched_is_served_all_the_same() {
    let (_folder, mut server) = server();
    let (token, client) = connect(&mut server);
    hold_one(&mut server);
    say(&client, Request::Retrieve { id: id(1), delete: true });
    let epoll = std::mem::replace(&mut server.epoll, File::open("/dev/null").unwrap().into());
    serve_whole(&mut server, token);
    assert_eq!(transport::receive(&client, &mut [0; 64], Wait::No).unwrap().fds.len(), 1);
    // What comes next is not told, and heard a little later.
    say(&client, Request::List);
    let start = Instant::now();
    while answered(&[(token, client.try_clone().unwrap())]) == 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "it was forgotten");
        server.take_turn(&[]);
    }
    assert_eq!(server.held(), 0);
    server.epoll = epoll;
    while server.peers[token].watched.is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "it is never watched");
        server.take_turn(&[]);
    }
    drop(client);
    let mut events = Vec::with_capacity(4);
    epoll::wait(&server.epoll, spare_capacity(&mut events), None).unwrap();
    server.take_turn(&events);
    assert!(server.peers.is_empty());
}

/// What epoll tells in one turn may be of a client that has gone in it, and whose place another has.
#[test]
fn a_delivery_goes_on_when_another_client_has_hung_up() {
    let (_folder, mut server) = server();
    let (token, client) = connect_with_snapshot(&mut server);
    let (to, _far) = UnixStream::pair().unwrap();
    // It takes nothing more, so the delivery is a courier's.
    while transport::send(&to, &[0; 4096], &[], Wait::No).is_ok() {}
    deliver(&client, &to);
    serve_whole(&mut server, token);
    assert!(server.peers[token].is_delivering());
    server.notice_hang_up(token, epoll::EventFlags::HUP);
    assert!(server.peers.contains(token));
    drop(client);
    server.notice_hang_up(token, epoll::EventFlags::HUP);
    assert!(!server.peers.contains(token));
}

/// What had expired and was in the way is nothing that the client has dropped.
#[test]
fn nobody_waits_until_what_has_expired_is_closed() {
    let (_folder, mut server) = server_with(Options { fds_max: 1, ..Options::default() });
    let now = Timestamp::now();
    let before = Timestamp::new(now.label() - 1, 0).unwrap();
    let (ours, _theirs) = lingering();
    let fd = ClientFd::new(ours, 7_000_000);
    let entry = Entry { id: id(1), limit: Limit::at(now), fd };
    server.hold.store.store(entry, 1, before).answer.unwrap();
    let client = connect(&mut server);
    store(&client.1, 2, &client.1);
    server.serve(client.0, Instant::now());
    assert_eq!(answered(&[client]), 1);
    assert_eq!(server.held(), 1);
    assert!(server.hold.store.find_held(&id(2)).is_some());
}

#[test]
fn many_that_are_late_are_not_dropped_in_one_turn() {
    let (_folder, mut server) = server();
    let clients: Vec<_> = (0..200).map(|_| connect(&mut server)).collect();
    let now = Instant::now();
    for (token, _) in &clients {
        server.deadlines.set(*token, &mut server.peers[*token].deadline, Some(now));
    }
    let mut turns = 0;
    while !server.peers.is_empty() {
        server.attend_to_clocks(now);
        turns += 1;
    }
    assert!((2..=200).contains(&turns), "{turns}");
}

#[test]
fn nobody_has_all_clients_looked_at_in_the_place_of_others() {
    let (_folder, mut server) = server();
    let now = Instant::now();
    assert!(server.may_sweep(1, now) && !server.may_sweep(1, now));
    assert!(server.may_sweep(2, now));
}
