//! `demo`: a live service goes from one holder to another, and no connection is refused.
//!
//! Everything is real: two holders, a server and a transferdump, each a process of its
//! own, and a client that never stops connecting.

mod client;
mod report;
mod server;

use crate::failure::{exit, Failure};
use crate::look::describe::describe;
use crate::program::{Invocation, Program};
use clap::{Arg, ArgAction, Command};
use fdholder::{Client, Deadline, Identifier, Limit};
use fdholder_daemon::launch::own_program;
use report::{Carried, Report};
use rustix::fs::{fstat, memfd_create, MemfdFlags};
use rustix::process::{kill_process, Pid, Signal};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub const PROGRAM: Program = Program { subcommand: "demo", s6_name: "", s6_usage: "", define, run };

fn define(command: Command) -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    command
        .about("See a live service go from one holder to another: a few seconds, no set-up")
        .after_help("Exits 0 only if no descriptor was lost and no connection refused.")
        .arg(flag("json").help("The result as JSON"))
        .arg(flag("answer-on-stdin").hide(true))
}

/// How many connections each of the two servers must have answered.
const CONNECTIONS_EACH: u32 = 2000;

/// Nothing in the demo takes as long as this.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    if invocation.matches.get_flag("answer-on-stdin") {
        return server::answer_on_stdin();
    }
    let report = play()?;
    let text = if invocation.matches.get_flag("json") { report.json() } else { report.table() };
    crate::show::output::print(&text)?;
    Ok(ExitCode::from(if report.is_good() { 0 } else { exit::DENIED }))
}

/// A process of the demo. Killed when dropped.
struct Actor(Child);

impl Actor {
    fn start(command: &mut std::process::Command) -> Result<Self, Failure> {
        command.spawn().map(Self).map_err(|error| Failure::system("start a process", error))
    }

    /// Asks it to end, and waits until it has.
    fn stop(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)
            .map_err(|errno| Failure::system("stop a process", errno))?;
        self.0.wait().map_err(|error| Failure::system("wait for a process", error))?;
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program, as a subcommand.
fn fdholder(arguments: &[&Path]) -> std::process::Command {
    let mut command = std::process::Command::new(own_program());
    // It reads nothing, and there may be no /dev/null.
    command.args(arguments).stdin(Stdio::piped());
    command
}

/// A holder on `path`, ready.
fn holder(path: &Path) -> Result<Actor, Failure> {
    let mut command = fdholder(&["serve".as_ref(), "-1".as_ref(), "-v0".as_ref(), path]);
    let mut actor = Actor::start(command.stdout(Stdio::piped()))?;
    let mut newline = [0];
    let stdout = actor.0.stdout.take();
    let ready = stdout.and_then(|mut stdout| stdout.read(&mut newline).ok());
    if ready == Some(1) {
        Ok(actor)
    } else {
        Err(Failure::new(exit::SYSTEM, "a holder did not start"))
    }
}

/// A server on what the holder at `path` holds under `id`.
fn server(path: &Path, id: &str) -> Result<Actor, Failure> {
    let own = own_program();
    let words: [&Path; 6] = [
        "retrieve".as_ref(),
        path,
        id.as_ref(),
        &own,
        "demo".as_ref(),
        "--answer-on-stdin".as_ref(),
    ];
    Actor::start(&mut fdholder(&words))
}

/// Something to hold.
struct Item {
    id: String,
    limit: Limit,
    fd: OwnedFd,
}

/// What tells an open file from any other.
fn identity(fd: impl AsFd) -> Option<(u64, u64)> {
    fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

fn things_to_hold(folder: &Path) -> std::io::Result<Vec<Item>> {
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let unix = UnixListener::bind(folder.join("app.sock"))?;
    let mut state = std::fs::File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    state.write_all(STATE)?;
    let (pipe, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let item = |id: &str, limit, fd| Item { id: id.to_owned(), limit, fd };
    Ok(vec![
        item(&format!("tcp:{}", tcp.local_addr()?), Limit::never(), tcp.into()),
        item("unix:app.sock", Limit::never(), unix.into()),
        item("state", Limit::never(), state.into()),
        item("for an hour", Limit::after(Duration::from_secs(3600)), pipe),
    ])
}

const STATE: &[u8] = b"what the service must not forget";

fn play() -> Result<Report, Failure> {
    let system = |doing: &'static str| move |error: std::io::Error| Failure::system(doing, error);
    // An image with nothing but a program has no /tmp.
    let folder = tempfile::tempdir().or_else(|error| tempfile::tempdir_in(".").map_err(|_| error));
    let folder = folder.map_err(system("make a temporary folder"))?;
    let (first_path, second_path) = (folder.path().join("first"), folder.path().join("second"));
    let (first, second) = (holder(&first_path)?, holder(&second_path)?);

    let items = things_to_hold(folder.path()).map_err(system("open things to hold"))?;
    let mut carried: Vec<_> = items
        .iter()
        .map(|Item { id, limit, fd }| Carried {
            id: id.clone(),
            what: describe(fd),
            limit: *limit,
            identity: identity(fd),
            arrived: false,
        })
        .collect();
    let deadline = Deadline::after(PATIENCE);
    let mut client = Client::connect(&first_path, deadline)?;
    for Item { id, limit, fd } in &items {
        client.store(&identifier(id), *limit, fd, deadline)?;
    }
    drop(client);
    let listener_id = items[0].id.clone();
    let address = carried[0].what.address.clone();
    // From here on nobody but the first holder has them.
    drop(items);

    let connecting = client::Connecting::start(address);
    let first_server = server(&first_path, &listener_id)?;
    connecting.wait_for(CONNECTIONS_EACH)?;

    let start = Instant::now();
    let words: [&Path; 3] = ["transferdump".as_ref(), &first_path, &second_path];
    let transferred =
        fdholder(&words).status().map_err(|error| Failure::system("run transferdump", error))?;
    let transfer_time = start.elapsed();
    if !transferred.success() {
        return Err(Failure::new(exit::DENIED, "the transfer failed"));
    }
    first.stop()?;
    first_server.stop()?;
    let by_first_server = connecting.made();
    let second_server = server(&second_path, &listener_id)?;
    connecting.wait_for(by_first_server + CONNECTIONS_EACH)?;
    let connections = connecting.stop();

    check(&second_path, &mut carried)?;
    second_server.stop()?;
    second.stop()?;
    Ok(Report { carried, transfer_time, connections, by_first_server })
}

/// Looks whether what the second holder has is what the first one had.
fn check(path: &PathBuf, carried: &mut [Carried]) -> Result<(), Failure> {
    let deadline = Deadline::after(PATIENCE);
    let dump = Client::connect(path, deadline)?.getdump(deadline)?;
    for item in carried {
        let id = identifier(&item.id);
        let Some(entry) = dump.iter().find(|entry| entry.id == id) else {
            continue;
        };
        item.arrived = entry.limit == item.limit
            && identity(&entry.fd) == item.identity
            && still_works(&entry.fd, &item.what.kind, &item.what.address);
    }
    Ok(())
}

/// Uses it for what it is for.
fn still_works(fd: &OwnedFd, kind: &str, address: &str) -> bool {
    match kind {
        "memfd" => {
            let mut state = vec![0; STATE.len()];
            rustix::io::pread(fd, &mut state, 0) == Ok(STATE.len()) && state == STATE
        }
        "Unix listener" => {
            let Ok(listener) = fd.try_clone().map(UnixListener::from) else {
                return false;
            };
            UnixStream::connect(address).is_ok() && listener.accept().is_ok()
        }
        _ => true,
    }
}

/// The demo's own identifiers are short texts without NUL.
fn identifier(text: &str) -> Identifier {
    Identifier::new(text).unwrap_or_else(|bad| unreachable!("{text}: {bad}"))
}
