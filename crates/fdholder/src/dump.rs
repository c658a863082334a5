//! Dumps in parts: one that comes from a holder, one that goes to a holder.

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Cause, Error, Malformed};
use crate::frame::{Frame, Message};
use crate::limits::MESSAGE_FDS_MAX;
use crate::reply;
use crate::request::{setdump_data, setdump_data_from_getdump, Entry, Request};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

pub(crate) const GET_DUMP: &str = "get dump";
pub(crate) const SET_DUMP: &str = "set dump";

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
    /// Also a set of none is announced: the holder says whether this user may give it one.
    ///
    /// # Errors
    ///
    /// As [`setdump`](Self::setdump).
    pub fn begin_setdump(&mut self, count: u32, deadline: Deadline) -> Result<Outgoing<'_>, Error> {
        self.ask(Request::Setdump(count), deadline, |frame| reply::parse_setdump_head(&frame))
            .map_err(|cause| Error::new(SET_DUMP, cause))?;
        self.in_step = count == 0;
        Ok(Outgoing { client: self, remaining: count, unanswered: VecDeque::new(), confirmed: 0 })
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
/// Parts may only be sent ahead of the answers to those before to a fdholder: s6's daemon
/// has room for the descriptors of one message, and fails when the next one's come early.
#[derive(Debug)]
pub struct Outgoing<'a> {
    client: &'a mut Client,
    remaining: u32,
    /// How many descriptors had each part that was not answered yet.
    unanswered: VecDeque<u32>,
    confirmed: u32,
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
        let entries = entries.iter().map(|entry| (&entry.id, entry.limit, entry.fd.as_fd()));
        self.send_message(&setdump_data(entries), deadline)?;
        self.confirm(deadline)
    }

    /// Sends the next part as a message, without waiting for the answer.
    pub(crate) fn send_message(
        &mut self,
        message: &Message<impl AsFd>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let fds: Vec<_> = message.fds().iter().map(AsFd::as_fd).collect();
        let count = fds.len() as u32; // 253 at most.
        self.expect_part(count)
            .and_then(|()| self.client.send(message.bytes(), &fds, deadline))
            .map_err(|cause| self.undeliverable(cause))
    }

    /// A part could not be sent. If the holder has hung up, it may have said why.
    pub(crate) fn undeliverable(&mut self, cause: Cause) -> Error {
        while cause.errno() == Errno::PIPE && !self.unanswered.is_empty() {
            match self.read_answer(Deadline::after(Duration::ZERO)) {
                Ok(()) => {}
                Err(said @ (Cause::Denied(_) | Cause::Malformed(_))) => {
                    return Error::new(SET_DUMP, said);
                }
                Err(_) => break,
            }
        }
        let is_closed = cause.errno() == Errno::PIPE;
        Error::new(SET_DUMP, if is_closed { self.client.closed() } else { cause })
    }

    /// Says that another process sends this many descriptors, as messages of 253.
    pub(crate) fn is_sent_elsewhere(&mut self, mut count: u32) -> Result<(), Error> {
        while count > 0 {
            let part = count.min(MESSAGE_FDS_MAX as u32);
            self.expect_part(part).map_err(|cause| Error::new(SET_DUMP, cause))?;
            count -= part;
        }
        Ok(())
    }

    /// Says that nothing was sent after all since the last [`confirm`](Self::confirm).
    pub(crate) fn was_not_sent(&mut self) {
        self.remaining += self.unanswered.drain(..).sum::<u32>();
    }

    fn expect_part(&mut self, count: u32) -> Result<(), Cause> {
        self.remaining = self.remaining.checked_sub(count).ok_or(Cause::Exchange(Errno::INVAL))?;
        self.unanswered.push_back(count);
        Ok(())
    }

    /// The connection, for a process that sends in our place.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.client.socket()
    }

    /// How many parts were sent and not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// How many descriptors these parts have.
    pub(crate) fn unconfirmed(&self) -> u32 {
        self.unanswered.iter().sum()
    }

    /// How many descriptors the holder has confirmed.
    pub(crate) fn confirmed(&self) -> u32 {
        self.confirmed
    }

    /// Waits for the answer to the first part that has none.
    pub(crate) fn confirm(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.read_answer(deadline).map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Takes in what the holder has said already, if anything.
    pub(crate) fn hear(&mut self) -> Result<(), Error> {
        match self.read_answer(Deadline::after(Duration::ZERO)) {
            Ok(()) | Err(Cause::TimedOut) => Ok(()),
            Err(cause) => Err(Error::new(SET_DUMP, cause)),
        }
    }

    /// Whether the connection takes more: the holder is not behind with reading.
    pub(crate) fn has_room(&self) -> bool {
        let mut socket = [PollFd::from_borrowed_fd(self.socket(), PollFlags::OUT)];
        matches!(poll(&mut socket, Some(&Timespec::default())), Ok(ready) if ready > 0)
    }

    /// Fails if the holder has said something although all it was sent is answered.
    pub(crate) fn expect_silence(&mut self) -> Result<(), Error> {
        let answer = match self.client.receive(Deadline::after(Duration::ZERO)) {
            Err(Cause::TimedOut) => return Ok(()),
            Ok(frame) => reply::parse_status(&frame).map_err(Cause::from),
            Err(cause) => Err(cause),
        };
        let cause = match answer {
            Ok(Err(errno)) if errno != Errno::AGAIN => Cause::Denied(errno),
            Ok(_) => Malformed("an answer to what was not sent yet").into(),
            Err(cause) => cause,
        };
        Err(Error::new(SET_DUMP, cause))
    }

    fn read_answer(&mut self, deadline: Deadline) -> Result<(), Cause> {
        let answer = reply::parse_status(&self.client.receive(deadline)?)?;
        let count =
            self.unanswered.pop_front().ok_or(Malformed("an answer to what was not sent yet"))?;
        let is_last = self.remaining == 0 && self.unanswered.is_empty();
        match answer {
            // EAGAIN is "go on", and only that while there is more to come.
            Ok(()) if is_last => self.client.in_step = true,
            Err(Errno::AGAIN) if !is_last => {}
            Err(Errno::AGAIN) => return Err(Malformed("the set is whole, not so for it").into()),
            Ok(()) => return Err(Malformed("an end before the set is whole").into()),
            Err(errno) => {
                // With the whole set a fdholder has read all there is, and goes on.
                self.client.in_step = is_last && self.client.version.is_some();
                return Err(Cause::Denied(errno));
            }
        }
        self.confirmed += count;
        Ok(())
    }
}
