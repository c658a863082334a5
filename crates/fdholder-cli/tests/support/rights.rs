//! Every set of rights that a user of a holder can have.

use super::{deadline, id, Daemon, Rules, Suite};
use fdholder::{Client, Entry, Limit};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

/// What a rule grants, for every identifier.
// Each right is one of its own.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    pub connect: bool,
    pub list: bool,
    pub getdump: bool,
    pub setdump: bool,
    pub store: bool,
    pub retrieve: bool,
}

impl Rights {
    pub const ALL: Self = Self {
        connect: true,
        list: true,
        getdump: true,
        setdump: true,
        store: true,
        retrieve: true,
    };

    /// All subsets, and no right to connect.
    pub fn subsets() -> impl Iterator<Item = Self> {
        let subset = |bits: u8| Self {
            connect: true,
            list: bits & 1 != 0,
            getdump: bits & 2 != 0,
            setdump: bits & 4 != 0,
            store: bits & 8 != 0,
            retrieve: bits & 16 != 0,
        };
        (0..32).map(subset).chain([Self::default()])
    }

    fn write(self, folder: &Path) {
        let _ = fs::remove_dir_all(folder.join("uid"));
        let rules = Rules::none(folder);
        if !self.connect {
            return drop(rules.deny("uid/self"));
        }
        let granted = [(self.list, "LIST"), (self.getdump, "GETDUMP"), (self.setdump, "SETDUMP")];
        let mut rules = rules.allow("uid/self");
        for (_, right) in granted.iter().filter(|(is_granted, _)| *is_granted) {
            rules = rules.may("uid/self", &[right]);
        }
        let patterns = [(self.store, "STORE_REGEX"), (self.retrieve, "RETRIEVE_REGEX")];
        for (_, right) in patterns.iter().filter(|(is_granted, _)| *is_granted) {
            rules = rules.write(&format!("uid/self/env/S6_FDHOLDER_{right}"), ".");
        }
    }
}

/// A holder with a rule that can be changed.
pub struct Guarded {
    folder: tempfile::TempDir,
    pub daemon: Daemon,
    pub suite: Suite,
}

impl Guarded {
    /// One that holds `x0`, `x1` …
    pub fn holding(suite: Suite, count: u32) -> Self {
        Self::with(suite, count, &[])
    }

    /// The same with options for the daemon.
    pub fn with(suite: Suite, count: u32, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        Rights::ALL.write(&rules);
        let rules = Rules { dir: rules };
        let daemon = Daemon::with_rules(suite, &folder.path().join("holder"), &rules, options);
        let guarded = Self { folder, daemon, suite };
        guarded.fill(count);
        guarded
    }

    /// Has it hold exactly these, whatever it holds; all is granted then.
    pub fn fill(&self, count: u32) {
        self.grant(Rights::ALL);
        let mut client = self.daemon.client();
        for id in client.list(deadline()).unwrap() {
            client.delete(&id, deadline()).unwrap();
        }
        let null = File::open("/dev/null").unwrap();
        let entry = |number: u32| Entry {
            id: id(&format!("x{number}")),
            limit: Limit::never(),
            fd: null.as_fd(),
        };
        client.setdump(&(0..count).map(entry).collect::<Vec<_>>(), deadline()).unwrap();
    }

    /// The rule for the next connection.
    pub fn grant(&self, rights: Rights) {
        rights.write(&self.folder.path().join("rules"));
    }

    pub fn path(&self) -> &str {
        self.daemon.path.to_str().unwrap()
    }

    /// s6 2.11's daemon hangs up in the place of a dump of more than fits into one message.
    pub fn can_dump(&self, count: u32) -> bool {
        self.suite != Suite::S6V211 || count < 254
    }

    pub fn client(&self) -> Client {
        self.daemon.client()
    }
}
