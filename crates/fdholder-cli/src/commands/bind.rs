//! `bind`: open what a service listens on, and have it held; or see to it that what is held
//! already is as it was asked for.

use crate::binding::{bring_about, BindSpec, Holder, Syntax};
use crate::connect::{connect, connect_negotiated, identifier};
use crate::endpoint::{arguments, Endpoint, EndpointOptions};
use crate::failure::{exit, Failure};
use crate::options::{id_operand, path_operand, timeout_option, EXIT_CODES};
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use std::path::PathBuf;
use std::process::ExitCode;

pub const PROGRAM: Program = Program { subcommand: "bind", s6_name: "", s6_usage: "", define, run };

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
    let id = identifier(invocation, "bind")?;
    let endpoints = invocation.matches.get_many::<Endpoint>("address");
    let endpoints = endpoints.into_iter().flatten().cloned().collect();
    let options = EndpointOptions::of(invocation);
    let replaces = invocation.matches.get_flag("replace");
    let spec = BindSpec::new(id, endpoints, options, replaces, Syntax::Options)
        .map_err(|problem| Failure::new(exit::USAGE, problem))?;
    // A fdholder takes the new members of a group together.
    let connect = if spec.is_group() { connect_negotiated } else { connect };
    let (mut client, deadline) = connect(invocation)?;
    let path: PathBuf = invocation.required("path")?;
    let holder = Holder { client: &mut client, path: &path, deadline, may_be_in_use: false };
    bring_about(&spec, holder, &invocation.called)?;
    Ok(ExitCode::SUCCESS)
}
