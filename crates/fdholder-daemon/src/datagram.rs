//! Datagrams with who has sent them: recvmsg(2) with `SO_PASSCRED`, by the C library.
//!
//! rustix's type for a pid cannot hold 0, which the kernel gives for a sender of another pid
//! namespace; nix's iterator loses descriptors when there was no room for all of them.
#![allow(unsafe_code)]
// What control messages carry is read as it lies there, aligned or not.
#![allow(clippy::cast_ptr_alignment)]

use crate::access::User;
use crate::credentials::Credentials;
use fdholder::limits::MESSAGE_FDS_MAX;
use rustix::io::Errno;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What one datagram brought.
#[derive(Debug)]
pub struct Datagram {
    /// How many bytes of the buffer are filled.
    pub len: usize,
    /// It was longer than the buffer.
    pub is_cut: bool,
    /// The descriptors, close-on-exec from the start.
    pub fds: Vec<OwnedFd>,
    /// There was no room for all of them.
    pub fds_lost: bool,
    /// Who has sent it. `None`: the socket does not ask for that.
    pub sender: Option<Credentials>,
}

/// Bytes of control messages that whoever shares the socket may have asked for: time stamps, and
/// the label of a security module. Descriptors that have no room behind them are closed by the
/// kernel, and whoever reads waits for that.
const OTHERS_LEN: usize = 4096 + 256;

/// Room for control messages: as many descriptors as can come, credentials, and others.
const CONTROL_LEN: usize = {
    // SAFETY: these only compute.
    let len = unsafe {
        libc::CMSG_SPACE((MESSAGE_FDS_MAX * size_of::<RawFd>()) as u32)
            + libc::CMSG_SPACE(size_of::<libc::ucred>() as u32)
    };
    len as usize + OTHERS_LEN
};

/// `SCM_PIDFD` in linux/socket.h, since 6.5: a descriptor of the sender's process.
const SCM_PIDFD: libc::c_int = 4;

/// What a control message must be aligned like.
#[repr(C)]
union Control {
    bytes: [MaybeUninit<u8>; CONTROL_LEN],
    _align: libc::cmsghdr,
}

/// Receives one datagram, if there is one.
///
/// # Errors
///
/// EAGAIN: there is none. Otherwise those of recvmsg(2), EINTR excepted.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Datagram, Errno> {
    let mut control = Control { bytes: [MaybeUninit::uninit(); CONTROL_LEN] };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: it consists of numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_LEN as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let len = loop {
        // SAFETY: the descriptor is borrowed for the call; the header points to one buffer and
        // one place for control messages, each as long as it says, which live on.
        let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
        if let Ok(len) = usize::try_from(len) {
            break len;
        }
        let error = std::io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            errno => return Err(errno.unwrap_or(Errno::IO)),
        }
    };
    let (mut fds, mut sender) = (Vec::new(), None);
    // SAFETY: the header is as recvmsg has left it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: not null, so it points to a whole header of a control message in `control`.
        let message = unsafe { next.read_unaligned() };
        // SAFETY: the same; what it points to is only read within the length that it says.
        let data = unsafe { libc::CMSG_DATA(next) };
        // SAFETY: this only computes.
        let head_len = unsafe { libc::CMSG_LEN(0) } as usize;
        let data_len = (message.cmsg_len as usize).saturating_sub(head_len);
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..data_len / size_of::<RawFd>() {
                    // SAFETY: within the data of the message; the kernel has made the
                    // descriptor for us, and nobody else knows of it.
                    fds.push(unsafe {
                        let number = data.cast::<RawFd>().add(index).read_unaligned();
                        OwnedFd::from_raw_fd(number)
                    });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if data_len >= size_of::<libc::ucred>() => {
                // SAFETY: within the data of the message; any bytes are a valid ucred.
                let ucred = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                let user = User { uid: ucred.uid, gid: ucred.gid };
                let pid = (ucred.pid != 0).then_some(ucred.pid);
                sender = Some(Credentials { pid, user });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) if data_len >= size_of::<RawFd>() => {
                // Nobody has asked for it but a stranger who shares the socket; it is closed.
                // SAFETY: as for SCM_RIGHTS.
                drop(unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().read_unaligned()) });
            }
            _ => {}
        }
        // SAFETY: as above: the header is recvmsg's, and `next` one of its messages.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    let fds_lost = header.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Datagram { len, is_cut: header.msg_flags & libc::MSG_TRUNC != 0, fds, fds_lost, sender })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdholder::transport::{send, Wait};
    use rustix::net::sockopt::set_socket_passcred;
    use std::fs::File;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn datagrams_come_with_descriptors_and_their_sender() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive(&ours, &mut buffer).unwrap_err(), Errno::AGAIN);
        theirs.send(b"without").unwrap();
        assert_eq!(receive(&ours, &mut buffer).unwrap().sender, None);
        set_socket_passcred(&ours, true).unwrap();
        let files: Vec<_> = (0..MESSAGE_FDS_MAX).map(|_| File::open("/dev/null")).collect();
        let files: Vec<_> = files.into_iter().collect::<Result<_, _>>().unwrap();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&theirs, b"with", &borrowed, Wait::No).unwrap();
        let datagram = receive(&ours, &mut buffer).unwrap();
        assert_eq!((datagram.len, datagram.is_cut, datagram.fds_lost), (4, false, false));
        assert_eq!(datagram.fds.len(), MESSAGE_FDS_MAX);
        let sender = datagram.sender.unwrap();
        assert_eq!(sender.user, User::this_process());
        assert_eq!(sender.pid, i32::try_from(std::process::id()).ok());
        theirs.send(b"nine bytes").unwrap();
        let datagram = receive(&ours, &mut buffer).unwrap();
        assert_eq!((datagram.len, datagram.is_cut, datagram.fds.len()), (8, true, 0));
    }

    /// Who has the other end of a door's description can ask for more than we do.
    #[test]
    fn what_others_have_asked_for_leaves_room_for_all_descriptors() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        set_socket_passcred(&ours, true).unwrap();
        let on: libc::c_int = 1;
        // Of time stamps the longest; and of where a sender is, in the eyes of a security module.
        let all = libc::SOF_TIMESTAMPING_SOFTWARE | libc::SOF_TIMESTAMPING_RX_SOFTWARE;
        for (option, value) in [
            (libc::SO_TIMESTAMPNS, on),
            (libc::SO_TIMESTAMPING, all.cast_signed()),
            (libc::SO_PASSSEC, on),
        ] {
            // SAFETY: the descriptor is open, and the kernel reads one int.
            let result = unsafe {
                let value = (&raw const value).cast();
                let len = size_of::<libc::c_int>() as libc::socklen_t;
                libc::setsockopt(ours.as_raw_fd(), libc::SOL_SOCKET, option, value, len)
            };
            assert_eq!(result, 0);
        }
        let file = File::open("/dev/null").unwrap();
        send(&theirs, b"x", &vec![file.as_fd(); MESSAGE_FDS_MAX], Wait::No).unwrap();
        let datagram = receive(&ours, &mut [0; 8]).unwrap();
        assert_eq!((datagram.fds.len(), datagram.fds_lost), (MESSAGE_FDS_MAX, false));
    }
}
