//! Which programs have a held socket open, as far as /proc shows it to this user.

use rustix::fs::fstat;
use std::fs::{read_dir, read_link, read_to_string};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Programs that hold descriptors rather than use them, by their names in /proc: holders, and
/// systemd with its descriptor store.
const HOLDERS: [&str; 4] = ["fdholder", "s6-fdholderd", "s6-fdholder-dae", "systemd"];

/// What the kernel says of a process that is gone.
const ENDED: [Option<i32>; 2] = [Some(libc::ENOENT), Some(libc::ESRCH)];

/// Processes named in a message at most.
const NAMED_MAX: usize = 3;

/// Who has a socket open, holders and this process left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// Each as `pid 5 (nginx)`; there may be others that this user does not see.
    Some(Vec<String>),
    None,
    /// None that this user sees, and not all processes can be seen.
    Unknown,
}

/// A process that has it open.
struct Process {
    pid: u32,
    name: String,
    program: Option<PathBuf>,
}

/// Looks for programs that have this socket open. `holders` are processes that are known to hold
/// it: where none of them is found, other processes are not seen either.
pub fn users_of(socket: impl AsFd, holders: &[u32]) -> Users {
    let Ok(stat) = fstat(socket) else { return Users::Unknown };
    let link = format!("socket:[{}]", stat.st_ino);
    let Some((having, mut are_all_seen)) = processes_with(Path::new(&link)) else {
        return Users::Unknown;
    };
    are_all_seen &= holders.is_empty() || !having.is_empty();
    // The program this is, which has not become another one; and those of the holders.
    let mut programs = vec![read_link("/proc/self/exe").ok()];
    let known = having.iter().filter(|process| holders.contains(&process.pid));
    programs.extend(known.map(|process| process.program.clone()));
    let is_holder = |process: &Process| {
        holders.contains(&process.pid)
            || HOLDERS.contains(&&*process.name)
            || process.program.is_some() && programs.contains(&process.program)
    };
    let users: Vec<_> = having
        .iter()
        .filter(|process| !is_holder(process))
        .map(|Process { pid, name, .. }| format!("pid {pid} ({})", name.escape_default()))
        .collect();
    match users.len() {
        0 if are_all_seen => Users::None,
        0 => Users::Unknown,
        _ => Users::Some(users),
    }
}

/// The other processes that have it open, and whether all processes could be looked at; `None`
/// without /proc.
fn processes_with(link: &Path) -> Option<(Vec<Process>, bool)> {
    // With hidepid=2 it is not there for all.
    let mut are_all_seen = Path::new("/proc/1").exists();
    let mut having = Vec::new();
    for process in read_dir("/proc").ok()? {
        let process = process.ok()?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        match has_open(&process.path(), link) {
            Ok(false) => {}
            Ok(true) => {
                let name = read_to_string(process.path().join("comm")).unwrap_or_default();
                let program = read_link(process.path().join("exe")).ok();
                having.push(Process { pid, name: name.trim_end().to_owned(), program });
            }
            // It has ended.
            Err(error) if ENDED.contains(&error.raw_os_error()) => {}
            Err(_) => are_all_seen = false,
        }
    }
    Some((having, are_all_seen))
}

fn has_open(process: &Path, link: &Path) -> std::io::Result<bool> {
    for fd in read_dir(process.join("fd"))? {
        // It may be closed by now.
        if read_link(fd?.path()).is_ok_and(|target| target == link) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Some of them, in words.
pub fn in_words(users: &[String]) -> String {
    match users.get(..NAMED_MAX) {
        Some(first) if users.len() > NAMED_MAX => {
            format!("{} and {} more", first.join(", "), users.len() - NAMED_MAX)
        }
        _ => users.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::geteuid;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    #[test]
    fn program_with_the_socket_is_found_until_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = if geteuid().is_root() { Users::None } else { Users::Unknown };
        assert_eq!(users_of(&listener, &[]), nobody);
        // Who is known to hold it would be found.
        assert_eq!(users_of(&listener, &[1]), Users::Unknown);
        let copy: OwnedFd = listener.try_clone().unwrap().into();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(copy).spawn().unwrap();
        let expected = format!("pid {} (cat)", child.id());
        // Until it has become the program, it is this one.
        while users_of(&listener, &[]) == nobody {
            std::thread::yield_now();
        }
        assert_eq!(users_of(&listener, &[]), Users::Some(vec![expected]));
        assert_eq!(users_of(&listener, &[child.id()]), nobody, "it is a holder");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(users_of(&listener, &[]), nobody);
    }

    #[test]
    fn few_processes_are_named() {
        let users: Vec<_> = (1..=5).map(|pid| format!("pid {pid}")).collect();
        assert_eq!(in_words(&users[..2]), "pid 1, pid 2");
        assert_eq!(in_words(&users), "pid 1, pid 2, pid 3 and 2 more");
    }
}
