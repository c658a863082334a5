//! `serve`: be the holder. `s6-fdholder-daemon` makes its socket, `s6-fdholderd` gets it
//! as standard input.

mod confine;
mod reload;
mod sockets;
mod start;
mod wishes;

pub use wishes::Wishes;

use crate::config::Config;
use crate::failure::{exit, Failure};
use crate::log::{self, Destination, Format};
use crate::options::{milliseconds_option, number_option, path_operand};
use crate::passing::activation;
use crate::program::{Invocation, Program};
use clap::builder::{EnumValueParser, OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use confine::Needs;
use fdholder_daemon::access::{Rules, User};
use fdholder_daemon::children::Launcher;
use fdholder_daemon::fdstore::{self, Notifier, Past};
use fdholder_daemon::inheritance::Inheritance;
use fdholder_daemon::launch::Launch;
use fdholder_daemon::limits::{CONNECTIONS_MAX_DEFAULT, FDS_MAX, FDS_MAX_DEFAULT};
use fdholder_daemon::listen::{check_inherited, Listen, BACKLOG_DEFAULT};
use fdholder_daemon::memory::cgroup;
use fdholder_daemon::nothing;
use fdholder_daemon::panics::end_only_their_threads;
use fdholder_daemon::privileges::{drop_to, gain_none, raise_file_size, Become};
use fdholder_daemon::signals::{ignore_what_would_end, Signals};
use fdholder_daemon::{is_transient, Ended, Options, Reload, Room, Server};
use sockets::Sockets;
use start::Start;
use std::cell::OnceCell;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};
use wishes::groups;

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
            Arg::new("audit")
                .long("audit")
                .action(ArgAction::SetTrue)
                .help("Log who was refused what, and who has changed what"),
        )
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_name("FORMAT")
                .value_parser(EnumValueParser::<Format>::new())
                .help("As what lines are written to stderr [default: text]"),
        )
        .arg(
            Arg::new("log-to")
                .long("log-to")
                .value_name("WHERE")
                .value_parser(EnumValueParser::<Destination>::new())
                .help("Where lines go; journal: that of systemd, with fields [default: stderr]"),
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
                .help("Drop a client that takes so long until its first request, or in the middle of one; 0: never [default: 60000, and as long as it likes until its first]"),
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
            Arg::new("drop-hung-up")
                .long("drop-hung-up")
                .action(ArgAction::SetTrue)
                .help("Release a socket, pipe or terminal when its other end is closed"),
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
        .arg(
            Arg::new("landlock")
                .long("landlock")
                .action(ArgAction::SetTrue)
                .overrides_with("no-landlock")
                .help("Restrict file access with Landlock, also where paths may lead to other folders later"),
        )
        .arg(
            Arg::new("no-landlock")
                .long("no-landlock")
                .action(ArgAction::SetTrue)
                .overrides_with("landlock")
                .help("Do not restrict file access with Landlock"),
        )
}

fn define_daemon(command: Command) -> Command {
    let flag = |id, short, long| Arg::new(id).short(short).long(long).action(ArgAction::SetTrue);
    define_server(command)
        .after_help(
            "Without rules the socket has mode 0600, the daemon's own user may do everything \
             and nobody else connects. With rules it has mode 0777, and they decide.\n\n\
             On a PATH where a fdholder of the same user serves already, this one takes over \
             from it, and the other one ends; clients notice nothing. It finds that one also when \
             PATH was removed or renamed. While a daemon serves it looks at PATH once a second, and \
             makes it again where nothing stands in its place.\n\n\
             SIGUSR2, or fdholder upgrade PATH, has it become the program that is now on disk, \
             with the same pid; clients notice nothing.\n\n\
             Once it serves it opens only what it was started for, by folders (Landlock): rules, \
             configuration, its own sockets and program. For another folder it is started anew, \
             which takes over. By default only if all these paths are absolute and without \
             symbolic links, or with --landlock; never under a name of s6's.\n\n\
             A file for --config says the same by the same names, and what to open and hold \
             from the start (fdholder config check FILE looks at it; what is said on the \
             command line counts more):\n  \
             path = \"/run/fdholder/holder\"\n  \
             rules_dir = \"/etc/fdholder/rules\"  # or rules_file\n  \
             max_fds = 5000\n  \
             max_connections = 256\n  \
             client_timeout_ms = 5000\n  \
             lame_duck_timeout_ms = 5000\n  \
             standby = true   # drop_hung_up, fdstore, backlog, verbosity, uid, gid, groups\n  \
             audit = true                       # log_format = \"json\", log_to = \"journal\"\n  \
             landlock = true                    # as --landlock; false: as --no-landlock\n  \
             [sockets.\"web/1\"]                  # the id\n  \
             address = \"tcp:0.0.0.0:80\"         # as for bind, and its options:\n  \
             nonblock = true                    # mode = \"0660\", owner, backlog, …\n\n\
             At start, after an upgrade or takeover, and at SIGHUP, what is held under these ids is \
             compared with the file. Options that changed are set, and a socket that no client can \
             reach any more is opened anew. What cannot be changed stays, and is logged.\n\n\
             SIGTERM or SIGINT ends it once clients have finished what they began; PATH stays, \
             for the next one to replace. Exit codes: 0 (also when it was taken over), \
             +1 if descriptors were still held, +2 if clients were cut off; 100 wrong usage, 111 \
             it cannot start, or go on: its listening socket was shut down.",
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
                .help("Supplementary groups to take on [default: none with -u]"),
        )
        .arg(number_option("gid", 'g', "gid").help("Group to become"))
        .arg(number_option("uid", 'u', "uid").help("User to become"))
        .arg(
            flag("env-user", 'U', "env-user")
                .help("Become what the variables UID, GID and GIDLIST say"),
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("What is said here and more, in a file: see below; SIGHUP has it read again"),
        )
        .arg(
            path_operand()
                .required(false)
                .required_unless_present("config")
                .help("Where to listen"),
        )
}

fn run_daemon(invocation: &Invocation) -> Result<ExitCode, Failure> {
    withstand();
    let said = Wishes::of(invocation);
    let file: Option<PathBuf> = invocation.optional("config");
    let config = match file.as_deref().map(Config::read).transpose() {
        Ok(config) => config,
        Err(failure) => {
            // What is wrong with the file is logged as the command line says.
            log::start(&invocation.called, said.log())?;
            return Err(failure);
        }
    };
    let (told, sockets) = config.map_or_else(Default::default, |it| (it.wishes, it.sockets));
    let wishes = said.clone().or(told);
    log::start(&invocation.called, wishes.log())?;
    require_rules(invocation, &wishes)?;
    let rules = wishes.rules()?;
    let Some(path) = wishes.path.clone() else {
        return Err(Failure::new(exit::USAGE, "no PATH: say where to listen, here or in the file"));
    };
    let place = path.display().to_string();
    let user = wishes.user(invocation.matches.get_flag("env-user"))?;
    let own = User::this_process();
    let owner = User { uid: user.uid.unwrap_or(own.uid), gid: user.gid.unwrap_or(own.gid) };
    let listen = Listen {
        backlog: wishes
            .backlog
            .map_or(BACKLOG_DEFAULT, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX)),
        mode: mode(&wishes),
        reuse: !invocation.matches.get_flag("no-reuse"),
        owner: wishes.is_owner_only().then_some(owner),
        ..Listen::stream_at(path)
    };
    let mut settings = Settings::of(invocation, &wishes)?;
    settings.needs = Needs::of(&wishes, file.clone(), &sockets, invocation.as_s6);
    settings.sockets = Sockets::of(sockets.clone());
    settings.reload = file.map(|file| reload::by(file, said, wishes, sockets));
    settings.listen = Some(listen.clone());
    let start = if let Some(start) = start::by_following(&settings)? {
        start
    } else {
        // As another user this process might not be allowed to.
        settings.sockets.open();
        start::at(&listen, &user, &settings, activation::given()?)?
    };
    settings.serve(start, rules, &place)
}

/// Whatever limits this process was given, no write of its own ends it, and no thread but this one.
fn withstand() {
    ignore_what_would_end();
    raise_file_size();
    end_only_their_threads();
}

/// In a control group whose memory is limited the kernel kills who takes more.
fn bound_memory(room: &mut Room) {
    let limit = match cgroup::limit() {
        Ok(limit) => limit,
        Err(error) => return warn!("unable to see how much memory there is: {error}"),
    };
    if let Some((limit, bytes)) = limit.and_then(|limit| Some((limit, room.within(limit)?))) {
        info!(
            "the control group allows {} MiB of memory: requests and replies of all clients may \
             take {} KiB",
            limit >> 20,
            bytes >> 10
        );
    }
}

/// With rules, they alone decide, as with s6; without, the file system does.
fn mode(wishes: &Wishes) -> u32 {
    if wishes.is_owner_only() {
        0o600
    } else {
        0o777
    }
}

fn require_rules(invocation: &Invocation, wishes: &Wishes) -> Result<(), Failure> {
    if invocation.as_s6 && wishes.is_owner_only() {
        let problem = "no access rights specified! (see options -i and -x)";
        return Err(Failure::new(exit::USAGE, problem));
    }
    Ok(())
}

fn run_server(invocation: &Invocation) -> Result<ExitCode, Failure> {
    withstand();
    let wishes = Wishes::of(invocation);
    log::start(&invocation.called, wishes.log())?;
    require_rules(invocation, &wishes)?;
    // Nothing may fail that could have failed before, once everything has been taken over.
    let rules = wishes.rules()?;
    let mut settings = Settings::of(invocation, &wishes)?;
    settings.needs = Needs::of(&wishes, None, &[], invocation.as_s6);
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
    settings.give_up(&Become::default())?;
    settings.serve(Start::Anew(inheritance, Past::none()), rules, place)
}

/// What the command line says of the server.
struct Settings {
    options: Options,
    room: Room,
    /// Say that it is ready.
    announce: bool,
    /// How to start a standby, if there is to be one.
    standby: Option<Launch>,
    /// systemd, if this is a service of its, to be told that this is ready.
    systemd: Option<Arc<Notifier>>,
    /// Whether it is to keep a copy of everything.
    fdstore: bool,
    /// How long it waits to be told that the loop goes round, if it is to be told that.
    watchdog: Option<Duration>,
    /// What to become when an upgrade is asked for.
    successor: Launch,
    /// What starts child processes, once everything that is not needed was given up.
    launcher: OnceCell<Launcher>,
    signals: Signals,
    /// What to hold from the start.
    sockets: Sockets,
    /// How to read the configuration again.
    reload: Option<Reload>,
    /// How its socket is made, unless it was given one.
    listen: Option<Listen>,
    /// What may be needed of the file system.
    needs: Needs,
}

impl Settings {
    fn of(invocation: &Invocation, wishes: &Wishes) -> Result<Self, Failure> {
        let options = wishes.options();
        let wanted = options.fds_max;
        let mut room =
            Room::make(&options).map_err(|error| Failure::system("prepare the server", error))?;
        let fdstore = wishes.fdstore.unwrap_or(false);
        let systemd = systemd(fdstore)?;
        if fdstore && room.capacity > fdstore::capacity() {
            room.capacity = fdstore::capacity();
            warn!(
                "room for {} descriptors, not {wanted}: systemd keeps no more of them \
                 (FileDescriptorStoreMax=)",
                room.capacity
            );
        }
        let capacity = room.capacity;
        bound_memory(&mut room);
        fdholder_daemon::memory::take(capacity);
        if fdstore {
            // It has been said.
        } else if wanted > FDS_MAX {
            warn!("room for {capacity} descriptors, not {wanted}: no holder has room for more");
        } else if capacity < wanted {
            warn!(
                "room for {capacity} descriptors, not {wanted}: the hard limit on open files \
                 (ulimit -Hn) does not allow more"
            );
        }
        let standby = wishes.standby.unwrap_or(false).then(Launch::of_this_program);
        let signals = Signals::take().map_err(|error| Failure::system("take signals", error))?;
        // One that follows another closes what goes by threads, long before it serves.
        room.grow_descriptor_table(signals.term());
        let announce = invocation.matches.get_flag("ready");
        let successor = Launch::of_successor()
            .map_err(|error| Failure::system("find the program of an upgrade", error))?;
        let watchdog = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero());
        let sockets = Sockets::default();
        Ok(Self {
            options,
            room,
            announce,
            standby,
            systemd,
            fdstore,
            watchdog,
            successor,
            launcher: OnceCell::new(),
            signals,
            sockets,
            reload: None,
            listen: None,
            needs: Needs::default(),
        })
    }

    /// Becomes this user, and gives up whatever is not needed to serve. What may not fail any
    /// more was done before; and no thread was started.
    fn give_up(&self, user: &Become) -> Result<(), Failure> {
        let left = |error| Failure::new(exit::SYSTEM, error);
        drop_to(user).map_err(left)?;
        if user.uid.is_some() && user.gid.is_none() && User::this_process().gid == 0 {
            warn!("it stays in root's group: see option -g");
        }
        gain_none().map_err(left)?;
        self.needs.give_up_the_rest(&self.successor)?;
        // Before anything is held, so that its thread has none of it. If there is none now, there may
        // be when it is needed.
        if let Ok(launcher) = Launcher::start() {
            drop(self.launcher.set(launcher));
        }
        Ok(())
    }

    /// What both names of the daemon do once there is something to serve with.
    fn serve(self, start: Start, rules: Rules, place: &str) -> Result<ExitCode, Failure> {
        let prepare = |error| Failure::system("prepare the server", error);
        let (pid, capacity) = (std::process::id(), self.room.capacity);
        let is_promoted = matches!(start, Start::Promoted { .. });
        let is_anew = matches!(start, Start::Anew(..));
        let has_taken_over = matches!(start, Start::TakenOver { .. });
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
        server = server.with_successor(self.successor);
        if let Some(launcher) = self.launcher.into_inner() {
            server = server.with_launcher(launcher);
        }
        if let Some(launch) = self.standby {
            server = server.with_standby(launch);
        }
        if let Some(systemd) = &self.systemd {
            if self.fdstore {
                server = server.with_fdstore(Arc::clone(systemd), &past).map_err(prepare)?;
            }
            if let Some(patience) = self.watchdog {
                server = server.with_watchdog(Arc::clone(systemd), patience);
            }
        }
        if let Some(reload) = self.reload {
            server = server.with_configuration(reload);
        }
        if is_promoted {
            // It may have changed since this one began to stand by.
            server.reload();
        } else {
            hold_missing(&mut server, self.sockets, is_anew)?;
        }
        if has_taken_over {
            server.settle().map_err(prepare)?;
        }
        // Once it is ready, a file that is removed is made again as it was.
        if let Some(listen) = self.listen {
            server = server.with_socket_file(listen);
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
            if let Some(systemd) = self.systemd {
                server = server.with_readiness(systemd, &format!("serving {place}"));
            }
            // Not when it was promoted: then clients wait.
            fdholder_daemon::memory::give_back_code();
        }
        match server.run().map_err(|error| Failure::system("go on serving", error))? {
            Ended::Stopped { held, kept, clients } => {
                say_what_was_held(held, kept);
                Ok(ExitCode::from(u8::from(held > 0) | u8::from(clients > 0) << 1))
            }
            Ended::Lost { held, kept } => {
                say_what_was_held(held, kept);
                Err(Failure::new(exit::SYSTEM, "unable to go on: the listening socket is lost"))
            }
            Ended::TakenOver { by } => {
                let elsewhere = || "a process of another pid namespace".to_owned();
                info!("{} has taken over", by.map_or_else(elsewhere, |pid| format!("pid {pid}")));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn say_what_was_held(held: usize, kept: usize) {
    if kept > 0 {
        info!("ended with {kept} descriptors, which systemd keeps");
    }
    if held > 0 {
        warn!("ended with {held} descriptors, which are closed now");
    }
}

/// Holds what is to be held from the start. Without it nothing is begun; but what was taken
/// over is served in any case.
fn hold_missing(server: &mut Server, sockets: Sockets, is_anew: bool) -> Result<(), Failure> {
    let is_heir = !is_anew || server.held() > 0;
    let missing = sockets.missing_from(server.store());
    if let Some(problem) = missing.problems.first().filter(|_| !is_heir) {
        return Err(Failure::new(exit::SYSTEM, format_args!("unable to {problem}")));
    }
    let entries = missing.said();
    match server.hold(entries) {
        Err(errno) if !is_heir => Err(Failure::system("hold the sockets of the file", errno)),
        Err(errno) => {
            warn!("unable to hold the sockets of the file: {}", fdholder::strerror(errno));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// A connection with systemd, if this is a service of its. It serves without only what systemd does
/// not end for that.
fn systemd(fdstore: bool) -> Result<Option<Arc<Notifier>>, Failure> {
    let unable =
        if fdstore { "have systemd keep descriptors" } else { "tell systemd what this does" };
    match Notifier::from_environment() {
        Ok(None) if fdstore => Err(Failure::new(
            exit::SYSTEM,
            format_args!(
                "unable to {unable}: NOTIFY_SOCKET is not set: --fdstore is for a service of \
                 systemd with Type=notify and FileDescriptorStoreMax="
            ),
        )),
        Ok(notifier) => Ok(notifier.map(Arc::new)),
        // There is one, which would wait for this to be ready.
        Err(errno) if fdstore || is_transient(errno) => Err(Failure::system(unable, errno)),
        Err(errno) => {
            warn!("unable to {unable}: {}", fdholder::strerror(errno));
            Ok(None)
        }
    }
}

/// Writes the newline that says "ready", if it is wanted, and lets go of standard input
/// and output: the reader of the latter sees its end. Both become /dev/null, or something as
/// empty, rather than closed, so that no held descriptor ever gets their numbers.
fn give_up_standard_streams(announce: bool) -> std::io::Result<()> {
    let null = nothing::open()?;
    let mut stdout = std::io::stdout();
    let said = if announce && !nothing::is_nothing(&stdout) {
        stdout.write_all(b"\n").and_then(|()| stdout.flush())
    } else {
        Ok(())
    };
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    said
}
