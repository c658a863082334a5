//! Which programs have a held socket open, as far as /proc shows it to this user.

use rustix::fs::fstat;
use std::fs::{read_dir, read_link, read_to_string};
use std::os::fd::AsFd;
use std::path::Path;

/// Programs that hold descriptors rather than use them, by their names in /proc: holders, and
/// systemd with its descriptor store.
const HOLDERS: [&str; 4] = ["fdholder", "s6-fdholderd", "s6-fdholder-dae", "systemd"];

/// Processes named in a message at most.
const NAMED_MAX: usize = 3;

/// The programs that have this socket open, holders and this process left out: `pid 5 (nginx)`.
/// Empty where /proc does not tell.
pub fn users_of(socket: impl AsFd) -> Vec<String> {
    let Ok(stat) = fstat(socket) else { return Vec::new() };
    let link = format!("socket:[{}]", stat.st_ino);
    let own_program = read_link("/proc/self/exe").ok();
    let mut users = Vec::new();
    for process in read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() || !has_open(&process.path(), &link) {
            continue;
        }
        let name = read_to_string(process.path().join("comm")).unwrap_or_default();
        let name = name.trim_end();
        let program = read_link(process.path().join("exe")).ok();
        // The program this is, which has not become another one.
        let is_ours = program.is_some() && program == own_program;
        if !is_ours && !HOLDERS.contains(&name) {
            users.push(format!("pid {pid} ({})", name.escape_default()));
        }
    }
    users
}

fn has_open(process: &Path, link: &str) -> bool {
    let mut open = read_dir(process.join("fd")).into_iter().flatten().flatten();
    open.any(|fd| read_link(fd.path()).is_ok_and(|target| target == Path::new(link)))
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
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    #[test]
    fn program_with_the_socket_is_found_until_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(users_of(&listener), Vec::<String>::new());
        let copy: OwnedFd = listener.try_clone().unwrap().into();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(copy).spawn().unwrap();
        let expected = format!("pid {} (cat)", child.id());
        // Until it has become the program, it is this one.
        while users_of(&listener).is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(users_of(&listener), [expected]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(users_of(&listener), Vec::<String>::new());
    }

    #[test]
    fn few_processes_are_named() {
        let users: Vec<_> = (1..=5).map(|pid| format!("pid {pid}")).collect();
        assert_eq!(in_words(&users[..2]), "pid 1, pid 2");
        assert_eq!(in_words(&users), "pid 1, pid 2, pid 3 and 2 more");
    }
}
