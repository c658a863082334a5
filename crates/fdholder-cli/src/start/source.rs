//! Where descriptors come from, and how to wait for them, and for the holder.

use super::choice::{Choice, Wanted};
use crate::binding::{bring_about, BindSpec, Holder};
use crate::connect;
use crate::failure::{exit, Failure};
use crate::group::{group_of, in_words, may_have_clients, number_in};
use crate::options::Milliseconds;
use crate::passing::{front_door, natural, stand_in, Passed};
use crate::program::Invocation;
use fdholder::{Cause, Client, Deadline, Errno, Error, Identifier};
use fdholder_daemon::notify::is_reserved;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often it is looked whether there is a holder, and whether one that tells nobody holds what
/// is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// The same where a holder has too many waiters to have one more.
const PAUSE_AMONG_MANY: Duration = Duration::from_millis(200);

/// How long a holder may close connections before it answers: one that ends or is replaced does
/// for moments, one whose rules do not let this user in always does.
const HANGS_UP_FOR: Duration = Duration::from_secs(1);

/// The first version of the extensions of a holder that tells what appears.
const VERSION_WITH_AWAIT: u32 = 6;

/// A holder that descriptors are taken from.
pub struct Source<'a> {
    invocation: &'a Invocation,
    path: PathBuf,
    /// Whether to find out if it is a fdholder.
    negotiates: bool,
    /// Whether no other will do.
    needs_fdholder: bool,
    /// None while it is only looked at again and again: others may need the connection.
    holder: Option<Client>,
    deadline: Deadline,
    /// Until when to wait for what is not held, or for the holder.
    wait: Deadline,
    /// Whether it may be missing then.
    missing_ok: bool,
    /// Since when it has answered nothing but the end of the connection.
    hangs_up_since: Option<Instant>,
}

impl<'a> Source<'a> {
    /// Whether it is a fdholder is only found out if that matters.
    pub fn of(invocation: &'a Invocation, path: PathBuf, needs_fdholder: bool) -> Self {
        let wait = invocation.optional("wait").and_then(|Milliseconds(wait)| wait);
        Self {
            invocation,
            path,
            negotiates: wait.is_some(),
            needs_fdholder,
            holder: None,
            deadline: connect::deadline(invocation),
            wait: Deadline::after(wait.unwrap_or_default()),
            missing_ok: invocation.matches.get_flag("missing-ok"),
            hangs_up_since: None,
        }
    }

    /// The same for who has something else to do: it waits for nothing that is not there, and for a
    /// holder only so long.
    pub fn impatient(self, patience: Duration) -> Self {
        Self { deadline: Deadline::after(patience), wait: Deadline::after(Duration::ZERO), ..self }
    }

    /// Opens and stores what `--bind` asks for and is not held yet.
    pub fn bind(&mut self, specs: &[BindSpec]) -> Result<(), Failure> {
        // Only a holder that is known to be a fdholder stores a new group in one step.
        self.negotiates |= specs.iter().any(BindSpec::is_group);
        for spec in specs {
            while let Err(failure) = self.bind_once(spec) {
                let may = failure.cause().is_some_and(|cause| self.may_answer_later(cause));
                if self.wait.passed() || !may {
                    return Err(failure);
                }
                self.pause(PAUSE);
            }
        }
        Ok(())
    }

    fn bind_once(&mut self, spec: &BindSpec) -> Result<(), Failure> {
        let (invocation, path) = (self.invocation, self.path.clone());
        // That a connection can be made again is no answer.
        let since = self.hangs_up_since;
        let (client, deadline) = self.connected()?;
        // The last generation has them.
        let may_be_in_use = invocation.program.subcommand == "run";
        let holder = Holder { client, path: &path, deadline, may_be_in_use };
        let bound = bring_about(spec, holder, &invocation.called);
        self.hangs_up_since = if bound.is_ok() { None } else { since };
        bound
    }

    /// What was chosen, in order.
    pub fn get(&mut self, choices: Vec<Choice>) -> Result<Vec<Passed<OwnedFd>>, Failure> {
        let mut passed = Vec::new();
        let mut bound = Vec::new();
        for choice in choices {
            match choice {
                Choice::One(Wanted { id, name, number }) => {
                    let Some(fd) = self.one(&id)? else { continue };
                    let is_named = name.is_some();
                    let name = name.unwrap_or_else(|| stand_in(id.as_bytes()));
                    passed.push(Passed { fd, id, name, is_named, number });
                }
                Choice::Prefix(prefix) => {
                    for id in self.ids(prefix.as_bytes())? {
                        let Some(fd) = self.one(&id)? else { continue };
                        let name = stand_in(id.as_bytes());
                        passed.push(Passed { fd, id, name, is_named: false, number: None });
                    }
                }
                Choice::Bound(id) => {
                    let Some(fd) = self.one(&id)? else {
                        let problem = format!("{id} was deleted as soon as it was bound");
                        return Err(Failure::new(exit::DENIED, problem));
                    };
                    bound.push(passed.len());
                    let name = stand_in(id.as_bytes());
                    passed.push(Passed { fd, id, name, is_named: false, number: None });
                }
            }
        }
        // From the last on, so that the places before stay what they are.
        for place in bound.into_iter().rev() {
            if passed.iter().filter(|one| one.id == passed[place].id).count() > 1 {
                passed.remove(place);
            }
        }
        Ok(passed)
    }

    /// That only a part of a group is passed on: clients that come to the rest wait. Of a group
    /// that was bound this was said then.
    pub fn parts_of_groups(
        &mut self,
        passed: &[Passed<OwnedFd>],
        bound: &[BindSpec],
    ) -> Vec<String> {
        let is_bound = |group: &&[u8]| {
            bound.iter().any(|spec| spec.is_group() && spec.id().as_bytes() == *group)
        };
        let groups: BTreeSet<_> = passed
            .iter()
            .filter_map(|one| group_of(&one.id))
            .filter(|group| !is_bound(group))
            .collect();
        if groups.is_empty() {
            return Vec::new();
        }
        // Without the right to list there is nothing to say.
        let Ok(mut ids) = self.ask(Client::list) else { return Vec::new() };
        ids.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
        ids.retain(|id| passed.iter().all(|one| one.id != *id));
        let mut warnings = Vec::new();
        for group in groups {
            let mut left = ids.clone();
            left.retain(|id| number_in(group, id).is_some());
            left.retain(|id| {
                let asked = self.ask(|holder, deadline| may_have_clients(id, holder, deadline));
                asked.unwrap_or_default()
            });
            if !left.is_empty() {
                let (group, left) = (group.escape_ascii(), in_words(&left));
                warnings
                    .push(format!("only a part of {group}/… is passed on: clients wait in {left}"));
            }
        }
        warnings
    }

    /// The holder, once it is there, and until when it may take to answer.
    pub fn connected(&mut self) -> Result<(&mut Client, Deadline), Failure> {
        match self.ask(|_, _| Ok(())) {
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::OPNOTSUPP)) => {
                return Err(front_door::takes_fdholder());
            }
            result => result?,
        }
        let deadline = self.deadline;
        Ok((self.holder()?, deadline))
    }

    fn holder(&mut self) -> Result<&mut Client, Error> {
        let holder = match self.holder.take() {
            Some(holder) => holder,
            None if self.needs_fdholder => Client::connect_fdholder(&self.path, self.deadline)?,
            None if self.negotiates => {
                let holder = Client::connect_negotiated(&self.path, self.deadline)?;
                // Any other need not be asked again, and may write it down each time.
                self.negotiates = holder.version().is_some();
                holder
            }
            None => Client::connect(&self.path, self.deadline)?,
        };
        Ok(self.holder.insert(holder))
    }

    /// Asks the holder, as soon as there is one that answers.
    fn ask<T>(
        &mut self,
        request: impl Fn(&mut Client, Deadline) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let deadline = self.deadline;
            let error = match self.holder().and_then(|holder| request(holder, deadline)) {
                Ok(answer) => {
                    self.hangs_up_since = None;
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if self.wait.passed() || !self.may_answer_later(error.cause()) {
                return Err(error);
            }
            self.pause(PAUSE);
        }
    }

    /// Whether it may be another answer a little later.
    fn may_answer_later(&mut self, cause: Cause) -> bool {
        match cause {
            // It is not there yet, has no connection for one more at the moment, or has ended after
            // it had answered.
            Cause::Connect(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)
            | Cause::Denied(Errno::DQUOT)
            | Cause::BrokenOff => true,
            Cause::Exchange(Errno::PIPE | Errno::CONNRESET) => {
                let since = self.hangs_up_since.get_or_insert_with(Instant::now);
                since.elapsed() < HANGS_UP_FOR
            }
            _ => false,
        }
    }

    /// `None` when it may be missing, and is.
    fn one(&mut self, id: &Identifier) -> Result<Option<OwnedFd>, Failure> {
        loop {
            match self.ask(|holder, deadline| holder.retrieve(id, deadline)) {
                Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => {
                    if !self.wait.passed() {
                        self.wait_for(Some(id), false);
                    } else if self.missing_ok {
                        return Ok(None);
                    } else {
                        return Err(error.into());
                    }
                }
                result => return Ok(Some(result?)),
            }
        }
    }

    /// The identifiers that begin in one way, ordered; at least one, unless they may be missing.
    fn ids(&mut self, prefix: &[u8]) -> Result<Vec<Identifier>, Failure> {
        // After a wait: they may still come one by one, from who stores no set.
        let mut seen: Option<Vec<Identifier>> = None;
        loop {
            let mut ids = self.ask(Client::list)?;
            // Doors are the holder's.
            ids.retain(|id| id.as_bytes().starts_with(prefix) && !is_reserved(id));
            ids.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
            if !ids.is_empty() {
                let is_settled = seen.as_ref().is_none_or(|seen| *seen == ids);
                if is_settled || self.wait.passed() {
                    return Ok(ids);
                }
                seen = Some(ids);
                self.pause(PAUSE);
                continue;
            }
            if self.wait.passed() && self.missing_ok {
                return Ok(ids);
            }
            if self.wait.passed() {
                let prefix = prefix.escape_ascii();
                return Err(Failure::new(
                    exit::DENIED,
                    format_args!("nothing is held under ids that begin with {prefix}"),
                ));
            }
            self.wait_for(Identifier::new(prefix).ok().as_ref(), true);
            seen = Some(Vec::new());
        }
    }

    /// Waits until something may be held, or for a while: then the caller looks.
    fn wait_for(&mut self, id: Option<&Identifier>, is_prefix: bool) {
        let tells = |holder: &&mut Client| {
            holder.version().is_some_and(|version| version >= VERSION_WITH_AWAIT)
        };
        let (wait, holder) = (self.wait, self.holder.as_mut().filter(tells));
        let told = holder.zip(id).map(|(holder, id)| holder.wait_for_id(id, is_prefix, wait));
        match told {
            // It is out of step when the time is over, and gone when the holder has ended.
            Some(Err(error)) if !matches!(error.cause(), Cause::Denied(_)) => self.holder = None,
            Some(Err(_)) => self.pause(PAUSE_AMONG_MANY),
            Some(Ok(())) => {}
            None => self.pause(PAUSE),
        }
        // That time was for waiting.
        self.deadline = connect::deadline(self.invocation);
    }

    fn pause(&mut self, span: Duration) {
        self.holder = None;
        std::thread::sleep(self.wait.remaining().map_or(span, |left| left.min(span)));
        self.deadline = connect::deadline(self.invocation);
    }
}
