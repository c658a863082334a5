//! A daemon and whoever follows it: processes that come and go at one path.

use crate::bench::{Bench, DAEMON_FDS_MAX};
use crate::daemon::fill;
use crate::Result;
use fdholder::{Client, Deadline};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{kill_process, pidfd_open, Pid, PidfdFlags, Signal};
use std::fs;
use std::io::{pipe, BufRead, BufReader, PipeReader, PipeWriter, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

/// How long anything may take that a family is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// All daemons that serve, or would, at one path. Killed when dropped.
#[derive(Debug)]
pub struct Family {
    path: PathBuf,
    /// What they all log, as it comes: a standby has the stderr of the service manager.
    log: Receiver<(Instant, String)>,
    stderr: PipeWriter,
    /// Those that were started from here. Others may be there: standbys of standbys.
    children: Vec<Child>,
    /// Who began to serve last, by the log.
    primary: Option<u32>,
    /// Its standby that has everything.
    standby: Option<u32>,
}

impl Family {
    /// A daemon that serves.
    pub fn start(bench: &Bench, options: &[&str]) -> Result<Self> {
        let (log, stderr) = pipe()?;
        let (sender, receiver) = channel();
        // Ends with the last process that may log.
        std::thread::spawn(move || read_log(log, &sender));
        let mut family = Self {
            path: bench.new_socket_path(),
            log: receiver,
            stderr,
            children: Vec::new(),
            primary: None,
            standby: None,
        };
        family.serve(bench, options)?;
        Ok(family)
    }

    /// Starts one more daemon, and waits until it serves.
    pub fn serve(&mut self, bench: &Bench, options: &[&str]) -> Result<()> {
        let mut command = bench.programs.subcommand("serve");
        command
            .args(["-1", "-v1", "-n", &DAEMON_FDS_MAX.to_string(), "-c", "16", "-i"])
            .arg(bench.rules())
            .args(options)
            .arg(&self.path)
            .stdout(Stdio::piped())
            .stderr(self.stderr.try_clone()?);
        let mut child = command.spawn()?;
        let mut newline = [0];
        let ready = child.stdout.take().map(|mut stdout| stdout.read(&mut newline));
        self.children.push(child);
        if !matches!(ready, Some(Ok(1))) {
            let said: Vec<_> = self.log.try_iter().map(|(_, line)| line).collect();
            return Err(format!("a daemon did not get ready: {}", said.join(" / ")).into());
        }
        Ok(())
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new connection to whoever serves.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.path, Deadline::after(PATIENCE))?)
    }

    /// Has it hold so many descriptors, each without expiry.
    pub fn fill(&self, count: u32) -> Result<()> {
        fill(&mut self.connect()?, count)
    }

    /// How many whoever serves says it holds.
    pub fn held(&self) -> Result<usize> {
        Ok(self.connect()?.list(Deadline::NEVER)?.len())
    }

    /// Who serves.
    pub fn primary(&mut self) -> Result<u32> {
        loop {
            while let Ok((_, line)) = self.log.try_recv() {
                self.heed(&line);
            }
            match self.primary {
                Some(pid) => return Ok(pid),
                None => drop(self.next_line()?),
            }
        }
    }

    /// Waits until a standby has everything: its pid, and when it was told.
    pub fn standby(&mut self) -> Result<(u32, Instant)> {
        let mut told = Instant::now();
        loop {
            // Whatever has been said by now may make another of it.
            while let Ok((at, line)) = self.log.try_recv() {
                told = at;
                self.heed(&line);
            }
            match self.standby {
                Some(pid) => return Ok((pid, told)),
                None => told = self.next_line()?,
            }
        }
    }

    fn next_line(&mut self) -> Result<Instant> {
        let next = self.log.recv_timeout(PATIENCE);
        let (at, line) = next.map_err(|_| "a family has nothing to say any more")?;
        self.heed(&line);
        Ok(at)
    }

    fn heed(&mut self, line: &str) {
        if line.contains(": ready on ") {
            (self.primary, self.standby) = (pid_in(line), None);
        } else if line.contains("the standby ") && line.ends_with(" has everything") {
            self.standby = pid_in(line);
        }
    }

    /// Kills a process of the family: whatever was waited for before is to come again.
    pub fn kill(&mut self, pid: u32) {
        if self.primary == Some(pid) {
            self.primary = None;
        }
        // A standby that was killed is none; that of a primary that was killed is to serve.
        self.standby = None;
        signal(pid);
    }

    /// Waits until a process of the family has gone.
    pub fn wait(&mut self, pid: u32) -> Result<()> {
        if let Some(index) = self.children.iter().position(|child| child.id() == pid) {
            self.children.swap_remove(index).wait()?;
            return Ok(());
        }
        match pidfd_open(as_pid(pid)?, PidfdFlags::empty()) {
            // Readable once it has ended.
            Ok(process) => drop(poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?),
            Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Every process of the family that runs.
    fn alive(&self) -> Vec<u32> {
        let ours = [self.path.as_os_str().as_bytes(), b"\0"].concat();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // One that has ended has no command line any more.
        let command_line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline"));
        pids.filter(|pid| command_line(pid).is_ok_and(|line| line.ends_with(&ours))).collect()
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // Those that are killed may have started others.
        for _ in 0..100 {
            let alive = self.alive();
            if alive.is_empty() {
                break;
            }
            for pid in alive {
                signal(pid);
            }
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        // The folder it is in will go anyway.
        let _ = fs::remove_file(&self.path);
    }
}

fn read_log(log: PipeReader, to: &Sender<(Instant, String)>) {
    for line in BufReader::new(log).lines().map_while(std::result::Result::ok) {
        if to.send((Instant::now(), line)).is_err() {
            break;
        }
    }
}

fn signal(pid: u32) {
    if let Ok(pid) = as_pid(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn as_pid(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(pid.try_into()?).ok_or("0 is no process")?)
}

/// The number behind "(pid ".
fn pid_in(line: &str) -> Option<u32> {
    line.split("(pid ").nth(1)?.split(')').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_found_in_a_line_of_the_log() {
        let line = "fdholder: info: ready on /tmp/1.sock (pid 25), holding up to 9 descriptors";
        assert_eq!(pid_in(line), Some(25));
        assert_eq!(pid_in("fdholder: info: nothing"), None);
    }
}
