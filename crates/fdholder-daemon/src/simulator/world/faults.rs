//! What goes wrong, from outside of the processes.

use super::{Process, Remains, Role, World};
use crate::simulator::serving::Roll;
use fdholder::Timestamp;
use std::time::Duration;

impl World {
    /// A process is gone; the kernel may take a while to close what it had.
    pub(super) fn kill(&mut self, process: Process) {
        let Process { table, mut role, .. } = process;
        self.note(|| format!("{} is killed", table.pid));
        self.tally.kills += 1;
        self.oracle.heirs.remove(&table.pid);
        if let Role::Serves(server) = &mut role {
            let served = self.oracle.serving == Some(table.pid);
            if served || self.oracle.serving.is_none() {
                self.oracle.serving = None;
                // Whoever has followed it may have answered what others do not know.
                let roll = server.roll.as_ref().and_then(Roll::file);
                let is_followed = roll.is_some_and(|roll| roll.has_been_followed());
                let is_heir =
                    |pid: &u32| !is_followed && self.processes.iter().any(|p| p.table.pid == *pid);
                self.oracle.heirs.extend(server.heirs().into_iter().filter(is_heir));
            }
            let later = self.step + self.random.below(200) as u64;
            match self.random.below(4) {
                0 => {
                    let roll = server.roll.take();
                    self.remains.push((later, Remains::Roll { _roll: roll }));
                }
                1 => {
                    drop(server.roll.take());
                    self.remains.push((later, Remains::All { _role: role }));
                }
                _ => {}
            }
        }
    }

    pub(super) fn let_things_go_wrong(&mut self) {
        // More often when it matters more.
        let hurry = self.processes.iter().map(|process| match &process.role {
            Role::Serves(server) => server.delicacy(self.step),
            Role::Follows(_) => 1,
        });
        let hurry = hurry.max().unwrap_or(1);
        for process in &self.processes {
            // Between two messages of one set.
            let is_mid_set = matches!(&process.role, Role::Serves(s) if s.is_mid_set(self.step));
            if is_mid_set && self.random.one_in(30) {
                process.table.kill_after(self.random.below(6) as u32);
            }
        }
        if self.random.one_in((self.faults.kill / hurry).max(10)) && !self.processes.is_empty() {
            let index = self.random.below(self.processes.len());
            if self.random.one_in(3) {
                let process = self.processes.swap_remove(index);
                self.kill(process);
            } else {
                let calls = self.random.below(20) as u32;
                self.processes[index].table.kill_after(calls);
            }
        }
        if self.random.one_in((self.faults.hang / hurry).max(10)) && !self.processes.is_empty() {
            let index = self.random.below(self.processes.len());
            let span = [50, 500, 3000][self.random.below(3)];
            self.processes[index].hangs_until = self.step + span;
            self.note(|| format!("{} hangs", self.processes[index].table.pid));
        }
        if self.random.one_in(self.faults.takeover) && self.processes.len() < 6 {
            self.start_takeover();
        }
        if self.random.one_in(self.faults.clock) {
            let secs = self.random.below(60) as u64;
            self.now = if self.random.one_in(2) {
                self.now.saturating_add(Duration::from_secs(secs))
            } else {
                let label = self.now.label() - secs;
                Timestamp::new(label, self.now.nanos()).expect("as many nanoseconds as before")
            };
        }
    }
}
