//! Whole connections: several clients with different rights, who send what they like, cut
//! anywhere, read when they like, and go; and one store behind them.

mod client;
mod due;
mod owed;
mod world;

use crate::input::Input;
use crate::ledger::{Fd, Ledger};
use fdholder::extension::{Extension, OnConflict, VERSION};
use fdholder::{Entry, Identifier, Limit, Request, Timestamp};
use world::World;

/// Acts of one input at most: what takes longer is better found by another one.
const ACTS_MAX: usize = 400;

/// A program: acts, one after the other, each of a client or of the daemon.
pub fn connection(data: &[u8]) {
    let mut input = Input::new(data);
    let ledger = Ledger::default();
    let mut world = World::new(&ledger, 1 + input.below(8));
    for _ in 0..ACTS_MAX {
        if input.is_empty() {
            break;
        }
        act(&mut world, &mut input);
        world.check();
    }
    world.end();
    ledger.settle();
}

/// The acts, by their numbers: the seeds write them.
pub mod acts {
    /// Which client, which act.
    pub const fn of(client: u8, act: u8) -> u8 {
        client | act << 3
    }

    pub const RAW: u8 = 0;
    pub const STORE: u8 = 1;
    pub const DELETE: u8 = 2;
    pub const RETRIEVE: u8 = 3;
    pub const LIST: u8 = 4;
    pub const GETDUMP: u8 = 5;
    pub const SETDUMP: u8 = 6;
    pub const PART: u8 = 7;
    pub const EXTENSION: u8 = 8;
    pub const RUNS: u8 = 9;
    /// The daemon reads so many bytes and carries out so many requests.
    pub const SERVE: u8 = 10;
    /// It reads and carries out all it can, and the client reads all there is.
    pub const SERVE_ALL: u8 = 11;
    /// The client reads so many bytes.
    pub const READ: u8 = 12;
    pub const SETTLE: u8 = 13;
    pub const HANG_UP: u8 = 14;
    pub const CLOCK: u8 = 15;
    /// The daemon does what it was asked for beside replies.
    pub const TEND: u8 = 16;
    pub const HAND_OVER: u8 = 17;
    /// The daemon has no room for the descriptors that come next.
    pub const LOSE: u8 = 18;
    pub const COUNT: u8 = 19;
}

fn act(world: &mut World, input: &mut Input<'_>) {
    let first = input.byte();
    let who = usize::from(first & 7) % world.clients.len();
    let ledger = world.ledger.clone();
    let now = world.now;
    match (first >> 3) % acts::COUNT {
        acts::RAW => {
            let fds = usize::from(input.byte()).min(253);
            let bytes = input.short().to_vec();
            world.clients[who].send(bytes, ledger.open_many(fds));
        }
        acts::STORE => {
            let entry = entry(input, now, &ledger);
            world.clients[who].ask(Request::Store(entry));
        }
        acts::DELETE => world.clients[who].ask(Request::Delete(id(input))),
        acts::RETRIEVE => {
            let request = Request::Retrieve { delete: input.bit(), id: id(input) };
            world.clients[who].ask(request);
        }
        acts::LIST => world.clients[who].ask(Request::List),
        acts::GETDUMP => world.clients[who].ask(Request::Getdump),
        acts::SETDUMP => world.clients[who].ask(Request::Setdump(input.byte().into())),
        acts::PART => {
            let count = 1 + input.below(10);
            let entries = (0..count).map(|_| entry(input, now, &ledger)).collect();
            world.clients[who].ask(Request::SetdumpData(entries));
        }
        acts::EXTENSION => world.clients[who].ask(Request::Extension(extension(input))),
        acts::RUNS => {
            let request = runs(input, &ledger);
            world.clients[who].ask(Request::Extension(request));
        }
        acts::SERVE => {
            let (bytes, requests) = (1 + usize::from(input.byte()), input.below(8));
            world.serve(who, bytes, requests);
        }
        acts::SERVE_ALL => world.serve_all(who),
        acts::READ => drop(world.read(who, 1 + usize::from(input.byte()))),
        acts::SETTLE => drop(world.settle(who, input.bit())),
        acts::HANG_UP => world.hang_up(who, input.bit()),
        acts::CLOCK => world.set_clock(i16::from_be_bytes([input.byte(), input.byte()])),
        acts::TEND => world.tend(who, input.byte()),
        acts::HAND_OVER => world.hand_over(who),
        _ => world.clients[who].loses = true,
    }
}

/// Some that rules tell apart; one is long, one is a service's door.
const IDS: [&[u8]; 7] = [b"a", b"ab", b"b", b"c", b"unix:/run/x", &[b'a'; 255], b"a/.notify"];

fn id(input: &mut Input<'_>) -> Identifier {
    let id = input.choose(&IDS);
    let Ok(id) = Identifier::new(id) else { panic!("each is one") };
    id
}

fn entry(input: &mut Input<'_>, now: Timestamp, ledger: &Ledger) -> Entry<Fd> {
    let id = id(input);
    let limit = match input.below(8) {
        0..3 => Limit::never_from(now),
        3 => Limit::at(now.saturating_add(std::time::Duration::from_secs(1))),
        4 => Limit::at(now.saturating_add(std::time::Duration::from_secs(input.byte().into()))),
        5 => Limit::at(now),
        6 => Limit::at(stamp(0)),
        _ => Limit::at(stamp(u64::from(input.u32()) << 32 | 0xffff_ffff)),
    };
    Entry { id, limit, fd: ledger.open() }
}

fn stamp(label: u64) -> Timestamp {
    let Ok(stamp) = Timestamp::new(label, 5) else { panic!("that is below a second") };
    stamp
}

fn extension(input: &mut Input<'_>) -> Extension<Fd> {
    match input.byte() % 12 {
        0 => Extension::Hello(VERSION),
        1 => Extension::Snapshot { entries: true },
        2 => Extension::Snapshot { entries: false },
        3 => Extension::OnConflict(OnConflict::Replace),
        4 => Extension::OnConflict(OnConflict::Keep),
        5 => Extension::OnConflict(OnConflict::Fail),
        6 => Extension::Taken,
        7 => Extension::Follow { capacity: input.byte().into() },
        8 => Extension::Upgrade,
        9 => Extension::Inspect,
        10 => Extension::Status,
        _ => Extension::Unknown,
    }
}

/// One that speaks of positions in a snapshot.
fn runs(input: &mut Input<'_>, ledger: &Ledger) -> Extension<Fd> {
    let kind = input.byte();
    let runs = (0..input.below(4))
        .map(|_| {
            let start = u32::from(input.byte());
            start..start + 1 + input.below(4) as u32 // At most 4.
        })
        .collect();
    match kind % 4 {
        0 | 1 => Extension::Deliver { runs, to: ledger.open() },
        2 => Extension::Release { runs, only_ask: true },
        _ => Extension::Release { runs, only_ask: false },
    }
}
