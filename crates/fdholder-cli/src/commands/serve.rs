//! `serve`: be the holder. `s6-fdholder-daemon` makes its socket, `s6-fdholderd` gets it
//! as standard input.

mod start;

use crate::activation;
use crate::failure::{exit, Failure};
use crate::log;
use crate::options::{milliseconds_option, number, number_option, path_operand, Milliseconds};
use crate::program::{Invocation, Program};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use fdholder_daemon::access::{Rules, User};
use fdholder_daemon::fdstore::{self, Notifier, Past};
use fdholder_daemon::inheritance::Inheritance;
use fdholder_daemon::launch::Launch;
use fdholder_daemon::limits::{CONNECTIONS_MAX_DEFAULT, FDS_MAX, FDS_MAX_DEFAULT};
use fdholder_daemon::listen::{check_inherited, Listen, BACKLOG_DEFAULT};
use fdholder_daemon::privileges::Become;
use fdholder_daemon::signals::Signals;
use fdholder_daemon::{Ended, Options, Room, Server};
use start::Start;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing::{info, warn};

/// Makes its socket.
pub const DAEMON: Program = Program {
    subcommand: "serve",
    s6_name: "s6-fdholder-daemon",
    s6_usage: "[ -1 ] [ -v verbosity ] [ -d | -D ] [ -c maxconn ] [ -n maxfds ] [ -b backlog ] \
               [ -G gid,gid,... ] [ -g gid ] [ -u uid ] [ -U ] [ -t clienttimeout ] \
               [ -T lameducktimeout ] [ -i rulesdir | -x rulesfile ] path",
    define: define_daemon,
    run: run_daemon,
};

/// Gets its socket as standard input.
pub const SERVER: Program = Program {
    subcommand: "",
    s6_name: "s6-fdholderd",
    s6_usage: "[ -1 ] [ -v verbosity ] [ -c maxconn ] [ -n maxfds ] [ -t clienttimeout ] \
               [ -T lameducktimeout ] [ -i rulesdir | -x rulesfile ]",
    define: define_server,
    run: run_server,
};

fn define_server(command: Command) -> Command {
    let flag = |id, short, long| Arg::new(id).short(short).long(long).action(ArgAction::SetTrue);
    let file = |id, short, long| {
        Arg::new(id).short(short).long(long).value_parser(clap::value_parser!(PathBuf))
    };
    command
        .about("Hold descriptors for the programs that connect")
        .arg(
            flag("ready", '1', "ready-newline")
                .help("When ready, write a newline to standard output and close it"),
        )
        .arg(
            number_option("verbosity", 'v', "verbosity")
                .help("0: quiet, 1: start and warnings, 2: every client [default: 1]"),
        )
        .arg(
            number_option("connections", 'c', "max-connections")
                .help(format!("Clients at once [default: {CONNECTIONS_MAX_DEFAULT}]")),
        )
        .arg(
            number_option("fds", 'n', "max-fds")
                .help(format!("Descriptors to hold at most [default: {FDS_MAX_DEFAULT}]")),
        )
        .arg(
            milliseconds_option("client-timeout", 't', "client-timeout")
                .help("Drop a client that is silent so long before its first request or in the middle of one [default: 0, never]"),
        )
        .arg(
            milliseconds_option("lame-duck", 'T', "lame-duck-timeout")
                .help("After SIGTERM, let clients finish for so long [default: 0, as long as they take]"),
        )
        .arg(
            file("rulesdir", 'i', "rules-dir")
                .value_name("DIR")
                .overrides_with("rulesfile")
                .help("Access rules in a folder; changes hold at once"),
        )
        .arg(
            file("rulesfile", 'x', "rules-file")
                .value_name("FILE")
                .overrides_with("rulesdir")
                .help("Access rules in a cdb; SIGHUP has it read again"),
        )
        .arg(
            Arg::new("standby")
                .long("standby")
                .action(ArgAction::SetTrue)
                .help("Have a second process hold everything too, and serve if this one is killed"),
        )
        .arg(
            Arg::new("fdstore").long("fdstore").action(ArgAction::SetTrue).help(
                "Have systemd keep a copy of everything, for the next start of this service",
            ),
        )
}

fn define_daemon(command: Command) -> Command {
    let flag = |id, short, long| Arg::new(id).short(short).long(long).action(ArgAction::SetTrue);
    define_server(command)
        .after_help(
            "Without rules the socket has mode 0600, the daemon's own user may do everything \
             and nobody else connects. With rules it has mode 0777, and they decide.\n\n\
             On a PATH where a fdholder of the same user serves already, this one takes over \
             from it, and the other one ends; clients notice nothing.\n\n\
             SIGUSR2, or fdholder upgrade PATH, has it become the program that is now on disk, \
             with the same pid; clients notice nothing.\n\n\
             SIGTERM or SIGINT ends it once clients have finished what they began; PATH stays, \
             for the next one to replace. Exit codes: 0 (also when it was taken over), \
             +1 if descriptors were still held, +2 if clients were cut off; 100 wrong usage, 111 \
             it cannot start.",
        )
        .arg(flag("reuse", 'd', "reuse").overrides_with("no-reuse").help(
            "Replace the socket of a daemon that is gone, take over from one that is not [default]",
        ))
        .arg(
            flag("no-reuse", 'D', "no-reuse")
                .overrides_with("reuse")
                .help("Fail if PATH is there, whatever it is"),
        )
        .arg(
            number_option("backlog", 'b', "backlog").help(format!(
                "Clients that wait to be accepted at most [default: {BACKLOG_DEFAULT}]"
            )),
        )
        .arg(
            Arg::new("groups")
                .short('G')
                .long("groups")
                .value_name("GID,…")
                .value_parser(OsStringValueParser::new().try_map(|text| groups(&text)))
                .help("Supplementary groups to take on"),
        )
        .arg(number_option("gid", 'g', "gid").help("Group to become"))
        .arg(number_option("uid", 'u', "uid").help("User to become"))
        .arg(
            flag("env-user", 'U', "env-user")
                .help("Become what the variables UID, GID and GIDLIST say"),
        )
        .arg(path_operand().help("Where to listen"))
}

#[derive(Debug, Clone)]
struct Groups(Vec<u32>);

fn groups(text: &OsStr) -> Result<Groups, String> {
    let text = text.to_str().ok_or("it is not a list of numbers")?;
    let gids = text.split(',').filter(|gid| !gid.is_empty()).map(number);
    gids.collect::<Result<_, _>>().map(Groups)
}

fn run_daemon(invocation: &Invocation) -> Result<ExitCode, Failure> {
    log::start(&invocation.called, invocation.optional("verbosity").unwrap_or(1));
    let source = RulesSource::of(invocation)?;
    let owner_only = matches!(source, RulesSource::OwnerOnly);
    let rules = source.read()?;
    let path: PathBuf = invocation.required("path")?;
    let place = path.display().to_string();
    let user = user_to_become(invocation)?;
    let own = User::this_process();
    // With rules, they alone decide, as with s6; without, the file system does.
    let listen = Listen {
        backlog: invocation
            .optional::<u32>("backlog")
            .map_or(BACKLOG_DEFAULT, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX)),
        mode: if owner_only { 0o600 } else { 0o777 },
        reuse: !invocation.matches.get_flag("no-reuse"),
        owner: owner_only
            .then_some(User { uid: user.uid.unwrap_or(own.uid), gid: user.gid.unwrap_or(own.gid) }),
        ..Listen::stream_at(path)
    };
    let settings = Settings::of(invocation)?;
    let start = match start::by_following(&settings)? {
        Some(start) => start,
        None => start::at(&listen, &user, &settings, activation::given())?,
    };
    settings.serve(start, rules, &place)
}

fn run_server(invocation: &Invocation) -> Result<ExitCode, Failure> {
    log::start(&invocation.called, invocation.optional("verbosity").unwrap_or(1));
    let source = RulesSource::of(invocation)?;
    // Nothing may fail that could have failed before, once everything has been taken over.
    let rules = source.read()?;
    let settings = Settings::of(invocation)?;
    let place = "standard input";
    if let Some(start) = start::by_following(&settings)? {
        return settings.serve(start, rules, place);
    }
    let stdin = std::io::stdin();
    check_inherited(&stdin).map_err(|problem| {
        Failure::new(exit::USAGE, format_args!("standard input is {problem}: give it one"))
    })?;
    let listener = stdin
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::system("take the socket from standard input", error))?;
    let inheritance = Inheritance::of(listener, settings.room.capacity);
    settings.serve(Start::Anew(inheritance, Past::none()), rules, place)
}

/// Where the rules are, by the command line.
enum RulesSource {
    OwnerOnly,
    Dir(PathBuf),
    File(PathBuf),
}

impl RulesSource {
    fn of(invocation: &Invocation) -> Result<Self, Failure> {
        match (invocation.optional("rulesdir"), invocation.optional("rulesfile")) {
            (Some(dir), _) => Ok(Self::Dir(dir)),
            (None, Some(file)) => Ok(Self::File(file)),
            (None, None) if invocation.as_s6 => Err(Failure::new(
                exit::USAGE,
                "no access rights specified! (see options -i and -x)",
            )),
            (None, None) => Ok(Self::OwnerOnly),
        }
    }

    fn read(self) -> Result<Rules, Failure> {
        match self {
            Self::OwnerOnly => Ok(Rules::owner_only()),
            Self::Dir(dir) => {
                if !dir.is_dir() {
                    warn!("{} is not a folder: nobody may connect until it is", dir.display());
                }
                Ok(Rules::in_dir(dir))
            }
            Self::File(file) => Rules::in_cdb(file).map_err(|refusal| {
                Failure::new(exit::SYSTEM, format_args!("unable to read the rules: {refusal}"))
            }),
        }
    }
}

/// Who to become. As with s6, 0 means: stay who you are.
fn user_to_become(invocation: &Invocation) -> Result<Become, Failure> {
    let id = |option: &str| invocation.optional::<u32>(option).filter(|&id| id != 0);
    let mut user = Become {
        uid: id("uid"),
        gid: id("gid"),
        groups: invocation.optional("groups").map(|Groups(groups)| groups),
    };
    if invocation.matches.get_flag("env-user") {
        let variable = |name: &str| {
            std::env::var_os(name).map(|value| {
                number(&value).map_err(|problem| {
                    Failure::new(exit::USAGE, format_args!("invalid {name}: {problem}"))
                })
            })
        };
        user.uid = variable("UID").transpose()?.or(user.uid);
        user.gid = variable("GID").transpose()?.or(user.gid);
        if let Some(list) = std::env::var_os("GIDLIST") {
            let Groups(list) = groups(&list).map_err(|problem| {
                Failure::new(exit::USAGE, format_args!("invalid GIDLIST: {problem}"))
            })?;
            user.groups = Some(list);
        }
    }
    Ok(user)
}

/// What the command line says of the server.
struct Settings {
    options: Options,
    room: Room,
    /// Say that it is ready.
    announce: bool,
    /// How to start a standby, if there is to be one.
    standby: Option<Launch>,
    /// systemd, if it is to keep a copy of everything.
    notifier: Option<Notifier>,
    /// systemd, if it is to be told that the loop goes round, and how long it waits for that.
    watchdog: Option<(Notifier, Duration)>,
    /// What to become when an upgrade is asked for.
    successor: Launch,
    signals: Signals,
}

impl Settings {
    fn of(invocation: &Invocation) -> Result<Self, Failure> {
        let span = |id: &str| invocation.optional(id).and_then(|Milliseconds(span)| span);
        let count = |id: &str| invocation.optional::<u32>(id).map(|count| count as usize);
        let defaults = Options::default();
        let wanted = count("fds").unwrap_or(defaults.fds_max);
        let options = Options {
            connections_max: count("connections").unwrap_or(defaults.connections_max),
            fds_max: wanted,
            client_timeout: span("client-timeout"),
            lame_duck_timeout: span("lame-duck"),
        };
        let mut room =
            Room::make(&options).map_err(|error| Failure::system("prepare the server", error))?;
        let notifier = notifier(invocation)?;
        if notifier.is_some() && room.capacity > fdstore::capacity() {
            room.capacity = fdstore::capacity();
            warn!(
                "room for {} descriptors, not {wanted}: systemd keeps no more of them \
                 (FileDescriptorStoreMax=)",
                room.capacity
            );
        }
        let capacity = room.capacity;
        fdholder_daemon::memory::take(capacity);
        if notifier.is_some() {
            // It has been said.
        } else if wanted > FDS_MAX {
            warn!("room for {capacity} descriptors, not {wanted}: no holder has room for more");
        } else if capacity < wanted {
            warn!(
                "room for {capacity} descriptors, not {wanted}: the hard limit on open files \
                 (ulimit -Hn) does not allow more"
            );
        }
        let standby = invocation.matches.get_flag("standby").then(Launch::of_this_program);
        let signals = Signals::take().map_err(|error| Failure::system("take signals", error))?;
        let announce = invocation.matches.get_flag("ready");
        let successor = Launch::of_successor();
        let watchdog = watchdog();
        Ok(Self { options, room, announce, standby, notifier, watchdog, successor, signals })
    }

    /// What both names of the daemon do once there is something to serve with.
    fn serve(self, start: Start, rules: Rules, place: &str) -> Result<ExitCode, Failure> {
        let prepare = |error| Failure::system("prepare the server", error);
        let (pid, capacity) = (std::process::id(), self.room.capacity);
        let is_promoted = matches!(start, Start::Promoted { .. });
        let is_anew = matches!(start, Start::Anew(..));
        let how = start.to_string();
        let (inheritance, past) = match start {
            Start::Anew(inheritance, past) => (inheritance, past),
            Start::TakenOver { inheritance, .. } | Start::Promoted { inheritance, .. } => {
                let past = Past::unknown(inheritance.dropped.iter().copied());
                (inheritance, past)
            }
            Start::NotNeeded => return Ok(ExitCode::SUCCESS),
        };
        let mut server = Server::inherit(inheritance, self.room, rules, self.signals, self.options)
            .map_err(prepare)?;
        if is_promoted {
            // They may have changed since this one began to stand by.
            server.reload_rules();
        }
        server = server.with_successor(self.successor);
        if let Some(launch) = self.standby {
            server = server.with_standby(launch);
        }
        if let Some(notifier) = self.notifier {
            server = server.with_fdstore(notifier, &past).map_err(prepare)?;
        }
        if let Some((notifier, patience)) = self.watchdog {
            server = server.with_watchdog(notifier, patience);
        }
        info!("ready on {place} (pid {pid}), holding up to {capacity} descriptors{how}");
        if !is_promoted {
            match give_up_standard_streams(self.announce) {
                Ok(()) => {}
                // Nobody else has what was taken over.
                Err(error) if !is_anew || server.held() > 0 => {
                    warn!("unable to announce readiness on stdout: {error}");
                }
                Err(error) => return Err(Failure::system("announce readiness on stdout", error)),
            }
            activation::announce(format!("serving {place}"));
        }
        match server.run().map_err(|error| Failure::system("go on serving", error))? {
            Ended::Stopped { held, kept, clients } => {
                if kept > 0 {
                    info!("ended with {kept} descriptors, which systemd keeps");
                }
                if held > 0 {
                    warn!("ended with {held} descriptors, which are closed now");
                }
                Ok(ExitCode::from(u8::from(held > 0) | u8::from(clients > 0) << 1))
            }
            Ended::TakenOver { by } => {
                info!("pid {} has taken over", by.unwrap_or_default());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// A connection with systemd, if it is to keep a copy of everything.
fn notifier(invocation: &Invocation) -> Result<Option<Notifier>, Failure> {
    if !invocation.matches.get_flag("fdstore") {
        return Ok(None);
    }
    let unable = "have systemd keep descriptors";
    let notifier = Notifier::from_environment().map_err(|errno| Failure::system(unable, errno))?;
    notifier.map(Some).ok_or_else(|| {
        Failure::new(
            exit::SYSTEM,
            format_args!(
                "unable to {unable}: NOTIFY_SOCKET is not set: --fdstore is for a service of \
                 systemd with Type=notify and FileDescriptorStoreMax="
            ),
        )
    })
}

/// A connection with systemd, if it wants to hear from this process again and again, or it
/// ends it.
fn watchdog() -> Option<(Notifier, Duration)> {
    let patience = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())?;
    match Notifier::from_environment() {
        Ok(notifier) => Some((notifier?, patience)),
        Err(errno) => {
            warn!("unable to tell systemd that this goes on: {}", fdholder::strerror(errno));
            None
        }
    }
}

/// Writes the newline that says "ready", if it is wanted, and lets go of standard input
/// and output: whoever reads the latter sees its end. Both become /dev/null rather than
/// closed, so that no held descriptor ever gets their numbers.
fn give_up_standard_streams(announce: bool) -> std::io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut stdout = std::io::stdout();
    let said =
        if announce { stdout.write_all(b"\n").and_then(|()| stdout.flush()) } else { Ok(()) };
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    said
}
