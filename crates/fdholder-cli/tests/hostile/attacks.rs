//! What users of bad will do, over and over until they are told to end.

use crate::deeds;
use crate::raw::{bytes_of, header, null, store, Raw};
use crate::support::{deadline, id, lingering};
use fdholder::limits::{MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};
use fdholder::{Client, Entry, Errno, Error, Identifier, Limit, Request, Timestamp};
use std::collections::VecDeque;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Each does what it does until [`Stage::goes_on`] says no.
pub const ATTACKS: &[(&str, fn(&Stage))] = &[
    ("busy", busy),
    ("connections", connections),
    ("coming-and-going", coming_and_going),
    ("slow-readers", slow_readers),
    ("slow-writers", |stage| slow_writers(stage, || ())),
    ("slower-writers", |stage| slow_writers(stage, pause)),
    ("unread-lists", |stage| unread(stage, Request::List)),
    ("unread-dumps", |stage| unread(stage, Request::Getdump)),
    ("unread-descriptors", |stage| {
        unread(stage, Request::Retrieve { id: stage.id("0"), delete: false });
    }),
    ("headers", headers),
    ("half-messages", half_messages),
    ("unfinished-sets", unfinished_sets),
    ("stores", stores),
    ("requests", requests),
    ("retrieves", retrieves),
    ("sets", sets),
    ("dumps", dumps),
    ("expiry", expiry),
    ("malformed", malformed),
    ("lingering", lingering_ones),
];

/// Where an attack is.
pub struct Stage {
    pub path: PathBuf,
    uid: String,
    is_over: AtomicBool,
    ready: Sender<()>,
    /// How often something was done.
    pub count: AtomicUsize,
}

impl Stage {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// It is as bad as it gets.
    fn is_ready(&self) {
        // Nobody listens the second time.
        let _ = self.ready.send(());
    }

    fn did(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn id(&self, name: &str) -> Identifier {
        id(&format!("{}/{name}", self.uid))
    }

    fn client(&self) -> Option<Client> {
        Client::connect(&self.path, deadline()).ok()
    }
}

pub struct Attacker {
    pub path: PathBuf,
    pub uid: String,
    running: Option<(JoinHandle<()>, Arc<Stage>)>,
    /// What it has left with the daemon, to be waited for.
    pub lingering: Vec<TcpStream>,
    pub connections: Vec<Raw>,
}

impl Attacker {
    pub fn new(path: &str, uid: &str) -> Self {
        Self {
            path: path.into(),
            uid: uid.to_owned(),
            running: None,
            lingering: Vec::new(),
            connections: Vec::new(),
        }
    }

    pub fn id(&self, name: &str) -> Identifier {
        id(&format!("{}/{name}", self.uid))
    }

    pub fn act(&mut self, what: &str, words: &[&str]) -> String {
        match what {
            "begin" => self.begin(words[0]),
            "count" => self.count(),
            "end" => self.end(),
            "release" => {
                self.lingering.clear();
                self.connections.clear();
                "done".to_owned()
            }
            _ => deeds::act(self, what, words),
        }
    }

    fn begin(&mut self, name: &str) -> String {
        let attack = ATTACKS.iter().find(|(other, _)| *other == name).unwrap().1;
        let (ready, is_ready) = channel();
        let (path, uid) = (self.path.clone(), self.uid.clone());
        let (is_over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let stage = Arc::new(Stage { path, uid, is_over, ready, count });
        let on_stage = Arc::clone(&stage);
        self.running = Some((std::thread::spawn(move || attack(&on_stage)), stage));
        is_ready.recv_timeout(deadline().remaining().unwrap()).unwrap();
        "ready".to_owned()
    }

    fn count(&self) -> String {
        self.running.as_ref().unwrap().1.count.load(Ordering::Relaxed).to_string()
    }

    fn end(&mut self) -> String {
        let (thread, stage) = self.running.take().unwrap();
        stage.is_over.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        stage.count.load(Ordering::Relaxed).to_string()
    }
}

/// Harms nobody.
fn busy(stage: &Stage) {
    stage.is_ready();
    while stage.goes_on() {
        std::hint::spin_loop();
    }
}

/// A little later: there is no room now.
fn pause() {
    std::thread::sleep(Duration::from_micros(200));
}

/// As many connections as there can be, as fast as they can be had, and kept.
fn connections(stage: &Stage) {
    let mut held = VecDeque::new();
    for number in 0.. {
        if !stage.goes_on() {
            return;
        }
        match Raw::at_once(&stage.path) {
            Ok(raw) => held.push_back(raw),
            Err(_) => pause(),
        }
        stage.did();
        if number == 500 {
            stage.is_ready();
        }
        if held.len() > 2000 {
            held.pop_front();
        }
    }
}

/// None of them kept.
fn coming_and_going(stage: &Stage) {
    stage.is_ready();
    while stage.goes_on() {
        if Raw::at_once(&stage.path).is_err() {
            pause();
        }
        stage.did();
    }
}

/// Keeps so many connections, each of which `open` has brought to where it hurts; those that
/// are hung up on are opened again. `tend` does something with one, all the time.
fn keep(
    stage: &Stage,
    count: usize,
    open: impl Fn(&Raw) -> Result<(), Errno>,
    mut tend: impl FnMut(&Raw, &mut usize),
) {
    let mut held: VecDeque<(Raw, usize)> = VecDeque::new();
    let mut tried = 0;
    while stage.goes_on() {
        tried += 1;
        if held.len() < count && tried <= count {
            match Raw::at_once(&stage.path) {
                Ok(raw) if open(&raw).is_ok() => held.push_back((raw, 1)),
                _ => pause(),
            }
            continue;
        }
        stage.is_ready();
        if let Some((raw, mut turn)) = held.pop_front() {
            if raw.is_hung_up() {
                stage.did();
            } else {
                tend(&raw, &mut turn);
                held.push_back((raw, turn));
            }
        }
        if held.len() < count && tried % 64 == 0 {
            tried = 0;
        }
    }
}

/// Asks for much, and reads a byte now and then.
fn slow_readers(stage: &Stage) {
    fill(stage, 200);
    let list = bytes_of(Request::<OwnedFd>::List);
    let ask = |raw: &Raw| raw.send_some(&list.repeat(400), &[]).map(drop);
    keep(stage, 40, ask, |raw, _| {
        let _ = rustix::io::read(&raw.socket, &mut [0]);
        std::thread::sleep(Duration::from_micros(20));
    });
}

/// A byte of a request now and then.
fn slow_writers(stage: &Stage, pause: fn()) {
    let request = bytes_of(store(stage.id("slow"), ()));
    let null = null();
    let first = |raw: &Raw| raw.send_some(&request[..1], &[null.as_fd()]).map(drop);
    keep(stage, 100, first, |raw, at| {
        let fds = [null.as_fd()];
        let fds = if *at == 0 { &fds[..] } else { &[] };
        if raw.send_some(&request[*at..=*at], fds).is_ok() {
            *at = (*at + 1) % request.len();
        }
        pause();
    });
}

/// Asks for more than fits into its socket, and reads nothing.
fn unread(stage: &Stage, request: Request<OwnedFd>) {
    fill(stage, 400);
    let requests = bytes_of(request).repeat(100);
    let ask = |raw: &Raw| raw.send_some(&requests, &[]).map(drop);
    keep(stage, 100, ask, |raw, _| {
        let _ = raw.send_some(&requests, &[]);
    });
}

/// The beginning of the longest request there is, and nothing more.
fn headers(stage: &Stage) {
    let header = header(REQUEST_PAYLOAD_MAX as u32, MESSAGE_FDS_MAX as u16);
    keep(stage, 240, |raw| raw.send_some(&header, &[]).map(drop), |_, _| pause());
}

/// Half of that, with all its descriptors, over each connection that it may have.
fn half_messages(stage: &Stage) {
    let null = null();
    let fds = [null.as_fd(); MESSAGE_FDS_MAX];
    let mut bytes = header(REQUEST_PAYLOAD_MAX as u32, MESSAGE_FDS_MAX as u16).to_vec();
    bytes.resize(REQUEST_PAYLOAD_MAX / 2, b'.');
    keep(stage, 200, |raw| raw.send_some(&bytes, &fds).map(drop), |_, _| pause());
}

/// Announces sets, and gives a part of each.
fn unfinished_sets(stage: &Stage) {
    let null = null();
    let entries = entries(stage, MESSAGE_FDS_MAX, Limit::never(), &null);
    let part = Request::SetdumpData(entries).into_message();
    let announced = bytes_of(Request::<OwnedFd>::Setdump(400));
    let begin = |raw: &Raw| {
        raw.send_some(&announced, &[])?;
        raw.send_some(part.bytes(), part.fds()).map(drop)
    };
    keep(stage, 200, begin, |_, _| pause());
}

fn entries<'a>(
    stage: &Stage,
    count: usize,
    limit: Limit,
    fd: &'a File,
) -> Vec<Entry<BorrowedFd<'a>>> {
    let entry = |number: usize| Entry { id: stage.id(&number.to_string()), limit, fd: fd.as_fd() };
    (0..count).map(entry).collect()
}

/// Has something held, if it may.
fn fill(stage: &Stage, count: usize) {
    let null = null();
    let Some(mut client) = stage.client() else { return };
    for Entry { id, limit, fd } in entries(stage, count, Limit::never(), &null) {
        let _ = client.store(&id, limit, fd, deadline());
    }
}

/// Stores until there is no room, and goes on.
fn stores(stage: &Stage) {
    let null = null();
    let mut client = stage.client().unwrap();
    for number in 0.. {
        if !stage.goes_on() {
            return;
        }
        let name = stage.id(&format!("{number:0>200}"));
        if client.store(&name, Limit::never(), &null, deadline()).is_err() {
            stage.is_ready();
        }
        stage.did();
    }
}

/// Asks as fast as it can, many at once, and reads.
fn flat_out(stage: &Stage, request: &[u8], fds: &[BorrowedFd<'_>], at_once: usize) {
    let raw = Raw::new(&stage.path);
    let requests = request.repeat(at_once);
    let mut left = &requests[..0];
    let mut buffer = vec![0; 1 << 16];
    stage.is_ready();
    while stage.goes_on() {
        let is_new = left.is_empty();
        left = if is_new { &requests } else { left };
        if let Ok(sent) = raw.send_some(left, if is_new { fds } else { &[] }) {
            left = &left[sent..];
            stage.did();
        }
        let _ =
            fdholder::transport::receive(&raw.socket, &mut buffer, fdholder::transport::Wait::No);
    }
}

fn requests(stage: &Stage) {
    let delete = bytes_of(Request::<OwnedFd>::Delete(stage.id("nothing")));
    flat_out(stage, &delete, &[], 1000);
}

fn retrieves(stage: &Stage) {
    fill(stage, 1);
    let retrieve = Request::<OwnedFd>::Retrieve { id: stage.id("0"), delete: false };
    flat_out(stage, &bytes_of(retrieve), &[], 1000);
}

/// Does the same again and again, over a new connection when one is of no more use.
fn repeat(stage: &Stage, what: impl Fn(&mut Client) -> Result<(), Error>) {
    let mut client = None;
    while stage.goes_on() {
        client = client.or_else(|| stage.client());
        if client.as_mut().is_none_or(|client| what(client).is_err()) {
            client = None;
            pause();
        }
        stage.did();
        stage.is_ready();
    }
}

/// Gives a set, again and again.
fn sets(stage: &Stage) {
    let null = null();
    let set = entries(stage, 400, Limit::never(), &null);
    repeat(stage, |client| client.setdump(&set, deadline()));
}

/// Takes a dump, again and again.
fn dumps(stage: &Stage) {
    fill(stage, 400);
    repeat(stage, |client| client.getdump(deadline()).map(drop));
}

/// Has hundreds expire at the same moment, again and again.
fn expiry(stage: &Stage) {
    let null = null();
    repeat(stage, |client| {
        let limit = Limit::at(Timestamp::now().saturating_add(Duration::from_millis(10)));
        client.setdump(&entries(stage, 400, limit, &null), deadline())
    });
}

/// Sends noise with as many descriptors as go with it.
fn malformed(stage: &Stage) {
    let null = null();
    let fds = [null.as_fd(); MESSAGE_FDS_MAX];
    stage.is_ready();
    while stage.goes_on() {
        match Raw::at_once(&stage.path) {
            Ok(mut raw) => {
                let _ = raw.send_some(&[b'x'; 100], &fds);
                // Not before: it would be one more flood of connections.
                raw.answer();
            }
            Err(_) => pause(),
        }
        stage.did();
    }
}

/// Stores and deletes what takes long to close, again and again.
fn lingering_ones(stage: &Stage) {
    let mut theirs = VecDeque::new();
    for number in 0.. {
        if !stage.goes_on() {
            return;
        }
        let Ok(raw) = Raw::at_once(&stage.path) else { continue };
        let (ours, other) = lingering();
        let name = stage.id(&format!("lingers {number}"));
        if raw.say(store(name.clone(), &ours)).is_ok() {
            let _ = raw.say(Request::<OwnedFd>::Delete(name));
        }
        // It is last closed by the daemon, or a queue; if not, by somebody who has time.
        std::thread::spawn(move || drop(ours));
        theirs.push_back((raw, other));
        if theirs.len() > 100 {
            theirs.pop_front();
            stage.is_ready();
        }
        stage.did();
    }
}
