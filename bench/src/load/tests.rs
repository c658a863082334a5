//! The generator against small servers that misbehave.

use crate::load::generator::Generator;
use crate::load::netstat::ListenQueues;
use crate::load::options::Options;
use crate::load::pace::Pace;
use serde_json::Value;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";
const PAUSE: Duration = Duration::from_millis(300);

/// A server that starts to accept after a pause and has a thread for each client. It lasts as
/// long as the process.
fn serve(pause: Duration, client: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = Arc::new(client);
    thread::spawn(move || {
        thread::sleep(pause);
        for stream in listener.incoming() {
            let client = Arc::clone(&client);
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let _request = stream.read(&mut [0; 4096]).unwrap();
                client(stream);
            });
        }
    });
    address
}

fn load(address: SocketAddr, pace: Pace) -> Value {
    let timeout = Duration::from_secs(2);
    let options = Options { address, path: "/".into(), pace, timeout, until_stdin_ends: false };
    let outcome = Generator::new(&options).unwrap().run().unwrap();
    outcome.to_json(ListenQueues { overflows: 0, drops: 0 })
}

/// A hundred requests, all of which fail alike.
fn assert_all_fail(address: SocketAddr, kind: &str) {
    let outcome = load(address, Pace::open(100, 1));
    assert_eq!(outcome["sent"], 100, "{outcome}");
    assert_eq!(outcome["failed"], 100, "{outcome}");
    assert_eq!(outcome["failures"][kind], 100, "{outcome}");
}

#[test]
fn latency_counts_from_when_a_request_was_due() {
    let answer = |mut stream: TcpStream| stream.write_all(ANSWER).unwrap();
    let outcome = load(serve(PAUSE, answer), Pace::open(200, 1));
    assert_eq!(outcome["answered"], 200, "{outcome}");
    let us = |name: &str| Duration::from_micros(outcome[name].as_u64().unwrap());
    // The first was due at once, and some 60 more while nobody accepted.
    assert!(us("longest") + Duration::from_millis(20) >= PAUSE, "{outcome}");
    assert!(outcome["longest_due_s"].as_f64().unwrap() < 0.2, "{outcome}");
    assert!(outcome["in_flight_max"].as_u64().unwrap() >= 40, "{outcome}");
    assert!(us("p50") < PAUSE, "{outcome}");
}

#[test]
fn closed_loop_has_no_more_connections_than_asked_for() {
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let address = serve(Duration::ZERO, |mut stream| {
        MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
        NOW.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(ANSWER).unwrap();
    });
    let outcome = load(address, Pace::Closed { connections: 10, requests: 500 });
    assert_eq!(outcome["answered"], 500, "{outcome}");
    assert!((2..=10).contains(&MOST.load(Ordering::SeqCst)));
}

#[test]
fn refused_requests_are_counted() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_all_fail(address, "refused");
}

#[test]
fn reset_requests_are_counted() {
    let reset = |stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    assert_all_fail(serve(Duration::ZERO, move |stream: TcpStream| reset(stream)), "reset");
}

#[test]
fn answers_that_are_cut_short_are_counted() {
    let most = |mut stream: TcpStream| stream.write_all(&ANSWER[..ANSWER.len() - 1]).unwrap();
    assert_all_fail(serve(Duration::ZERO, most), "cut_short");
    assert_all_fail(serve(Duration::ZERO, drop), "cut_short");
}

#[test]
fn other_statuses_are_counted() {
    let fail = |mut stream: TcpStream| {
        stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").unwrap();
    };
    assert_all_fail(serve(Duration::ZERO, fail), "status");
}

#[test]
fn requests_that_take_too_long_are_counted() {
    let hang = |stream: TcpStream| {
        thread::sleep(Duration::from_secs(5));
        drop(stream);
    };
    assert_all_fail(serve(Duration::ZERO, hang), "timeout");
}

#[test]
fn connection_that_stays_open_after_its_answer_does_not_delay_the_end() {
    let linger = |mut stream: TcpStream| {
        stream.write_all(ANSWER).unwrap();
        thread::sleep(Duration::from_secs(5));
    };
    let outcome = load(serve(Duration::ZERO, linger), Pace::open(100, 1));
    assert_eq!(outcome["answered"], 100, "{outcome}");
    assert!(outcome["seconds"].as_f64().unwrap() < 1.9, "{outcome}");
}
