//! A generation that starts gives way to the one that serves: to load a program takes much of a
//! processor, and clients would wait for that.

use crate::failure::{exit, Failure};
use rustix::io::Errno;
use rustix::process::{getpriority_process, setpriority_process, Pid};
use std::collections::BTreeSet;
use std::fs;

/// The niceness that is added, unless something else is asked for: a tenth of a processor is left to
/// who starts on a machine that is busy.
const USUAL: i32 = 10;

/// The highest niceness.
const MOST: i32 = 19;

/// How often at most the processes of a generation are looked for: one that starts meanwhile has the
/// niceness of the one that starts it.
const PASSES: usize = 8;

/// The niceness of generations that start.
#[derive(Debug, Clone, Copy)]
pub struct Niceness {
    /// That of this process when it began, from which generations have it.
    own: i32,
    pub added: i32,
}

impl Niceness {
    /// What the command line asks for, or the usual, where this process may undo it.
    ///
    /// # Errors
    ///
    /// When something is asked for and it may not.
    pub fn of(asked: Option<u32>) -> Result<Self, Failure> {
        let own = getpriority_process(None).unwrap_or(0);
        let none = Self { own, added: 0 };
        let added = asked.map_or(USUAL, |asked| i32::try_from(asked).unwrap_or(MOST));
        // None can be added to the highest.
        let added = added.min(MOST - own);
        if added <= 0 {
            return Ok(none);
        }
        match (may_undo(own), asked) {
            (true, _) => Ok(Self { own, added }),
            (false, None) => Ok(none),
            (false, Some(_)) => Err(Failure::new(
                exit::SYSTEM,
                "--start-nice: this process may not take niceness back: that needs /proc, and \
                 CAP_SYS_NICE or a limit that allows it (ulimit -e 20, LimitNICE=0)",
            )),
        }
    }

    /// Takes it back from all processes of a generation. Those that have made themselves less nice
    /// stay so.
    ///
    /// # Errors
    ///
    /// Those of setpriority(2), if one of them is as it was.
    pub fn take_back(self, generation: Pid) -> Result<(), Errno> {
        let (mut done, mut outcome) = (BTreeSet::new(), Ok(()));
        for _ in 0..PASSES {
            let before = done.len();
            for number in threads_of(generation.as_raw_nonzero().get()) {
                let thread = Pid::from_raw(number).filter(|_| !done.contains(&number));
                let niceness = thread.and_then(|thread| getpriority_process(Some(thread)).ok());
                // It may have ended just now.
                let Some(niceness) = niceness.filter(|it| *it >= self.own + self.added) else {
                    continue;
                };
                match setpriority_process(thread, niceness - self.added) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => outcome = Err(errno),
                }
                done.insert(number);
            }
            if done.len() == before {
                break;
            }
        }
        outcome
    }
}

/// Makes this process nicer, and what it becomes.
pub fn add(added: i32) {
    if added > 0 {
        let own = getpriority_process(None).unwrap_or(0);
        // Without it, it is as others are.
        let _ = setpriority_process(None, (own + added).min(MOST));
    }
}

/// Whether this process may make its children less nice again, as nice as it is itself. Capabilities
/// do not tell: those of a user namespace do not count. So a thread tries it with itself.
fn may_undo(own: i32) -> bool {
    // The numbers in /proc may be those of another pid namespace.
    let stat = fs::read("/proc/self/stat").unwrap_or_default();
    let number = String::from_utf8_lossy(&stat).split(' ').next().map(str::to_owned);
    if number != Some(std::process::id().to_string()) {
        return false;
    }
    let tries = std::thread::Builder::new().spawn(move || {
        setpriority_process(None, own + 1).is_ok() && setpriority_process(None, own).is_ok()
    });
    tries.is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// The threads of a process, of its process group, and of all that these have started.
fn threads_of(root: i32) -> Vec<i32> {
    let all = numbers_in("/proc").into_iter().filter_map(|pid| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (parent, group) = parent_and_group(&String::from_utf8_lossy(&stat))?;
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

    /// Threads, a child in the same group, one that has a session of its own and a name that is not
    /// UTF-8, one that has made itself less nice, and one that is nicer than the others.
    #[test]
    fn all_of_a_generation_is_as_nice_again_as_it_was() {
        let own = getpriority_process(None).unwrap();
        if !may_undo(own) {
            // A user who may not is left alone, unless that is asked for.
            assert_eq!(Niceness::of(None).unwrap().added, 0);
            return assert!(Niceness::of(Some(5)).is_err());
        }
        let added = [None, Some(0), Some(5)].map(|asked| Niceness::of(asked).unwrap().added);
        assert_eq!(added, [10, 0, 5]);
        let niceness = Niceness::of(Some(5)).unwrap();
        let program = "import os, threading, time\n\
            threading.Thread(target=time.sleep, args=[1000], daemon=True).start()\n\
            def child(what):\n\
            \x20 if os.fork() == 0:\n\
            \x20  what()\n\
            \x20  os.write(1, b'%d\\n' % os.getpid())\n\
            \x20  time.sleep(1000)\n\
            child(lambda: None)\n\
            def stranger():\n\
            \x20 os.setsid()\n\
            \x20 open('/proc/self/comm', 'wb').write(b'\\xff')\n\
            child(stranger)\n\
            child(lambda: os.nice(7))\n\
            child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -3))\n\
            time.sleep(1000)";
        let mut command = Command::new("nice");
        command
            .args(["-n", "5", "/usr/bin/python3", "-c", program])
            .process_group(0)
            .stdout(Stdio::piped());
        let mut python = command.spawn().unwrap();
        let generation = Pid::from_child(&python);
        let lines = BufReader::new(python.stdout.take().unwrap()).lines();
        let mut children: Vec<i32> =
            lines.take(4).map(|line| line.unwrap().parse().unwrap()).collect();
        children.push(generation.as_raw_nonzero().get());
        let threads = threads_of(generation.as_raw_nonzero().get());
        assert_eq!(threads.len(), 6);
        let all = || {
            let of = |pid: &i32| getpriority_process(Pid::from_raw(*pid)).unwrap();
            let mut all: Vec<_> = threads.iter().map(of).collect();
            all.sort_unstable();
            all
        };
        let nicer = own + 5;
        assert_eq!(all(), [-3, nicer, nicer, nicer, nicer, nicer + 7]);
        assert_eq!(niceness.take_back(generation), Ok(()));
        assert_eq!(all(), [-3, own, own, own, own, own + 7]);
        for pid in children {
            let _ = rustix::process::kill_process(
                Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        python.wait().unwrap();
    }
}
