//! A client that does everything there is to do, all the time, and knows what must be held.

use crate::known::{Change, Held, Known, Part};
use crate::random::Random;
use crate::support::{deadline, id, path_of};
use crate::world::{owner_of, Counts, World, LIVE};
use fdholder::{Client, Entry, Errno, Error, Identifier, Limit, Timestamp};
use rustix::fs::{memfd_create, MemfdFlags};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// Identifiers of each client.
const IDS: u64 = 700;

/// Entries of the largest set: it takes three messages.
const SET_MAX: u64 = 600;

/// One client.
pub struct Load<'a> {
    world: &'a World,
    number: usize,
    random: Random,
    client: Option<Client>,
    known: Known,
    /// What it has taken, and is not certain to be gone from the holder.
    taken: Option<Identifier>,
    /// How many descriptors it has made.
    made: u64,
    /// A folder for files.
    folder: PathBuf,
}

/// An answer, or none because the connection broke.
type Answered<T> = Option<Result<T, Errno>>;

impl<'a> Load<'a> {
    pub fn new(world: &'a World, number: usize) -> Self {
        let folder = world.path.parent().unwrap().canonicalize().unwrap();
        let random = Random::of(world.seed, number as u64);
        let (client, known) = (None, Known::default());
        Self { world, number, random, client, known, taken: None, made: 0, folder }
    }

    /// Until it is over; then deletes all that it has.
    pub fn run(mut self) {
        let mut verified = 0;
        while !self.world.has_ended() {
            let round = self.world.round();
            if round > verified {
                self.compare();
                self.world.has_verified(self.number, round);
                verified = round;
            }
            self.do_something();
        }
        self.world.go_on_or_panic();
        self.compare();
        while let Some(name) = self.known.held().into_keys().next() {
            self.delete(name);
        }
        self.compare();
    }

    fn do_something(&mut self) {
        if self.random.one_in(4) {
            self.client = None;
        }
        if self.known.is_in_doubt() && self.client.is_none() {
            return self.compare();
        }
        let name = self.name();
        match self.random.below(16) {
            0..4 => self.store(name),
            4..7 => self.delete(name),
            7..9 => self.retrieve(&name),
            9..11 => self.take(&name),
            11 | 12 => self.set_down(),
            13 => self.list(),
            14 => self.compare(),
            _ => self.delete_many(),
        }
    }

    /// One of its identifiers.
    fn name(&mut self) -> Identifier {
        let number = self.random.below(IDS);
        self.numbered(number)
    }

    fn numbered(&self, number: u64) -> Identifier {
        id(&format!("t{}/{number}", self.number))
    }

    /// A new descriptor that is like no other, and how it is held.
    fn make(&mut self) -> (OwnedFd, Held) {
        self.made += 1;
        let name = format!("chaos t{} {}", self.number, self.made);
        let fd = if self.random.one_in(16) {
            let path = self.folder.join(&name);
            let file = File::create(&path).unwrap();
            // Its name tells on, and the disk does not fill.
            std::fs::remove_file(&path).unwrap();
            file.into()
        } else {
            memfd_create(&name, MemfdFlags::CLOEXEC).unwrap()
        };
        let limit = if self.random.one_in(2) {
            Limit::never()
        } else {
            // Far beyond the end of this.
            let span = Duration::new(3600, 0) + Duration::from_nanos(self.random.below(1 << 40));
            Limit::at(Timestamp::now().saturating_add(span))
        };
        let held = Held { path: path_of(&fd), limit };
        (fd, held)
    }

    /// Asks something. What was in doubt has happened when there is an answer on the same
    /// connection.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Client) -> Result<T, Error>) -> Answered<T> {
        Counts::add(&self.world.counts.operations);
        if self.client.is_none() {
            let connect = if self.number.is_multiple_of(2) {
                Client::connect
            } else {
                Client::connect_negotiated
            };
            match connect(&self.world.path, deadline()) {
                Ok(client) => self.client = Some(client),
                // Let in by one that was killed.
                Err(error) if self.world.is_broken(&error) => return None,
                Err(error) => panic!("{error:?}"),
            }
        }
        match ask(self.client.as_mut().unwrap()) {
            Ok(value) => Some(Ok(value)),
            Err(error) => match error.cause() {
                fdholder::Cause::Denied(errno) => Some(Err(errno)),
                _ if self.world.is_broken(&error) => {
                    self.client = None;
                    None
                }
                _ => unreachable!(),
            },
        }
    }

    /// What came of something that changes things.
    fn settle(&mut self, answer: Answered<()>, expected: Result<(), Errno>, change: Change) {
        if expected.is_ok() {
            self.known.doubt(change);
        }
        if let Some(answer) = answer {
            assert_eq!(answer, expected);
            self.settled();
        }
    }

    fn settled(&mut self) {
        self.known.is_certain();
        self.taken = None;
    }

    fn store(&mut self, name: Identifier) {
        let (fd, held) = self.make();
        let is_held = self.known.get(&name).is_some();
        let answer = self.ask(|client| client.store(&name, held.limit, &fd, deadline()));
        let expected = if is_held { Err(Errno::BUSY) } else { Ok(()) };
        self.settle(answer, expected, Change::Put(vec![(name, held)]));
    }

    fn delete(&mut self, name: Identifier) {
        let expected = self.known.get(&name).map(drop).ok_or(Errno::NOENT);
        let answer = self.ask(|client| client.delete(&name, deadline()));
        self.settle(answer, expected, Change::Gone(name));
    }

    /// Many, or what is held would only ever grow.
    fn delete_many(&mut self) {
        let first = self.random.below(IDS);
        let names: Vec<_> = self.known.held().into_keys().collect();
        for name in names.iter().skip(first as usize).take(40) {
            if self.client.is_none() && self.known.is_in_doubt() {
                return;
            }
            self.delete(name.clone());
        }
    }

    fn retrieve(&mut self, name: &Identifier) {
        let expected = self.known.get(name).map(|held| held.path.clone()).ok_or(Errno::NOENT);
        if let Some(answer) = self.ask(|client| client.retrieve(name, deadline())) {
            assert_eq!(answer.map(path_of), expected, "{name}");
            self.settled();
        }
    }

    /// Retrieves with delete. Whoever has got no answer has not got it, and finds it held;
    /// who has, finds it gone, unless whoever gave it was killed at once.
    fn take(&mut self, name: &Identifier) {
        let expected = self.known.get(name).map(|held| held.path.clone()).ok_or(Errno::NOENT);
        let answer = self.ask(|client| client.retrieve_maybe_delete(name, true, deadline()));
        let Some(answer) = answer else { return };
        self.settled();
        if expected.is_ok() {
            self.known.doubt(Change::Gone(name.clone()));
            self.taken = Some(name.clone());
        }
        assert_eq!(answer.map(path_of), expected, "{name}");
    }

    /// Gives a set, in the place of what there was.
    fn set_down(&mut self) {
        // Large ones are seldom, or all that is held would be most of the work.
        let len_max = if self.random.one_in(12) { SET_MAX } else { 20 };
        let len = 1 + self.random.below(len_max);
        let first = self.random.below(IDS);
        let mut entries = Vec::new();
        let mut change = Vec::new();
        for number in first..first + len {
            let (fd, held) = self.make();
            let name = self.numbered(number % IDS);
            entries.push(Entry { id: name.clone(), limit: held.limit, fd });
            change.push((name, held));
        }
        let answer = self.ask(|client| client.setdump(&entries, deadline()));
        self.settle(answer, Ok(()), Change::Put(change));
    }

    fn list(&mut self) {
        let Some(list) = self.ask(|client| client.list(deadline())) else { return };
        self.settled();
        let list = list.unwrap();
        check_names(&list);
        let mut own: Vec<_> = list.into_iter().filter(|name| self.is_own(name)).collect();
        own.sort();
        assert!(own.iter().eq(self.known.held().keys()), "{own:?} {:?}", self.known.held());
    }

    /// Compares all that it has with what is held.
    fn compare(&mut self) {
        loop {
            let was_taken = self.taken.take();
            let connection_is_old = self.client.is_some();
            if let Some(found) = self.find() {
                if connection_is_old || !self.world.may_break {
                    // Whoever has answered before has answered now: nothing is undone.
                    self.known.is_certain();
                }
                if was_taken.is_some_and(|taken| found.contains_key(&taken)) {
                    Counts::add(&self.world.counts.came_back);
                }
                if let Err(problem) = self.known.is(&found) {
                    panic!("t{}: {problem}", self.number);
                }
                return Counts::add(&self.world.counts.comparisons);
            }
            self.world.go_on_or_panic();
        }
    }

    fn is_own(&self, name: &Identifier) -> bool {
        owner_of(name) == Some(self.number)
    }

    /// What it has in the holder, by a dump.
    fn find(&mut self) -> Option<Part> {
        let mut names = Vec::new();
        let mut found = Part::new();
        let number = self.number;
        let answer = self.ask(|client| {
            let mut incoming = client.begin_getdump(deadline())?;
            // In parts: all at once would be more than a process may have open.
            while let Some(entries) = incoming.next_entries(deadline())? {
                for Entry { id, limit, fd } in entries {
                    if owner_of(&id) == Some(number) {
                        found.insert(id.clone(), Held { path: path_of(fd), limit });
                    }
                    names.push(id);
                }
            }
            Ok(())
        });
        answer?.unwrap();
        check_names(&names);
        Some(found)
    }
}

/// Nothing is held that nobody has given, and what serves is held always.
fn check_names(names: &[Identifier]) {
    for name in names {
        assert!(owner_of(name).is_some() || *name == id(LIVE), "nobody has given {name}");
    }
    assert!(names.contains(&id(LIVE)), "the service's socket is lost");
}
