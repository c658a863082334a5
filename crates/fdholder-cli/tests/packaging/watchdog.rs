//! systemd ends a daemon whose loop does not go round, and no other.

use crate::support::family::signal;
use crate::support::systemd::Whom;
use crate::support::{content_at, eventually};
use crate::units::{Holder, UNIT};
use rustix::process::Signal;

/// Short, but long enough for a machine that has much to do.
const WATCHED: &str = "WatchdogSec=4";

/// Waits until systemd has been told some more times that the loop goes round.
fn it_is_said_again(holder: &Holder) {
    for _ in 0..3 {
        let said = || holder.manager.property(UNIT, "WatchdogTimestampMonotonic");
        let before = said();
        eventually("it is said that the loop goes round", || said() != before);
    }
}

/// Nobody asks it anything, and it says so all the same.
pub fn a_loop_that_goes_round() {
    let holder = Holder::start(WATCHED);
    let main = holder.main_pid();
    it_is_said_again(&holder);
    // Another program in the same process goes on with it.
    holder.manager.systemctl(&["reload", UNIT]);
    it_is_said_again(&holder);
    assert_eq!(holder.main_pid(), main);
    assert_eq!(holder.manager.property(UNIT, "NRestarts"), "0");
}

/// It is killed; its standby serves, and the next one takes over from that.
pub fn a_loop_that_hangs() {
    let holder = Holder::start(WATCHED);
    holder.fill(30);
    let before = content_at(&holder.path);
    for _ in 0..2 {
        let standby = holder.standby();
        let main = holder.main_pid();
        holder.manager.kill(UNIT, Signal::STOP, Whom::Main);
        holder.manager.successor(UNIT, main);
        assert_eq!(content_at(&holder.path), before);
        let taken_over = format!("has taken over 30 from pid {standby}");
        assert!(holder.manager.output().contains(&taken_over), "{}", holder.manager.output());
    }
    assert!(holder.manager.log().iter().any(|line| line.contains("Watchdog timeout")));
}

/// In a unit that lives as long as any of its processes, nobody is started when the primary is
/// killed: the standby is the service then, and says so although it is not the process that
/// systemd has started.
pub fn a_promoted_standby() {
    let holder = Holder::start(&format!("{WATCHED}\nExitType=cgroup\nKillMode=control-group"));
    holder.fill(30);
    let before = content_at(&holder.path);
    let standby = holder.standby();
    holder.manager.kill(UNIT, Signal::KILL, Whom::Main);
    assert_eq!(content_at(&holder.path), before);
    it_is_said_again(&holder);
    let state = || holder.manager.property(UNIT, "ActiveState");
    assert_eq!((state().as_str(), holder.manager.main_pid(UNIT)), ("active", None));
    assert_eq!(holder.manager.property(UNIT, "NRestarts"), "0");
    // Until it hangs. Then everything is ended, and the next one has it from systemd.
    signal(standby, Signal::STOP);
    holder.manager.successor(UNIT, 0);
    assert!(holder.manager.log().iter().any(|line| line.contains("Watchdog timeout")));
    assert_eq!(content_at(&holder.path), before);
}
