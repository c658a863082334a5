//! How many operations a second a daemon carries out for many clients at once, and what
//! each costs it.

use crate::bench::{say, Bench};
use crate::cpu;
use crate::crowd::{Crowd, ROUNDS_PER_ANEW, ROUNDS_PER_LIST};
use crate::daemon::{identifiers, Daemon, Room};
use crate::figures::{ratio, target, times, times_up, Sample, Thousands};
use crate::programs::Holder;
use crate::report::Report;
use crate::Result;
use fdholder::Identifier;
use std::time::Duration;

const CLIENTS: u32 = 64;
const HELD: u32 = 1_000;
/// As many clients as s6's daemon lets in.
const ROOM: Room = Room { fds_max: 2_000, connections_max: 256 };
const ROUNDS: usize = 64;
const AT_LEAST: f64 = 1.5;

/// A daemon with its clients.
struct Side {
    daemon: Daemon,
    crowd: Crowd,
    /// Operations a second.
    rates: Sample,
    /// Microseconds of a processor for each operation.
    costs: Sample,
    /// Percent of the time in which the daemon, and the clients, had a processor.
    daemon_busy: Sample,
    clients_busy: Sample,
}

impl Side {
    fn start(bench: &Bench, holder: Holder, ids: &[Identifier]) -> Result<Self> {
        let daemon = Daemon::start_with(bench, holder, ROOM)?;
        daemon.fill(HELD)?;
        let crowd = Crowd::gather(daemon.path(), CLIENTS, ids)?;
        Ok(Self {
            daemon,
            crowd,
            rates: Sample::default(),
            costs: Sample::default(),
            daemon_busy: Sample::default(),
            clients_busy: Sample::default(),
        })
    }

    fn turn(&mut self) -> Result<()> {
        let processes = [self.daemon.id(), std::process::id()];
        let [daemon, clients] = processes.map(cpu::time);
        let (daemon, clients) = (daemon?, clients?);
        let (operations, elapsed) = self.crowd.play(ROUNDS)?;
        let daemon = cpu::time(processes[0])?.saturating_sub(daemon);
        let clients = cpu::time(processes[1])?.saturating_sub(clients);
        let percent = |busy: Duration| 100.0 * busy.as_secs_f64() / elapsed.as_secs_f64();
        self.rates.push(f64::from(operations) / elapsed.as_secs_f64());
        self.costs.push(daemon.as_secs_f64() * 1e6 / f64::from(operations));
        self.daemon_busy.push(percent(daemon));
        self.clients_busy.push(percent(clients));
        Ok(())
    }
}

pub fn run(bench: &Bench) -> Result<Report> {
    let turns = if bench.quick { 4 } else { 30 };
    say(&format!("many: {CLIENTS} clients at once, {turns} times {ROUNDS} rounds of each"));
    let ids = identifiers(HELD)?;
    let mut ours = Side::start(bench, Holder::Ours, &ids)?;
    let mut s6 = Side::start(bench, Holder::S6, &ids)?;
    for turn in 0..turns {
        // Each is first every other time.
        let sides = if turn % 2 == 0 { [&mut ours, &mut s6] } else { [&mut s6, &mut ours] };
        for side in sides {
            side.turn()?;
        }
    }
    Ok(describe(turns, &ours, &s6).into())
}

fn describe(turns: u32, ours: &Side, s6: &Side) -> String {
    let (faster, dearer) = (ratio(&ours.rates, &s6.rates), ratio(&ours.costs, &s6.costs));
    let busy =
        |side: &Side| format!("{} / {}", side.daemon_busy.percent(), side.clients_busy.percent());
    format!(
        "## Many\n\n\
         {CLIENTS} clients at once of a daemon that holds {} descriptors and was started with \
         `-c {}`; {turns} turns of {ROUNDS} rounds of each client. In a round a client stores a \
         descriptor, with a limit that no other has, retrieves it, retrieves one of those that \
         are held for all, in every {ROUNDS_PER_LIST}th round lists, and deletes what it has \
         stored; each when it has the reply to the one before. It does so over one connection, \
         but in every {ROUNDS_PER_ANEW}th round over a new one for each operation, beside the \
         one that stays. All clients are played by one thread. Busy is who had a processor for \
         how much of the time: the clients must not be what there is to wait for. The processor's \
         time of the daemon is user and system time of all its threads.\n\n\
         | | ours | s6 | ours / s6 | target |\n| --- | --- | --- | --- | --- |\n\
         | operations | {} | {} | {} | {} |\n\
         | processor's time of the daemon for each | {} | {} | {} | {} |\n\
         | daemon busy / clients busy | {} | {} |  |  |\n",
        Thousands(HELD),
        ROOM.connections_max,
        ours.rates.rate(),
        s6.rates.rate(),
        times(faster),
        target(&format!("at least {AT_LEAST} × s6"), faster.map(|faster| faster >= AT_LEAST)),
        ours.costs.microseconds(),
        s6.costs.microseconds(),
        times_up(dearer),
        target("no more than s6's", dearer.map(|dearer| dearer <= 1.0)),
        busy(ours),
        busy(s6),
    )
}
