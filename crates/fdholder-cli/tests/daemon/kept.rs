//! Descriptors that arguments or the environment of the next program name are there, or it is said
//! why they cannot be.

use crate::serve;
use crate::support::{assert_exit, deadline, id, is_missing, stderr, stdout, Daemon, Suite};
use fdholder::Limit;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A daemon that holds a file as `a`, which says "held"; and files `one` and `two` beside it.
fn holding() -> (tempfile::TempDir, Daemon) {
    let (folder, daemon) = serve(&[]);
    for name in ["held", "one", "two"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let held = File::open(folder.path().join("held")).unwrap();
    daemon.client().store(&id("a"), Limit::never(), &held, deadline()).unwrap();
    (folder, daemon)
}

/// Runs a script of bash in which `$F` is our program, and `$H` where the daemon listens.
fn bash(script: &str, daemon: &Daemon, folder: &Path) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
    command.env("F", env!("CARGO_BIN_EXE_fdholder")).env("H", &daemon.path);
    for name in ["retrieve", "getdump"] {
        let words = Suite::Ours.words(&format!("s6-fdholder-{name}"));
        command.env(format!("S6_{}", name.to_uppercase()), &words[0]);
    }
    command.output().unwrap()
}

/// What programs see of descriptors that were named to them.
const NAMED: &[(&str, &str, &str)] = &[
    ("process substitution", "\"$F\" exec --fd a \"$H\" -- cat <(echo hi)", "hi\n"),
    ("the same behind retrieve", "\"$F\" retrieve \"$H\" a cat <(echo hi)", "hi\n"),
    ("the same behind getdump", "\"$F\" getdump \"$H\" cat <(echo hi)", "hi\n"),
    ("the same behind s6's names", "\"$S6_RETRIEVE\" \"$H\" a cat <(echo hi)", "hi\n"),
    ("and the other one", "\"$S6_GETDUMP\" \"$H\" cat <(echo hi)", "hi\n"),
    (
        "in a part of an argument",
        "\"$F\" exec --fd a \"$H\" -- sed --expression= --file=/dev/fd/9 one 9< <(echo s/o/O/)",
        "One",
    ),
    (
        "in a variable",
        "CONFIG=/proc/self/fd/9 \"$F\" exec --fd a \"$H\" -- sh -c 'cat $CONFIG' 9<one",
        "one",
    ),
    (
        "a variable whose number is free for it",
        "READY_FD=9 \"$F\" exec --fd a \"$H\" -- bash -c 'echo $READY_FD; cat <&$READY_FD' 9<one",
        "9\none",
    ),
    (
        "a variable whose number is another's",
        "NODE_CHANNEL_FD=3 \"$F\" exec --fd a \"$H\" -- \
         bash -c 'n=/proc/self/fd/; cat <&$NODE_CHANNEL_FD; cat ${n}3' 3<one",
        "oneheld",
    ),
    (
        "a jobserver whose numbers are others'",
        "MAKEFLAGS='s -j2 --jobserver-auth=3,4' \"$F\" exec --fd a --fd a=4 \"$H\" -- \
         bash -c 'n=/proc/self/fd/ r=${MAKEFLAGS##*=}; cat ${n}${r%,*} ${n}${r#*,} ${n}3 ${n}4' \
         3<one 4<two",
        "onetwoheldheld",
    ),
    (
        "a jobserver that has a name",
        "MAKEFLAGS='-j2 --jobserver-auth=fifo:/tmp/GMfifo3' \"$F\" exec --fd a \"$H\" -- \
         sh -c 'echo $MAKEFLAGS' 3<one",
        "-j2 --jobserver-auth=fifo:/tmp/GMfifo3\n",
    ),
    (
        "a number that is not open",
        "NODE_CHANNEL_FD=7 \"$F\" exec --fd a \"$H\" -- sh -c 'echo $NODE_CHANNEL_FD'",
        "7\n",
    ),
    (
        "a number in a script",
        "\"$F\" exec --fd a \"$H\" -- sh -c 'cat <&9' 9<one",
        "one",
    ),
    (
        "an option's number",
        "\"$F\" exec --fd a \"$H\" -- bash -c 'cat <&${1#*=}' bash --ready-fd=19 19<one",
        "one",
    ),
    (
        "a number in a script that is to be a held one",
        "\"$F\" exec --fd a \"$H\" -- sh -c 'cat <&3' 3<one",
        "held",
    ),
    (
        "a script that reads and locks",
        "\"$F\" exec --fd a \"$H\" -- bash -c 'flock -n 8; read -r -u 9 x; echo $x' 8<two 9< <(echo hi)",
        "hi\n",
    ),
    (
        "a list whose numbers are others'",
        "GUNICORN_FD=3,9 \"$F\" exec --fd a \"$H\" -- \
         bash -c 'n=/proc/self/fd/; cat ${n}${GUNICORN_FD%,*} ${n}${GUNICORN_FD#*,} ${n}3' 3<one 9<two",
        "onetwoheld",
    ),
    (
        "numbers beside addresses",
        "SERVER_STARTER_PORT=80=3 PUMA_INHERIT_0=9:tcp://x \"$F\" exec --fd a \"$H\" -- \
         bash -c 'n=/proc/self/fd/; cat ${n}${SERVER_STARTER_PORT#*=} ${n}${PUMA_INHERIT_0%%:*} ${n}3' \
         3<one 9<two",
        "onetwoheld",
    ),
    (
        "a path whose number a style leaves out",
        "\"$F\" exec --env-style nginx --fd a \"$H\" -- sh -c 'cat /dev/fd/3; echo $NGINX' 3<one",
        "one4;\n",
    ),
    (
        "a path beside a chosen number",
        "\"$F\" exec --fd a=9 \"$H\" -- sh -c 'cat /dev/fd/3 /proc/self/fd/9' 3<one",
        "oneheld",
    ),
    (
        "everything",
        "\"$F\" exec --keep-all --fd a \"$H\" -- \
         sh -c 'n=/proc/self/fd/; cat ${n}5 ${n}27 ${n}3' 5<one 27<two",
        "onetwoheld",
    ),
    (
        "everything, with what must move",
        "A_FD=3 \"$F\" exec --keep-all --fd a \"$H\" -- \
         bash -c 'n=/proc/self/fd/; cat ${n}27 ${n}3 ${n}$A_FD' 3<one 27<two",
        "twoheldone",
    ),
    (
        "what is closed",
        "\"$F\" exec --fd a \"$H\" -- sh -c 'n=/proc/self/fd/; ls ${n}5 2>&1 >/dev/null | wc -l' 5<one",
        "1\n",
    ),
];

#[test]
fn named_descriptors_are_there() {
    let (folder, daemon) = holding();
    for (name, script, expected) in NAMED {
        let output = bash(script, &daemon, folder.path());
        assert_exit(&output, 0);
        assert_eq!(stdout(&output), *expected, "{name}: {output:?}");
    }
}

#[test]
fn descriptor_that_cannot_be_kept_is_an_error_that_names_it() {
    let (folder, daemon) = holding();
    for (script, names) in [
        (
            "\"$F\" exec --fd a \"$H\" -- cat /dev/fd/3 3<one",
            &["3 is taken", "an argument names /dev/fd/3", "--fd a=N"][..],
        ),
        (
            "CONFIG=/dev/fd/3 \"$F\" exec --fd a \"$H\" -- true 3<one",
            &["3 is taken", "CONFIG names /dev/fd/3"],
        ),
        (
            "\"$F\" exec --fd a=63 \"$H\" -- cat <(echo hi)",
            &["63 cannot be two descriptors", "an argument names /dev/fd/63"],
        ),
        (
            "\"$F\" exec --keep-all --fd a \"$H\" -- true 3<one",
            &["3 is taken", "--keep-all keeps it"],
        ),
        (
            "\"$F\" exec --keep-all --fd a=9 \"$H\" -- true 9<one",
            &["9 cannot be two descriptors", "--keep-all keeps it"],
        ),
        (
            "\"$F\" exec --keep 3 --fd a \"$H\" -- true 3<one",
            &["3 is taken", "--keep keeps it"],
        ),
        (
            "exec 3<one 4<two; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$F\" exec --fd a \"$H\" -- true",
            &["LISTEN_FDS gives this process the descriptors 3 to 4", "--inherited"],
        ),
    ] {
        let output = bash(script, &daemon, folder.path());
        assert_exit(&output, 100);
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
        for name in names {
            assert!(stderr(&output).contains(name), "{script}: {output:?}");
        }
    }
}

/// With programs that do that.
#[test]
fn node_and_make_speak_with_their_children_through_exec() {
    let (folder, daemon) = holding();
    fs::write(folder.path().join("sub"), "x y:\n\t@true\n").unwrap();
    let make = "all:\n\t+@\"$$F\" exec --fd a \"$$H\" -- $(MAKE) -s -j2 -f sub x y\n";
    fs::write(folder.path().join("make"), make.replace(" -j2", "")).unwrap();
    let script =
        "const child = require('child_process').spawn(process.env.F, ['exec', '--fd', 'a', \
                  process.env.H, '--', process.execPath, '-e', \"process.send('up')\"], \
                  { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }); \
                  child.on('message', said => { console.log(said); child.disconnect(); });";
    fs::write(folder.path().join("parent.js"), script).unwrap();
    for (program, script, expected) in
        [("make", "make -j2 -f make 2>&1", ""), ("node", "node parent.js", "up\n")]
    {
        if Command::new(program).arg("--version").output().is_err() {
            is_missing(program);
            continue;
        }
        let output = bash(script, &daemon, folder.path());
        assert_exit(&output, 0);
        assert_eq!(stdout(&output), expected, "{output:?}");
    }
}
