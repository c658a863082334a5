//! What the service manager knows of the service.
//!
//! Each RELOADING is followed by a READY: systemd waits for both after it has sent SIGHUP.

use super::{Action, Machine, Told};

impl<A> Machine<A> {
    /// Whether they know that it was ready.
    pub fn is_announced(&self) -> bool {
        self.last_told.is_some()
    }

    pub(super) fn tell(&mut self, told: Told, actions: &mut Vec<Action<A>>) {
        self.last_told = Some(told);
        actions.push(Action::Tell(told));
    }

    /// The first start is no restart.
    pub(super) fn tell_reloading(&mut self, actions: &mut Vec<Action<A>>) {
        if self.last_told == Some(Told::Ready) {
            self.tell(Told::Reloading, actions);
        }
    }

    pub(super) fn finish_reloading(&mut self, actions: &mut Vec<Action<A>>) {
        if self.last_told == Some(Told::Reloading) {
            self.tell(Told::Ready, actions);
        }
    }
}
