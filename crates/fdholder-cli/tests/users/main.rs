//! Several users: what only root can try. Without root these are reported as ignored, by
//! name, unless `FDHOLDER_REQUIRE_PEERS` is set: then they fail.
#![allow(missing_docs, clippy::unwrap_used)]

mod bare;
mod full;
mod memory;
mod notify;
mod privileges;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Trial};
use privileges::{
    ids_of, privileged_ports, privileged_takeover, privileges_are_dropped,
    threads_that_close_come_when_they_can, what_is_left_is_given_up,
    who_keeps_privileges_does_not_serve,
};
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::daemon::serve;
use support::proxy::{Misdeed, Proxy, Seems};
use support::{assert_exit, deadline, id, stderr, stdout, suite, Daemon, Rules, Suite};

fn main() {
    let rules = |daemon| move || rules_by_uid_and_gid(daemon);
    let trials = vec![
        trial("root_is_served_by_a_full_daemon", None, full::root_is_served_by_a_full_daemon),
        trial(
            "many_who_are_answered_at_once_keep_nobody_out",
            None,
            full::many_who_are_answered_at_once_keep_nobody_out,
        ),
        trial(
            "root_gets_in_when_there_may_be_fewer_connections_than_others_have",
            None,
            full::root_gets_in_when_there_may_be_fewer_connections_than_others_have,
        ),
        trial(
            "own_user_that_has_taken_all_keeps_nobody_out",
            None,
            full::own_user_that_has_taken_all_keeps_nobody_out,
        ),
        trial(
            "daemon_whose_abstract_name_a_stranger_has_is_no_second_one",
            None,
            full::daemon_whose_abstract_name_a_stranger_has_is_no_second_one,
        ),
        trial(
            "daemon_in_a_group_with_little_memory_loses_nothing",
            None,
            memory::daemon_in_a_group_with_little_memory_loses_nothing,
        ),
        trial("next_user_of_a_service_can_send", None, notify::next_user_of_a_service_can_send),
        trial(
            "owner_of_the_socket_is_as_asked_for_and_warned_of_when_refused",
            None,
            notify::owner_of_the_socket_is_as_asked_for_and_warned_of_when_refused,
        ),
        trial("rules_by_uid_and_gid::ours", None, rules(Suite::Ours)),
        trial("rules_by_uid_and_gid::s6-2.11", Some(Suite::S6V211), rules(Suite::S6V211)),
        trial("rules_by_uid_and_gid::s6-2.13", Some(Suite::S6V213), rules(Suite::S6V213)),
        trial("without_rules_nobody_else_gets_in", None, without_rules_nobody_else_gets_in),
        trial("privileges_are_dropped", None, privileges_are_dropped),
        trial("what_is_left_of_privileges_is_given_up", None, what_is_left_is_given_up),
        trial("who_keeps_privileges_does_not_serve", None, who_keeps_privileges_does_not_serve),
        trial("what_is_mounted_over_rules_counts", None, mounted_rules_count),
        trial("a_daemon_of_another_user_is_left_alone", None, another_user_is_left_alone),
        trial("one_that_gave_up_privileges_is_taken_over", None, privileged_takeover),
        trial("an_ordinary_user_has_a_standby", None, an_ordinary_user_has_a_standby),
        trial("the_environment_names_the_user", None, the_environment_names_the_user),
        trial("a_transfer_needs_room_for_one_message_only", None, small_transfer),
        trial("clients_of_another_pid_namespace", None, clients_of_another_pid_namespace),
        trial("in_flight_descriptors_wait_for_room", None, in_flight_descriptors_wait_for_room),
        trial("a_sender_waits_for_a_slow_reader", None, a_sender_waits_for_a_slow_reader),
        trial("the_client_is_judged_not_the_source", None, the_client_is_judged_not_the_source),
        trial("ports_are_opened_before_privileges_are_dropped", None, privileged_ports),
        trial("image_with_nothing_but_the_program_is_enough", None, bare::nothing_but_the_program),
        trial("commands_without_proc_do_what_they_do_with_it", None, bare::without_proc),
        trial("who_sends_a_notification_is_judged", None, who_sends_a_notification_is_judged),
        trial("threads_that_close_come_when_they_can", None, threads_that_close_come_when_they_can),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, peer: Option<Suite>, run: impl FnOnce() + Send + 'static) -> Trial {
    let missing = if rustix::process::geteuid().is_root() {
        peer.filter(|peer| !peer.is_installed()).map(|peer| peer.to_string())
    } else {
        Some("root".to_owned())
    };
    support::trial::trial(name.to_owned(), missing, run)
}

/// A folder that every user may enter, with our binary in it.
fn common_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("fdholder");
    // By another process: a child that this one forks meanwhile would have the copy open
    // for writing, and what is open for writing cannot be executed.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_fdholder")).arg(&binary).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    (folder, binary)
}

/// Runs our binary as another user.
fn run_as(uid: u32, gid: u32, binary: &Path, arguments: &[&str]) -> Output {
    Command::new(binary)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .uid(uid)
        .gid(gid)
        .output()
        .unwrap()
}

/// Which rule decides for whom: the same in our daemon and in both of s6's.
fn rules_by_uid_and_gid(daemon_suite: Suite) {
    let (folder, binary) = common_folder();
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", ".*", ".*")
        .may("uid/self", &["LIST"])
        .allow("uid/1001")
        .regexes("uid/1001", "^a", "^b")
        .may("uid/1001", &["LIST"])
        .deny("uid/1002")
        .allow("gid/1002")
        .may("gid/1002", &["LIST"])
        .allow("uid/1003")
        .deny("uid/1003")
        .allow("gid/1003")
        .may("gid/1003", &["LIST"])
        .allow("gid/2000")
        .may("gid/2000", &["LIST"])
        .deny("gid/2001")
        .allow("uid/1004")
        .write("uid/1004/env/S6_FDHOLDER_LIST", "")
        .allow("uid/1005")
        .write("uid/1005/env/S6_FDHOLDER_STORE_REGEX", "(")
        .allow("uid/1006")
        .regexes("uid/1006", "^\\d+$", "^x\n^y")
        .may("uid/1006", &["LIST"])
        .write("uid/1007", "a file where a folder is due")
        .allow("gid/self")
        .may("gid/self", &["LIST"])
        .allow("uid/default");
    let socket = folder.path().join("holder");
    let daemon = Daemon::with_rules(daemon_suite, &socket, &rules, &[]);
    fs::set_permissions(&socket, Permissions::from_mode(0o777)).unwrap();
    let path = socket.to_str().unwrap();
    let null = File::open("/dev/null").unwrap();
    daemon.client().store(&id("bar"), fdholder::Limit::never(), &null, deadline()).unwrap();
    let run = |uid, gid, arguments: &[&str]| run_as(uid, gid, &binary, arguments);
    let outcome = |output: Output| match output.status.code() {
        Some(0) => "yes",
        Some(1) if stderr(&output).contains("not permitted") => "no",
        Some(1) if stderr(&output).contains("Broken pipe") => "closed",
        _ => panic!("{daemon_suite}: {output:?}"),
    };
    let list = |uid, gid| outcome(run(uid, gid, &["list", path]));
    let store = |uid, name: &str| outcome(run(uid, 9, &["store", path, name]));
    for (uid, gid, expected, why) in [
        (1001, 9, "yes", "by its uid"),
        (1002, 1002, "closed", "the uid's deny goes before the gid's allow"),
        (1003, 1003, "no", "allow goes before deny, and that rule grants nothing"),
        (1000, 2000, "yes", "by its gid"),
        (1000, 2001, "closed", "denied by its gid"),
        (1004, 9, "no", "an empty file grants nothing"),
        (1005, 9, "closed", "a bad expression refuses"),
        (1007, 9, "closed", "a rule that cannot be read refuses"),
        (1000, 0, "yes", "the daemon's own group"),
        (1000, 9, "no", "the default rule"),
    ] {
        assert_eq!(list(uid, gid), expected, "{daemon_suite}: uid {uid} gid {gid}: {why}");
    }
    assert_eq!(store(1001, "apple"), "yes", "{daemon_suite}");
    assert_eq!(store(1001, "banana"), "no", "{daemon_suite}");
    assert_eq!(store(1006, "123"), "no", "{daemon_suite}: \\d is not digits");
    let retrieve = |name: &str| outcome(run(1001, 9, &["retrieve", path, name, "true"]));
    assert_eq!([retrieve("bar"), retrieve("apple")], ["yes", "no"], "{daemon_suite}");
}

fn without_rules_nobody_else_gets_in() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let mut command = suite::fdholder(["serve", "-1", "-v0"]);
    command.arg(&path);
    let daemon = Daemon::spawn(command, &path);
    let path = path.to_str().unwrap();
    // The file system keeps them out,
    let output = run_as(1000, 1000, &binary, &["list", path]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("Permission denied"), "{output:?}");
    // and where it does not, the daemon does.
    fs::set_permissions(&daemon.path, Permissions::from_mode(0o777)).unwrap();
    let output = run_as(1000, 0, &binary, &["list", path]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("Broken pipe"), "{output:?}");
    daemon.client().list(deadline()).unwrap();
}

/// Nothing has happened to the files that were there before.
fn mounted_rules_count() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let rules = folder.path().join("rules");
    Rules::none(&rules).allow("uid/1001").may("uid/1001", &["LIST"]);
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("deny"), "").unwrap();
    let written = std::time::SystemTime::now();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(&binary);
    command.args(["serve", "-1", "-v0", "-i"]).arg(&rules).arg(&path);
    let daemon = Daemon::spawn(command, &path);
    let list = || run_as(1001, 1001, &binary, &["list", path.to_str().unwrap()]).status.code();
    // What was just written is read each time; what is told of rules counts behind that.
    while written.elapsed().unwrap() < std::time::Duration::from_secs(3) {
        assert_eq!(list(), Some(0));
    }
    let pid = daemon.pid().to_string();
    let mut mount = Command::new("nsenter");
    mount.args(["--target", &pid, "--mount", "--", "mount", "--bind"]).arg(&other);
    assert!(mount.arg(rules.join("uid/1001")).status().unwrap().success());
    assert_ne!(list(), Some(0));
}

/// Not by what a datagram says, nor by who has made the socket.
fn who_sends_a_notification_is_judged() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let rules = Rules::none(folder.path().join("rules"))
        .allow("uid/self")
        .regexes("uid/self", ".", ".")
        .may("uid/self", &["LIST"])
        .allow("uid/1001")
        .regexes("uid/1001", "^db/mine", "^db/")
        .deny("uid/1002");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let socket = folder.path().join("holder.db.notify");
    let door = run_as(
        0,
        0,
        &binary,
        &["exec", "--notify", "db", "--notify-mode", "0666", path.to_str().unwrap(), "--", "true"],
    );
    assert_exit(&door, 0);
    // Whoever it claims to be.
    let program = "import array, os, socket, sys\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect(sys.argv[1])\n\
        fd = os.open('/dev/null', os.O_RDONLY)\n\
        for text in sys.argv[2:]:\n\
        \x20   s.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\n\
        r, w = os.pipe()\n\
        s.sendmsg([b'BARRIER=1'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))])\n\
        os.close(w)\n\
        os.read(r, 1)\n";
    let send = |uid: u32, texts: &[&str]| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", program]).arg(&socket).args(texts).current_dir("/").uid(uid).gid(uid);
        assert!(command.status().unwrap().success());
    };
    let store = |name: &str| format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\nUID=0");
    send(1002, &[&store("mine-2"), "READY=1", "UCRED=0\nREADY=1"]);
    send(1001, &[&store("mine"), &store("other"), "FDSTOREREMOVE=1\nFDNAME=other", "READY=1"]);
    let mut ids = daemon.client().list(deadline()).unwrap();
    ids.sort();
    assert_eq!(ids, [id("db/.notify"), id("db/mine")]);
    // Who has sent it has given it.
    let json = suite::fdholder(["list", "--long", "--json"]).arg(&path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json[1]["id"], &json[1]["owner_uid"]), (&"db/mine".into(), &1001.into()));
    send(0, &[&store("other"), "READY=1"]);
    send(1001, &["FDSTOREREMOVE=1\nFDNAME=other", "FDSTOREREMOVE=1\nFDNAME=mine"]);
    let mut ids = daemon.client().list(deadline()).unwrap();
    ids.sort();
    assert_eq!(ids, [id("db/.notify"), id("db/.status"), id("db/other")]);
}

/// Nobody takes over from a stranger's daemon, and a stranger's socket is not touched.
fn another_user_is_left_alone() {
    let (folder, binary) = common_folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("holder");
    let rules = Rules::none(folder.path().join("rules")).allow("uid/default");
    let rules = rules.regexes("uid/default", ".*", ".*").may("uid/default", &["LIST"]);
    let mut command = Command::new(&binary);
    command.args(["serve", "-1", "-v0", "-i"]).arg(&rules.dir).arg(&path).uid(1001).gid(1001);
    let daemon = Daemon::spawn(command, &path);
    daemon
        .client()
        .store(&id("x"), fdholder::Limit::never(), std::io::stdin(), deadline())
        .unwrap();
    let path = path.to_str().unwrap();
    // Both may connect, and one of them is root.
    for uid in [1002, 0] {
        let refused = run_as(uid, uid, &binary, &["serve", path]);
        assert_exit(&refused, 111);
        let said = stderr(&refused);
        assert!(said.contains(&format!("(pid {}, uid 1001)", daemon.pid())), "{said}");
        assert!(said.contains("another user") && said.contains("stop it first"), "{said}");
        assert_eq!(said.lines().count(), 1);
        assert_eq!(daemon.client().list(deadline()), Ok(vec![id("x")]));
        assert_exit(&run_as(uid, uid, &binary, &["upgrade", path]), 1);
    }
}

/// Whose descriptors in flight are few: they wait for room on their way to the standby.
fn an_ordinary_user_has_a_standby() {
    let (folder, binary) = common_folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("holder");
    let log = folder.path().join("log");
    let script = "ulimit -n 3000; exec \"$0\" serve --standby -1 -n 2500 -c 8 \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&binary).arg(&path).uid(1001).gid(1001);
    command.stderr(File::create(&log).unwrap());
    let daemon = Daemon::spawn(command, &path);
    let operand = path.to_str().unwrap();
    let fill = "\
        i=0; while [ $i -lt 2000 ]; do export S6_FD_$i=0 S6_FDID_$i=id$i; i=$((i+1)); done\n\
        exec env 'S6_FD#=2000' \"$0\" setdump \"$1\"";
    let mut filling = Command::new("sh");
    filling.args(["-c", fill]).arg(&binary).arg(operand).stdin(Stdio::null());
    assert_exit(&filling.uid(1001).gid(1001).output().unwrap(), 0);
    let said = || fs::read_to_string(&log).unwrap();
    support::eventually("a standby has everything", || said().contains(" has everything"));
    daemon.signal(rustix::process::Signal::KILL);
    let list = || stdout(&run_as(1001, 1001, &binary, &["list", operand]));
    assert_eq!(list().lines().count(), 2000);
    support::eventually("it has a standby, too", || said().matches(" has everything").count() == 2);
    // SIGTERM ends what is left.
    let pids = said();
    let ready = pids.lines().rfind(|line| line.contains(": ready on ")).unwrap();
    let pid = ready.split("(pid ").nth(1).unwrap().split(')').next().unwrap().parse().unwrap();
    support::family::signal(pid, rustix::process::Signal::TERM);
    support::eventually("it has ended", || !support::family::is_alive(pid));
}

fn the_environment_names_the_user() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let mut command = Command::new(&binary);
    command.args(["serve", "-1", "-v0", "-U"]).arg(&path);
    command.envs([("UID", "1001"), ("GID", "1002"), ("GIDLIST", "1005")]);
    let daemon = Daemon::spawn(command, &path);
    assert_eq!(ids_of(daemon.pid(), "Uid:"), [1001; 4]);
    assert_eq!(ids_of(daemon.pid(), "Groups:"), [1005]);
    let mut bad = Command::new(&binary);
    bad.args(["serve", "-U"]).arg(folder.path().join("other")).env("UID", "nobody");
    assert_exit(&bad.output().unwrap(), 100);
}

/// An ordinary user has few descriptors in flight: more than that wait, none is lost.
fn in_flight_descriptors_wait_for_room() {
    let (folder, binary) = common_folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let daemon = |name: &str| {
        let path = folder.path().join(name);
        let mut command = Command::new(&binary);
        command.args(["serve", "-1", "-v0", "-n", "5000"]).arg(&path).uid(1001).gid(1001);
        Daemon::spawn(command, &path)
    };
    let (from, to) = (daemon("from"), daemon("to"));
    let script = "\
        i=0; while [ $i -lt 600 ]; do export S6_FD_$i=0 S6_FDID_$i=id$i; i=$((i+1)); done\n\
        export 'S6_FDx=600'; exec env 'S6_FD#=600' \"$1\" setdump \"$2\"";
    let fill = Command::new("sh")
        .args(["-c", script, "sh", binary.to_str().unwrap(), from.path.to_str().unwrap()])
        .stdin(Stdio::null())
        .uid(1001)
        .gid(1001)
        .output()
        .unwrap();
    assert_exit(&fill, 0);
    let (from, to) = (from.path.to_str().unwrap(), to.path.to_str().unwrap());
    // The allowance is the soft limit of each sender, all of a user's senders together.
    for relay in ["", "--relay"] {
        let command = format!("{} transferdump {relay} {from} {to}", binary.display());
        let limits = format!("ulimit -Sn 300; exec {command}");
        for _ in 0..5 {
            let transfer =
                Command::new("sh").args(["-c", &limits]).uid(1001).gid(1001).output().unwrap();
            assert_exit(&transfer, 0);
        }
    }
    assert_eq!(stdout(&run_as(1001, 1001, &binary, &["list", to])).lines().count(), 600);
}

/// Root, whose descriptors in flight are not counted, carries 5,000 with room for 300. (An
/// ordinary user's allowance is its limit on open files; what the source has sent counts,
/// too.)
fn small_transfer() {
    let (_from_folder, from) = serve(&["-n", "5000"]);
    let (_to_folder, to) = serve(&["-n", "5000"]);
    let null = File::open("/dev/null").unwrap();
    let entry = |number: u32| fdholder::Entry {
        id: id(&number.to_string()),
        limit: fdholder::Limit::never(),
        fd: null.as_fd(),
    };
    let set: Vec<_> = (0..5000).map(entry).collect();
    from.client().setdump(&set, deadline()).unwrap();
    let script = "ulimit -n 300; exec \"$0\" transferdump --relay \"$1\" \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fdholder")]).arg(&from.path).arg(&to.path);
    assert_exit(&command.output().unwrap(), 0);
    assert_eq!(to.client().list(deadline()).unwrap().len(), 5000);
}

/// Two daemons of root's that let user 1001 take and give dumps, the first one with so many
/// descriptors.
fn pair_for_1001(folder: &Path, count: u32) -> (Daemon, Daemon) {
    let rules = Rules::all(folder.join("rules"))
        .allow("uid/1001")
        .may("uid/1001", &["LIST", "GETDUMP", "SETDUMP"]);
    let daemon =
        |name| Daemon::with_rules(Suite::Ours, &folder.join(name), &rules, &["-n", "6000"]);
    let (from, to) = (daemon("from"), daemon("to"));
    for path in [&from.path, &to.path] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let null = File::open("/dev/null").unwrap();
    let entry = |number: u32| fdholder::Entry {
        id: id(&number.to_string()),
        limit: fdholder::Limit::never(),
        fd: null.as_fd(),
    };
    from.client().setdump(&(0..count).map(entry).collect::<Vec<_>>(), deadline()).unwrap();
    (from, to)
}

/// A destination stops reading while an ordinary user, who may have 1,024 descriptors in
/// flight, has sent more: the sender tries again until there is room, and goes on.
fn a_sender_waits_for_a_slow_reader() {
    let (folder, binary) = common_folder();
    let (from, to) = pair_for_1001(folder.path(), 5000);
    let misdeed = Misdeed::WaitsForLeave;
    let proxy = Proxy::new(folder.path(), &to.path, Seems::Fdholder, misdeed, 1);
    fs::set_permissions(&proxy.path, Permissions::from_mode(0o777)).unwrap();
    let script = "ulimit -n 1024; exec \"$0\" transferdump --relay \"$1\" \"$2\"";
    let transfer = Command::new("sh")
        .args(["-c", script])
        .args([&binary, &from.path, &proxy.path])
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .uid(1001)
        .gid(1001)
        .spawn()
        .unwrap();
    proxy.wait_until_it_waits();
    support::eventually("the sender pauses", || {
        let doing = fs::read_to_string(format!("/proc/{}/wchan", transfer.id())).unwrap();
        doing.contains("nanosleep")
    });
    proxy.give_leave();
    assert_exit(&transfer.wait_with_output().unwrap(), 0);
    assert_eq!(to.client().list(deadline()).unwrap().len(), 5000);
}

/// The source could give everything to the destination; the client may not.
fn the_client_is_judged_not_the_source() {
    let (folder, binary) = common_folder();
    let (from, to) = pair_for_1001(folder.path(), 300);
    let rules = Rules::all(folder.path().join("rules-0"));
    let guarded = Daemon::with_rules(Suite::Ours, &folder.path().join("guarded"), &rules, &[]);
    fs::set_permissions(&guarded.path, Permissions::from_mode(0o777)).unwrap();
    let as_1001 = |to: &Daemon| {
        let paths = [from.path.to_str().unwrap(), to.path.to_str().unwrap()];
        run_as(1001, 1001, &binary, &[&["transferdump"][..], &paths].concat())
    };
    let refused = as_1001(&guarded);
    assert_exit(&refused, 2);
    assert!(stderr(&refused).contains("unable to set dump: Broken pipe"), "{refused:?}");
    assert_eq!(guarded.client().list(deadline()), Ok(vec![]));
    assert_exit(&as_1001(&to), 0);
    assert_eq!(to.client().list(deadline()).unwrap().len(), 300);
}

/// A daemon in a container does not see the pids of clients outside; they may use it all
/// the same.
fn clients_of_another_pid_namespace() {
    let (folder, binary) = common_folder();
    let path = folder.path().join("holder");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(binary).args(["serve", "-1", "-v0"]);
    let daemon = Daemon::spawn(
        {
            command.arg(&path);
            command
        },
        &path,
    );
    daemon
        .client()
        .store(&id("x"), fdholder::Limit::never(), std::io::stdin(), deadline())
        .unwrap();
    assert_eq!(daemon.client().list(deadline()), Ok(vec![id("x")]));
}
