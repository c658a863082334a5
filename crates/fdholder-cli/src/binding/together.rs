//! New members of a group: who waits for the group gets all of them.

use super::{Binding, ATTEMPTS};
use crate::endpoint::{leads, limits, Endpoint, Leads, NotSettled, OpenError};
use crate::failure::Failure;
use crate::group::in_words;
use fdholder::{Cause, Entry, Errno, Identifier, Limit};
use std::os::fd::{AsFd, OwnedFd};

/// What is to be held, and where it is opened.
pub type Member<'a> = (&'a Identifier, &'a Endpoint);

/// What was opened for one.
type Opening<'a> = (&'a Identifier, &'a Endpoint, OwnedFd);

/// Descriptors that are not held yet; when they are not needed, their files go with them.
struct Opened<'a>(Vec<Opening<'a>>);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let sockets =
            self.0.iter().filter(|(_, endpoint, _)| matches!(endpoint, Endpoint::Unix { .. }));
        for (_, endpoint, fd) in sockets {
            let file = endpoint.file().filter(|file| leads(file, fd.as_fd()) == Leads::Here);
            // One that stays is dead, and in nobody's way.
            let _ = file.map(rustix::fs::unlink);
        }
    }
}

impl Binding<'_> {
    /// Opens all of these and has them held in one step. What others were faster to have held is
    /// as it was asked for when this returns.
    pub fn bring_about_together(&mut self, members: &[Member<'_>]) -> Result<(), Failure> {
        let mut in_use = None;
        let mut attempts = ATTEMPTS;
        while attempts > 0 {
            attempts -= 1;
            let mut missing = Vec::new();
            for (id, endpoint) in members {
                if self.held(id)?.is_some() {
                    self.bring_about(id, endpoint)?;
                } else {
                    missing.push((*id, *endpoint));
                }
            }
            let mut opened = Opened(Vec::new());
            let mut refused = None;
            for (id, endpoint) in missing {
                match endpoint.open(self.options) {
                    Ok(fd) => opened.0.push((id, endpoint, fd)),
                    Err(OpenError::InUse(problem)) => {
                        refused = Some((id, endpoint, problem));
                        break;
                    }
                    Err(error) => {
                        return Err(self.not_settled(id, endpoint, None, &NotSettled::Open(error)))
                    }
                }
            }
            if let Some((id, endpoint, problem)) = refused {
                if in_use.is_none() {
                    self.refuse_if_held_elsewhere(id, endpoint, None)?;
                }
                in_use = Some((id, endpoint, problem));
                drop(opened);
                attempts = self.wait_for_change(id, endpoint, None, attempts)?;
            } else if self.give_together(&mut opened)? {
                return Ok(());
            }
        }
        match in_use {
            Some((id, endpoint, problem)) => {
                let problem = NotSettled::Open(OpenError::InUse(problem));
                Err(self.not_settled(id, endpoint, None, &problem))
            }
            // Others change them all the time.
            None => members.iter().try_for_each(|(id, endpoint)| self.bring_about(id, endpoint)),
        }
    }

    /// Has them held, all or none; false when others were faster.
    fn give_together(&mut self, opened: &mut Opened<'_>) -> Result<bool, Failure> {
        let given = self.give_new(&opened.0);
        if given.as_ref().is_err_and(|failure| !failure.is_refusal()) {
            // They may be held nevertheless, and reached by their files.
            opened.0.clear();
        }
        if !given? {
            return Ok(false);
        }
        self.has_given |= !opened.0.is_empty();
        for (id, endpoint, fd) in std::mem::take(&mut opened.0) {
            self.say(id, limits(endpoint, self.options, &fd));
        }
        Ok(true)
    }

    fn give_new(&mut self, opened: &[Opening<'_>]) -> Result<bool, Failure> {
        if opened.is_empty() {
            return Ok(true);
        }
        let mut set = Vec::with_capacity(opened.len());
        for (id, _, fd) in opened {
            set.push(Entry { id: Identifier::clone(id), limit: Limit::never(), fd });
        }
        match self.holder.store_all(&set, self.deadline) {
            Ok(()) => Ok(true),
            Err(error) => match error.cause() {
                Cause::Denied(Errno::EXIST) => Ok(false),
                // Who may not give a set, or not to such a holder, stores them one after another.
                Cause::Denied(Errno::PERM | Errno::OPNOTSUPP) => self.give_in_turn(opened),
                _ => {
                    let ids: Vec<_> = opened.iter().map(|(id, ..)| Identifier::clone(id)).collect();
                    let failure = Failure::asking_why(error, self.holder, self.deadline);
                    Err(failure.with(format_args!("for {}", in_words(&ids))))
                }
            },
        }
    }

    /// The same one after another. If one cannot be, none stays.
    fn give_in_turn(&mut self, opened: &[Opening<'_>]) -> Result<bool, Failure> {
        for (place, (id, _, fd)) in opened.iter().enumerate() {
            let given = self.give(id, fd, None);
            if matches!(given, Ok(true)) {
                continue;
            }
            let released = opened[..place].iter().try_for_each(|(id, ..)| self.delete(id));
            return match given {
                Err(failure) if released.is_err() => {
                    // So that no file goes.
                    Err(failure.with("a part of the group may be held").not_only_refused())
                }
                given => released.and(given),
            };
        }
        Ok(true)
    }
}
