//! Processes that the daemon starts, each looked after by a thread.
//!
//! To start one and to let go of one that has ended takes the kernel milliseconds when many
//! descriptors are open, in which the loop has clients to serve.

use crate::confinement::advice_to_execute;
use crate::launch::Launch;
use crate::limits::COURIER_STACK_LEN;
use rustix::process::{
    pidfd_open, pidfd_send_signal, waitid, waitpid, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions,
    WaitOptions,
};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Held while a process is started, which would have the ends of connections open that are
/// for another one.
static STARTING: Mutex<()> = Mutex::new(());

/// Holds others off who start processes.
pub(crate) fn start_alone() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long one that was killed may take to end.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum State {
    /// It is about to run; or not, if nobody wants it any more.
    Starting {
        is_wanted: bool,
    },
    Runs {
        pid: i32,
        handle: OwnedFd,
    },
    /// It has ended, or could not be started.
    Ended(String),
}

/// A process that was started to follow. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Offspring {
    state: Arc<Mutex<State>>,
    /// The client that it is until it follows.
    pub token: Option<usize>,
}

impl Offspring {
    /// Starts one with an end of a connection. When it cannot be started, that end is
    /// closed; the reason is told by [`ended`](Self::ended).
    pub fn start(launch: Launch, link: OwnedFd) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::Starting { is_wanted: true }));
        let told = Arc::clone(&state);
        let look_after = move || look_after(&launch, link, &told);
        std::thread::Builder::new().stack_size(COURIER_STACK_LEN).spawn(look_after)?;
        Ok(Self { state, token: None })
    }

    /// Which process it is, of one that has been heard of: if that is not known yet, it will
    /// be in a moment. `None` when it has ended.
    pub fn pid(&self) -> Option<i32> {
        loop {
            match &*lock(&self.state) {
                State::Runs { pid, .. } => return Some(*pid),
                State::Ended(_) => return None,
                State::Starting { .. } => {}
            }
            std::thread::yield_now();
        }
    }

    /// How it has ended, if it has.
    pub fn ended(&self) -> Option<String> {
        match &*lock(&self.state) {
            State::Ended(how) => Some(how.clone()),
            _ => None,
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        match &mut *lock(&self.state) {
            State::Starting { is_wanted } => *is_wanted = false,
            // It may have ended just now.
            State::Runs { handle, .. } => drop(pidfd_send_signal(handle, Signal::KILL)),
            State::Ended(_) => {}
        }
    }

    /// Waits for its end, but not for long.
    pub fn wait(&self, patience: Duration) -> Option<String> {
        let until = Instant::now() + patience;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= until {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it, and waits until it has ended: false if it has not.
    pub fn end(self) -> bool {
        self.kill();
        self.wait(END_PATIENCE).is_some()
    }
}

impl Drop for Offspring {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A thread that panics ends the process.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_after(launch: &Launch, link: OwnedFd, state: &Mutex<State>) {
    let alone = start_alone();
    let started = launch.start(&link).and_then(|child| Ok((handle_of(&child)?, child)));
    let mut child = match started {
        Ok((handle, child)) => {
            let pid = i32::try_from(child.id()).unwrap_or_default();
            let mut state = lock(state);
            if matches!(*state, State::Starting { is_wanted: false }) {
                // Just started, and not waited for: it is that process.
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
            *state = State::Runs { pid, handle };
            child
        }
        Err(error) => {
            let advice = advice_to_execute(&launch.program, error.kind());
            *lock(state) = State::Ended(format!("unable to start it: {error}{advice}"));
            // Now whoever reads the other end is told.
            return;
        }
    };
    drop(link);
    drop(alone);
    let how = ending_of(&child);
    *lock(state) = State::Ended(how);
    // Only now is it let go, which may take a while.
    let _ = child.wait();
}

fn handle_of(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Waits for the end of a process.
fn ending_of(child: &Child) -> String {
    let id = WaitId::Pid(Pid::from_child(child));
    match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status: {code}"),
            (None, Some(signal)) => format!("signal: {signal}"),
            _ => "it has ended".to_owned(),
        },
        // Somebody else has waited for it.
        _ => "it has ended".to_owned(),
    }
}

/// Waits for the ends of the processes that the program which we have become had started.
/// Without it, what is left of them stays as long as this one.
pub(crate) fn let_go_of_children() {
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
    drop(std::thread::Builder::new().stack_size(COURIER_STACK_LEN).spawn(wait));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn start(words: &[&str]) -> (Offspring, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let arguments = words.iter().map(Into::into).collect();
        let launch = Launch { program: words[0].into(), arguments };
        (Offspring::start(launch, theirs.into()).unwrap(), ours)
    }

    #[test]
    fn it_is_told_how_it_ended() {
        for (script, how) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9")] {
            let (process, mut link) = start(&["/bin/sh", "-c", script]);
            // Nobody else has the other end.
            assert_eq!(link.read(&mut [0]).unwrap(), 0);
            assert_eq!(process.wait(END_PATIENCE).as_deref(), Some(how));
        }
        let (process, mut link) = start(&["/no/such/program"]);
        assert_eq!(link.read(&mut [0]).unwrap(), 0);
        assert!(process.ended().unwrap().contains("No such file"), "{process:?}");
    }

    #[test]
    fn it_does_not_outlive_its_use() {
        let (process, mut link) = start(&["/bin/cat"]);
        drop(process);
        assert_eq!(link.read(&mut [0]).unwrap(), 0);
    }
}
