//! One thread that plays all clients, without waiting for any of them.

use crate::load::answer::Answer;
use crate::load::options::Options;
use crate::load::outcome::{Failure, Outcome};
use crate::Result;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
    Timespec,
};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Beyond every key of a slab.
const TIMER: u64 = u64::MAX;
const STDIN: u64 = u64::MAX - 1;

const EVENTS_MAX: usize = 1024;

/// After so many requests answers are read, however many more are due.
const SENT_AT_ONCE_MAX: usize = 64;

/// A connection, from connect(2) until the server closes it.
struct Client {
    number: u64,
    due: Instant,
    stream: TcpStream,
    is_asked: bool,
    is_answered: bool,
    answer: Answer,
}

/// What became of a connection after an event.
enum Progress {
    Waiting,
    /// The server has yet to close it.
    Answered,
    /// Closed, answered or not.
    Ended(std::result::Result<(), Failure>),
}

pub struct Generator<'a> {
    options: &'a Options,
    request: Vec<u8>,
    epoll: OwnedFd,
    timer: OwnedFd,
    start: Instant,
    clients: Slab<Client>,
    /// In the order in which they were due: key, number.
    timeouts: VecDeque<(usize, u64)>,
    next: u64,
    requests: u64,
    unanswered: usize,
    outcome: Outcome,
}

impl<'a> Generator<'a> {
    pub fn new(options: &'a Options) -> Result<Self> {
        let (path, address) = (&options.path, options.address);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        Ok(Self {
            options,
            request: request.into_bytes(),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?,
            start: Instant::now(),
            clients: Slab::new(),
            timeouts: VecDeque::new(),
            next: 0,
            requests: options.pace.requests(),
            unanswered: 0,
            outcome: Outcome::default(),
        })
    }

    pub fn run(mut self) -> Result<Outcome> {
        epoll::add(&self.epoll, &self.timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        if self.options.until_stdin_ends {
            let data = EventData::new_u64(STDIN);
            epoll::add(&self.epoll, std::io::stdin(), data, EventFlags::IN)?;
        }
        // Before the timer is set, so that what is due at a tick is not found too early.
        self.start = Instant::now();
        let tick = Timespec::try_from(self.options.pace.tick())?;
        let ticks = Itimerspec { it_interval: tick, it_value: tick };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &ticks)?;

        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let is_behind = self.send_due();
            if self.next >= self.requests && self.unanswered == 0 {
                break;
            }
            let timeout = is_behind.then(Timespec::default);
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref())?;
            for event in &events {
                match event.data.u64() {
                    TIMER => self.tick()?,
                    STDIN => self.stop()?,
                    key => self.go_on(key as usize, &mut buffer),
                }
            }
        }
        self.outcome.elapsed = self.start.elapsed();
        Ok(self.outcome)
    }

    /// Sends what is due; true if more is due than was sent.
    fn send_due(&mut self) -> bool {
        for _ in 0..SENT_AT_ONCE_MAX {
            let now = Instant::now();
            let due = self.options.pace.due(self.next, self.start, now, self.clients.len());
            let Some(due) = due.filter(|_| self.next < self.requests) else { return false };
            self.outcome.sent(now - due);
            if let Err(error) = self.connect(due) {
                let is_refused = error.kind() == ErrorKind::ConnectionRefused;
                self.outcome.failed(if is_refused { Failure::Refused } else { Failure::Local });
            }
            self.next += 1;
        }
        true
    }

    fn connect(&mut self, due: Instant) -> std::io::Result<()> {
        let address = self.options.address;
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        match socket.connect(&address.into()) {
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            other => other?,
        }
        let entry = self.clients.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64);
        epoll::add(&self.epoll, &socket, data, EventFlags::IN | EventFlags::OUT | EventFlags::ET)?;
        self.timeouts.push_back((entry.key(), self.next));
        entry.insert(Client {
            number: self.next,
            due,
            stream: socket.into(),
            is_asked: false,
            is_answered: false,
            answer: Answer::default(),
        });
        self.unanswered += 1;
        self.outcome.in_flight_max = self.outcome.in_flight_max.max(self.unanswered);
        Ok(())
    }

    fn go_on(&mut self, key: usize, buffer: &mut [u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let was_answered = client.is_answered;
        let progress = client.go_on(&self.request, buffer);
        let due = client.due;
        let result = match progress {
            Progress::Waiting => return,
            Progress::Answered => {
                client.is_answered = true;
                Ok(())
            }
            Progress::Ended(result) => {
                self.clients.remove(key);
                result
            }
        };
        if !was_answered {
            self.unanswered -= 1;
            match result {
                Ok(()) => self.outcome.answered(due - self.start, due.elapsed()),
                Err(failure) => self.outcome.failed(failure),
            }
        }
    }

    /// Gives up what takes too long.
    fn tick(&mut self) -> Result<()> {
        rustix::io::read(&self.timer, &mut [0; 8])?;
        let now = Instant::now();
        while let Some(&(key, number)) = self.timeouts.front() {
            if let Some(client) = self.clients.get(key).filter(|it| it.number == number) {
                if now - client.due < self.options.timeout {
                    break;
                }
                if !self.clients.remove(key).is_answered {
                    self.unanswered -= 1;
                    self.outcome.failed(Failure::Timeout);
                }
            }
            self.timeouts.pop_front();
        }
        Ok(())
    }

    /// Standard input has ended, or says something, which is the same.
    fn stop(&mut self) -> Result<()> {
        self.requests = self.requests.min(self.next);
        Ok(epoll::delete(&self.epoll, std::io::stdin())?)
    }
}

impl Client {
    fn go_on(&mut self, request: &[u8], buffer: &mut [u8]) -> Progress {
        let mut error: Option<Error> = None;
        if !self.is_asked {
            match self.stream.write(request) {
                Ok(len) if len == request.len() => self.is_asked = true,
                // A new connection has room for it.
                Ok(_) => return Progress::Ended(Err(Failure::Local)),
                Err(it) if it.kind() == ErrorKind::WouldBlock => {}
                // There may be an answer all the same. Only the first call has the cause.
                Err(it) => error = Some(it),
            }
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.is_answered => return Progress::Ended(Ok(())),
                Ok(0) => {
                    let cause = error.map_or(Failure::CutShort, |it| Failure::of(&it));
                    return Progress::Ended(self.answer.end().map_err(|_| cause));
                }
                Ok(_) if self.is_answered => {}
                Ok(len) => match self.answer.push(&buffer[..len]) {
                    Ok(true) => return self.drain_answered(buffer),
                    Ok(false) => {}
                    Err(failure) => return Progress::Ended(Err(failure)),
                },
                Err(it) if it.kind() == ErrorKind::WouldBlock => {
                    return error
                        .map_or(Progress::Waiting, |it| Progress::Ended(Err(Failure::of(&it))));
                }
                Err(it) if it.kind() == ErrorKind::Interrupted => {}
                Err(it) => return Progress::Ended(Err(Failure::of(error.as_ref().unwrap_or(&it)))),
            }
        }
    }

    /// The answer is complete. Whether the server has closed the connection as well is
    /// reported once, so it must be read now.
    fn drain_answered(&mut self, buffer: &mut [u8]) -> Progress {
        loop {
            match self.stream.read(buffer) {
                Err(it) if it.kind() == ErrorKind::WouldBlock => return Progress::Answered,
                Ok(0) | Err(_) => return Progress::Ended(Ok(())),
                Ok(_) => {}
            }
        }
    }
}
