//! Whether the victim is served nearly as fast as when nobody attacks.
//!
//! What is compared with are times in which the attackers keep their processor as busy, with
//! nothing: who gets a processor is not the daemon's to say. Others use this machine, too, so
//! there are several rounds, and what was good once is good. Where the machine is not quiet at
//! all, as for each change, `FDHOLDER_HOSTILE_UNTIMED` has it measure without a verdict.

use crate::arena::Arena;
use crate::victim::KINDS;

/// How many times as long the 99th percentile may be.
const RATIO_MAX: f64 = 5.0;

/// Requests of each kind in a round: 2,000 in all.
const REQUESTS: usize = 500;

/// Rounds, before it is too slow.
const ROUNDS: usize = 5;

/// The 99th percentiles, by kind.
type Times = Vec<(&'static str, f64)>;

impl Arena {
    fn measure(&mut self, connects: bool) -> Times {
        let (what, kinds) = if connects {
            ("measure", &KINDS[..])
        } else {
            ("measure-connected", &KINDS[..KINDS.len() - 1])
        };
        let answer = self.victim.ask(&format!("{what} {REQUESTS}"));
        let times = answer.split(' ').map(|time| time.parse().unwrap());
        kinds.iter().copied().chain(["all"]).zip(times).collect()
    }

    /// Attacks by name, and compares.
    pub fn withstands(&mut self, attack: &str) {
        self.withstands_attack(attack, true);
    }

    /// The same, but for how long it takes to be let in.
    pub fn withstands_but_for_connecting(&mut self, attack: &str) {
        self.withstands_attack(attack, false);
    }

    fn withstands_attack(&mut self, attack: &str, connects: bool) {
        let begin = format!("begin {attack}");
        self.compare(
            attack,
            connects,
            |arena| drop(arena.attackers(&begin)),
            |arena| drop(arena.attackers("end")),
        );
    }

    /// Attacks in some way, and compares.
    pub fn withstands_all(
        &mut self,
        what: &str,
        begin: impl FnMut(&mut Self),
        end: impl FnMut(&mut Self),
    ) {
        self.compare(what, true, begin, end);
    }

    fn compare(
        &mut self,
        what: &str,
        connects: bool,
        mut begin: impl FnMut(&mut Self),
        mut end: impl FnMut(&mut Self),
    ) {
        let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
        loop {
            self.attackers("begin busy");
            quiet.push(self.measure(connects));
            self.attackers("end");
            begin(self);
            attacked.push(self.measure(connects));
            end(self);
            let kinds = 0..quiet[0].len();
            // Who was not kept waiting once is not kept waiting; what it is compared with must
            // not have been slow by chance.
            let ratio = |kind: usize| {
                let mut quiet: Vec<_> = quiet.iter().map(|times| times[kind].1).collect();
                quiet.sort_unstable_by(f64::total_cmp);
                let best = attacked.iter().map(|times| times[kind].1).fold(f64::MAX, f64::min);
                best / quiet[(quiet.len() - 1) / 2]
            };
            // Elsewhere only what the attacks do is of interest.
            let is_quiet = std::env::var_os("FDHOLDER_HOSTILE_UNTIMED").is_none();
            let is_slow = is_quiet && kinds.clone().any(|kind| ratio(kind) > RATIO_MAX);
            if is_slow && quiet.len() < ROUNDS {
                continue;
            }
            let of = |times: &[Times], kind: usize| {
                let times = times.iter().map(|times| format!("{:.0}", times[kind].1 / 1e3));
                times.collect::<Vec<_>>().join(" ")
            };
            let line = |kind: usize| {
                let (name, (quiet, attacked)) =
                    (quiet[0][kind].0, (of(&quiet, kind), of(&attacked, kind)));
                format!("  {name}: {:.1} times; {quiet} → {attacked}\n", ratio(kind))
            };
            let table: String = kinds.map(line).collect();
            let table = format!("{what}: 99th percentiles in microseconds\n{table}");
            assert!(!is_slow, "{table}");
            return println!("{table}");
        }
    }
}
