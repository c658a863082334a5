//! Dumps in parts: one that comes from a holder, one that goes to a holder.

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Cause, Error, Malformed};
use crate::frame::{Frame, Message};
use crate::limits::MESSAGE_FDS_MAX;
use crate::reply;
use crate::request::{setdump_data_from_getdump, Entry, Request};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) const GET_DUMP: &str = "get dump";
pub(crate) const SET_DUMP: &str = "set dump";

/// A dump that is being taken from a holder.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) remaining: u32,
}

impl Incoming<'_> {
    /// How many descriptors are still to come.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The next part of the dump; `None` when all has come.
    ///
    /// # Errors
    ///
    /// As [`Client::getdump`]; the descriptors of the part are closed.
    pub fn next_entries(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Vec<Entry<OwnedFd>>>, Error> {
        self.next_frame(deadline, |frame, remaining| {
            let entries = reply::parse_getdump_data(frame, remaining)?;
            Ok((entries.len() as u32, entries)) // 253 at most.
        })
    }

    /// The next part as the message that hands it on to another holder.
    pub(crate) fn next_message(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Message<OwnedFd>>, Error> {
        self.next_frame(deadline, |frame, remaining| {
            reply::check_getdump_data(&frame, remaining)?;
            let count = frame.fds.len() as u32; // 253 at most.
            Ok((count, setdump_data_from_getdump(frame.payload, frame.fds)))
        })
    }

    fn next_frame<T>(
        &mut self,
        deadline: Deadline,
        read: impl FnOnce(Frame<'_, OwnedFd>, u32) -> Result<(u32, T), Malformed>,
    ) -> Result<Option<T>, Error> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let remaining = self.remaining;
        let part = self.client.receive(deadline).and_then(|frame| {
            if frame.fds_lost {
                return Err(Cause::Exchange(Errno::NFILE));
            }
            Ok(read(frame, remaining)?)
        });
        let (count, part) = part.map_err(|cause| Error::new(GET_DUMP, cause))?;
        self.remaining -= count;
        self.client.in_step = self.remaining == 0;
        Ok(Some(part))
    }
}

/// A set that is being given to a holder.
///
/// The holder answers each part before the next is sent: s6's daemon has room for the
/// descriptors of one message only, and fails when the next one's come early.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) remaining: u32,
}

impl Outgoing<'_> {
    /// How many descriptors are still to be sent.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Sends the next part of the set, 1 to 253 descriptors, and waits for the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::setdump`]. EINVAL when the part is none or larger than what remains.
    pub fn send_entries<F: AsFd>(
        &mut self,
        entries: &[Entry<F>],
        deadline: Deadline,
    ) -> Result<(), Error> {
        if entries.is_empty() || entries.len() > MESSAGE_FDS_MAX {
            return Err(Error::new(SET_DUMP, Cause::Exchange(Errno::INVAL)));
        }
        let entries = entries.iter().map(|entry| Entry {
            id: entry.id.clone(),
            limit: entry.limit,
            fd: entry.fd.as_fd(),
        });
        let message = Request::SetdumpData(entries.collect()).into_message();
        self.send_part(message.bytes(), message.fds(), deadline)
            .and_then(|()| self.read_answer(deadline))
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Sends a message that [`Incoming::next_message`] made, without waiting for the
    /// answer: [`confirm`](Self::confirm) does, before the next is sent.
    pub(crate) fn send_message(
        &mut self,
        message: &Message<OwnedFd>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
        self.send_part(message.bytes(), &fds, deadline)
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Reads the answer to the message sent last.
    pub(crate) fn confirm(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.read_answer(deadline)
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    fn send_part(
        &mut self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), Cause> {
        let count = fds.len() as u32; // 253 at most.
        let remaining = self
            .remaining
            .checked_sub(count)
            .ok_or(Cause::Exchange(Errno::INVAL))?;
        self.client.send(bytes, fds, deadline)?;
        self.remaining = remaining;
        Ok(())
    }

    fn read_answer(&mut self, deadline: Deadline) -> Result<(), Cause> {
        let answer = reply::parse_status(&self.client.receive(deadline)?)?;
        match (answer, self.remaining) {
            // EAGAIN is "go on", and only that while there is more to come.
            (Ok(()), 0) => self.client.in_step = true,
            (Err(Errno::AGAIN), 1..) => {}
            (Err(Errno::AGAIN), 0) => {
                return Err(Malformed("the set is whole, not so for it").into())
            }
            (Ok(()), 1..) => return Err(Malformed("an end before the set is whole").into()),
            (Err(errno), _) => return Err(Cause::Denied(errno)),
        }
        Ok(())
    }
}
