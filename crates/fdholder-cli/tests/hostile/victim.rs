//! The user of good will: has things held, asks as every client does, and measures how long
//! it takes.

use crate::raw::name_of;
use crate::support::{deadline, id, path_of};
use fdholder::{Client, Identifier, Limit};
use rustix::fs::{memfd_create, MemfdFlags};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is measured, each for itself.
pub const KINDS: [&str; 4] = ["store", "retrieve", "delete", "connect"];

/// What would take no second is not measured for longer than this.
const TOO_LONG: Duration = Duration::from_secs(5);

pub struct Victim {
    path: PathBuf,
    uid: String,
    client: Client,
    kept: Vec<(Identifier, PathBuf)>,
}

impl Victim {
    pub fn new(path: &str, uid: &str) -> Self {
        let client = Client::connect(path, deadline()).unwrap();
        Self { path: path.into(), uid: uid.to_owned(), client, kept: Vec::new() }
    }

    pub fn act(&mut self, what: &str, words: &[&str]) -> String {
        let number = || words[0].parse::<usize>().unwrap();
        match what {
            "keep" => self.keep(number()),
            "measure" => self.measure(number(), true),
            "measure-connected" => self.measure(number(), false),
            "verify" => self.verify(),
            "store" => self.store(words[0]),
            "delete" => self.delete(words[0]),
            "reconnect" => self.reconnect(),
            _ => panic!("{what}?"),
        }
    }

    fn id(&self, name: &str) -> Identifier {
        id(&format!("{}/{name}", self.uid))
    }

    /// Something that is like nothing else.
    fn make(&self, name: &str) -> (OwnedFd, PathBuf) {
        let fd = memfd_create(&*format!("{} {name}", self.uid), MemfdFlags::CLOEXEC).unwrap();
        let path = path_of(&fd);
        (fd, path)
    }

    /// Has so many held from now on.
    fn keep(&mut self, count: usize) -> String {
        for number in self.kept.len()..count {
            let name = format!("kept {number}");
            let (fd, path) = self.make(&name);
            self.client.store(&self.id(&name), Limit::never(), fd, deadline()).unwrap();
            self.kept.push((self.id(&name), path));
        }
        "done".to_owned()
    }

    /// Says what of that is not as it was.
    fn verify(&mut self) -> String {
        for (id, path) in &self.kept {
            match self.client.retrieve(id, deadline()).map(path_of) {
                Ok(found) if found == *path => {}
                other => return format!("{id}: {other:?} instead of {}", path.display()),
            }
        }
        "done".to_owned()
    }

    fn store(&mut self, name: &str) -> String {
        let (fd, _) = self.make(name);
        said(self.client.store(&self.id(name), Limit::never(), fd, deadline()))
    }

    fn delete(&mut self, name: &str) -> String {
        said(self.client.delete(&self.id(name), deadline()))
    }

    fn reconnect(&mut self) -> String {
        self.client = Client::connect(&self.path, deadline()).unwrap();
        self.client.retrieve(&self.kept[0].0, deadline()).unwrap();
        "done".to_owned()
    }

    /// Asks so many times each, and returns the nanoseconds of the 99th percentile of each,
    /// in the order of [`KINDS`], then those of all. What is last, to connect, is left out if
    /// that is said.
    fn measure(&mut self, rounds: usize, connects: bool) -> String {
        let mut times = [(); KINDS.len()].map(|()| Vec::with_capacity(rounds));
        let name = self.id("measured");
        let (fd, path) = self.make("measured");
        let kept = self.kept[0].clone();
        let start = Instant::now();
        for round in 0..rounds {
            // It is too slow by far, and need not be known better.
            if round >= 5 && start.elapsed() > TOO_LONG {
                break;
            }
            let Self { client, .. } = self;
            times[0].push(time(|| client.store(&name, Limit::never(), &fd, deadline()).unwrap()));
            times[1].push(time(|| {
                assert_eq!(path_of(client.retrieve(&name, deadline()).unwrap()), path);
            }));
            times[2].push(time(|| client.delete(&name, deadline()).unwrap()));
            if !connects {
                continue;
            }
            let mut other = None;
            times[3].push(time(|| {
                let mut client = Client::connect(&self.path, deadline()).unwrap();
                assert_eq!(path_of(client.retrieve(&kept.0, deadline()).unwrap()), kept.1);
                other = Some(client);
            }));
        }
        let mut all = times.concat();
        let kinds = if connects { KINDS.len() } else { KINDS.len() - 1 };
        let each = times[..kinds].iter_mut().map(|times| percentile(times)).collect::<Vec<_>>();
        let words = each.into_iter().chain([percentile(&mut all)]);
        words.map(|time| time.as_nanos().to_string()).collect::<Vec<_>>().join(" ")
    }
}

fn said(result: Result<(), fdholder::Error>) -> String {
    result.map_or_else(|error| name_of(error.errno()), |()| "done".to_owned())
}

fn time(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

/// The 99th.
fn percentile(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}
