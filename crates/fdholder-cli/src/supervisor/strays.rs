//! A program that was not told of its sockets, because `LISTEN_PID` names the shell or wrapper that
//! has started it, and has opened its own.

use crate::start::notify::descends_from;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Processes that are looked at most.
const PROCESSES_MAX: usize = 4096;

/// The state of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// What is wrong with the processes of a generation, if anything is.
pub fn look(generation: u32) -> Option<String> {
    let given = sockets_of(generation);
    let mut listening = None;
    for pid in processes().filter(|pid| *pid != generation).take(PROCESSES_MAX) {
        let Some(listen_pid) = foreign_listen_pid(pid) else { continue };
        if !descends_from(generation, pid) {
            continue;
        }
        let own = sockets_of(pid);
        if own.is_subset(&given) {
            continue;
        }
        let listening = listening.get_or_insert_with(listening_sockets);
        let mut opened = own.difference(&given).filter_map(|inode| {
            listening.iter().find(|(number, _)| number == inode).map(|(_, address)| address)
        });
        if let Some(address) = opened.next() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim_end();
            return Some(format!(
                "process {pid} ({name}) listens on {address}, which it has opened itself, and not on \
                 the sockets that it was given: LISTEN_PID is {listen_pid}, another process. Write \
                 'exec {name}' in the script that starts it, or put 'fdholder exec --inherited --' \
                 before it"
            ));
        }
    }
    None
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `LISTEN_PID` of a process that was given sockets for another one.
fn foreign_listen_pid(pid: u32) -> Option<u32> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let find = |name: &[u8]| {
        environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(name))
    };
    find(b"LISTEN_FDS=")?;
    let listen_pid: u32 = std::str::from_utf8(find(b"LISTEN_PID=")?).ok()?.parse().ok()?;
    (listen_pid != pid).then_some(listen_pid)
}

/// The inodes of the sockets that a process has open.
fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| inode_of(&fs::read_link(entry.path()).ok()?)).collect()
}

fn inode_of(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// TCP sockets that listen: their inodes and addresses.
fn listening_sockets() -> Vec<(u64, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let tables = [read("/proc/net/tcp"), read("/proc/net/tcp6")];
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(listening).collect()
}

fn listening(line: &str) -> Option<(u64, String)> {
    // Nearly all lines may be connections that wait for their end, 70,000 of them.
    if !line.contains(LISTENS) {
        return None;
    }
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTENS {
        return None;
    }
    let (_, port) = local.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((inode.parse().ok()?, format!("TCP port {port}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listeners_of_a_process_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = sockets_of(std::process::id());
        let all = listening_sockets();
        let found = all.iter().find(|(_, address)| *address == format!("TCP port {port}")).unwrap();
        assert!(own.contains(&found.0));
        drop(listener);
        assert!(!sockets_of(std::process::id()).contains(&found.0));
    }

    #[test]
    fn line_of_the_table_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0";
        assert_eq!(listening(line), Some((4711, "TCP port 8080".to_owned())));
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listening(""), None);
    }
}
