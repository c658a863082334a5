//! Calming down, and what must be true then.

use super::{Role, World, ROUNDS_MAX};
use crate::simulator::client::Client;
use std::collections::BTreeMap;

impl World {
    /// Nothing goes wrong any more, and nobody asks anything new, until all is quiet.
    pub(super) fn calm_down(&mut self) {
        self.note(|| "all is to be quiet".to_owned());
        for round in 0..ROUNDS_MAX {
            if self.oracle.failure.is_some() {
                return;
            }
            for process in &mut self.processes {
                process.hangs_until = 0;
                if process.table.is_doomed() {
                    process.killed_at = Some(self.step);
                }
            }
            for client in 0..self.clients.len() {
                self.act(client, true);
            }
            for index in (0..self.processes.len()).rev() {
                self.step += 1;
                if index < self.processes.len() {
                    self.run_process(index);
                }
            }
            self.step += 1;
            self.clean_up();
            if round % 4 == 3 && self.is_quiet() {
                return self.check();
            }
        }
        let waiting: Vec<_> = self.clients.iter().filter(|client| !client.is_idle()).collect();
        let text = format!(
            "it does not become quiet: {} processes, {:?} serves, clients that wait: {waiting:?}",
            self.processes.len(),
            self.oracle.serving,
        );
        self.oracle.fail(|| text);
    }

    fn is_quiet(&mut self) -> bool {
        self.remains.is_empty()
            && self.processes.len() == 2
            && self.clients.iter().all(Client::is_idle)
            && self.processes.iter_mut().all(|process| match &mut process.role {
                Role::Serves(server) => server.is_quiet(),
                Role::Follows(following) => following.is_quiet(),
            })
    }

    /// What must be true when all is quiet.
    fn check(&mut self) {
        for process in &mut self.processes {
            let (who, store) = match &mut process.role {
                Role::Serves(server) => {
                    // What has expired since its last turn is no difference.
                    let expired = server.store.expire(self.now, usize::MAX);
                    self.oracle.expires(process.table.pid, self.now);
                    server.mirrors.record(&expired, &server.store);
                    ("the primary", &server.store)
                }
                Role::Follows(following) => ("the standby", following.replica.store()),
            };
            store.check();
            let is_primary = who == "the primary";
            // The standby does not know yet what has expired just now.
            let expired = store.len() - self.oracle.count().min(store.len());
            if is_primary || expired == 0 {
                self.oracle.holds_all(who, store);
            }
            let held: BTreeMap<_, _> =
                store.all().iter().filter_map(|record| Some((record.fd.number()?, 1))).collect();
            let open = process.table.open();
            if open != held {
                let leaked: Vec<_> =
                    open.iter().filter(|(fd, n)| held.get(fd) != Some(n)).collect();
                self.oracle.fail(|| format!("{who} has descriptors open for nothing: {leaked:?}"));
            }
        }
        self.wires.retain(|(_, wire)| wire.strong_count() > 0);
        let wires = &self.wires;
        self.oracle.forget(|number| !wires.iter().any(|(known, _)| *known == number));
    }
}
