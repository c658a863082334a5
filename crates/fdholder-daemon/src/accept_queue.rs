//! How many clients wait to be accepted: `TCP_INFO`, by the C library, and `sock_diag(7)`. No
//! privilege is needed for either, and neither waits for anybody.
#![allow(unsafe_code)]

use fdholder::Errno;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{statx, AtFlags, StatxFlags};
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{
    netlink, recv, send, socket_with, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The queue of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Clients that wait.
    pub len: u32,
    /// Clients that may; 0 where it is only known whether any waits.
    pub max: u32,
}

impl fmt::Display for AcceptQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { len: 0, max: 0 } => f.write_str("0"),
            Self { len, max: 0 } => write!(f, "{len}+"),
            Self { len, max } => write!(f, "{len}/{max}"),
        }
    }
}

/// Whether it is a socket that listens. Of what is no socket nobody is asked.
///
/// # Errors
///
/// ENOTSOCK, and others of getsockopt(2).
pub fn is_listener(fd: impl AsFd) -> Result<bool, Errno> {
    socket_acceptconn(fd)
}

/// What asks the kernel for queues.
#[derive(Debug, Default)]
pub struct AcceptQueues {
    /// For Unix sockets, once it is needed.
    netlink: Option<OwnedFd>,
}

impl AcceptQueues {
    /// The queue of a listener. How long that of a Unix socket is the kernel tells in its own
    /// network namespace only, and to who may use netlink (`RestrictAddressFamilies=`); whether
    /// anybody waits it always tells.
    pub fn of(&mut self, listener: impl AsFd) -> Option<AcceptQueue> {
        let listener = listener.as_fd();
        let queue = match socket_domain(listener).ok()? {
            AddressFamily::INET | AddressFamily::INET6 => tcp(listener),
            AddressFamily::UNIX => self.unix(listener),
            _ => Err(Errno::AFNOSUPPORT),
        };
        queue.or_else(|_| whether_any(listener)).ok()
    }

    fn unix(&mut self, listener: BorrowedFd<'_>) -> Result<AcceptQueue, Errno> {
        let [len, max] = self.ask(listener, &QUEUE)?;
        Ok(AcceptQueue { len, max })
    }

    /// Something that the kernel tells of a Unix socket.
    fn ask(&mut self, socket: BorrowedFd<'_>, question: &Question) -> Result<[u32; 2], Errno> {
        let stat = statx(socket, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
        let inode = u32::try_from(stat.stx_ino).map_err(|_| Errno::OVERFLOW)?;
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                Some(netlink::SOCK_DIAG),
            )?,
        };
        send(&netlink, &diag_request(inode, question), SendFlags::empty())?;
        let mut answer = [0; 512];
        // It is there: the kernel has answered while it was asked.
        let (len, _) = recv(&netlink, &mut answer, RecvFlags::empty())?;
        // One that has failed may have something unread.
        self.netlink = Some(netlink);
        read_diag(&answer[..len], question).ok_or(Errno::NODATA)
    }
}

/// The inode of the file that a Unix socket was bound to, whatever the path leads to by now, or the
/// lower half of it. Its device is not always the one that stat(2) tells.
///
/// # Errors
///
/// Those of netlink(7); ENODATA when it has none.
pub(crate) fn inode_of_file(socket: impl AsFd) -> Result<u32, Errno> {
    let [inode, _] = AcceptQueues::default().ask(socket.as_fd(), &FILE)?;
    Ok(inode)
}

/// What can be asked: how that is said, and as what the answer comes, of two numbers.
#[derive(Debug)]
struct Question {
    show: u32,
    kind: u16,
}

/// `UDIAG_SHOW_RQLEN`, `UNIX_DIAG_RQLEN`.
const QUEUE: Question = Question { show: 0x10, kind: 4 };

/// `UDIAG_SHOW_VFS`, `UNIX_DIAG_VFS`.
const FILE: Question = Question { show: 0x2, kind: 1 };

fn whether_any(listener: BorrowedFd<'_>) -> Result<AcceptQueue, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(listener, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default()))?;
    // One that was shut down is always readable.
    if polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP) {
        return Err(Errno::SHUTDOWN);
    }
    let len = u32::from(polled[0].revents().contains(PollFlags::IN));
    Ok(AcceptQueue { len, max: 0 })
}

/// Asks about one Unix socket: `struct nlmsghdr`, `struct unix_diag_req`.
fn diag_request(inode: u32, question: &Question) -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    const ANY_STATE: u32 = u32::MAX;
    const NO_COOKIE: u32 = u32::MAX;
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(&40u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[1, 0, 0, 0]); // AF_UNIX
    for number in [ANY_STATE, inode, question.show, NO_COOKIE, NO_COOKIE] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// Finds the answer behind `struct nlmsghdr` and `struct unix_diag_msg`.
fn read_diag(answer: &[u8], question: &Question) -> Option<[u32; 2]> {
    const SOCK_DIAG_BY_FAMILY: [u8; 2] = 20u16.to_ne_bytes();
    let short = |at: &[u8]| at.first_chunk().copied().map(u16::from_ne_bytes);
    let long = |at: &[u8]| at.first_chunk().copied().map(u32::from_ne_bytes);
    if answer.get(4..6)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut rest = answer.get(32..)?;
    loop {
        let (len, kind) = (usize::from(short(rest)?), short(rest.get(2..)?)?);
        if kind == question.kind {
            return Some([long(rest.get(4..)?)?, long(rest.get(8..)?)?]);
        }
        // Each begins at a multiple of four.
        rest = rest.get(len.max(4).next_multiple_of(4)..)?;
    }
}

/// A TCP listener has these where a connection has other numbers.
fn tcp(listener: BorrowedFd<'_>) -> Result<AcceptQueue, Errno> {
    // SAFETY: it consists of integers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t; // Some 100 bytes.
    let (fd, level) = (listener.as_raw_fd(), libc::IPPROTO_TCP);
    let (value, len) = ((&raw mut info).cast(), &raw mut len);
    // SAFETY: the descriptor is borrowed for the call, the pointers are to a tcp_info and its
    // length, and any bytes the kernel writes are a valid tcp_info.
    let result = unsafe { libc::getsockopt(fd, level, libc::TCP_INFO, value, len) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    Ok(AcceptQueue { len: info.tcpi_unacked, max: info.tcpi_sacked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn clients_that_wait_are_counted_whatever_the_family() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&path));
        let unix = unix.unwrap();
        let mut queues = AcceptQueues::default();
        let mut clients = (Vec::new(), Vec::new());
        for count in 0..3 {
            for listener in [tcp.as_fd(), unix.as_fd()] {
                let queue = queues.of(listener).unwrap();
                assert_eq!(queue.len, count);
                assert!(queue.max >= 3 && is_listener(listener) == Ok(true), "{queue:?}");
            }
            clients.0.push(TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
            clients.1.push(UnixStream::connect(&path).unwrap());
        }
        assert_eq!(whether_any(unix.as_fd()), Ok(AcceptQueue { len: 1, max: 0 }));
        drop((tcp.accept().unwrap(), unix.accept().unwrap()));
        assert_eq!(queues.of(&tcp).unwrap().len, 2);
        assert_eq!(queues.of(&unix).unwrap().len, 2);
        drop((unix.accept().unwrap(), unix.accept().unwrap()));
        assert_eq!(whether_any(unix.as_fd()), Ok(AcceptQueue { len: 0, max: 0 }));
        rustix::net::shutdown(&unix, rustix::net::Shutdown::Read).unwrap();
        assert_eq!(whether_any(unix.as_fd()), Err(Errno::SHUTDOWN));
        // What does not listen has none.
        assert_eq!(is_listener(&clients.1[0]), Ok(false));
        assert_eq!(is_listener(std::io::stdin()).ok(), None);
    }

    #[test]
    fn socket_is_known_by_its_file_wherever_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("socket"), folder.path().join("moved"));
        let socket = UnixListener::bind(&path).unwrap();
        std::fs::rename(&path, &moved).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        let inode = |path| std::fs::symlink_metadata(path).unwrap().ino() as u32; // As told.
        assert_eq!(inode_of_file(&socket), Ok(inode(&moved)));
        assert_eq!(inode_of_file(&other), Ok(inode(&path)));
        let unbound = UnixStream::pair().unwrap().0;
        assert_eq!(inode_of_file(unbound), Err(Errno::NODATA));
    }

    #[test]
    fn queue_of_which_little_is_known_says_so() {
        for (len, max, text) in [(0, 0, "0"), (1, 0, "1+"), (0, 5, "0/5"), (7, 5, "7/5")] {
            assert_eq!(AcceptQueue { len, max }.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn noise_from_the_kernel_never_panics(bytes: Vec<u8>) {
            for question in [QUEUE, FILE] {
                read_diag(&bytes, &question);
            }
        }
    }
}
