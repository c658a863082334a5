//! What the processes of a holder have open when they hold nothing.

use crate::support::{deadline, eventually, id, open_files, Family};
use fdholder::Limit;
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// What is open, and how often. Numbers that say which one it is are left out.
type Open = BTreeMap<String, usize>;

/// Fails unless the two processes have open what two have that have just started, the first
/// in the place of another: it has the roll of that one.
pub fn nothing_leaks(family: &Family, options: &[&str]) {
    let mut fresh = Family::with(options);
    fresh.serve(options);
    // The standby hears of this, and that its primary serves.
    let null = fs::File::open("/dev/null").unwrap();
    fresh.client().store(&id("x"), Limit::never(), &null, deadline()).unwrap();
    fresh.client().delete(&id("x"), deadline()).unwrap();
    let mut told = None;
    eventually("two processes with nothing more open than new ones", || {
        // A standby that has been sent everything may not have read it yet.
        let (expected, found) = (both(&fresh), both(family));
        let is_so = found == expected && family.alive().len() == 2;
        if !is_so && told.as_ref() != Some(&found) {
            println!("now: {found:?}\nto be: {expected:?}");
            told = Some(found);
        }
        is_so
    });
}

fn both(family: &Family) -> [Open; 2] {
    let (primary, standby) = family.pair();
    [open_in(primary, family), open_in(standby, family)]
}

fn open_in(pid: u32, family: &Family) -> Open {
    let folder = family.folder.path().canonicalize().unwrap();
    let mut open = Open::new();
    let passed_on = passed_on();
    for (number, target) in &open_files(pid) {
        if passed_on.get(number) == Some(target) {
            continue;
        }
        let target = target.to_string_lossy();
        let what = target.strip_prefix(&*folder.to_string_lossy()).unwrap_or(&target);
        let what = what.split(":[").next().unwrap_or(what);
        *open.entry(what.to_owned()).or_default() += 1;
    }
    open
}

/// What this process was started with and passes on: a daemon that it starts has that, and a standby
/// that a daemon starts has not.
fn passed_on() -> BTreeMap<u32, PathBuf> {
    let mut own = open_files(std::process::id());
    own.retain(|number, _| {
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("");
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap_or(0);
        *number > 2 && flags & OFlags::CLOEXEC.bits() == 0
    });
    own
}
