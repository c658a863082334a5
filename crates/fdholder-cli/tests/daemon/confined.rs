//! What a daemon that serves can still open.

use crate::support::{
    assert_exit, deadline, eventually, has_landlock, id, stderr, suite, Daemon, Rules,
};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

const ADVICE: &str = "Start the daemon anew, which takes over, or say landlock = false";

/// Folders of its own for rules, sockets and whatever is none of a daemon's business, and a
/// configuration.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(config: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["etc", "run", "outside"] {
            fs::create_dir(place.at(folder)).unwrap();
        }
        place.rules();
        place.configure(config);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rules(&self) -> Rules {
        Rules::all(self.at("etc/rules"))
    }

    fn configure(&self, more: &str) {
        let text = format!("path = 'PLACE/run/holder'\nverbosity = 2\n{more}");
        let text = text.replace("PLACE", self.folder.path().to_str().unwrap());
        fs::write(self.at("etc/new"), text).unwrap();
        // As editors and package managers do.
        fs::rename(self.at("etc/new"), self.at("etc/config")).unwrap();
    }

    fn serve(&self, more: &[&str]) -> Daemon {
        let mut command = suite::fdholder(["serve", "-1", "--config"]);
        command.arg(self.at("etc/config")).args(more);
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Daemon {
        command.stderr(File::create(self.at("log")).unwrap());
        Daemon::spawn(command, &self.at("run/holder"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    /// Reads the configuration again, and waits until this has been said.
    fn reload(&self, daemon: &Daemon, more: &str, says: &str) -> String {
        let before = self.log().len();
        self.configure(more);
        daemon.signal(Signal::HUP);
        eventually(says, || self.log()[before..].contains(says));
        self.log()[before..].to_owned()
    }
}

const RULES: &str = "rules_dir = 'PLACE/etc/rules'\n";

fn is_let_in(daemon: &Daemon) -> bool {
    let mut client = daemon.client();
    client.list(deadline()).is_ok()
}

/// A rule that leads elsewhere would have the daemon read there for whoever made it.
#[test]
fn a_link_does_not_lead_out() {
    if !has_landlock() {
        return;
    }
    let place = Place::new(RULES);
    let value = place.at("etc/rules/uid/self/env/S6_FDHOLDER_LIST");
    let lead = |file: &str, to: &str| {
        let (link, to) = (place.at("etc/rules").join(file), place.at(to));
        fs::remove_file(&link).or_else(|_| fs::remove_dir_all(&link)).unwrap();
        symlink(to, link).unwrap();
    };
    fs::write(place.at("outside/yes"), "\n").unwrap();
    Rules::all(place.at("shared"));
    // One that is there at the start was made by whoever starts the daemon.
    lead("uid", "shared/uid");
    let daemon = place.serve(&["--landlock"]);
    assert!(place.log().contains("from here on (Landlock)"), "{}", place.log());
    assert!(is_let_in(&daemon));
    fs::remove_file(&value).unwrap();
    symlink(place.at("outside/yes"), &value).unwrap();
    assert!(!is_let_in(&daemon));
    let refused = format!("{}: Permission denied (in a folder", value.display());
    eventually("it is said", || place.log().contains(&refused));
    assert!(place.log().contains(ADVICE));
    // What it leads to is well.
    drop(daemon);
    for options in [&["--landlock"][..], &["--no-landlock"], &[]] {
        let daemon = place.serve(options);
        assert!(is_let_in(&daemon), "{options:?}");
        // Of one that may open everything, that is not said.
        assert_eq!(place.log().contains("(Landlock)"), options == ["--landlock"]);
    }
}

/// What is replaced is read all the same: a file, the folder of rules, what it leads to.
#[test]
fn what_is_replaced_is_read() {
    let place = Place::new(RULES);
    let daemon = place.serve(&[]);
    fs::rename(place.at("etc/rules"), place.at("etc/before")).unwrap();
    assert!(!is_let_in(&daemon));
    place.rules();
    assert!(is_let_in(&daemon));
    place.reload(&daemon, RULES, "has read its configuration again, and holds 0 more");

    let releases = Place::new(RULES);
    Rules::all(releases.at("etc/1"));
    fs::remove_dir_all(releases.at("etc/rules")).unwrap();
    symlink("1", releases.at("etc/rules")).unwrap();
    let daemon = releases.serve(&["--landlock"]);
    assert!(is_let_in(&daemon));
    Rules::none(releases.at("etc/2")).deny("uid/self");
    symlink("2", releases.at("etc/next")).unwrap();
    fs::rename(releases.at("etc/next"), releases.at("etc/rules")).unwrap();
    assert!(!is_let_in(&daemon));
    assert!(releases.log().contains("denied by rule uid/self"), "{}", releases.log());

    // A folder that was not there yet.
    let late = Place::new(RULES);
    fs::remove_dir_all(late.at("etc/rules")).unwrap();
    let daemon = late.serve(&[]);
    late.rules();
    assert!(is_let_in(&daemon));
}

#[test]
fn a_new_socket_is_made_in_a_folder_that_is_known() {
    if !has_landlock() {
        return;
    }
    let place = Place::new(
        "[sockets.queue]\naddress = 'fifo:PLACE/queue/fifo'\n\
         [sockets.other]\naddress = 'unix:PLACE/other/socket'\n",
    );
    for folder in ["queue", "other"] {
        fs::create_dir(place.at(folder)).unwrap();
    }
    let daemon = place.serve(&["--landlock"]);
    // Beside the daemon's own, and beside what was there before; a dead one is replaced.
    drop(std::os::unix::net::UnixListener::bind(place.at("other/dead")).unwrap());
    let said = place.reload(
        &daemon,
        "[sockets.a]\naddress = 'unix:PLACE/run/a'\n[sockets.b]\naddress = 'fifo:PLACE/queue/b'\n\
         [sockets.c]\naddress = 'unix:PLACE/other/dead'\n",
        "has read its configuration again",
    );
    assert!(said.contains("holds 3 more") && !said.contains("unable"), "{said}");
    UnixStream::connect(place.at("run/a")).unwrap();
    // Elsewhere it is not, and it is said what to do.
    for address in ["unix:PLACE/outside/socket", "fifo:PLACE/outside/fifo"] {
        let more = format!("[sockets.new]\naddress = '{address}'\n");
        let said = place.reload(&daemon, &more, "has read its configuration again");
        assert!(said.contains("unable to open ") && said.contains(ADVICE), "{said}");
        assert!(!said.contains("a port below"), "{said}");
    }
    // That does it.
    let next = place.serve(&[]);
    assert_eq!(next.client().list(deadline()).unwrap().len(), 6);
    assert!(place.at("outside/fifo").exists());
}

/// Rules that the daemon could not read would keep everybody out.
#[test]
fn rules_that_cannot_be_read_do_not_count() {
    if !has_landlock() {
        return;
    }
    let place = Place::new(RULES);
    let daemon = place.serve(&[]);
    Rules::none(place.at("outside/rules")).allow("uid/self").may("uid/self", &["LIST"]);
    let elsewhere = "rules_dir = 'PLACE/outside/rules'\n";
    let said = place.reload(&daemon, elsewhere, "the configuration in force stays");
    assert!(said.contains("unable to read the rules: ") && said.contains(ADVICE), "{said}");
    assert!(is_let_in(&daemon));
    // Nor after an upgrade.
    let upgrade = || suite::fdholder(["upgrade"]).arg(&daemon.path).output().unwrap();
    place.configure(elsewhere);
    let refused = upgrade();
    assert_exit(&refused, 1);
    assert!(stderr(&refused).contains("exit status: 111"), "{refused:?}");
    assert!(place.log().matches(ADVICE).count() > 1, "{}", place.log());
    assert!(is_let_in(&daemon));
    // Names of users are known only to one that began with some.
    let named = [RULES, "[sockets.a]\naddress = 'unix:PLACE/run/a'\nowner = 'root'\n"].concat();
    let said = place.reload(&daemon, &named, "the configuration in force stays");
    assert!(said.contains("unable to read /etc/passwd: ") && said.contains(ADVICE), "{said}");
    // What is to be confined otherwise is started anew, which an upgrade is not.
    let free = format!("landlock = false\n{named}");
    let said = place.reload(&daemon, &format!("landlock = false\n{RULES}"), "holds 0 more");
    assert!(said.contains("landlock as before, until the daemon is started anew"), "{said}");
    assert_exit(&upgrade(), 0);
    assert!(place.log().contains("landlock = false counts when"), "{}", place.log());
    let said = place.reload(&daemon, &free, "the configuration in force stays");
    assert!(said.contains("/etc/passwd"), "{said}");
    let next = place.serve(&[]);
    assert_eq!(next.client().list(deadline()), Ok(vec![id("a")]));
    assert!(place.at("run/a").exists());
}

/// One that began with names knows them, also after the file of them was replaced.
#[test]
fn names_of_users_are_known_to_one_that_began_with_some() {
    let place = Place::new("[sockets.a]\naddress = 'unix:PLACE/run/a'\nowner = 'root'\n");
    let daemon = place.serve(&[]);
    let more = "[sockets.a]\naddress = 'unix:PLACE/run/a'\nowner = 'root'\n\
                [sockets.b]\naddress = 'unix:PLACE/run/b'\nowner = 'root:root'\n";
    place.reload(&daemon, more, "holds 1 more");
    assert_eq!(daemon.client().list(deadline()).unwrap(), [id("a"), id("b")]);
}

/// It serves, and says so only to whoever wants to know everything.
#[test]
fn a_kernel_may_have_no_landlock() {
    for (errno, says) in
        [("ENOSYS", "this kernel has no Landlock"), ("EOPNOTSUPP", "this kernel has no Landlock")]
    {
        let place = Place::new(RULES);
        let mut command = Command::new("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset", "-e"]);
        command.arg(format!("inject=landlock_create_ruleset:error={errno}"));
        command.arg(env!("CARGO_BIN_EXE_fdholder")).args(["serve", "-1", "--config"]);
        command.arg(place.at("etc/config"));
        let daemon = place.spawn(command);
        assert!(place.log().contains(&format!("debug: may open whatever its user may: {says}")));
        assert!(is_let_in(&daemon));
    }
}

/// What leads elsewhere later must work as it does without Landlock, unless somebody asks for less.
#[test]
fn paths_that_may_move_are_followed_by_default() {
    // The name that it is called by, its rules and its socket, from the folder `etc`; and what is
    // replaced while it serves.
    let cases = [
        ("s6-fdholder-daemon", "data/rules", "socket"),
        ("s6-fdholder-daemon", "PLACE/etc/data/rules", "PLACE/etc/socket"),
        ("fdholder", "data/rules", "PLACE/etc/socket"),
        ("fdholder", "PLACE/etc/data/rules", "socket"),
        ("fdholder", "PLACE/link/data/rules", "PLACE/etc/socket"),
        ("fdholder", "PLACE/etc/data/rules", "PLACE/link/socket"),
        ("fdholder", "PLACE/etc/out/rules", "PLACE/etc/socket"),
    ];
    for case in cases {
        let (name, rules, socket) = case;
        let place = Place::new("");
        symlink("etc", place.at("link")).unwrap();
        Rules::all(place.at("etc/data/rules"));
        fs::create_dir_all(place.at("etc/out/rules")).unwrap();
        symlink("../../data/rules/uid", place.at("etc/out/rules/uid")).unwrap();
        let full = |path: &str| path.replace("PLACE", place.folder.path().to_str().unwrap());
        let serve = |option: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_fdholder"));
            command.arg0(name).args((name == "fdholder").then_some("serve"));
            command.args(["-1", "-v2", "-i", &full(rules)]).args(option).arg(full(socket));
            command.current_dir(place.at("etc")).stderr(File::create(place.at("log")).unwrap());
            Daemon::spawn(command, &place.at("etc/socket"))
        };
        let daemon = serve(&[]);
        assert!(is_let_in(&daemon), "{case:?}");
        // As s6-rc-update does with the folder of its holder.
        fs::rename(place.at("etc/data"), place.at("etc/before")).unwrap();
        Rules::all(place.at("etc/data/rules"));
        assert!(is_let_in(&daemon), "{case:?}: {}", place.log());
        assert!(!place.log().contains("(Landlock)"), "{case:?}: {}", place.log());
        drop(daemon);
        if name != "fdholder" {
            // These have only the options of s6's.
            continue;
        }
        let daemon = serve(&["--landlock"]);
        assert!(is_let_in(&daemon), "{case:?}: {}", place.log());
        assert_eq!(place.log().contains("(Landlock)"), has_landlock(), "{case:?}");
    }
}
