//! Programs of clients.

use super::{byte, entry, short};
use crate::connection::acts;
use fdholder::Request;

/// Acts of one client.
struct Script(Vec<u8>, u8);

impl Script {
    fn act(mut self, act: u8, how: &[u8]) -> Self {
        self.0.push(acts::of(self.1, act));
        self.0.extend_from_slice(how);
        self
    }

    fn then(self, client: u8) -> Self {
        Self(self.0, client)
    }
}

// Where identifiers stand in `IDS`.
const A: u8 = 0;
const AB: u8 = 1;
const B: u8 = 2;

fn begin() -> Script {
    Script(vec![5], 0)
}

/// Three are held, one for nine seconds.
fn stored() -> Script {
    begin()
        .act(acts::STORE, &[A, 0])
        .act(acts::STORE, &[AB, 4, 9])
        .act(acts::STORE, &[B, 0])
        .act(acts::SERVE_ALL, &[])
}

fn raw(request: Request<()>) -> Vec<u8> {
    let message = request.into_message();
    [&[byte(message.fds().len())], &short(message.bytes())[..]].concat()
}

/// What most programs ask, by clients that may do it and by some that may not.
fn everything() -> Script {
    stored()
        .then(1)
        .act(acts::LIST, &[])
        .act(acts::RETRIEVE, &[0, B])
        .act(acts::RETRIEVE, &[1, B])
        .act(acts::RETRIEVE, &[1, A])
        .act(acts::DELETE, &[B])
        .act(acts::SERVE_ALL, &[])
        .act(acts::CLOCK, &[0, 20])
        .then(2)
        .act(acts::GETDUMP, &[])
        .act(acts::SETDUMP, &[3])
        .act(acts::PART, &[1, A, 0, B, 0])
        .act(acts::PART, &[0, AB, 3])
        .act(acts::SERVE_ALL, &[])
        .act(acts::HANG_UP, &[1])
}

/// Bytes that come, and are read, in parts.
fn cut() -> Script {
    begin()
        .act(acts::RAW, &raw(Request::Store(entry(b"web"))))
        .act(acts::SERVE, &[3, 2])
        .act(acts::SERVE, &[40, 2])
        .act(acts::READ, &[2])
        .act(acts::RAW, &raw(Request::Getdump))
        .act(acts::SERVE, &[40, 2])
        .act(acts::READ, &[8])
        .act(acts::DELETE, &[A])
        .act(acts::SERVE, &[40, 2])
        .act(acts::SERVE_ALL, &[])
}

/// What is retrieved with delete, and not read.
fn lent() -> Script {
    stored()
        .act(acts::RETRIEVE, &[1, A])
        .act(acts::LIST, &[])
        .act(acts::SERVE, &[200, 3])
        .then(1)
        .act(acts::RETRIEVE, &[0, A])
        .act(acts::SERVE_ALL, &[])
        .then(0)
        .act(acts::READ, &[255])
        .act(acts::SETTLE, &[0])
        .act(acts::HANG_UP, &[0])
}

/// A snapshot, a delivery, a release; what else can be asked of a fdholder.
fn snapshot() -> Script {
    stored()
        .act(acts::EXTENSION, &[0])
        .act(acts::EXTENSION, &[1])
        .act(acts::RUNS, &[0, 1, 0, 2])
        .act(acts::SERVE_ALL, &[])
        .act(acts::TEND, &[3])
        .act(acts::RUNS, &[3, 2, 0, 0, 2, 0])
        .act(acts::EXTENSION, &[9])
        .act(acts::EXTENSION, &[10])
        .act(acts::SERVE_ALL, &[])
        .act(acts::TEND, &[3])
        .act(acts::SERVE_ALL, &[])
}

/// Sets and conflicts; clients that another daemon serves from now on, and one that follows.
fn handed() -> Script {
    stored()
        .act(acts::EXTENSION, &[4])
        .act(acts::SETDUMP, &[1])
        .act(acts::PART, &[0, A, 0])
        .act(acts::EXTENSION, &[6])
        .act(acts::SERVE_ALL, &[])
        .act(acts::RAW, &[0, 3, 0, 0, 0])
        .act(acts::SERVE, &[9, 1])
        .act(acts::HAND_OVER, &[])
        .act(acts::RAW, &[0, 4, 1, 0, 0, b'L'])
        .act(acts::SERVE_ALL, &[])
        .act(acts::EXTENSION, &[8])
        .act(acts::SERVE_ALL, &[])
        .act(acts::TEND, &[0])
        .act(acts::HAND_OVER, &[])
        .act(acts::SERVE_ALL, &[])
        .then(4)
        .act(acts::EXTENSION, &[0])
        .act(acts::EXTENSION, &[7, 9])
        .act(acts::SERVE_ALL, &[])
        .act(acts::TEND, &[4])
        .act(acts::SERVE_ALL, &[])
}

/// No room in the store, nor in the process; and more descriptors than were announced.
fn full() -> Script {
    stored()
        .act(acts::LOSE, &[])
        .act(acts::STORE, &[3, 0])
        .act(acts::SERVE_ALL, &[])
        .act(acts::STORE, &[3, 0])
        .act(acts::STORE, &[4, 6])
        .act(acts::STORE, &[5, 0])
        .act(acts::STORE, &[6, 0])
        .act(acts::STORE, &[A, 0])
        .act(acts::SERVE_ALL, &[])
        .act(acts::RETRIEVE, &[1, A])
        .act(acts::SERVE, &[200, 3])
        // What nobody announced, one byte after the other.
        .act(acts::RAW, &[1, 7, 0, 0, 0, 0x40, 0, 1, b'S'])
        .act(acts::RAW, &[253, 1, 1])
        .act(acts::RAW, &[253, 1, 1])
        .act(acts::RAW, &[253, 1, 1])
        .act(acts::SERVE, &[6, 1])
        .act(acts::SERVE, &[0, 1])
        .act(acts::SERVE, &[0, 1])
        .act(acts::SERVE, &[0, 1])
        .act(acts::SERVE_ALL, &[])
}

pub fn connection() -> Vec<Vec<u8>> {
    [everything(), cut(), lent(), snapshot(), handed(), full()].map(|script| script.0).into()
}
