//! `bind`: open what a service listens on, and have it held; or see to it that what is held
//! already is as it was asked for.

pub mod group;
mod together;

use crate::connect::{connect, connect_negotiated, identifier};
use crate::endpoint::{
    arguments, fixed_differences, is_reachable_at, left_behind, limits, settle, Endpoint,
    EndpointOptions, NotSettled, OpenError, Policy, Settled,
};
use crate::failure::{exit, Failure};
use crate::options::{id_operand, path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use fdholder::{Cause, Client, Deadline, Entry, Errno, Identifier, Limit};
use group::Group;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

pub const PROGRAM: Program = Program { subcommand: "bind", s6_name: "", s6_usage: "", define, run };

/// How often it is looked again when somebody else binds or deletes the same meanwhile.
const ATTEMPTS: usize = 50;

/// How long to wait in between.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

fn define(command: Command) -> Command {
    command
        .about("Open what a service listens on and have it held, unless it is held already")
        .after_help(format!(
            "ADDRESS is one of\n  \
             tcp:0.0.0.0:80  tcp:[::]:443  udp:127.0.0.1:53   (port 0: one that is free)\n  \
             mptcp:0.0.0.0:80  vsock::1234  (any CID)\n  \
             unix:/run/web.sock  unix-dgram:/run/log  unix-seqpacket:/run/x  unix:@abstract\n  \
             fifo:/run/queue  memfd:NAME\n\
             Of several the first is held under ID/1, the second under ID/2, and so on.\n\n\
             A service can run this each time it starts. If the socket is held as it was asked \
             for, nothing happens. Otherwise a line on stderr says what was done:\n  \
             - what can be changed on the socket is changed: backlog, mode, owner, most options\n  \
             - a socket that no client can reach any more is opened anew: shut down, or its file \
             is gone\n  \
             - another address, protocol, device or --ipv6only is an error, unless --replace\n\
             An option that is not given gets the system's value, but mode and owner stay, and \
             so does what a running program may have set for itself.\n\n\
             Example:\n  \
             fdholder bind --nonblock /run/holder web tcp:0.0.0.0:80\n\n{EXIT_CODES}"
        ))
        .arg(Arg::new("replace").long("replace").action(ArgAction::SetTrue).help(
            "Replace what is held under ID and cannot be changed; of several addresses \
                     release those that are held under ID/… and not given",
        ))
        .args(arguments())
        .arg(timeout_option())
        .arg(path_operand())
        .arg(id_operand())
        .arg(
            Arg::new("address")
                .value_name("ADDRESS")
                .num_args(1..)
                .required(true)
                .value_parser(|text: &str| text.parse::<Endpoint>())
                .help("What to open"),
        )
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let usage = |problem| Failure::new(exit::USAGE, problem);
    let options = EndpointOptions::of(invocation);
    let endpoints: Vec<_> =
        invocation.matches.get_many::<Endpoint>("address").into_iter().flatten().collect();
    options.suit_one_of(&endpoints).map_err(usage)?;
    for (place, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..place].contains(endpoint) && !endpoint.may_be_twice(&options) {
            let problem = format!("{endpoint} is there twice, which takes --reuseport");
            return Err(usage(problem));
        }
    }
    let id = identifier(invocation, "bind")?;
    let options = match &endpoints[..] {
        [endpoint] => options.held_under(&id, endpoint),
        _ => options,
    };
    let ids = if endpoints.len() == 1 { vec![id.clone()] } else { numbered(&id, endpoints.len())? };
    // A fdholder takes the new members of a group together.
    let connect = if endpoints.len() > 1 { connect_negotiated } else { connect };
    let (mut holder, deadline) = connect(invocation)?;
    let replace = invocation.matches.get_flag("replace");
    let mut binding =
        Binding { holder: &mut holder, deadline, options: &options, replace, invocation };
    if let ([id], [endpoint]) = (&ids[..], &endpoints[..]) {
        binding.bring_about(id, endpoint)?;
        // It is held, whatever else is.
        let group = Group::of(id, &ids, binding.holder, deadline).ok();
        let warning = group.and_then(|group| group.warning());
        if let Some(warning) = warning {
            binding.warn(&warning);
        }
    } else {
        binding.bring_about_all(&id, &ids, &endpoints)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `ID/1`, `ID/2`, …
fn numbered(id: &Identifier, count: usize) -> Result<Vec<Identifier>, Failure> {
    let number = |n: usize| Identifier::new([id.as_bytes(), format!("/{n}").as_bytes()].concat());
    let ids: Result<_, _> = (1..=count).map(number).collect();
    ids.map_err(|bad| Failure::new(exit::USAGE, format_args!("{id}/{count} is no id: {bad}")))
}

/// What is to be held, and where.
struct Binding<'a> {
    holder: &'a mut Client,
    deadline: Deadline,
    options: &'a EndpointOptions,
    replace: bool,
    invocation: &'a Invocation,
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
        let mut missing = Vec::new();
        for (id, endpoint) in ids.iter().zip(endpoints) {
            if self.replace && self.take_over(id, endpoint, &group)? {
                continue;
            }
            if self.held(id)?.is_some() {
                self.bring_about(id, endpoint)?;
            } else {
                missing.push((id, *endpoint));
            }
        }
        self.bring_about_together(&missing)?;
        self.say(id, group.growth());
        if self.replace {
            return group.surplus.iter().try_for_each(|id| self.release(id));
        }
        if let Some(warning) = group.warning() {
            self.warn(&warning);
        }
        Ok(())
    }

    /// Another process that does the same at the same time may be faster; then what that has
    /// opened is what is wanted, as soon as it is held.
    fn bring_about(&mut self, id: &Identifier, endpoint: &Endpoint) -> Result<(), Failure> {
        let policy = Policy { replace: self.replace, may_look_for_users: true };
        let (mut in_use, mut released) = (None, None);
        for _ in 0..ATTEMPTS {
            let held = self.held(id)?;
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
                    return Ok(());
                }
                Ok(Settled::Replaced(new, why)) => {
                    if self.give(id, &new, held.as_ref())? {
                        self.say(id, why.map(|why| format!("opened anew: {why}")));
                        let left = held.map(left_behind).unwrap_or_default();
                        self.say(id, left.iter().map(|left| format!("the one before: {left}")));
                        self.say(id, limits(endpoint, self.options, &new));
                        return Ok(());
                    }
                }
                Ok(Settled::MustGo(why)) => {
                    self.delete(id)?;
                    released = Some(why);
                }
                Err(NotSettled::Open(OpenError::InUse(problem))) => {
                    if in_use.is_none() {
                        self.refuse_if_held_elsewhere(id, endpoint, held.as_ref())?;
                    }
                    in_use = Some(problem);
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(problem) => return Err(not_settled(id, endpoint, held.as_ref(), &problem)),
            }
        }
        let problem = in_use.unwrap_or_else(|| "others change it all the time".to_owned());
        let fate = released.map(|why| format!("; what was held is released: {why}"));
        let problem = OpenError::InUse(problem + &fate.unwrap_or_default());
        let held = self.held(id)?;
        Err(not_settled(id, endpoint, held.as_ref(), &NotSettled::Open(problem)))
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
        Err(not_settled(id, endpoint, held, &NotSettled::Open(OpenError::InUse(problem))))
    }

    /// Why what is held is not what is wanted, if it cannot be changed.
    fn refusal(&mut self, id: &Identifier, endpoint: &Endpoint) -> Result<Option<String>, Failure> {
        let held = self.held(id)?;
        let what = held.and_then(|held| fixed_differences(endpoint, self.options, held));
        Ok(what.map(|what| differs(id, endpoint, &what)))
    }

    /// Takes what is wanted from another place in the group, where it is held and not wanted.
    fn take_over(
        &mut self,
        id: &Identifier,
        endpoint: &Endpoint,
        group: &Group,
    ) -> Result<bool, Failure> {
        if group.surplus.is_empty() || self.held(id)?.is_some() {
            return Ok(false);
        }
        for other in &group.surplus {
            let Some(fd) = self.held(other)? else { continue };
            if is_reachable_at(endpoint, self.options, &fd) && self.give(id, &fd, None)? {
                self.delete(other)?;
                self.say(id, [format!("is what was held under {other}")]);
                self.bring_about(id, endpoint)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Releases what is no longer wanted.
    fn release(&mut self, id: &Identifier) -> Result<(), Failure> {
        let Some(fd) = self.held(id)? else { return Ok(()) };
        self.delete(id)?;
        self.say(id, ["released, as it was not given".to_owned()]);
        self.say(id, left_behind(fd));
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
                Ok(fd) if endpoint.is_in_the_way_of(&fd) => return Ok(Some(other)),
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
                let Some(old) = in_place_of else { return Err(error.into()) };
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
        let _ = writeln!(std::io::stderr(), "{}: {line}", self.invocation.called);
    }
}

fn differs(id: &Identifier, endpoint: &Endpoint, what: &str) -> String {
    format!(
        "unable to bind {id} to {endpoint}: held under it is {what}: --replace replaces it, delete \
         removes it"
    )
}

/// Why it is not held as it was asked for; `held` is what stays.
fn not_settled(
    id: &Identifier,
    endpoint: &Endpoint,
    held: Option<&OwnedFd>,
    problem: &NotSettled,
) -> Failure {
    let error = match problem {
        NotSettled::Differs(what) => {
            return Failure::new(exit::DENIED, differs(id, endpoint, what));
        }
        NotSettled::Unable { what, why } => {
            let problem = format_args!("unable to change {what} for {id}: {why}");
            return Failure::new(exit::SYSTEM, problem);
        }
        NotSettled::Open(error) => error,
    };
    let problem = format!("unable to open {endpoint} for {id}: {error}");
    let Some(held) = held else { return Failure::new(exit::SYSTEM, problem) };
    let is_in_the_way = matches!(error, OpenError::InUse(_)) && endpoint.is_in_the_way_of(held);
    let advice = match rustix::fs::fstat(held) {
        Ok(stat) if is_in_the_way => format!(
            "; it is in the way, and was opened by uid {}: do this as that user, or delete it first",
            stat.st_uid
        ),
        _ => String::new(),
    };
    Failure::new(exit::SYSTEM, format_args!("{problem}; {id} stays{advice}"))
}
