//! What a client can ask of a fdholder beyond s6's protocol.

use crate::client::Client;
use crate::deadline::Deadline;
use crate::dump::{GET_DUMP, SET_DUMP};
use crate::error::{Cause, Error, Malformed};
use crate::extension::{self, Extension, Inspected, OnConflict, Snapshot, Taken, VERSION};
use crate::frame::Frame;
use crate::id::Identifier;
use crate::limits::RELEASE_FDS_MAX;
use crate::reply::Answer;
use crate::request::{Entry, Request};
use crate::runs::Runs;
use crate::status::Status;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A holder that was asked what it speaks.
#[derive(Debug)]
pub(crate) struct Negotiation {
    path: PathBuf,
    client: Client,
    asked: Result<(), Cause>,
    /// Whether it was also asked for a snapshot, with or without entries.
    snapshot: Option<bool>,
}

impl Negotiation {
    /// Reads the answer, and the snapshot if one was asked for and the holder is a fdholder.
    pub fn end(mut self, deadline: Deadline) -> Result<(Client, Option<Snapshot>), Error> {
        if let Err(cause) = self.read_version(deadline) {
            return match cause {
                // As s6's daemon answers.
                Cause::Exchange(Errno::PIPE) => {
                    Client::connect(self.path, deadline).map(|client| (client, None))
                }
                cause => {
                    let doing =
                        format!("speak with the fd-holder daemon at {}", self.path.display());
                    Err(Error::new(doing, cause))
                }
            };
        }
        let Self { mut client, snapshot, .. } = self;
        let Some(entries) = snapshot else { return Ok((client, None)) };
        let answer = client.receive(deadline).and_then(|frame| {
            Ok(extension::parse_snapshot(&frame, entries)?.map_err(Cause::Denied))
        });
        client.in_step = answer.is_ok();
        match answer.and_then(|answer| answer) {
            Ok(snapshot) => Ok((client, Some(snapshot))),
            // One that does not know hello does not know this either.
            Err(Cause::Denied(Errno::OPNOTSUPP)) => Ok((client, None)),
            Err(cause) => Err(Error::new(GET_DUMP, cause)),
        }
    }

    fn read_version(&mut self, deadline: Deadline) -> Result<(), Cause> {
        self.asked?;
        let version = extension::parse_hello(&self.client.receive(deadline)?)?;
        // That question is also answered to one of the holder's own user whom no rule lets in.
        self.client.has_answered = false;
        self.client.in_step = self.snapshot.is_none();
        // One that does not know the question has answered it, too.
        self.client.version = version.ok();
        Ok(())
    }
}

impl Client {
    /// Connects, and finds out whether the holder is a fdholder, and of which version.
    ///
    /// s6's daemon hangs up on the question, so it is asked on a connection of its own;
    /// then another one is made. Nothing is remembered. A fdholder may send the messages
    /// of a dump faster to whoever has asked.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect). A holder that refuses this user altogether is only
    /// noticed by what is asked next.
    pub fn connect_negotiated(path: impl AsRef<Path>, deadline: Deadline) -> Result<Self, Error> {
        Ok(Self::begin_negotiation(path, None, deadline)?.end(deadline)?.0)
    }

    /// The same, where no other holder will do.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect) · EPIPE the holder hangs up also on what every holder answers ·
    /// EOPNOTSUPP it answers, and is no fdholder.
    pub fn connect_fdholder(path: impl AsRef<Path>, deadline: Deadline) -> Result<Self, Error> {
        let path = path.as_ref();
        let refused = |cause| {
            Error::new(format!("speak with the fd-holder daemon at {}", path.display()), cause)
        };
        // What hangs up once and answers then may be a fdholder that was just replaced.
        for _ in 0..2 {
            let mut client = Self::connect_negotiated(path, deadline)?;
            if client.version.is_some() {
                return Ok(client);
            }
            match client.list(deadline).map_err(|error| error.cause()) {
                Ok(_) | Err(Cause::Denied(_)) => {}
                Err(cause) => return Err(refused(cause)),
            }
        }
        Err(refused(Cause::Denied(Errno::OPNOTSUPP)))
    }

    /// Connects, and asks, perhaps for a snapshot as well; several holders can be asked at
    /// once.
    pub(crate) fn begin_negotiation(
        path: impl AsRef<Path>,
        snapshot: Option<bool>,
        deadline: Deadline,
    ) -> Result<Negotiation, Error> {
        let path = path.as_ref().to_owned();
        let client = Self::connect(&path, deadline)?;
        let message = |asked| Request::<BorrowedFd<'_>>::Extension(asked).into_message();
        let mut bytes = message(Extension::Hello(VERSION)).into_parts().0;
        if let Some(entries) = snapshot {
            bytes.extend(message(Extension::Snapshot { entries }).bytes());
        }
        let asked = client.send(&bytes, &[], deadline);
        Ok(Negotiation { path, client, asked, snapshot })
    }

    /// The version of the extensions that the holder speaks; `None` for s6's daemon, and
    /// for a client that was not [negotiated](Self::connect_negotiated).
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// Why the last answer on this connection was ENFILE or EDQUOT: which limit it is that
    /// leaves no room. `None` when the holder does not say.
    ///
    /// It is for a client that gives up then: s6's daemon hangs up on the question.
    pub fn why(&mut self, deadline: Deadline) -> Option<String> {
        let ask = |client: &mut Self| -> Result<String, Cause> {
            if client.version.is_none() {
                let hello = Request::Extension(Extension::Hello(VERSION));
                client.ask(hello, deadline, |frame| extension::parse_hello(&frame))?;
            }
            let why = Request::Extension(Extension::Why);
            client.ask(why, deadline, |frame| extension::parse_why(&frame))
        };
        ask(self).ok().filter(|why| !why.is_empty())
    }

    /// How much is held, how much can be, and with `entries` under which identifiers and
    /// until when. The holder remembers it for this connection.
    ///
    /// # Errors
    ///
    /// EPERM with neither the right to list nor to get a dump · EOPNOTSUPP the holder is
    /// no fdholder, or was not asked whether it is.
    pub fn snapshot(&mut self, entries: bool, deadline: Deadline) -> Result<Snapshot, Error> {
        self.ask_extension(Extension::Snapshot { entries }, deadline, |frame| {
            extension::parse_snapshot(&frame, entries)
        })
        .map_err(|cause| Error::new(GET_DUMP, cause))
    }

    /// Has the holder stop holding this part of the snapshot, where it is still what is
    /// held; or with `only_ask` say whether it would.
    pub(crate) fn release(
        &mut self,
        mut runs: Runs,
        only_ask: bool,
        deadline: Deadline,
    ) -> Result<u32, Error> {
        let mut released = 0;
        while runs.len() > 0 {
            let runs = runs.take(RELEASE_FDS_MAX as u32);
            released += self
                .ask_extension(Extension::Release { runs, only_ask }, deadline, |frame| {
                    extension::parse_released(&frame)
                })
                .map_err(|cause| Error::new("delete what was transferred", cause))?;
        }
        Ok(released)
    }

    /// Fails with EPERM if the holder would not send a dump to another one: it is asked to send
    /// nothing to `to`, whatever that is.
    pub(crate) fn may_deliver(
        &mut self,
        to: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let nothing = Extension::Deliver { runs: Vec::new(), to };
        match self.ask_extension(nothing, deadline, |frame| extension::parse_delivered(&frame)) {
            Err(cause @ Cause::Denied(Errno::PERM)) => Err(Error::new(GET_DUMP, cause)),
            Ok(_) | Err(Cause::Denied(_)) => Ok(()),
            Err(cause) => Err(Error::new(GET_DUMP, cause)),
        }
    }

    /// Fails with EPERM if this user may see nothing of what the holder holds.
    pub(crate) fn may_look(&mut self, deadline: Deadline) -> Result<(), Error> {
        match self.status(deadline) {
            // One of an earlier version.
            Err(error) if error.cause() == Cause::Denied(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(Error::new("get fd list", error.cause())),
            Ok(_) => Ok(()),
        }
    }

    /// Says what is to become of identifiers that a set, given on this connection, shares
    /// with what is held.
    pub(crate) fn on_conflict(
        &mut self,
        on_conflict: OnConflict,
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.ask_extension(Extension::OnConflict(on_conflict), deadline, |frame| {
            crate::reply::parse_status(&frame)
        })
        .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Has all of these held, where nothing is held under any of their identifiers.
    ///
    /// # Errors
    ///
    /// EEXIST something is held under one of them, and none of these · EPERM without the right to
    /// set a dump, or to know what is held · EOPNOTSUPP the holder is no fdholder, or was not asked
    /// whether it is · those of [`setdump`](Self::setdump).
    pub fn store_all<F: AsFd>(
        &mut self,
        entries: &[Entry<F>],
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.on_conflict(OnConflict::Fail, deadline)?;
        match self.setdump(entries, deadline) {
            Err(error) if !matches!(error.cause(), Cause::Denied(_)) => Err(error),
            outcome => {
                // What is given next on this connection replaces again, or is not given.
                let replaces = self.on_conflict(OnConflict::Replace, deadline);
                self.in_step &= replaces.is_ok();
                outcome
            }
        }
    }

    /// What came of the set that was given last on this connection.
    pub(crate) fn taken(&mut self, deadline: Deadline) -> Result<Taken, Error> {
        self.ask_extension(Extension::Taken, deadline, |frame| extension::parse_taken(&frame))
            .map_err(|cause| Error::new(SET_DUMP, cause))
    }

    /// Has the holder become the program that is now where it was started from; this
    /// connection stays. Returns the version that serves then, or why it is still the old
    /// one.
    ///
    /// # Errors
    ///
    /// EPERM the holder runs as another user · EOPNOTSUPP it is no fdholder, or was not
    /// asked whether it is, or is too old for this.
    pub fn upgrade(&mut self, deadline: Deadline) -> Result<Result<String, String>, Error> {
        self.ask_extension(Extension::Upgrade, deadline, |frame| extension::parse_upgraded(&frame))
            .map_err(|cause| Error::new("upgrade the holder", cause))
    }

    /// What is held, until when, since when, and who gave it.
    ///
    /// # Errors
    ///
    /// EPERM with neither the right to list nor to get a dump · EOPNOTSUPP the holder is no
    /// fdholder, or was not asked whether it is, or is too old for this.
    pub fn inspect(&mut self, deadline: Deadline) -> Result<Vec<Inspected>, Error> {
        self.ask_extension(Extension::Inspect, deadline, |frame| extension::parse_inspected(&frame))
            .map_err(|cause| Error::new("get fd list", cause))
    }

    /// How the holder is.
    ///
    /// # Errors
    ///
    /// As [`inspect`](Self::inspect).
    pub fn status(&mut self, deadline: Deadline) -> Result<Status, Error> {
        self.ask_extension(Extension::Status, deadline, |frame| extension::parse_status(&frame))
            .map_err(|cause| Error::new("get the holder's status", cause))
    }

    /// Whether the rules let a user store under an identifier.
    ///
    /// # Errors
    ///
    /// EPERM the client is neither root nor the holder's own user · EAGAIN the rules cannot be
    /// read now · EOPNOTSUPP as [`inspect`](Self::inspect).
    pub fn may_store(
        &mut self,
        uid: u32,
        gid: u32,
        id: &Identifier,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        let asked = Extension::MayStore { uid, gid, id: id.clone() };
        self.ask_extension(asked, deadline, |frame| extension::parse_may_store(&frame))
            .map_err(|cause| Error::new("see what a user may store", cause))
    }

    /// Waits until something is held under an identifier, or with `is_prefix` under any that
    /// begins so. It may have gone again when this returns.
    ///
    /// # Errors
    ///
    /// [`Cause::TimedOut`] and nothing is · EPERM without the right to retrieve it, or to list
    /// with `is_prefix` · EDQUOT too many wait · EPIPE the holder has ended · EOPNOTSUPP as
    /// [`inspect`](Self::inspect).
    pub fn wait_for_id(
        &mut self,
        id: &Identifier,
        is_prefix: bool,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let asked = Extension::Await { id: id.clone(), is_prefix };
        self.ask_extension(asked, deadline, |frame| crate::reply::parse_status(&frame))
            .map_err(|cause| Error::new(format!("wait for {id}"), cause))
    }

    fn ask_extension<T>(
        &mut self,
        extension: Extension<BorrowedFd<'_>>,
        deadline: Deadline,
        read: impl FnOnce(Frame<'_, OwnedFd>) -> Result<Answer<T>, Malformed>,
    ) -> Result<T, Cause> {
        if self.version.is_none() {
            return Err(Cause::Denied(Errno::OPNOTSUPP));
        }
        self.ask(Request::Extension(extension), deadline, read)
    }
}
