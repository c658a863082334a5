//! All of it together: what happens next is drawn from the seed.

mod faults;
mod quiet;

use super::client::{Client, Habits};
use super::following::{Fate, Following};
use super::kernel::{Fd, File, Listener, Socket, Table, Wire};
use super::oracle::Oracle;
use super::random::Random;
use super::serving::{Numbers, Roll, Server, Turn, Want};
use crate::store::Store;
use fdholder::{Identifier, Timestamp};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Among seeds, every so manieth has sets that take several messages.
pub const LARGE_SETS_EVERY: u64 = 8;

/// Operations between two moments at which all is quiet.
const OPERATIONS_PER_STRETCH: u64 = 500;

/// Rounds until everything must be quiet: much longer than any patience.
const ROUNDS_MAX: usize = 5000;

/// Steps without an operation after which it is looked at whether there can be any.
const STANDSTILL: u64 = 800;

/// A process.
#[derive(Debug)]
struct Process {
    table: Rc<Table>,
    role: Role,
    hangs_until: u64,
    killed_at: Option<u64>,
}

#[derive(Debug)]
enum Role {
    Serves(Box<Server>),
    Follows(Box<Following>),
}

/// What the kernel has not closed yet of a process that has ended.
#[derive(Debug)]
enum Remains {
    Roll { _roll: Option<Roll> },
    All { _role: Role },
}

/// How often what goes wrong: one in so many steps.
#[derive(Debug)]
struct Faults {
    kill: usize,
    hang: usize,
    takeover: usize,
    clock: usize,
}

/// What came to pass, for who wants to know whether the simulator does anything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub operations: u64,
    pub steps: u64,
    pub kills: u64,
    pub takeovers: u64,
    pub promotions: u64,
    pub losses: u64,
    /// Sets of several messages.
    pub large_sets: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.steps += other.steps;
        self.kills += other.kills;
        self.takeovers += other.takeovers;
        self.promotions += other.promotions;
        self.losses += other.losses;
        self.large_sets += other.large_sets;
    }
}

/// What went wrong, and how to see it again.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub step: u64,
    pub operations: u64,
    pub what: String,
}

#[derive(Debug)]
pub struct World {
    seed: u64,
    random: Random,
    now: Timestamp,
    step: u64,
    numbers: Numbers,
    oracle: Oracle,
    path: Weak<Listener>,
    processes: Vec<Process>,
    remains: Vec<(u64, Remains)>,
    clients: Vec<Client>,
    wires: Vec<(u32, Weak<Wire>)>,
    wants: Vec<Want>,
    capacity: usize,
    habits: Habits,
    faults: Faults,
    tally: Tally,
    trace: bool,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let large_sets = seed.is_multiple_of(LARGE_SETS_EVERY);
        let capacity = if large_sets { 700 } else { [12, 40][random.below(2)] };
        let id = |number: usize| {
            let text = match number % 4 {
                0 => format!("an identifier of more than a few bytes {number}"),
                _ => number.to_string(),
            };
            Identifier::new(text).expect("it has no NUL")
        };
        let habits = Habits {
            ids: (0..random.between(4, 24)).map(id).collect(),
            large_sets,
            vanish: if large_sets { 2000 } else { [50, 200, 1000][random.below(3)] },
        };
        let rarity = if large_sets { 5 } else { 1 };
        let faults = Faults {
            kill: [300, 1000, 4000][random.below(3)] * rarity,
            hang: [500, 2000, 8000][random.below(3)] * rarity,
            takeover: [400, 1500, 6000][random.below(3)] * rarity,
            clock: [500, 3000][random.below(2)],
        };
        let clients = (0..random.between(1, 7)).map(|uid| Client::new(uid as u32 + 1)).collect();
        Self {
            seed,
            random,
            now: Timestamp::new((1 << 62) + 1_000_000, 0).expect("no nanoseconds"),
            step: 0,
            numbers: Numbers::default(),
            oracle: Oracle::new(capacity),
            path: Weak::new(),
            processes: Vec::new(),
            remains: Vec::new(),
            clients,
            wires: Vec::new(),
            wants: Vec::new(),
            capacity,
            habits,
            faults,
            tally: Tally::default(),
            trace,
        }
    }

    /// Lets so many operations happen, and looks whether all is as it must be.
    pub fn run(mut self, operations: u64) -> Result<Tally, Failure> {
        let mut quiet_at = OPERATIONS_PER_STRETCH;
        // When an operation was carried out last.
        let mut progress = (0, 0);
        self.begin();
        while self.oracle.failure.is_none() && self.oracle.operations < operations {
            self.take_step();
            if self.oracle.operations != progress.0 {
                progress = (self.oracle.operations, self.step);
            }
            if self.oracle.operations >= quiet_at || self.step >= progress.1 + STANDSTILL {
                self.calm_down();
                progress.1 = self.step;
                quiet_at = self.oracle.operations + OPERATIONS_PER_STRETCH;
            }
        }
        if self.oracle.failure.is_none() {
            self.calm_down();
        }
        self.tally.operations = self.oracle.operations;
        self.tally.steps = self.step;
        self.tally.large_sets = self.oracle.large_sets;
        match self.oracle.failure.take() {
            None => Ok(self.tally),
            Some(what) => {
                let operations = self.oracle.operations;
                Err(Failure { seed: self.seed, step: self.step, operations, what })
            }
        }
    }

    fn turn(&mut self) -> (Turn<'_>, &mut Vec<Process>, &mut Vec<Client>, &Habits) {
        let turn = Turn {
            random: &mut self.random,
            oracle: &mut self.oracle,
            now: self.now,
            step: self.step,
            wants: &mut self.wants,
            numbers: &mut self.numbers,
            trace: self.trace,
        };
        (turn, &mut self.processes, &mut self.clients, &self.habits)
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>8} {}", self.step, what());
        }
    }

    /// A daemon that holds nothing.
    fn begin(&mut self) {
        let listener = Rc::new(Listener::default());
        self.path = Rc::downgrade(&listener);
        self.numbers.pid += 1;
        let table = Table::new(self.numbers.pid);
        self.note(|| format!("{} begins", table.pid));
        let listener = Fd::new(File::Listener(listener), &table);
        let store = Store::new(self.capacity);
        let (mut turn, ..) = self.turn();
        turn.oracle.all_is_lost();
        turn.oracle.succeeds(table.pid, &store);
        let server = Server::inherit(&table, listener, store, Vec::new(), &mut turn);
        self.add(table, Role::Serves(Box::new(server)));
    }

    fn add(&mut self, table: Rc<Table>, role: Role) {
        self.processes.push(Process { table, role, hangs_until: 0, killed_at: None });
    }

    fn take_step(&mut self) {
        self.step += 1;
        let millis = self.random.below(20) as u64;
        self.now = self.now.saturating_add(Duration::from_millis(millis));
        match self.random.below(100) {
            0..=49 => {
                let client = self.random.below(self.clients.len());
                self.act(client, false);
            }
            50..=79 => {
                let serves = |process: &Process| matches!(process.role, Role::Serves(_));
                if let Some(index) = self.processes.iter().position(serves) {
                    self.run_process(index);
                }
            }
            _ => {
                if !self.processes.is_empty() {
                    let index = self.random.below(self.processes.len());
                    self.run_process(index);
                }
            }
        }
        self.let_things_go_wrong();
        self.clean_up();
    }

    fn act(&mut self, client: usize, calm: bool) {
        let path = self.path.upgrade();
        let wire = self.numbers.wire;
        let (mut turn, _, clients, habits) = self.turn();
        clients[client].act(calm, path.as_ref(), habits, &mut turn);
        if self.numbers.wire != wire {
            let connected = self.clients[client].wire().map(|wire| Rc::downgrade(&wire));
            self.wires.extend(connected.map(|weak| (self.numbers.wire, weak)));
        }
    }

    fn run_process(&mut self, index: usize) {
        if self.processes[index].hangs_until > self.step {
            return;
        }
        let mut process = self.processes.swap_remove(index);
        let (mut turn, ..) = self.turn();
        let fate = match &mut process.role {
            Role::Serves(server) => {
                server.take_turn(&mut turn);
                if server.ended {
                    Fate::Ends("it has been followed")
                } else {
                    Fate::Follows
                }
            }
            Role::Follows(following) => following.take_turn(&mut turn),
        };
        let pid = process.table.pid;
        if process.table.is_dead() {
            self.kill(process);
        } else {
            match fate {
                Fate::Follows => self.processes.push(process),
                Fate::Ends(why) => self.note(|| format!("{pid} ends: {why}")),
                Fate::Serves => self.promote(process),
            }
        }
        for want in std::mem::take(&mut self.wants) {
            match want {
                Want::Standby(socket, table) => self.start_follower(&table, socket, false),
                Want::Kill(pid) => {
                    let delay = if self.random.one_in(3) { self.random.below(600) } else { 0 };
                    let killed_at = self.step + delay as u64;
                    let process = self.processes.iter_mut().find(|p| p.table.pid == pid);
                    if let Some(process) = process {
                        process.killed_at = Some(killed_at);
                    }
                }
            }
        }
    }

    fn promote(&mut self, process: Process) {
        let Process { table, role: Role::Follows(following), .. } = process else { return };
        self.note(|| format!("{} serves", table.pid));
        self.tally.promotions += 1;
        let (listener, replica) = following.into_parts();
        let (store, clients, _) = replica.into_parts();
        let Some(listener) = listener else { return };
        let (mut turn, ..) = self.turn();
        turn.oracle.succeeds(table.pid, &store);
        store.check();
        let server = Server::inherit(&table, listener, store, clients, &mut turn);
        if table.is_dead() {
            self.kill(Process {
                table,
                role: Role::Serves(Box::new(server)),
                hangs_until: 0,
                killed_at: None,
            });
        } else {
            self.add(table, Role::Serves(Box::new(server)));
        }
    }

    fn start_follower(&mut self, table: &Rc<Table>, socket: Rc<Socket>, takes_over: bool) {
        self.note(|| format!("{} is started, takes over: {takes_over}", table.pid));
        let capacity = self.capacity;
        let (mut turn, ..) = self.turn();
        let following = Following::begin(table, socket, capacity, takes_over, &mut turn);
        self.add(Rc::clone(table), Role::Follows(Box::new(following)));
    }

    fn start_takeover(&mut self) {
        let Some(path) = self.path.upgrade() else { return };
        self.tally.takeovers += 1;
        self.numbers.pid += 1;
        self.numbers.wire += 1;
        let table = Table::new(self.numbers.pid);
        let room = 1 << self.random.between(7, 15);
        let follower = Some(Rc::downgrade(&table));
        let (theirs, ours) = Wire::pair(self.numbers.wire, 0, follower, room);
        path.connect(theirs);
        self.start_follower(&table, ours, true);
    }

    fn clean_up(&mut self) {
        let step = self.step;
        self.remains.retain(|(at, _)| *at > step);
        while let Some(index) =
            self.processes.iter().position(|p| p.killed_at.is_some_and(|at| at <= step))
        {
            let process = self.processes.swap_remove(index);
            self.kill(process);
        }
        if self.oracle.serving.is_some() {
            return;
        }
        // Whoever still follows may have to read what it was sent.
        if self.processes.is_empty() {
            if !self.oracle.heirs.is_empty() {
                let heirs = self.oracle.heirs.clone();
                self.oracle.fail(|| format!("nobody serves, although {heirs:?} had everything"));
            }
            self.tally.losses += 1;
            self.begin();
        }
    }
}
