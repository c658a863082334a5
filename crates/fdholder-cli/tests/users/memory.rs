//! A control group with little memory: the kernel kills who takes more, and asks nobody.

use crate::support::family::is_alive;
use crate::support::starving::{assert_works, attack, name, try_store, ATTACKS};
use crate::support::{is_missing, suite, Family};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A control group, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// One whose processes have so many bytes together; `None` where none can be made.
    fn with_memory(bytes: u64) -> Option<Self> {
        let name = format!("fdholder-test-{}-{bytes}", std::process::id());
        let make = |hierarchy: &str, file: &str| {
            let folder = Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
            fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            fs::write(group.0.join(file), bytes.to_string()).ok()?;
            Some(group)
        };
        make("memory", "memory.limit_in_bytes").or_else(|| make("", "memory.max"))
    }

    /// A daemon in it.
    fn serve(&self, options: &[&str]) -> Family {
        let mut family = Family::new();
        let ours = suite::fdholder(["serve", "-1"]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(self.0.join("cgroup.procs"));
        command.arg(ours.get_program()).args(ours.get_args()).args(options).arg(&family.path);
        family.spawn(command);
        family
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes may be about to end.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn bears_all(mib: u64, options: &[&str]) {
    let Some(group) = Group::with_memory(mib * MIB) else {
        return is_missing("a control group with a limit on memory");
    };
    let family = group.serve(&[&["-n", "1000", "-c", "400"], options].concat());
    assert!(family.log().contains(&format!("allows {mib} MiB of memory")), "{}", family.log());
    let primary = family.primary();
    let mut held: BTreeSet<_> = (0..250).map(name).collect();
    assert!(held.iter().all(|name| try_store(&family.path, name)));
    if options.contains(&"--standby") {
        family.pair();
    }
    for (what, sent) in ATTACKS {
        held.append(&mut attack(&family.path, &sent()));
        assert!(is_alive(primary), "{what}: {}", family.log());
        assert_works(&family.path, &held, what);
    }
    if options.contains(&"--standby") {
        family.pair();
    }
}

/// A daemon alone, and one with a standby, which is in the same group.
pub fn daemon_in_a_group_with_little_memory_loses_nothing() {
    bears_all(16, &[]);
    bears_all(24, &["--standby"]);
}
