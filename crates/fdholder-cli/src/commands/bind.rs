//! `bind`: open what a service listens on, and have it held; or leave what is held already.

use crate::connect::{connect, identifier};
use crate::endpoint::{arguments, Endpoint, EndpointOptions, OpenError};
use crate::failure::{exit, Failure};
use crate::look::describe::describe;
use crate::options::{id_operand, path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use fdholder::{Cause, Client, Deadline, Entry, Errno, Identifier, Limit};
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
             unix:/run/web.sock  unix-dgram:/run/log  unix-seqpacket:/run/x  unix:@abstract\n  \
             fifo:/run/queue  memfd:NAME\n\
             Of several the first is held under ID/1, the second under ID/2, and so on.\n\n\
             What is held under ID already with that address is left alone, so a service can \
             do this each time it starts. With another address it is an error, unless \
             --replace.\n\n\
             Example:\n  \
             fdholder bind --nonblock /run/holder web tcp:0.0.0.0:80\n\n{EXIT_CODES}"
        ))
        .arg(
            Arg::new("replace")
                .long("replace")
                .action(ArgAction::SetTrue)
                .help("Replace what is held under ID with another address"),
        )
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
    let options = EndpointOptions::of(invocation);
    let endpoints: Vec<_> =
        invocation.matches.get_many::<Endpoint>("address").into_iter().flatten().collect();
    for endpoint in &endpoints {
        options.suit(endpoint).map_err(|problem| Failure::new(exit::USAGE, problem))?;
    }
    let id = identifier(invocation, "bind")?;
    let ids = if endpoints.len() == 1 { vec![id] } else { numbered(&id, endpoints.len())? };
    let (mut holder, deadline) = connect(invocation)?;
    let replace = invocation.matches.get_flag("replace");
    for (id, endpoint) in ids.iter().zip(endpoints) {
        let mut binding =
            Binding { holder: &mut holder, deadline, id, endpoint, options: &options, replace };
        binding.bring_about()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `ID/1`, `ID/2`, …
fn numbered(id: &Identifier, count: usize) -> Result<Vec<Identifier>, Failure> {
    let number = |n: usize| Identifier::new([id.as_bytes(), format!("/{n}").as_bytes()].concat());
    let ids: Result<_, _> = (1..=count).map(number).collect();
    ids.map_err(|bad| Failure::new(exit::USAGE, format_args!("{id}/{count} is no id: {bad}")))
}

/// One identifier, and what is to be held under it.
struct Binding<'a> {
    holder: &'a mut Client,
    deadline: Deadline,
    id: &'a Identifier,
    endpoint: &'a Endpoint,
    options: &'a EndpointOptions,
    replace: bool,
}

impl Binding<'_> {
    /// Whoever does the same at the same time may be faster; then what that has opened is
    /// what is wanted, as soon as it is held.
    fn bring_about(&mut self) -> Result<(), Failure> {
        let mut in_use = None;
        for _ in 0..ATTEMPTS {
            let held = self.held()?;
            if held.as_ref().is_some_and(|held| self.endpoint.is(held)) {
                return Ok(());
            }
            if let Some(held) = held.as_ref().filter(|_| !self.replace) {
                return Err(self.held_otherwise(held));
            }
            match self.endpoint.open(self.options) {
                Ok(fd) => {
                    if self.give(&fd, held.as_ref())? {
                        return Ok(());
                    }
                }
                // It may be what is held under this very identifier.
                Err(error) if held.is_some() => return Err(self.cannot_replace(&error)),
                Err(OpenError::InUse(problem)) => {
                    in_use = Some(problem);
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(self.cannot_open(&error)),
            }
        }
        let problem = in_use.unwrap_or_else(|| "others change it all the time".to_owned());
        Err(self.cannot_open(&OpenError::InUse(problem)))
    }

    fn held(&mut self) -> Result<Option<OwnedFd>, Failure> {
        match self.holder.retrieve(self.id, self.deadline) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Has it held; false when others were faster.
    fn give(&mut self, fd: &OwnedFd, in_place_of: Option<&OwnedFd>) -> Result<bool, Failure> {
        let (id, deadline) = (self.id, self.deadline);
        if in_place_of.is_some() {
            // A set replaces in one step. Who may not give one does it in two.
            let set = [Entry { id: id.clone(), limit: Limit::never(), fd }];
            match self.holder.setdump(&set, deadline) {
                Err(error) if matches!(error.cause(), Cause::Denied(Errno::PERM)) => {}
                result => return Ok(result.map(|()| true)?),
            }
            match self.holder.delete(id, deadline) {
                Err(error) if matches!(error.cause(), Cause::Denied(Errno::NOENT)) => {}
                result => result?,
            }
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

    fn held_otherwise(&self, held: &OwnedFd) -> Failure {
        let (id, wanted) = (self.id, self.endpoint);
        Failure::new(
            exit::DENIED,
            format_args!(
                "unable to bind {id} to {wanted}: held under it is {}: --replace replaces it, \
                 delete removes it",
                describe(held)
            ),
        )
    }

    fn cannot_replace(&self, error: &OpenError) -> Failure {
        let (id, wanted) = (self.id, self.endpoint);
        let advice = match error {
            OpenError::InUse(_) => "; if what is held is in the way, delete it first",
            OpenError::Other(_) => "",
        };
        let text = format_args!("unable to open {wanted} for {id}: {error}; {id} stays{advice}");
        Failure::new(exit::SYSTEM, text)
    }

    fn cannot_open(&self, error: &OpenError) -> Failure {
        let (id, wanted) = (self.id, self.endpoint);
        Failure::new(exit::SYSTEM, format_args!("unable to open {wanted} for {id}: {error}"))
    }
}
