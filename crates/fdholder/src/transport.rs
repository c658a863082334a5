//! The only place that calls `sendmsg` and `recvmsg`.

use crate::limits::MESSAGE_FDS_MAX;
use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for the control message of a full set.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX));

/// Whether a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it can do something.
    Yes,
    /// EAGAIN instead.
    No,
}

/// What one `recvmsg` brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer are filled; 0 at the end of the stream.
    pub len: usize,
    /// The descriptors, close-on-exec from the start.
    pub fds: Vec<OwnedFd>,
    /// The process had no room for all descriptors of a message (`MSG_CTRUNC`). Those that
    /// fit are for the caller to close: half a set is of no use to anybody.
    pub fds_lost: bool,
}

/// Sends bytes, and with the first of them descriptors (at most 253). Returns how many
/// bytes went; once it is not 0 the descriptors went too, and must not be sent again.
///
/// # Errors
///
/// Those of sendmsg(2), EINTR excepted. EAGAIN: the socket is full. ETOOMANYREFS: this
/// user has more descriptors in flight than its RLIMIT_NOFILE, and nothing tells when
/// that ends: try again a little later. EPIPE comes as an error, never as a signal.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let flags = match wait {
        Wait::Yes => SendFlags::NOSIGNAL,
        Wait::No => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    };
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL); // As the kernel answers to more than 253.
        }
        match sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Receives into `buffer`, and the descriptors of at most one message.
///
/// # Errors
///
/// Those of recvmsg(2), EINTR excepted.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], wait: Wait) -> Result<Received, Errno> {
    receive_with(socket, buffer, wait, RecvFlags::empty())
}

/// The same, and leaves everything where it is: copies of the descriptors come.
///
/// # Errors
///
/// Those of recvmsg(2), EINTR excepted.
pub fn peek(socket: impl AsFd, buffer: &mut [u8], wait: Wait) -> Result<Received, Errno> {
    receive_with(socket, buffer, wait, RecvFlags::PEEK)
}

/// How many bytes can be read into a buffer, which they are copied into; `None` if descriptors
/// come with them, or behind them. None of those is received for that.
///
/// # Errors
///
/// Those of recvmsg(2), EINTR excepted. EAGAIN: nothing can be read yet.
pub fn peek_without_fds(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    loop {
        let mut control = RecvAncillaryBuffer::default();
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => {}
            // There is no room for any, which the kernel tells if there are.
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => return Ok(None),
            result => return result.map(|message| Some(message.bytes)),
        }
    }
}

fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    wait: Wait,
    flags: RecvFlags,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = match wait {
        Wait::Yes => flags | RecvFlags::CMSG_CLOEXEC,
        Wait::No => flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    let message = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let fds_lost = message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Received { len: message.bytes, fds, fds_lost })
}
