//! The process group of a generation, once its first process has ended.

use rustix::io::Errno;
use rustix::process::{test_kill_process_group, Pid};
use std::fs;
use std::time::Duration;

/// The pause between two looks at a group.
pub const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Whether a process of a group lives. Those that have ended and are not waited for do not: where
/// pid 1 waits for nothing they stay.
pub fn has_living(group: Pid) -> bool {
    if test_kill_process_group(group) == Err(Errno::SRCH) {
        return false;
    }
    // Who cannot look believes that.
    let Ok(entries) = fs::read_dir("/proc") else { return true };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_process(name)).any(|name| {
        let stat = fs::read(format!("/proc/{name}/stat")).unwrap_or_default();
        lives_in(group.as_raw_nonzero().get(), &String::from_utf8_lossy(&stat))
    })
}

/// Whether a line of `proc_pid_stat(5)` is that of a living process of a group.
fn lives_in(group: i32, stat: &str) -> bool {
    // The name of the program may have parentheses and spaces.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let is_dead = matches!(fields.next(), Some("Z" | "X"));
    !is_dead && fields.nth(1).and_then(|number| number.parse().ok()) == Some(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn line_tells_group_and_state() {
        assert!(lives_in(7, "12 (a) b) S 1 7 7 0"));
        assert!(!lives_in(7, "12 (sh) Z 1 7 7 0"));
        assert!(!lives_in(1, "12 (sh) S 1 7 7 0"));
        assert!(!lives_in(7, ""));
    }

    #[test]
    fn group_lives_as_long_as_one_of_its_processes() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo; exit"]).process_group(0);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let group = Pid::from_child(&child);
        child.wait().unwrap();
        assert!(has_living(group));
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        while has_living(group) {
            std::thread::yield_now();
        }
    }
}
