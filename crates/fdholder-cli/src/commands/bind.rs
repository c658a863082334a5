//! `bind`: open what a service listens on, and have it held; or see to it that what is held
//! already is as it was asked for.

mod arrange;
mod together;

use crate::connect::{connect, connect_negotiated, identifier};
use crate::endpoint::{
    arguments, fixed_differences, left_behind, limits, settle, Endpoint, EndpointOptions,
    NotSettled, OpenError, Policy, Settled, Unasked,
};
use crate::failure::{exit, Failure};
use crate::group::Group;
use crate::options::{id_operand, path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use fdholder::{Cause, Client, Deadline, Entry, Errno, Identifier, Limit, Standby};
use fdholder_daemon::credentials::of_peer;
use fdholder_daemon::listen::is_bound;
use rustix::fs::fstat;
use rustix::process::geteuid;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
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
             so does what a running program may have set for itself, also where /proc does not show \
             all programs.\n\n\
             Example:\n  \
             fdholder bind --nonblock /run/holder web tcp:0.0.0.0:80\n\n{EXIT_CODES}"
        ))
        .arg(Arg::new("replace").long("replace").action(ArgAction::SetTrue).help(
            "Replace what is held under ID and cannot be changed; of a group (ID, ID/1, ID/2, …) \
                     keep the sockets whose addresses are given, and release the others",
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
    let holder = &mut holder;
    // Who listens there may only have started it. 0 is none: one that cannot be seen from here.
    let listens = of_peer(&*holder).ok().and_then(|peer| peer.pid);
    let mut binding = Binding {
        holders: vec![listens.map_or(0, i32::cast_unsigned)],
        expiring: None,
        has_given: false,
        holder,
        deadline,
        options: &options,
        replace,
        invocation,
    };
    if let ([id], [endpoint], false) = (&ids[..], &endpoints[..], replace) {
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
    /// Its processes, as far as they are known.
    holders: Vec<u32>,
    /// What is held for a time, once it was asked.
    expiring: Option<Vec<Identifier>>,
    /// Something was opened, or released: it cannot be as it was before.
    has_given: bool,
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
        if let Some(warning) = group.warning() {
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
        let Ok(path) = self.invocation.required::<PathBuf>("path") else { return };
        // s6's hangs up on the question.
        let Ok(mut holder) = Client::connect_negotiated(path, self.deadline) else { return };
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
            let unasked = Unasked::Reset(&self.holders);
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
        Err(not_settled(id, endpoint, held, &NotSettled::Open(OpenError::Other(problem))))
    }

    /// Why what is held is not what is wanted, if it cannot be changed.
    fn refusal(&mut self, id: &Identifier, endpoint: &Endpoint) -> Result<Option<String>, Failure> {
        let held = self.held(id)?;
        let what = held.and_then(|held| fixed_differences(endpoint, self.options, held));
        Ok(what.map(|what| differs(id, endpoint, &what)))
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
    let is_in_the_way = matches!(error, OpenError::InUse(_)) && endpoint.leads_to(held);
    let advice = match fstat(held) {
        Ok(stat) if is_in_the_way && stat.st_uid != geteuid().as_raw() => format!(
            "; it is in the way, and was opened by uid {}: do this as that user, or delete it first",
            stat.st_uid
        ),
        _ => String::new(),
    };
    Failure::new(exit::SYSTEM, format_args!("{problem}; {id} stays{advice}"))
}
