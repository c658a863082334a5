//! Whether the victim is served nearly as fast as when nobody attacks.
//!
//! What is compared with are times in which the attackers keep their processor as busy, with
//! nothing: who gets a processor is not the daemon's to say. Others use this machine, too, so
//! there are several rounds, and what was good once is good.

use crate::arena::Arena;
use crate::victim::KINDS;

/// How many times as long the 99th percentile may be.
const RATIO_MAX: f64 = 5.0;

/// Requests of each kind in a round: 2,000 in all.
const REQUESTS: usize = 500;

/// Rounds, before it is too slow.
const ROUNDS: usize = 5;

type Times = [f64; KINDS.len() + 1];

impl Arena {
    fn measure(&mut self) -> Times {
        let answer = self.victim.ask(&format!("measure {REQUESTS}"));
        let times: Vec<_> = answer.split(' ').map(|time| time.parse().unwrap()).collect();
        times.try_into().unwrap()
    }

    /// Attacks by name, and compares.
    pub fn withstands(&mut self, attack: &str) {
        self.withstands_attack(attack, |_| true);
    }

    /// The same, but for how long it takes to be let in.
    pub fn withstands_but_for_connecting(&mut self, attack: &str) {
        // What is of all contains that.
        self.withstands_attack(attack, |kind| kind != "connect" && kind != "all");
    }

    fn withstands_attack(&mut self, attack: &str, counts: impl Fn(&str) -> bool) {
        let begin = format!("begin {attack}");
        self.compare(
            attack,
            counts,
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
        self.compare(what, |_| true, begin, end);
    }

    fn compare(
        &mut self,
        what: &str,
        counts: impl Fn(&str) -> bool,
        mut begin: impl FnMut(&mut Self),
        mut end: impl FnMut(&mut Self),
    ) {
        let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
        loop {
            self.attackers("begin busy");
            quiet.push(self.measure());
            self.attackers("end");
            begin(self);
            attacked.push(self.measure());
            end(self);
            let kinds = || KINDS.into_iter().chain(["all"]).enumerate();
            // Who was not kept waiting once is not kept waiting; what it is compared with must
            // not have been slow by chance.
            let ratio = |index: usize| {
                let mut quiet: Vec<_> = quiet.iter().map(|times| times[index]).collect();
                quiet.sort_unstable_by(f64::total_cmp);
                let best = attacked.iter().map(|times| times[index]).fold(f64::MAX, f64::min);
                best / quiet[(quiet.len() - 1) / 2]
            };
            let is_slow = |(index, kind): (usize, &str)| counts(kind) && ratio(index) > RATIO_MAX;
            let is_slow = kinds().any(is_slow);
            if is_slow && quiet.len() < ROUNDS {
                continue;
            }
            let of = |times: &[Times], index: usize| {
                let times = times.iter().map(|times| format!("{:.0}", times[index] / 1e3));
                times.collect::<Vec<_>>().join(" ")
            };
            let line = |(index, kind): (usize, &str)| {
                let (quiet, attacked) = (of(&quiet, index), of(&attacked, index));
                format!("  {kind}: {:.1} times; {quiet} → {attacked}\n", ratio(index))
            };
            let table: String = kinds().map(line).collect();
            let table = format!("{what}: 99th percentiles in microseconds\n{table}");
            assert!(!is_slow, "{table}");
            return println!("{table}");
        }
    }
}
