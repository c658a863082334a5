//! What connections cost those who are served that have nothing to say.

use crate::bench::{say, Bench};
use crate::daemon::{identifiers, Daemon, Room};
use crate::figures::{ratio, target, times, Thousands};
use crate::programs::Holder;
use crate::report::Report;
use crate::visits::{compare, rate};
use crate::Result;
use fdholder::{Client, Deadline, Identifier};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const HELD: u32 = 1_000;
const IDLE: u32 = 10_000;
/// Clients that are let in beside those that are idle.
const OTHERS: u32 = 100;
const BATCH: u32 = 500;
const AT_LEAST: f64 = 0.9;

/// A client that waits for longer was not let in.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(bench: &Bench) -> Result<Report> {
    let turns = if bench.quick { 6 } else { 100 };
    let ids = identifiers(HELD)?;
    let room = Room { fds_max: u64::from(HELD), connections_max: IDLE + OTHERS };
    let start = || {
        let daemon = Daemon::start_with(bench, Holder::Ours, room)?;
        daemon.fill(HELD)?;
        Ok::<_, Box<dyn std::error::Error>>(daemon)
    };
    let (with, without) = (start()?, start()?);
    let most = Connections::of(&with)?.most;
    let count = IDLE.min(most.saturating_sub(OTHERS));
    say(&format!("idle: {turns} batches of {BATCH}, beside {} connections", Thousands(count)));
    let idle = (0..count).map(|_| idle(&with, &ids[0])).collect::<Result<Vec<_>>>()?;
    for path in [with.path(), without.path()] {
        rate(path, &ids, BATCH)?; // What is done at the first time only.
    }
    let [beside_idle, alone] = compare([with.path(), without.path()], &ids, turns, BATCH)?;
    let there = Connections::of(&with)?.now.saturating_sub(1); // This one asks.
    if there < count {
        return Err(format!("{there} of {count} idle connections were left at the end").into());
    }
    drop(idle);
    let why_fewer = if count < IDLE {
        format!(" With its limit on open files it lets in {} clients.", Thousands(most))
    } else {
        String::new()
    };
    let kept = ratio(&beside_idle, &alone);
    let met = kept.filter(|_| count == IDLE).map(|kept| kept >= AT_LEAST);
    Ok(format!(
        "## Idle\n\n\
         As in the section Retrieve, from a daemon that has {} other clients: each has connected, \
         retrieved a descriptor, and stays without a word. Beside it the same from a daemon \
         without any; both are ours, started with `-c {}`.{why_fewer} {turns} batches of {BATCH} from each \
         in turns. s6's daemon lets in 256 clients, whatever `-c` says, and takes no part.\n\n\
         | with {0} idle | with none | with / without | target |\n| --- | --- | --- | --- |\n\
         | {} | {} | {} | {} |\n",
        Thousands(count),
        room.connections_max,
        beside_idle.rate(),
        alone.rate(),
        times(kept),
        target(&format!("at least {AT_LEAST} × with {} idle", Thousands(IDLE)), met),
    )
    .into())
}

/// A connection over which something was asked once. A client of the library would keep the
/// memory that it reads into.
fn idle(daemon: &Daemon, id: &Identifier) -> Result<UnixStream> {
    let socket = UnixStream::connect(daemon.path())?;
    let deadline = Deadline::after(PATIENCE);
    Client::over(OwnedFd::from(socket.try_clone()?)).retrieve(id, deadline)?;
    Ok(socket)
}

/// How many clients a daemon has, and lets in at most.
struct Connections {
    now: u32,
    most: u32,
}

impl Connections {
    fn of(daemon: &Daemon) -> Result<Self> {
        let deadline = Deadline::after(PATIENCE);
        let status = Client::connect_negotiated(daemon.path(), deadline)?.status(deadline)?;
        Ok(Self { now: status.connections, most: status.connections_max })
    }
}
