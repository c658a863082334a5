//! `demo`.
use crate::failure::Failure;
use crate::program::{Invocation, Program};
use clap::Command;
use std::process::ExitCode;
pub const PROGRAM: Program = Program { subcommand: "demo", s6_name: "", s6_usage: "", define, run };
fn define(command: Command) -> Command { command.about("demo") }
fn run(_: &Invocation) -> Result<ExitCode, Failure> { Ok(ExitCode::SUCCESS) }
