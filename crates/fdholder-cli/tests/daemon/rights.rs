//! Every command with every set of rights, on holders with nothing, something and much: the exit
//! code is what the pages say.

use crate::support::rights::{Guarded, Rights};
use crate::support::{deadline, id, is_missing, stderr, stdout, suite, Suite};
use fdholder::Limit;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

/// A command, whether it succeeds with these rights on a holder that holds `x0` or nothing, and
/// whether it takes a dump that s6 2.11 cannot give.
struct Case {
    words: &'static [&'static str],
    succeeds: fn(Rights, bool) -> bool,
    dumps: bool,
}

const fn case(words: &'static [&'static str], succeeds: fn(Rights, bool) -> bool) -> Case {
    Case { words, succeeds, dumps: false }
}

/// PATH is where the holder listens.
const CASES: &[Case] = &[
    case(&["list", "PATH"], |may, _| may.list),
    case(&["list", "--json", "PATH"], |may, _| may.list),
    case(&["s6-fdholder-list", "PATH"], |may, _| may.list),
    Case { dumps: true, ..case(&["list", "--long", "PATH"], |may, _| may.list || may.getdump) },
    Case {
        dumps: true,
        ..case(&["list", "--long", "--json", "PATH"], |may, _| may.list || may.getdump)
    },
    case(&["status", "PATH"], |may, _| may.list || may.getdump),
    case(&["status", "--json", "PATH"], |may, _| may.list || may.getdump),
    case(&["metrics", "PATH"], |may, _| may.list || may.getdump),
    Case { dumps: true, ..case(&["getdump", "PATH", "true"], |may, _| may.getdump) },
    Case { dumps: true, ..case(&["s6-fdholder-getdump", "PATH", "true"], |may, _| may.getdump) },
    case(&["retrieve", "PATH", "x0", "true"], |may, held| may.retrieve && held),
    case(&["s6-fdholder-retrieve", "PATH", "x0", "true"], |may, held| may.retrieve && held),
    case(&["exec", "--fd", "x0", "PATH", "--", "true"], |may, held| may.retrieve && held),
    case(&["exec", "--missing-ok", "--fd", "x0", "PATH", "--", "true"], |may, _| may.retrieve),
    case(&["exec", "--fd-prefix", "x", "PATH", "--", "true"], |may, held| {
        may.list && may.retrieve && held
    }),
    case(&["exec", "--missing-ok", "--fd-prefix", "x", "PATH", "--", "true"], |may, held| {
        may.list && (may.retrieve || !held)
    }),
    case(&["delete", "PATH", "none"], |_, _| false),
    // These change what is held, and are put right afterwards.
    case(&["setdump", "PATH"], |may, _| may.setdump),
    case(&["S6_FD#=0", "setdump", "PATH"], |may, _| may.setdump),
    case(&["S6_FD#=0", "s6-fdholder-setdump", "PATH"], |may, _| may.setdump),
    case(&["store", "PATH", "new"], |may, _| may.store),
    case(&["delete", "PATH", "x0"], |may, held| may.store && held),
    case(&["retrieve", "-D", "PATH", "x0", "true"], |may, held| may.retrieve && may.store && held),
];

fn run(words: &[&str], path: &str) -> Output {
    let (variable, words) = match words[0].split_once('=') {
        Some(variable) => (variable, &words[1..]),
        None => (("S6_FD#", "1"), words),
    };
    let mut command = if words[0].starts_with("s6-") {
        Suite::Ours.command(words[0])
    } else {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fdholder"));
        command.arg(words[0]);
        command
    };
    let words = words[1..].iter().map(|word| if *word == "PATH" { path } else { word });
    command.args(words);
    command.env(variable.0, variable.1).env("S6_FD_0", "0").env("S6_FDID_0", "new");
    command.stdin(Stdio::null()).output().unwrap()
}

fn every_command(suite: Suite) {
    if !suite.is_installed() {
        return is_missing(&suite.to_string());
    }
    for count in [0, 1, 300] {
        let holder = Guarded::holding(suite, count);
        for rights in Rights::subsets() {
            for case in CASES {
                holder.grant(rights);
                let output = run(case.words, holder.path());
                let is_listed = case.words.contains(&"--long") && rights.list;
                let is_possible = !case.dumps || holder.can_dump(count) || is_listed;
                let expected = i32::from(!((case.succeeds)(rights, count > 0) && is_possible));
                let what = format!("{suite}, {count} held, {rights:?}: {:?}", case.words);
                assert_eq!(output.status.code(), Some(expected), "{what}: {output:?}");
                let lines = stderr(&output);
                if expected == 0 {
                    // What s6's daemon does not tell is said on stderr.
                    assert!(lines.is_empty() || suite != Suite::Ours, "{what}: {output:?}");
                } else {
                    assert_eq!(lines.lines().count(), 1, "{what}: {output:?}");
                    assert!(lines.contains(": fatal: "), "{what}: {output:?}");
                    assert!(!lines.trim_end().ends_with(':'), "{what}: {output:?}");
                }
                put_right(&holder, case, count);
            }
        }
    }
}

/// Has the holder hold again what it did.
fn put_right(holder: &Guarded, case: &Case, count: u32) {
    let changes = ["setdump", "store", "delete", "-D", "s6-fdholder-setdump"];
    if !case.words.iter().any(|word| changes.contains(word)) {
        return;
    }
    holder.grant(Rights::ALL);
    let mut client = holder.client();
    let _ = client.delete(&id("new"), deadline());
    if count > 0 {
        let null = File::open("/dev/null").unwrap();
        let _ = client.store(&id("x0"), Limit::never(), &null, deadline());
    }
    assert_eq!(client.list(deadline()).unwrap().len(), count as usize);
}

#[test]
fn every_command_with_every_right_on_ours_exits_as_documented() {
    every_command(Suite::Ours);
}

#[test]
fn every_command_with_every_right_on_s6_2_11_exits_as_documented() {
    every_command(Suite::S6V211);
}

#[test]
fn every_command_with_every_right_on_s6_2_13_exits_as_documented() {
    every_command(Suite::S6V213);
}

/// What is known is told, whether or not all of it is.
#[test]
fn metrics_of_a_holder_that_refuses_say_that_it_answers() {
    for suite in [Suite::Ours, Suite::S6V213] {
        if !suite.is_installed() {
            is_missing(&suite.to_string());
            continue;
        }
        let holder = Guarded::holding(suite, 1);
        holder.grant(Rights { connect: true, ..Rights::default() });
        let output = run(&["metrics", "PATH"], holder.path());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stdout(&output).contains("fdholder_up{path="), "{output:?}");
        assert!(stdout(&output).trim_end().ends_with(" 1"), "{output:?}");
        assert!(stderr(&output).contains("not permitted"), "{output:?}");
        // One that does not even let this user in does not answer.
        holder.grant(Rights::default());
        let output = run(&["metrics", "PATH"], holder.path());
        assert!(stdout(&output).trim_end().ends_with(" 0"), "{output:?}");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
}

/// A command that takes something for a program looks before whether that is there.
#[test]
fn a_program_that_is_missing_takes_nothing() {
    let holder = Guarded::holding(Suite::Ours, 1);
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    // Only exec itself finds out that there is no such interpreter.
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    for (program, code) in [
        ("/nowhere/prog", 127),
        ("no-such-program-anywhere", 127),
        ("", 127),
        (plain.to_str().unwrap(), 126),
        ("/", 126),
        (script.to_str().unwrap(), 127),
    ] {
        for words in [
            &["retrieve", "-D", "PATH", "x0", program][..],
            &["s6-fdholder-retrieve", "-D", "PATH", "x0", program],
        ] {
            let output = run(words, holder.path());
            assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
            assert!(stderr(&output).contains("unable to exec"), "{output:?}");
            assert_eq!(holder.client().list(deadline()).unwrap().len(), 1, "{words:?}");
        }
    }
    let output = suite::fdholder(["retrieve", "-D", holder.path(), "x0", "true"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(holder.client().list(deadline()).unwrap().is_empty());
}
