//! How many descriptors a second a daemon takes that tells a standby of each.

use crate::bench::{say, Bench};
use crate::family::Family;
use crate::figures::{ratio, target, times, Sample, Thousands};
use crate::Result;
use fdholder::{Client, Deadline, Identifier, Limit};
use std::fs::File;
use std::sync::Barrier;
use std::thread::scope;
use std::time::Instant;

/// How many clients store at once, how many each, and the target: so many times the rate
/// without a standby.
const CASES: [(u32, u32, f64); 2] = [(1, 2_000, 0.5), (8, 500, 0.8)];

pub fn run(bench: &Bench) -> Result<String> {
    let turns = if bench.quick { 5 } else { 20 };
    let mut with = Family::start(bench, &["--standby"])?;
    let without = Family::start(bench, &[])?;
    with.standby()?;
    let mut rows = String::new();
    for (clients, each, at_least) in CASES {
        say(&format!("standby: stores of {clients} at once, {turns} times {}", Thousands(each)));
        let mut rates = [Sample::default(), Sample::default()];
        for turn in 0..turns {
            let mut measure = |index: usize| -> Result<()> {
                let family = [&with, &without][index];
                rates[index].push(batch_rate(family, clients, each, turn)?);
                Ok(())
            };
            // Each is first every other time.
            let first = usize::from(turn % 2 == 1);
            measure(first)?;
            measure(1 - first)?;
        }
        let [with, without] = &rates;
        let kept = ratio(with, without);
        let row = format!(
            "| {clients} | {} | {} | {} | {} |\n",
            with.rate(),
            without.rate(),
            times(kept),
            target(&format!("at least {at_least} ×"), kept.map(|kept| kept >= at_least)),
        );
        rows.push_str(&row);
    }
    Ok(format!(
        "Stores into a daemon with a standby, and into one without, in {turns} turns: each client \
         over one connection, one request at a time, under new identifiers; what was stored is \
         deleted in between.\n\n\
         | clients at once | with | without | with / without | target |\n\
         | ---: | --- | --- | --- | --- |\n{rows}",
    ))
}

fn batch_rate(family: &Family, clients: u32, each: u32, turn: u32) -> Result<f64> {
    let null = File::open("/dev/null")?;
    let mut ready = Vec::new();
    for client in 0..clients {
        let id = |number| Identifier::new(format!("{turn:03}:{client:03}:127.0.0.1:{number:05}"));
        let ids = (0..each).map(id).collect::<std::result::Result<Vec<_>, _>>()?;
        ready.push((family.connect()?, ids));
    }
    let store = |client: &mut Client, ids: &[Identifier]| {
        ids.iter().try_for_each(|id| client.store(id, Limit::never(), &null, Deadline::NEVER))
    };
    let start_line = Barrier::new(ready.len() + 1);
    let elapsed = scope(|scope| {
        let run = |(client, ids): &mut (Client, Vec<Identifier>)| {
            start_line.wait();
            store(client, ids)
        };
        let running: Vec<_> =
            ready.iter_mut().map(|client| scope.spawn(move || run(client))).collect();
        start_line.wait();
        let start = Instant::now();
        let ended: Vec<_> = running.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let elapsed = start.elapsed();
        for stored in ended {
            stored.map_err(|_| "a client panicked")??;
        }
        Ok::<_, Box<dyn std::error::Error>>(elapsed)
    })?;
    for (client, ids) in &mut ready {
        ids.iter().try_for_each(|id| client.delete(id, Deadline::NEVER))?;
    }
    Ok(f64::from(clients * each) / elapsed.as_secs_f64())
}
