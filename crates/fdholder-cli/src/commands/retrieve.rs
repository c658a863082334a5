//! `retrieve`: become a program whose standard input is a held descriptor.

use crate::connect::connect;
use crate::connect::identifier;
use crate::failure::Failure;
use crate::options::{id_operand, path_operand, prog_operands, timeout_option, EXIT_CODES_EXEC};
use crate::passing::becoming::{become_program, check_program, words};
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use fdholder::Limit;
use std::process::ExitCode;

pub const PROGRAM: Program = Program {
    subcommand: "retrieve",
    s6_name: "s6-fdholder-retrieve",
    s6_usage: "[ -D ] [ -t timeout ] path id prog...",
    define,
    run,
};

fn define(command: Command) -> Command {
    command
        .about("Become a program whose standard input is a held descriptor")
        .after_help(EXIT_CODES_EXEC)
        .arg(
            Arg::new("delete")
                .short('D')
                .long("delete")
                .action(ArgAction::SetTrue)
                .help("Have the holder release it as well"),
        )
        .arg(timeout_option())
        .arg(path_operand())
        .arg(id_operand())
        .arg(prog_operands())
}

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let delete = invocation.matches.get_flag("delete");
    if delete {
        check_program(&words(invocation))?;
    }
    let (mut holder, deadline) = connect(invocation)?;
    let id = identifier(invocation, "retrieve fd")?;
    let fd = holder.retrieve_maybe_delete(&id, delete, deadline);
    let fd = fd.map_err(|error| Failure::asking_why(error, &mut holder, deadline))?;
    rustix::stdio::dup2_stdin(&fd).map_err(|errno| Failure::system("move fd", errno))?;
    let failure = become_program(&words(invocation), []);
    if !delete {
        return Err(failure);
    }
    // What only exec itself finds out must not lose the descriptor.
    Err(match holder.store(&id, Limit::never(), &fd, deadline) {
        Ok(()) => failure.with(format_args!("{id} is held again, without a limit")),
        Err(error) => failure.with(format_args!("{id} is lost: {error}")),
    })
}
