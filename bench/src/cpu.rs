//! How much of a processor's time a process has had.

use crate::Result;
use nix::time::ClockId;
use nix::unistd::Pid;
use std::time::Duration;

/// What a process has taken, user and system time together, with all of its threads, those
/// that have ended included. To the nanosecond, where /proc tells it in ticks.
pub fn time(process: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.try_into()?))?;
    Ok(clock.now()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_have_ended_count() {
        let own = std::process::id();
        let before = time(own).unwrap();
        let enough = before + Duration::from_millis(20);
        // Only the thread works, until the clock says that it has.
        std::thread::spawn(move || while time(own).unwrap() < enough {}).join().unwrap();
        assert!(time(own).unwrap() >= enough);
    }
}
