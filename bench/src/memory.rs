//! What the kernel says of the memory of processes.
//!
//! The peak of one that has ended is not what `ru_maxrss` says: a process that becomes
//! another program keeps the maximum of what it was before, and every child was this
//! benchmark. So we ask for the peak of the program's own address space just before that
//! is gone; tracing stops the process there.

use crate::daemon::Helper;
use crate::Result;
use nix::libc::c_int;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use std::fs;
use std::process::{Command, ExitStatus};

/// A field of a process's status.
pub fn kilobytes(process: u32, field: &str) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(value.ok_or_else(|| format!("the kernel does not tell {field}"))?.parse()?)
}

/// Runs a command to its end: its peak, in kilobytes, and how it ended. There is no peak
/// if it had ended before it could be traced.
pub fn peak(command: &mut Command) -> Result<(Option<u32>, ExitStatus)> {
    // It is the new program by now. What came before we trace counts as well.
    let mut process = Helper::start(command)?;
    let peak = peak_at_exit(process.id())?;
    Ok((peak, process.wait()?))
}

fn peak_at_exit(process: u32) -> Result<Option<u32>> {
    let pid = Pid::from_raw(process.try_into()?);
    // Whoever started the process is to learn how it ended.
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    if let Err(errno) = ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT) {
        return match waitid(Id::Pid(pid), ended | WaitPidFlag::WNOHANG)? {
            WaitStatus::StillAlive => Err(format!("unable to trace a process: {errno}").into()),
            _ => Ok(None),
        };
    }
    loop {
        match waitid(Id::Pid(pid), ended | WaitPidFlag::WSTOPPED)? {
            WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_EXIT as c_int => {
                let peak = kilobytes(process, "VmHWM:")?;
                ptrace::detach(pid, None)?;
                return Ok(Some(peak));
            }
            // No event: a signal for the process, which gets it from us or not at all.
            WaitStatus::PtraceEvent(_, signal, 0) => ptrace::cont(pid, signal)?,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(None),
            _ => ptrace::cont(pid, None)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_the_program_s_own() {
        // What the process was before it became the program: this one, now a large one.
        let before = vec![1_u8; 64 << 20];
        let (own, status) = peak(Command::new("sleep").arg("0.2")).unwrap();
        assert!(status.success());
        let own = own.unwrap();
        assert!(own > 100 && own < 32 << 10, "{own} kB beside {} bytes", before.len());
    }

    #[test]
    fn a_peak_is_the_most_there_was() {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "of=/dev/null", "bs=40M", "count=9"]);
        let (own, status) = peak(&mut dd).unwrap();
        assert!(status.success());
        assert!(own.unwrap() > 40 << 10);
    }

    #[test]
    fn what_is_traced_gets_its_signals() {
        let script = "trap 'exit 7' USR1; sleep 0.2; kill -USR1 $$; sleep 9";
        let (own, status) = peak(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(status.code(), Some(7));
        assert!(own.is_some());
    }
}
