//! Child processes: a launcher thread starts them, and one thread watches each.
//!
//! The launcher has a descriptor table of its own. So a child never has what is held, nor any
//! connection, not even while it hangs before its exec; and fork(2) copies a small table. What
//! becomes of a child is read by the loop when the launcher's socket is readable: the loop waits
//! for none of it.

use crate::clock;
use crate::confinement::advice_to_execute;
use crate::launch::Launch;
use crate::limits::{CHILD_STACK_LEN, ROOM_PAUSE};
use crate::nothing;
use crate::own_table::{close_other, separate};
use crate::thread::spawn;
use fdholder::transport::{self, Wait};
use fdholder::Errno;
use nix::sys::wait::{waitid as any_child, Id, WaitPidFlag};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::process::{
    kill_process, waitid, waitpid, Pid, Signal, WaitId, WaitIdOptions, WaitOptions,
};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::Child as Process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often to look whether a child has stopped.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// What the launcher says first: it has a table of its own, or shares ours.
const HAS_OWN_TABLE: u8 = 1;
const SHARES_TABLE: u8 = 2;

/// What is said later only wakes.
const WAKE: u8 = 0;

#[derive(Debug)]
enum State {
    /// It is about to run; or not, if nobody wants it any more.
    Starting { is_wanted: bool },
    /// It runs, or has ended and was not waited for: its number is nobody else's.
    Runs { pid: Pid },
    /// It has ended, or could not be started.
    Ended(String),
}

/// A child process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    state: Arc<Mutex<State>>,
    /// The client that it is until it follows.
    pub token: Option<usize>,
}

impl Child {
    /// Its pid, while it runs and as far as that is known by now.
    pub fn pid(&self) -> Option<i32> {
        match &*lock(&self.state) {
            State::Runs { pid } => Some(pid.as_raw_pid()),
            State::Starting { .. } | State::Ended(_) => None,
        }
    }

    /// How it has ended, if it has.
    pub fn ended(&self) -> Option<String> {
        match &*lock(&self.state) {
            State::Ended(how) => Some(how.clone()),
            State::Starting { .. } | State::Runs { .. } => None,
        }
    }

    /// Stops it (SIGSTOP), and waits until it does nothing any more: false if it still may.
    pub fn freeze(&self, patience: Duration) -> bool {
        let pid = match &*lock(&self.state) {
            State::Ended(_) => return true,
            // As below, the number is still its own.
            State::Runs { pid } if kill_process(*pid, Signal::STOP).is_ok() => *pid,
            State::Starting { .. } | State::Runs { .. } => return false,
        };
        let until = Instant::now() + patience;
        let which = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
        let flags = which | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while Instant::now() < until {
            match waitid(WaitId::Pid(pid), flags) {
                // Nobody else waits for it before it has ended.
                Ok(Some(_)) | Err(Errno::CHILD) => return true,
                _ => clock::pause(LOOK_PAUSE),
            }
        }
        false
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        if let State::Runs { pid } = &*lock(&self.state) {
            // It may have ended just now.
            let _ = kill_process(*pid, Signal::CONT);
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        match &mut *lock(&self.state) {
            State::Starting { is_wanted } => *is_wanted = false,
            // Who waits for it needs this lock first, so the number is still its own.
            State::Runs { pid } => drop(kill_process(*pid, Signal::KILL)),
            State::Ended(_) => {}
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts child processes. Dropped, it starts no more; those that run go on being watched.
#[derive(Debug)]
pub struct Launcher {
    jobs: Arc<Mutex<VecDeque<Job>>>,
    /// Each job is one message; what comes back says that something has changed.
    socket: OwnedFd,
    /// The thread's end, until it is known whether that is in a table of its own.
    number: Option<RawFd>,
}

#[derive(Debug)]
enum Job {
    Start { launch: Launch, state: Arc<Mutex<State>> },
    Reap,
}

impl Launcher {
    /// Starts the launcher.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or no thread for it.
    pub fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let number = theirs.as_raw_fd();
        let jobs = Arc::new(Mutex::new(VecDeque::new()));
        let for_thread = Arc::clone(&jobs);
        spawn(CHILD_STACK_LEN, move || launch_children(theirs, &for_thread))?;
        Ok(Self { jobs, socket, number: Some(number) })
    }

    /// Starts a child with an end of a connection. If it cannot be started, that end is closed;
    /// [`Child::ended`] tells why.
    ///
    /// # Errors
    ///
    /// When the launcher cannot be asked: there is no memory, or it has too much to do.
    pub(crate) fn start_child(&self, launch: Launch, link: &OwnedFd) -> io::Result<Child> {
        let state = Arc::new(Mutex::new(State::Starting { is_wanted: true }));
        let child = Child { state: Arc::clone(&state), token: None };
        self.ask(Job::Start { launch, state }, &[link.as_fd()])?;
        Ok(child)
    }

    /// As the first process of a container: waits for processes that have ended and whose parents
    /// have, too. What is still being started keeps it from that; the loop is woken afterwards.
    pub(crate) fn reap_orphans(&self) {
        // It is asked again when the next one ends.
        let _ = self.ask(Job::Reap, &[]);
    }

    fn ask(&self, job: Job, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        // The thread looks for a job only when it has been told of one, so it waits for this lock.
        let mut jobs = lock(&self.jobs);
        transport::send(&self.socket, &[WAKE], fds, Wait::No)?;
        jobs.push_back(job);
        Ok(())
    }

    /// Forgets that it was woken: to be called before children are looked at.
    pub(crate) fn hear(&mut self) {
        let mut message = [0; 8];
        loop {
            match transport::receive(&self.socket, &mut message, Wait::No) {
                Ok(received) if received.len > 0 => {}
                _ => return,
            }
            // The first one tells whose number that is.
            if let Some(number) = self.number.take().filter(|_| message[0] == HAS_OWN_TABLE) {
                close_other(number);
            }
        }
    }
}

impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the threads of one launcher share.
#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    children: Mutex<Known>,
}

/// The children that threads of ours wait for.
#[derive(Debug, Default)]
struct Known {
    /// Those whose number is not known yet.
    starting: usize,
    pids: Vec<Pid>,
}

impl Shared {
    /// Wakes the loop. If so many messages wait that there is no room, it is about to wake.
    fn wake(&self) {
        let _ = transport::send(&self.socket, &[WAKE], &[], Wait::No);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind them is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the launcher's thread does until the loop has gone.
fn launch_children(socket: OwnedFd, jobs: &Mutex<VecDeque<Job>>) {
    let has_own_table = separate(&socket);
    if has_own_table {
        release_standard_streams();
    }
    let first = if has_own_table { HAS_OWN_TABLE } else { SHARES_TABLE };
    let shared = Arc::new(Shared { socket, children: Mutex::default() });
    // Its socket is empty.
    let _ = transport::send(&shared.socket, &[first], &[], Wait::No);
    let mut message = [0; 8];
    loop {
        let received = match transport::receive(&shared.socket, &mut message, Wait::Yes) {
            Ok(received) if received.len == 0 => return,
            Ok(received) => received,
            // There is no memory at this moment; nothing was taken.
            Err(_) => {
                clock::pause(ROOM_PAUSE);
                continue;
            }
        };
        match lock(jobs).pop_front() {
            Some(Job::Start { launch, state }) => {
                start(&shared, launch, &state, received.fds.into_iter().next());
            }
            Some(Job::Reap) => reap_orphans(&shared),
            None => {}
        }
    }
}

/// The readiness pipe on standard output must end for its reader, and children get these.
fn release_standard_streams() {
    if let Ok(null) = nothing::open() {
        // They fail only if interrupted, which they are not: all signals are blocked here.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

fn start(shared: &Arc<Shared>, launch: Launch, state: &Arc<Mutex<State>>, link: Option<OwnedFd>) {
    let failed = |state: &Mutex<State>, why: String| {
        *lock(state) = State::Ended(format!("unable to start it: {why}"));
        shared.wake();
    };
    let Some(link) = link else {
        return failed(state, "the process has no room for its connection".to_owned());
    };
    lock(&shared.children).starting += 1;
    let (for_thread, told) = (Arc::clone(shared), Arc::clone(state));
    let watch = move || watch(&for_thread, &launch, link, &told);
    if let Err(error) = spawn(CHILD_STACK_LEN, watch) {
        lock(&shared.children).starting -= 1;
        failed(state, error.to_string());
    }
}

/// Starts a child, and waits for its end.
fn watch(shared: &Shared, launch: &Launch, link: OwnedFd, state: &Mutex<State>) {
    // The standard library panics when reading how its child began fails.
    let started = catch_unwind(AssertUnwindSafe(|| launch.start(link)));
    let started = started.unwrap_or_else(|_| Err(io::Error::other("its start has failed")));
    let pid = started.as_ref().ok().map(Pid::from_child);
    {
        let mut children = lock(&shared.children);
        children.starting -= 1;
        children.pids.extend(pid);
    }
    let mut process = match started {
        Ok(process) => process,
        Err(error) => {
            let advice = advice_to_execute(&launch.program, error.kind());
            *lock(state) = State::Ended(format!("unable to start it: {error}{advice}"));
            return shared.wake();
        }
    };
    let pid = Pid::from_child(&process);
    {
        let mut state = lock(state);
        if matches!(*state, State::Starting { is_wanted: false }) {
            // It was not waited for: the number is its own.
            let _ = kill_process(pid, Signal::KILL);
        }
        *state = State::Runs { pid };
    }
    shared.wake();
    let how = ending_of(&process);
    *lock(state) = State::Ended(how);
    shared.wake();
    // Only now is its number free, and this takes the kernel a while.
    let _ = process.wait();
    lock(&shared.children).pids.retain(|other| *other != pid);
    // Orphans that ended behind it were not looked at.
    shared.wake();
}

/// Waits for the end of a child, and leaves it there.
fn ending_of(process: &Process) -> String {
    let id = WaitId::Pid(Pid::from_child(process));
    loop {
        match waitid(id.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(Some(status)) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit status: {code}"),
                    (None, Some(signal)) => format!("signal: {signal}"),
                    _ => "it has ended".to_owned(),
                };
            }
            // Somebody else has waited for it.
            Err(Errno::CHILD) => return "it has ended".to_owned(),
            // What failed says nothing of the child.
            Ok(None) | Err(_) => clock::pause(ROOM_PAUSE),
        }
    }
}

fn reap_orphans(shared: &Shared) {
    // Held meanwhile: a child whose number is not known must not be taken for an orphan.
    let children = lock(&shared.children);
    if children.starting > 0 {
        return;
    }
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let Some(pid) = any_child(Id::All, flags).ok().and_then(|ended| ended.pid()) else {
            return;
        };
        let Some(pid) = Pid::from_raw(pid.as_raw()) else { return };
        // It is the first of all that have ended until its own thread has waited for it.
        if children.pids.contains(&pid) {
            return;
        }
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Waits for the ends of the processes that the program which we have become had started.
/// Without it, what is left of them stays as long as this one.
pub(crate) fn reap_inherited_children() {
    // Those of this thread, the only one so far. Without such a file there are just those remains.
    let Ok(children) = std::fs::read_to_string("/proc/thread-self/children") else { return };
    let children: Vec<_> =
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
    if children.is_empty() {
        return;
    }
    let wait = move || {
        for pid in children {
            // Somebody else may have waited for it.
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    };
    // Without a thread they stay; nothing else depends on it.
    drop(spawn(CHILD_STACK_LEN, wait));
}

#[cfg(test)]
mod tests;
