//! What only `sock_diag(7)` says of a Unix socket: the file that leads to it.
//!
//! The kernel answers for sockets of the caller's own network namespace. No client is made for it.

use fdholder_daemon::accept_queue::{is_listener, AcceptQueues};
use rustix::fs::fstat;
use rustix::net::netlink::{SocketAddrNetlink, SOCK_DIAG};
use rustix::net::sockopt::socket_cookie;
use rustix::net::{
    recv, sendto, socket_with, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use std::os::fd::AsFd;

/// The bytes of `struct nlmsghdr`, and of `struct unix_diag_msg` behind it.
const BEFORE_ATTRIBUTES: usize = 16 + 16;

/// A message that asks: `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;

/// What to show, `UDIAG_SHOW_VFS`, and the attribute that shows it.
const SHOW: u32 = 0x2;
const VFS: u16 = 1;

/// A socket as the kernel describes it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct UnixSocket {
    /// The inode of the file that it was bound to, while that is open: its low 32 bits.
    pub file: Option<u32>,
}

/// Looks a Unix socket up; `None` where the kernel does not tell.
pub fn unix_socket(socket: impl AsFd) -> Option<UnixSocket> {
    let socket = socket.as_fd();
    let inode = fstat(socket).ok()?.st_ino as u32; // The kernel has no more bits of it.
    let request = request(inode, socket_cookie(socket).ok()?);
    let flags = SocketFlags::CLOEXEC;
    let netlink =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG)).ok()?;
    sendto(&netlink, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).ok()?;
    // It answers before sendto(2) returns.
    let mut answer = [0; 512];
    let (len, _) = recv(&netlink, &mut answer, RecvFlags::DONTWAIT).ok()?;
    read(&answer[..len])
}

/// Clients that wait to be accepted from a listener, and how many may; `None` where the kernel does
/// not tell how many.
pub fn accept_queue(listener: impl AsFd) -> Option<(u32, u32)> {
    let queue = AcceptQueues::default().of(listener.as_fd()).filter(|queue| queue.max > 0)?;
    (is_listener(listener) == Ok(true)).then_some((queue.len, queue.max))
}

/// Whether clients wait in a queue, as far as the kernel tells; how many or not.
pub fn has_clients(listener: impl AsFd) -> bool {
    is_listener(listener.as_fd()) == Ok(true)
        && AcceptQueues::default().of(listener).is_some_and(|queue| queue.len > 0)
}

/// `struct unix_diag_req` behind its header.
fn request(inode: u32, cookie: u64) -> Vec<u8> {
    const LEN: u32 = 16 + 24;
    let mut bytes = Vec::with_capacity(LEN as usize);
    bytes.extend(LEN.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // Sequence and sender.
    bytes.extend([AddressFamily::UNIX.as_raw() as u8, 0, 0, 0]); // It is 1.
    bytes.extend(u32::MAX.to_ne_bytes()); // In any state.
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(SHOW.to_ne_bytes());
    bytes.extend((cookie as u32).to_ne_bytes());
    bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

fn read(answer: &[u8]) -> Option<UnixSocket> {
    if u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?) != BY_FAMILY {
        return None;
    }
    let number =
        |value: &[u8], at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let mut found = UnixSocket::default();
    let mut rest = answer.get(BEFORE_ATTRIBUTES..)?;
    while let Some((head, _)) = rest.split_at_checked(4) {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..len)?;
        if u16::from_ne_bytes([head[2], head[3]]) == VFS {
            found.file = number(value, 0);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::fs::MetadataExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn unix_socket_is_found_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let inode = path.metadata().unwrap().st_ino() as u32;
        let found = unix_socket(&listener).unwrap();
        assert_eq!(found.file, Some(inode));
        let _clients = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
        assert_eq!(accept_queue(&listener).unwrap().0, 2);
        std::fs::rename(&path, folder.path().join("other")).unwrap();
        assert_eq!(unix_socket(&listener).unwrap().file, Some(inode));
        let (one, _other) = UnixDatagram::pair().unwrap();
        assert_eq!(unix_socket(&one).unwrap().file, None);
    }

    #[test]
    fn answer_that_is_cut_off_is_no_answer() {
        let mut answer = [0; BEFORE_ATTRIBUTES + 12];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[BEFORE_ATTRIBUTES..][..2].copy_from_slice(&12_u16.to_ne_bytes());
        answer[BEFORE_ATTRIBUTES + 2..][..2].copy_from_slice(&VFS.to_ne_bytes());
        assert_eq!(read(&answer).unwrap().file, Some(0));
        for len in 0..answer.len() {
            assert_eq!(read(&answer[..len]).and_then(|found| found.file), None, "{len}");
        }
        // A length that leads nowhere.
        answer[BEFORE_ATTRIBUTES] = 0;
        assert_eq!(read(&answer), None);
    }
}
