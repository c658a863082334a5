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

const GET_DUMP: &str = "get dump";
const SET_DUMP: &str = "set dump";

impl Client {
    /// Copies of everything, with identifiers and limits.
    ///
    /// # Errors
    ///
    /// EPERM without the right · ENFILE this process has no room for them all (raise
    /// RLIMIT_NOFILE, or take the dump in parts with [`begin_getdump`](Self::begin_getdump)).
    pub fn getdump(&mut self, deadline: Deadline) -> Result<Vec<Entry<OwnedFd>>, Error> {
        let mut incoming = self.begin_getdump(deadline)?;
        let mut dump = Vec::new();
        while let Some(entries) = incoming.next_entries(deadline)? {
            dump.extend(entries);
        }
        Ok(dump)
    }

    /// Adds a set to what is held, replacing what is held under the same identifiers.
    ///
    /// A fdholder daemon takes all of it or nothing; s6's may be left with a part when
    /// this fails half-way. A descriptor is only borrowed.
    ///
    /// # Errors
    ///
    /// EPERM without the right · ENFILE the holder has no room for the set.
    pub fn setdump<F: AsFd>(
        &mut self,
        entries: &[Entry<F>],
        deadline: Deadline,
    ) -> Result<(), Error> {
        let count = u32::try_from(entries.len())
            .map_err(|_| Error::new("set dump", Cause::Exchange(Errno::NFILE)))?;
        let mut outgoing = self.begin_setdump(count, deadline)?;
        for part in entries.chunks(MESSAGE_FDS_MAX) {
            outgoing.send_entries(part, deadline)?;
        }
        Ok(())
    }

    /// Asks for a dump, to be taken in parts of up to 253 descriptors.
    ///
    /// # Errors
    ///
    /// As [`getdump`](Self::getdump).
    pub fn begin_getdump(&mut self, deadline: Deadline) -> Result<Incoming<'_>, Error> {
        let remaining = self
            .ask(Request::Getdump, deadline, |frame| reply::parse_getdump_head(&frame))
            .map_err(|cause| Error::new(GET_DUMP, cause))?;
        self.in_step = remaining == 0;
        Ok(Incoming { client: self, remaining })
    }

    /// Announces a set of `count` descriptors, to be sent in parts of up to 253.
    ///
    /// Nothing is sent for a set of none.
    ///
    /// # Errors
    ///
    /// As [`setdump`](Self::setdump).
    pub fn begin_setdump(&mut self, count: u32, deadline: Deadline) -> Result<Outgoing<'_>, Error> {
        if count != 0 {
            self.ask(Request::Setdump(count), deadline, |frame| reply::parse_setdump_head(&frame))
                .map_err(|cause| Error::new(SET_DUMP, cause))?;
            self.in_step = false;
        }
        Ok(Outgoing { client: self, remaining: count })
    }
}

/// A dump that is being taken from a holder.
#[derive(Debug)]
pub struct Incoming<'a> {
    client: &'a mut Client,
    remaining: u32,
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
    client: &'a mut Client,
    remaining: u32,
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
        self.send_part(message.bytes(), &fds, deadline).map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Reads the answer to the message sent last.
    pub(crate) fn confirm(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.read_answer(deadline).map_err(|cause| Error::new(SET_DUMP, cause))
    }

    fn send_part(
        &mut self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), Cause> {
        let count = fds.len() as u32; // 253 at most.
        let remaining = self.remaining.checked_sub(count).ok_or(Cause::Exchange(Errno::INVAL))?;
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
