//! How much memory the control groups of this process allow it.
//!
//! Beyond that the kernel kills a process of the group, without asking: an allocation does not fail.
//! So what clients can make the daemon take is bounded at start by what there is.

use crate::there::{if_there, retried};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where systems mount the hierarchies.
pub(crate) const MOUNTED_AT: &str = "/sys/fs/cgroup";

/// Versions 1 and 2: where the hierarchy is mounted there, and the files with its limits.
const V1: (&str, &[&str]) = ("memory", &["memory.limit_in_bytes"]);
const V2: (&str, &[&str]) = ("", &["memory.max", "memory.high"]);

/// The smallest limit of the groups that this process is in, in bytes; `None` without one. Without
/// /proc or the folder of the hierarchy none is known.
///
/// # Errors
///
/// When what is there cannot be read.
pub fn limit() -> io::Result<Option<u64>> {
    limit_in(Path::new(MOUNTED_AT), Path::new("/proc/self/cgroup"))
}

fn limit_in(mounted_at: &Path, groups: &Path) -> io::Result<Option<u64>> {
    let Some(groups) = read(groups)? else { return Ok(None) };
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (folder, files) = match controllers {
            "" => V2,
            _ if controllers.split(',').any(|it| it == "memory") => V1,
            _ => continue,
        };
        let root = mounted_at.join(folder);
        // In a container the group may have another name outside, and what is mounted is its own.
        for group in Path::new(group.trim_start_matches('/')).ancestors() {
            for file in files {
                let limit = read(&root.join(group).join(file))?;
                let limit = limit.and_then(|text| text.trim().parse().ok());
                least = [least, limit].into_iter().flatten().min();
            }
        }
    }
    Ok(least)
}

/// The text of a file, if it is there.
fn read(path: &Path) -> io::Result<Option<String>> {
    let path: PathBuf = path.into();
    retried(|| if_there(fs::read_to_string(&path)), |_| false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_limit_of_all_groups_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| {
            write("self", groups);
            limit_in(&folder.path().join("cgroup"), &folder.path().join("self")).unwrap()
        };
        write("cgroup/a/b/memory.max", "max\n");
        write("cgroup/a/memory.max", "5000\n");
        write("cgroup/a/memory.high", "4000\n");
        write("cgroup/memory/x/y/memory.limit_in_bytes", "3000\n");
        write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("0::/a/b\n"), Some(4000));
        assert_eq!(limit("0::/a/b:c\n"), Some(4000), "a colon in the name");
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("4:cpu:/x\n3:cpuset,memory:/x/y\n0::/a\n"), Some(3000));
        assert_eq!(limit("3:memory:/elsewhere\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit(""), None);
        let missing = folder.path().join("missing");
        assert_eq!(limit_in(&missing, &missing).unwrap(), None);
    }
}
