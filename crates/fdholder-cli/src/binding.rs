//! Opening the sockets of a service and storing them in a holder, unless the holder has them
//! already: what `bind` does, and `exec` for each `--bind`.

mod arrange;
mod spec;
mod together;

pub use self::spec::{BindSpec, Syntax};

use crate::endpoint::{
    fixed_differences, left_behind, limits, settle, Endpoint, EndpointOptions, NotSettled,
    OpenError, Policy, Settled, Unasked,
};
use crate::failure::{exit, Failure};
use crate::group::Group;
use fdholder::{Cause, Client, Deadline, Entry, Errno, Identifier, Limit, Standby};
use fdholder_daemon::credentials::of_peer;
use fdholder_daemon::listen::is_bound;
use rustix::fs::fstat;
use rustix::process::geteuid;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How often it is looked again when somebody else binds or deletes the same meanwhile.
const ATTEMPTS: usize = 50;

/// How long to wait in between.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The holder that gets the sockets.
pub struct Holder<'a> {
    /// A connection to it. Only a negotiated one can store a new group in one step.
    pub client: &'a mut Client,
    /// Where it listens.
    pub path: &'a Path,
    /// Until when it may take to answer.
    pub deadline: Deadline,
    /// The service that gets the sockets is running, and may have set options for itself: that is
    /// not worth a line.
    pub may_be_in_use: bool,
}

/// Opens and stores what the holder does not have yet, and changes what it has to what is asked
/// for. Each change is a line on stderr that begins with `called`.
///
/// # Errors
///
/// What the holder has and cannot be changed, what cannot be opened, and what the holder refuses.
pub fn bring_about(spec: &BindSpec, holder: Holder<'_>, called: &str) -> Result<(), Failure> {
    let Holder { client, path, deadline, may_be_in_use } = holder;
    // Who listens there may only have started it. 0 is none: one that cannot be seen from here.
    let listens = of_peer(&*client).ok().and_then(|peer| peer.pid);
    let mut binding = Binding {
        holders: vec![listens.map_or(0, i32::cast_unsigned)],
        expiring: None,
        has_given: false,
        may_be_in_use,
        holder: client,
        path,
        deadline,
        options: spec.options(),
        replace: spec.replaces(),
        syntax: spec.syntax(),
        called,
    };
    let ids: Vec<_> = spec.ids().cloned().collect();
    let endpoints: Vec<_> = spec.endpoints().collect();
    let ([id], [endpoint], false) = (&ids[..], &endpoints[..], spec.replaces()) else {
        return binding.bring_about_all(spec.id(), &ids, &endpoints);
    };
    binding.bring_about(id, endpoint)?;
    // It is held, whatever else is.
    let group = Group::of(id, &ids, binding.holder, deadline).ok();
    if let Some(warning) = group.and_then(|group| group.warning(binding.syntax.replace())) {
        binding.warn(&warning);
    }
    Ok(())
}

/// What is to be held, and where.
struct Binding<'a> {
    holder: &'a mut Client,
    /// Its processes, as far as they are known.
    holders: Vec<u32>,
    /// What is held for a time, once it was asked.
    expiring: Option<Vec<Identifier>>,
    /// Something was opened, or released: it cannot be as it was before.
    has_given: bool,
    may_be_in_use: bool,
    path: &'a Path,
    deadline: Deadline,
    options: &'a EndpointOptions,
    replace: bool,
    syntax: Syntax,
    /// What this program is called in messages.
    called: &'a str,
}

impl Binding<'_> {
    /// All of a group; or none, as far as what is held says before.
    fn bring_about_all(
        &mut self,
        id: &Identifier,
        ids: &[Identifier],
        endpoints: &[&Endpoint],
    ) -> Result<(), Failure> {
        let group = Group::of(id, ids, self.holder, self.deadline)?;
        if !self.replace {
            let wanted = ids.iter().zip(endpoints);
            let problems =
                wanted.filter_map(|(id, endpoint)| self.refusal(id, endpoint).transpose());
            let problems = problems.collect::<Result<Vec<_>, _>>()?;
            if !problems.is_empty() {
                return Err(Failure::new(exit::DENIED, problems.join("; ")));
            }
        }
        let moves = if self.replace { self.rearrange(ids, endpoints, &group)? } else { Vec::new() };
        if let Err(failure) = self.bring_about_each(ids, endpoints) {
            if !self.has_given {
                self.put_back(&moves)?;
            }
            return Err(failure);
        }
        self.say_moves(&moves);
        self.say(id, group.growth());
        if self.replace {
            return group.surplus.iter().try_for_each(|id| self.release(id));
        }
        if let Some(warning) = group.warning(self.syntax.replace()) {
            self.warn(&warning);
        }
        Ok(())
    }

    fn bring_about_each(
        &mut self,
        ids: &[Identifier],
        endpoints: &[&Endpoint],
    ) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for (id, endpoint) in ids.iter().zip(endpoints) {
            if self.held(id)?.is_some() {
                self.bring_about(id, endpoint)?;
            } else {
                missing.push((id, *endpoint));
            }
        }
        self.bring_about_together(&missing)
    }

    /// Asks what only a fdholder tells, and not everybody: what is not told is not known.
    fn ask(&mut self) {
        if self.expiring.is_some() {
            return;
        }
        let expiring = self.expiring.insert(Vec::new());
        // s6's hangs up on the question.
        let Ok(mut holder) = Client::connect_negotiated(self.path, self.deadline) else { return };
        if let Ok(status) = holder.status(self.deadline) {
            self.holders.push(status.pid);
            self.holders.extend(match status.standby {
                Standby::Ready(pid) => Some(pid),
                Standby::None | Standby::Starting => None,
            });
        }
        let all = holder.inspect(self.deadline).unwrap_or_default();
        let for_a_time = all.into_iter().filter(|one| one.limit.moment().is_some());
        expiring.extend(for_a_time.map(|one| one.id));
    }

    /// Another process that does the same at the same time may be faster; then what that has
    /// opened is what is wanted, as soon as it is held.
    fn bring_about(&mut self, id: &Identifier, endpoint: &Endpoint) -> Result<(), Failure> {
        let (mut in_use, mut released) = (None, None);
        let mut attempts = ATTEMPTS;
        while attempts > 0 {
            attempts -= 1;
            let held = self.held(id)?;
            if held.is_some() {
                self.ask();
            }
            let unasked = if self.may_be_in_use {
                Unasked::ResetOrStays(&self.holders)
            } else {
                Unasked::Reset(&self.holders)
            };
            let policy = Policy { replace: self.replace, unasked };
            let settled = match &held {
                Some(held) => settle(endpoint, self.options, held, policy, None),
                None => match endpoint.open(self.options) {
                    Ok(new) => Ok(Settled::Replaced(new, released.clone())),
                    Err(error) => Err(NotSettled::Open(error)),
                },
            };
            match settled {
                Ok(Settled::Held(notes)) => {
                    self.say(id, notes);
                    return held.map_or(Ok(()), |held| self.keep_for_ever(id, &held));
                }
                Ok(Settled::Replaced(new, why)) => {
                    if self.give(id, &new, held.as_ref())? {
                        self.has_given = true;
                        self.say(id, why.map(|why| format!("opened anew: {why}")));
                        let left = held.map(|held| left_behind(held, &self.holders));
                        let left = left.unwrap_or_default();
                        self.say(id, left.iter().map(|left| format!("the one before: {left}")));
                        self.say(id, limits(endpoint, self.options, &new));
                        return Ok(());
                    }
                }
                Ok(Settled::MustGo(why)) => {
                    self.delete(id)?;
                    self.has_given = true;
                    released = Some(why);
                }
                Err(NotSettled::Open(OpenError::InUse(problem))) => {
                    if in_use.is_none() {
                        self.refuse_if_held_elsewhere(id, endpoint, held.as_ref())?;
                    }
                    in_use = Some(problem);
                    attempts = self.wait_for_change(id, endpoint, held.as_ref(), attempts)?;
                }
                Err(problem) => {
                    return Err(self.not_settled(id, endpoint, held.as_ref(), &problem))
                }
            }
        }
        let problem = in_use.unwrap_or_else(|| "others change it all the time".to_owned());
        let fate = released.map(|why| format!("; what was held is released: {why}"));
        let problem = OpenError::InUse(problem + &fate.unwrap_or_default());
        let held = self.held(id)?;
        Err(self.not_settled(id, endpoint, held.as_ref(), &NotSettled::Open(problem)))
    }

    /// Fails if this holder has the address under another identifier, as far as this user may
    /// see it.
    fn refuse_if_held_elsewhere(
        &mut self,
        id: &Identifier,
        endpoint: &Endpoint,
        held: Option<&OwnedFd>,
    ) -> Result<(), Failure> {
        let Some(other) = self.owner_of(endpoint, id)? else { return Ok(()) };
        let problem = format!("Address already in use: this holder has it, held under {other}");
        Err(self.not_settled(id, endpoint, held, &NotSettled::Open(OpenError::Other(problem))))
    }

    /// Why what is held is not what is wanted, if it cannot be changed.
    fn refusal(&mut self, id: &Identifier, endpoint: &Endpoint) -> Result<Option<String>, Failure> {
        let held = self.held(id)?;
        let what = held.and_then(|held| fixed_differences(endpoint, self.options, held));
        Ok(what.map(|what| self.differs(id, endpoint, &what)))
    }

    /// Waits until another try may do better, and returns how many are left. Who lives at a path
    /// would get a client with each.
    fn wait_for_change(
        &mut self,
        id: &Identifier,
        endpoint: &Endpoint,
        held: Option<&OwnedFd>,
        attempts: usize,
    ) -> Result<usize, Failure> {
        let number = |fd: Option<&OwnedFd>| fd.and_then(|fd| fstat(fd).ok()).map(|it| it.st_ino);
        for left in (0..=attempts).rev() {
            std::thread::sleep(RETRY_PAUSE);
            let lives = endpoint.file().is_some_and(|path| is_bound(path) == Ok(true));
            if !lives || number(self.held(id)?.as_ref()) != number(held) {
                return Ok(left);
            }
        }
        Ok(0)
    }

    /// Holds for ever what was held for a time.
    fn keep_for_ever(&mut self, id: &Identifier, held: &OwnedFd) -> Result<(), Failure> {
        let is_expiring = self.expiring.as_ref().is_some_and(|expiring| expiring.contains(id));
        if is_expiring && self.give(id, held, Some(held))? {
            self.say(id, ["does not expire any more".to_owned()]);
        }
        Ok(())
    }

    /// Releases what is no longer wanted.
    fn release(&mut self, id: &Identifier) -> Result<(), Failure> {
        let Some(fd) = self.held(id)? else { return Ok(()) };
        self.ask();
        self.delete(id)?;
        self.say(id, ["released, as it was not given".to_owned()]);
        self.say(id, left_behind(fd, &self.holders));
        Ok(())
    }

    /// The identifier under which this holder has the address, if this user may see it.
    fn owner_of(
        &mut self,
        endpoint: &Endpoint,
        id: &Identifier,
    ) -> Result<Option<Identifier>, Failure> {
        let Ok(ids) = self.holder.list(self.deadline) else { return Ok(None) };
        for other in ids.into_iter().filter(|other| other != id) {
            match self.holder.retrieve(&other, self.deadline) {
                Ok(fd) if endpoint.leads_to(&fd) => return Ok(Some(other)),
                Ok(_) => {}
                Err(error) if matches!(error.cause(), Cause::Denied(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn held(&mut self, id: &Identifier) -> Result<Option<OwnedFd>, Failure> {
        match self.holder.retrieve(id, self.deadline) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn delete(&mut self, id: &Identifier) -> Result<(), Failure> {
        match self.holder.delete(id, self.deadline) {
            // It is closed as soon as that is possible.
            Err(error) if error.errno() == Errno::INPROGRESS => Ok(()),
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Has it held; false when others were faster.
    fn give(
        &mut self,
        id: &Identifier,
        fd: &OwnedFd,
        in_place_of: Option<&OwnedFd>,
    ) -> Result<bool, Failure> {
        let deadline = self.deadline;
        if in_place_of.is_some() {
            // A set replaces in one step. Who may not give one does it in two.
            let set = [Entry { id: id.clone(), limit: Limit::never(), fd }];
            match self.holder.setdump(&set, deadline) {
                Err(error) if matches!(error.cause(), Cause::Denied(Errno::PERM)) => {}
                result => return Ok(result.map(|()| true)?),
            }
            self.delete(id)?;
        }
        match self.holder.store(id, Limit::never(), fd, deadline) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::BUSY)) => Ok(false),
            Err(error) => {
                let Some(old) = in_place_of else {
                    // There may be several, and s6's words for it name none.
                    return Err(Failure::from(error).with(format_args!("for id {id}")));
                };
                // It was deleted, but it is still open here.
                let back = self.holder.store(id, Limit::never(), old, deadline);
                let fate = if back.is_ok() { "what was held is held again" } else { "it is gone" };
                Err(Failure::new(exit::DENIED, format_args!("{error}; {fate}")))
            }
        }
    }

    /// Says what was done.
    fn say(&self, id: &Identifier, notes: impl IntoIterator<Item = String>) {
        for note in notes {
            self.write(format_args!("info: {id}: {note}"));
        }
    }

    fn warn(&self, warning: &str) {
        self.write(format_args!("warning: {warning}"));
    }

    fn write(&self, line: std::fmt::Arguments<'_>) {
        // Without a reader nobody misses it.
        let _ = writeln!(std::io::stderr(), "{}: {line}", self.called);
    }

    fn differs(&self, id: &Identifier, endpoint: &Endpoint, what: &str) -> String {
        format!(
            "unable to bind {id} to {endpoint}: held under it is {what}: {} replaces it, delete \
             removes it",
            self.syntax.replace()
        )
    }

    /// Why it is not held as it was asked for; `held` is what stays.
    fn not_settled(
        &self,
        id: &Identifier,
        endpoint: &Endpoint,
        held: Option<&OwnedFd>,
        problem: &NotSettled,
    ) -> Failure {
        let error = match problem {
            NotSettled::Differs(what) => {
                return Failure::new(exit::DENIED, self.differs(id, endpoint, what));
            }
            NotSettled::Unable { what, why } => {
                let problem = format_args!("unable to change {what} for {id}: {why}");
                return Failure::new(exit::SYSTEM, problem);
            }
            NotSettled::Open(error) => error,
        };
        let problem = format!("unable to open {endpoint} for {id}: {error}");
        let Some(held) = held else { return Failure::new(exit::SYSTEM, problem) };
        let is_in_the_way = matches!(error, OpenError::InUse(_)) && endpoint.leads_to(held);
        let advice = match fstat(held) {
            Ok(stat) if is_in_the_way && stat.st_uid != geteuid().as_raw() => format!(
                "; it is in the way, and was opened by uid {}: do this as that user, or delete it \
                 first",
                stat.st_uid
            ),
            _ => String::new(),
        };
        Failure::new(exit::SYSTEM, format_args!("{problem}; {id} stays{advice}"))
    }
}
