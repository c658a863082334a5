//! A generation that starts gives way to the one that serves: to load a program takes much of a
//! processor, and clients would wait for that.

use crate::failure::{exit, Failure};
use rustix::process::{
    getpriority_process, getrlimit, setpriority_pgrp, setpriority_process, Pid, Resource,
};
use rustix::thread::{capabilities, CapabilitySet};
use std::collections::BTreeSet;
use std::fs;

/// The niceness that is added, unless something else is asked for: a tenth of a processor is left to
/// who starts on a machine that is busy.
const USUAL: u8 = 10;

/// The highest niceness.
const MOST: i32 = 19;

/// How often at most the processes of a generation are looked for: one that starts meanwhile has the
/// niceness of the one that starts it.
const PASSES: usize = 8;

/// How much niceness is added, by the command line: the usual where this process may undo it.
///
/// # Errors
///
/// When something else is asked for than what it may.
pub fn added(asked: Option<u32>) -> Result<u8, Failure> {
    let may_undo = may_undo();
    match asked {
        None if may_undo => Ok(USUAL),
        None | Some(0) => Ok(0),
        Some(added) if may_undo => Ok(u8::try_from(added).unwrap_or(u8::MAX).min(MOST as u8)),
        Some(_) => Err(Failure::new(
            exit::SYSTEM,
            "--start-nice: this process may not take niceness back: that needs CAP_SYS_NICE, or a \
             limit that allows it (ulimit -e 20, LimitNICE=0)",
        )),
    }
}

/// Of this process, from which generations have it.
fn own() -> i32 {
    getpriority_process(None).unwrap_or(0)
}

/// Whether this process may make its children less nice again, as nice as it is itself.
fn may_undo() -> bool {
    let is_privileged =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    // See getrlimit(2): the limit stands for 20 minus the niceness.
    let limit = getrlimit(Resource::Nice).current;
    is_privileged || limit.is_none_or(|limit| limit >= 20i32.abs_diff(own()).into())
}

/// Makes a generation nicer that has just been started.
pub fn add(generation: Pid, added: u8) {
    // Without it, it is as others are.
    let _ = setpriority_pgrp(Some(generation), (own() + i32::from(added)).min(MOST));
}

/// Takes it back from all processes of a generation. Those that have made themselves less nice stay
/// so.
pub fn take_back(generation: Pid, added: u8) {
    let nicer = (own() + i32::from(added)).min(MOST);
    let again = nicer - own();
    for _ in 0..PASSES {
        let mut has_changed = false;
        for thread in threads_of(generation.as_raw_nonzero().get()) {
            let Some(thread) = Pid::from_raw(thread) else { continue };
            // It may have ended just now.
            let Ok(niceness) = getpriority_process(Some(thread)) else { continue };
            if niceness >= nicer {
                has_changed |= setpriority_process(Some(thread), niceness - again).is_ok();
            }
        }
        if !has_changed {
            return;
        }
    }
}

/// The threads of a process, of its process group, and of all that these have started.
fn threads_of(root: i32) -> Vec<i32> {
    let all = numbers_in("/proc").into_iter().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (parent, group) = parent_and_group(&stat)?;
        Some((pid, parent, group))
    });
    let all: Vec<_> = all.collect();
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for (pid, parent, group) in &all {
            if *group == root || found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    found.iter().flat_map(|pid| numbers_in(&format!("/proc/{pid}/task"))).collect()
}

fn numbers_in(folder: &str) -> Vec<i32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Of a line of `proc_pid_stat(5)`.
fn parent_and_group(stat: &str) -> Option<(i32, i32)> {
    // The name of the program may have parentheses and spaces.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn line_tells_parent_and_group() {
        assert_eq!(parent_and_group("12 (a) b) S 1 7 7 0"), Some((1, 7)));
        assert_eq!(parent_and_group("12 (a"), None);
    }

    /// Threads, a child in the same group, one that has a session of its own, and one that has made
    /// itself less nice.
    #[test]
    fn all_of_a_generation_is_as_nice_again_as_it_was() {
        if !may_undo() {
            // A user who may not is left alone, unless that is asked for.
            assert_eq!(added(None).unwrap(), 0);
            return assert!(added(Some(5)).is_err());
        }
        assert_eq!([added(None), added(Some(0)), added(Some(5))].map(Result::unwrap), [10, 0, 5]);
        let program = "import os, threading, time\n\
            threading.Thread(target=time.sleep, args=[1000], daemon=True).start()\n\
            def child(what):\n\
            \x20 if os.fork() == 0:\n\
            \x20  what()\n\
            \x20  print(os.getpid(), flush=True)\n\
            \x20  time.sleep(1000)\n\
            child(lambda: None)\n\
            child(os.setsid)\n\
            child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -3))\n\
            time.sleep(1000)";
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", program]).process_group(0).stdout(Stdio::piped());
        let mut python = command.spawn().unwrap();
        let generation = Pid::from_child(&python);
        add(generation, 10);
        let lines = BufReader::new(python.stdout.take().unwrap()).lines();
        let mut children: Vec<i32> =
            lines.take(3).map(|line| line.unwrap().parse().unwrap()).collect();
        children.push(generation.as_raw_nonzero().get());
        let threads = threads_of(generation.as_raw_nonzero().get());
        assert_eq!(threads.len(), 5);
        let niceness = || {
            let of = |pid: &i32| getpriority_process(Pid::from_raw(*pid)).unwrap();
            let mut all: Vec<_> = threads.iter().map(of).collect();
            all.sort_unstable();
            all
        };
        let (own, nicer) = (own(), own() + 10);
        assert_eq!(niceness(), [-3, nicer, nicer, nicer, nicer]);
        take_back(generation, 10);
        assert_eq!(niceness(), [-3, own, own, own, own]);
        for pid in children {
            let _ = rustix::process::kill_process(
                Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        python.wait().unwrap();
    }
}
