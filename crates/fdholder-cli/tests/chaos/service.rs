//! A service on TCP whose listening socket is nobody's but the holder's, again and again:
//! whoever accepts from it gets it there, and lets go of it. And its clients.

use crate::random::Random;
use crate::support::{deadline, id};
use crate::world::{Counts, World, LIVE};
use fdholder::{Client, Limit};
use rustix::net::sockopt::set_socket_linger;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Connections that are accepted before the listening socket is got anew, at most.
const ACCEPTED_MAX: u64 = 30;

/// Gives the listening socket to the holder, and keeps nothing but its address.
pub fn begin(world: &World) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::connect(&world.path, deadline()).unwrap();
    client.store(&id(LIVE), Limit::never(), &listener, deadline()).unwrap();
    listener.local_addr().unwrap()
}

/// The listening socket, from whichever process serves.
fn listener(world: &World) -> TcpListener {
    loop {
        world.go_on_or_panic();
        let mut client = Client::connect(&world.path, deadline()).unwrap();
        match client.retrieve(&id(LIVE), deadline()) {
            Ok(listener) => return listener.into(),
            Err(error) => assert!(world.is_broken(&error)),
        }
    }
}

/// Serves TCP clients until it is over; then one more has to come.
pub fn serve(world: &World, number: u64) {
    let mut random = Random::of(world.seed, 100 + number);
    while !world.service_has_ended() {
        let listener = listener(world);
        for _ in 0..=random.below(ACCEPTED_MAX) {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            if matches!(stream.read(&mut byte), Ok(1)) {
                let _ = stream.write_all(&byte);
                // Until it hangs up, which it does with a reset.
                let _ = stream.read(&mut byte);
            }
            if world.service_has_ended() {
                break;
            }
        }
    }
}

/// Connects, to the service and to the holder, until it is over. Nobody may be refused, and
/// whoever the service has let in is served.
pub fn probe(world: &World, address: SocketAddr, number: u64) {
    let mut random = Random::of(world.seed, 200 + number);
    while !world.has_ended() {
        let mut stream = TcpStream::connect(address).expect("the service refuses nobody");
        let byte = random.below(256) as u8;
        stream.write_all(&[byte]).unwrap();
        assert_eq!(answer(world, &mut stream), byte);
        // No port is left waiting: there are not so many.
        set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        Counts::add(&world.counts.tcp_connections);
        drop(UnixStream::connect(&world.path).expect("the holder refuses nobody"));
        Counts::add(&world.counts.holder_connections);
        // The processors are for others as well.
        std::thread::sleep(Duration::from_micros(random.below(2000)));
    }
}

/// The answer of the service, however long it takes; not for ever, if it is no more.
fn answer(world: &World, stream: &mut TcpStream) -> u8 {
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = [0];
    loop {
        match stream.read_exact(&mut answer) {
            Ok(()) => return answer[0],
            Err(error) if error.kind() == ErrorKind::WouldBlock => world.go_on_or_panic(),
            Err(error) => panic!("the service resets nobody: {error}"),
        }
    }
}
