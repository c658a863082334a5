//! Children of `run` that have ended.

use super::machine::{Event, Number};
use super::process::{Ended, Process};
use super::Supervisor;
use rustix::process::{wait, WaitOptions};
use std::time::Instant;

impl Supervisor<'_> {
    /// Carries out what the end of children means, once their last words are known.
    pub(super) fn reap(&mut self, now: Instant) {
        self.collect(now);
        let numbers: Vec<_> = self.processes.keys().copied().collect();
        for number in numbers {
            let Some(process) = self.processes.get_mut(&number) else { continue };
            if process.is_over() {
                if process.has_gone(now) {
                    self.processes.remove(&number);
                    self.feed(Event::Gone(number));
                }
                continue;
            }
            let Some(exit) = process.exit(now) else { continue };
            // What it has sent before its end counts.
            let is_all = self.hear_program(number);
            let waits = self.processes.get(&number).is_some_and(|it| it.may_be_heard(now));
            if !is_all && waits {
                continue;
            }
            if !is_all {
                self.warn(format_args!(
                    "the holder does not take all that generation {number} has stored: the rest is \
                     not held"
                ));
            }
            if self.processes.get_mut(&number).is_some_and(Process::read_ready) {
                self.feed(Event::Ready(number));
            }
            let Some(process) = self.processes.get_mut(&number) else { continue };
            let leaves_others = process.end(now);
            self.feed(Event::Ended { number, exit, leaves_others });
            if self.machine.generations().iter().all(|it| it.number != number) {
                self.processes.remove(&number);
            }
        }
    }

    /// A generation says that it is ready. It may have ended since.
    pub(super) fn is_ready(&mut self, number: Number) {
        self.collect(Instant::now());
        self.feed(Event::Ready(number));
    }

    /// Takes note of all children that have ended, also those that this process was given as pid 1.
    fn collect(&mut self, now: Instant) {
        let mut events = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let mut all = self.processes.iter_mut();
            let ended = all.find_map(|(number, process)| {
                process.has_ended(pid, status, now).map(|ended| (*number, ended))
            });
            match ended {
                Some((number, Ended::Program)) => events.insert(0, Event::Died(number)),
                Some((number, Ended::Probe(true))) => events.push(Event::Ready(number)),
                _ => {}
            }
        }
        let mut failed = Vec::new();
        for (number, process) in &mut self.processes {
            let copied = process.copy_on(self.launch.stop_signal, now);
            failed.extend(copied.err().map(|error| (*number, error)));
        }
        for (number, error) in failed {
            self.warn(format_args!(
                "what generation {number} writes to stderr is lost: unable to copy it: {error}"
            ));
        }
        // Deaths first: one that has died is not ready.
        for event in events {
            self.feed(event);
        }
    }
}
