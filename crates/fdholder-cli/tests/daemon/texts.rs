//! What the programs say to people: help, manual pages, and what is said of the commonest
//! mistakes. Each text is in `tests/snapshots`; `cargo insta review` takes over what was changed
//! on purpose.

use crate::serve;
use crate::support::{assert_exit, is_missing, stderr, stdout, suite};
use std::fmt::Write;
use std::fs;
use std::process::{Command, Stdio};

/// All of them, and those of two words.
fn commands() -> Vec<Vec<String>> {
    let help = stdout(&suite::fdholder(["--help"]).output().unwrap());
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| !line.starts_with("   "));
    let mut commands: Vec<_> = names
        .map(|line| vec![line.split_whitespace().next().unwrap().to_owned()])
        .filter(|words| words[0] != "help")
        .collect();
    for nested in ["config check", "rules check"] {
        commands.push(nested.split(' ').map(str::to_owned).collect());
    }
    commands
}

fn snapshot(name: &str, text: &str) {
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn help_is_as_it_was_read() {
    let whole = suite::fdholder(["--help"]).output().unwrap();
    assert_exit(&whole, 0);
    snapshot("help-fdholder", &stdout(&whole));
    for words in commands() {
        let output = suite::fdholder(&words).arg("--help").output().unwrap();
        assert_exit(&output, 0);
        let help = stdout(&output);
        let widest = help.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= 80, "{words:?}: {widest} columns");
        snapshot(&format!("help-{}", words.join("-")), &help);
    }
}

/// As they are read on a terminal of 80 columns.
#[test]
fn manual_pages_are_as_they_were_read() {
    let folder = tempfile::tempdir().unwrap();
    assert_exit(&suite::fdholder(["man"]).arg(folder.path()).output().unwrap(), 0);
    let pages: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(pages.len(), commands().len() + 1);
    for page in pages {
        let name = page.file_name().into_string().unwrap();
        let name = name.strip_suffix(".1").unwrap();
        // Warnings about the page go to stderr.
        let output = Command::new("groff")
            .args(["-Kutf8", "-man", "-Tutf8", "-P-cbou", "-rLL=78n", "-rHY=0", "-ww"])
            .arg(page.path())
            .output();
        let Ok(output) = output else {
            return is_missing("groff");
        };
        assert_exit(&output, 0);
        assert_eq!(stderr(&output), "", "{name}");
        // The last line is as wide as the version is long.
        let page = stdout(&output);
        let page = page.trim_end().rsplit_once('\n').unwrap().0;
        snapshot(&format!("man-{name}"), page);
    }
}

/// Each shell accepts what is made for it, and bash completes.
#[test]
fn completions_are_accepted() {
    for shell in ["bash", "zsh", "fish"] {
        let output = suite::fdholder(["completions", shell]).output().unwrap();
        assert_exit(&output, 0);
        let script = stdout(&output);
        assert!(script.contains("transferdump") && script.contains("env-style"), "{shell}");
        let Ok(mut child) =
            Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
        else {
            is_missing(shell);
            continue;
        };
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let checked = child.wait_with_output().unwrap();
        assert_exit(&checked, 0);
        assert_eq!(stderr(&checked), "", "{shell}");
    }
    let ask = "eval \"$(fdholder completions bash)\"; \
               COMP_WORDS=(fdholder exec --env); COMP_CWORD=2; \
               _fdholder fdholder --env exec; echo \"${COMPREPLY[@]}\"";
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_fdholder")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash").args(["-c", ask]).env("PATH", path).output().unwrap();
    assert_eq!(stdout(&output), "--env-style\n", "{output:?}");
}

/// The commonest mistakes with each command, and what is said of them.
#[test]
fn mistakes_are_answered_as_it_was_read() {
    let (folder, daemon) = serve(&[]);
    let path = daemon.path.to_str().unwrap();
    let config = folder.path().join("config");
    fs::write(&config, "max_fd = 5\n").unwrap();
    let config = config.to_str().unwrap();
    let mut said = String::new();
    for line in [
        "",
        "lst HOLDER",
        "serve",
        "serve --standbye HOLDER",
        "serve -n many HOLDER",
        "serve --config CONFIG",
        "serve --config /nowhere/config",
        "bind HOLDER web",
        "bind HOLDER web tcp:80",
        "bind HOLDER web tcp:localhost:80",
        "bind HOLDER web tcp:192.0.2.1:80",
        "bind HOLDER web unix:web.sock",
        "bind HOLDER web tcp:0.0.0.0:80 --mode 0600",
        "bind /nowhere/holder web tcp:0.0.0.0:0",
        "bind HOLDER web tpc:0.0.0.0:80",
        "exec --fd web HOLDER true",
        "exec HOLDER -- true",
        "exec --fd web -- true",
        "exec --fd web HOLDER -- true",
        "exec --fd-prefix web/ HOLDER -- true",
        "exec --fd web --env-style sytemd HOLDER -- true",
        "exec --bind web HOLDER -- true",
        "exec --bind web=0.0.0.0:80 HOLDER -- true",
        "exec --bind web=tpc:0.0.0.0:80 HOLDER -- true",
        "exec --bind web=tcp:80 HOLDER -- true",
        "exec --bind web=tcp:0.0.0.0:80,baklog=5 HOLDER -- true",
        "exec --bind web=tcp:0.0.0.0:80,mode=0600 HOLDER -- true",
        "exec --bind web=tcp:192.0.2.1:80 HOLDER -- true",
        "store HOLDER",
        "store -d 99 HOLDER web",
        "store -T soon HOLDER web",
        "retrieve HOLDER web",
        "retrieve HOLDER web true",
        "list",
        "list /nowhere/holder",
        "list --long /nowhere/holder",
        "list --tiemout 5 HOLDER",
        "delete HOLDER web",
        "getdump HOLDER",
        "getdump HOLDER /nowhere/program",
        "setdump HOLDER",
        "transferdump HOLDER",
        "transferdump HOLDER /nowhere/holder",
        "transferdump --only web HOLDER /nowhere/holder",
        "status",
        "status /nowhere/holder",
        "metrics --output /nowhere/file HOLDER",
        "upgrade /nowhere/holder",
        "config chek CONFIG",
        "config check CONFIG",
        "rules check /nowhere/rules",
        "rules check --uid 5 .",
        "completions tcsh",
        "man",
        "man /dev/null/man",
    ] {
        let words = line.split_whitespace().map(|word| match word {
            "HOLDER" => path,
            "CONFIG" => config,
            word => word,
        });
        let output = suite::fdholder(words).stdin(Stdio::null()).output().unwrap();
        let text = stderr(&output).replace(path, "HOLDER").replace(config, "CONFIG");
        assert_eq!(text.lines().count(), 1, "{line}: {text}");
        let code = output.status.code().unwrap();
        // Writing to a string does not fail.
        let _ = writeln!(said, "$ fdholder {line}\n{text}({code})\n");
    }
    snapshot("mistakes", &said);
}
