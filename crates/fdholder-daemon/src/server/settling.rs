//! Between taking over and serving: the place is the predecessor's until this process says that it
//! serves.

use super::standby::Standby;
use super::{Server, EVENTS_PER_TURN};
use crate::clock;
use crate::closing::Gathering;
use crate::limits::SETTLE_PATIENCE;
use std::io;
use tracing::warn;

impl Server {
    /// For one that has taken over: waits until its standby has everything, too, if there can be one
    /// at the moment, and not for long. Its predecessor is the second copy until then, and goes on if
    /// this process ends. When this returns, that one has ended, or is about to.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn settle(&mut self) -> io::Result<()> {
        if self.standby.is_some() && self.place.is_some() {
            self.wait_for_standby()?;
        }
        // Now the place is ours, before anybody is told so.
        self.tell_systemd();
        Ok(())
    }

    fn wait_for_standby(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let _gathering = Gathering::begin();
        self.settles_until = Some(clock::now() + SETTLE_PATIENCE);
        while self.settles_until.is_some_and(|until| clock::now() < until)
            && !self.standby_is_ready()
            && !self.standby.as_ref().is_some_and(Standby::has_failed)
        {
            if self.turn(&mut events)?.is_some() {
                break;
            }
        }
        self.settles_until = None;
        // Nothing else may happen that would have it watched again.
        self.watch_listener();
        if !self.standby_is_ready() {
            warn!("no standby has everything yet: until one has, what is held is here alone");
        }
        Ok(())
    }

    /// Whether the place that we have taken is our predecessor's until we serve.
    pub(super) fn is_pending(&self) -> bool {
        self.is_new && self.place.is_some()
    }

    /// Whether the place has just become ours: what has waited for that is due.
    pub(super) fn is_to_resume_now(&self) -> bool {
        self.is_to_resume && !self.is_pending()
    }

    /// Goes on serving those whom the daemon before has served, as soon as the place is ours.
    pub(super) fn resume_once(&mut self) {
        if self.is_to_resume_now() {
            self.is_to_resume = false;
            self.resume_handed();
        }
    }

    /// Tells systemd what there is to tell, before anything else is done that depends on it.
    pub(super) fn tell_systemd(&mut self) {
        if self.settles_until.is_some() {
            return;
        }
        if let Some(shelf) = &mut self.shelf {
            while !shelf.tell(&mut self.hold.mirrors, &self.hold.store) {}
            if !shelf.is_begun() {
                return;
            }
        }
        if std::mem::take(&mut self.is_new) {
            if let Some(place) = &mut self.place {
                place.serve();
                if let Some(roll) = &self.roll {
                    roll.settle(true);
                }
                // Now clients are let in.
                self.watch_listener();
            }
        }
    }
}
