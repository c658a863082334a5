//! A client that says whatever it likes.

use crate::support::deadline;
use fdholder::frame::{Decoder, Message};
use fdholder::limits::REPLY_PAYLOAD_MAX;
use fdholder::transport::{self, Wait};
use fdholder::{Entry, Errno, Identifier, Limit, Request};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::{
    connect, sendmsg, socket_with, AddressFamily, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// A connection.
pub struct Raw {
    pub socket: OwnedFd,
    decoder: Decoder<OwnedFd>,
}

impl Raw {
    /// Waits until it is connected.
    pub fn new(path: &Path) -> Self {
        Self::connect(path, SocketFlags::CLOEXEC).unwrap()
    }

    /// Waits for nothing, now or later.
    pub fn at_once(path: &Path) -> Result<Self, Errno> {
        Self::connect(path, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    fn connect(path: &Path, flags: SocketFlags) -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::over(socket))
    }

    pub fn over(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::new(REPLY_PAYLOAD_MAX) }
    }

    /// Sends what there is room for, and returns how much that was.
    pub fn send_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        transport::send(&self.socket, bytes, fds, Wait::No)
    }

    /// Sends all, and waits for room.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let sent = transport::send(&self.socket, bytes, fds, Wait::Yes)?;
        if sent < bytes.len() {
            return self.send(&bytes[sent..], &[]);
        }
        Ok(())
    }

    pub fn say<F: AsFd>(&self, request: Request<F>) -> Result<(), Errno> {
        let (bytes, fds) = request.into_message().into_parts();
        self.send(&bytes, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
    }

    /// Sends a message with its descriptors in two control messages.
    pub fn send_in_two(
        &self,
        bytes: &[u8],
        first: &[BorrowedFd<'_>],
        second: &[BorrowedFd<'_>],
    ) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); 2048];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(first)));
        assert!(control.push(SendAncillaryMessage::ScmRights(second)));
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    /// Reads until there is a whole reply and has it looked at. `None`: hung up.
    pub fn next<T>(
        &mut self,
        look: impl FnOnce(fdholder::frame::Frame<'_, OwnedFd>) -> T,
    ) -> Option<T> {
        let mut buffer = vec![0; 1 << 16];
        while !self.decoder.has_frame() {
            let left = deadline().remaining().unwrap();
            let timeout = left.try_into().unwrap();
            let ready = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout));
            assert_ne!(ready, Ok(0), "no reply came");
            match transport::receive(&self.socket, &mut buffer, Wait::No) {
                Ok(received) if received.len == 0 => return None,
                Ok(received) => {
                    let bytes = &buffer[..received.len];
                    self.decoder.push(bytes, received.fds, received.fds_lost);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::CONNRESET) => return None,
                Err(errno) => panic!("{errno}"),
            }
        }
        Some(look(self.decoder.next().unwrap().unwrap()))
    }

    /// The errno of the next reply, by name: "done", or "hung up".
    pub fn answer(&mut self) -> String {
        let first = self.next(|frame| frame.payload[0]);
        match first {
            None => "hung up".to_owned(),
            Some(0) => "done".to_owned(),
            Some(errno) => name_of(Errno::from_raw_os_error(i32::from(errno))),
        }
    }

    /// Asks, and returns the errno of the reply.
    pub fn ask<F: AsFd>(&mut self, request: Request<F>) -> String {
        match self.say(request) {
            // It may have been told why.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => self.answer(),
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Whether the other end has hung up, or what it says is not read.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut fds, Some(&Duration::ZERO.try_into().unwrap())).unwrap();
        fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }
}

/// What the tests call an errno.
pub fn name_of(errno: Errno) -> String {
    let names = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::NFILE, "ENFILE"),
        (Errno::DQUOT, "EDQUOT"),
        (Errno::INPROGRESS, "EINPROGRESS"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    ];
    let name = names.into_iter().find(|(other, _)| *other == errno);
    name.map_or_else(|| format!("{errno:?}"), |(_, name)| name.to_owned())
}

pub fn null() -> File {
    File::open("/dev/null").unwrap()
}

pub fn store<F>(id: Identifier, fd: F) -> Request<F> {
    Request::Store(Entry { id, limit: Limit::never(), fd })
}

/// A message that stores, as bytes without the descriptor.
pub fn bytes_of<F>(request: Request<F>) -> Vec<u8> {
    let message: Message<F> = request.into_message();
    message.into_parts().0
}

/// A header.
pub fn header(len: u32, fds: u16) -> [u8; 6] {
    let mut header = [0; 6];
    header[..4].copy_from_slice(&len.to_be_bytes());
    header[4..].copy_from_slice(&fds.to_be_bytes());
    header
}
