//! The package itself.

use crate::support::system::System;
use crate::{file, installed};
use std::fs;
use std::path::{Path, PathBuf};

/// dpkg refuses files that another package has; s6 is installed there.
pub fn is_installed_beside_s6() {
    let system = installed();
    let version = format!("fdholder {}-1 installed", env!("CARGO_PKG_VERSION"));
    let query = "dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Status}' ";
    assert_eq!(system.run(&format!("{query} fdholder")), version);
    assert!(system.run(&format!("{query} s6")).ends_with(" installed"));
    assert!(system.run("fdholder rules check /etc/fdholder/rules").contains("uid/self"));
    assert!(system.run("getent passwd fdholder").starts_with("fdholder:"));
    assert_eq!(system.run("dpkg --verify fdholder"), "");

    // The daemon may execute whatever is there.
    assert_eq!(system.run("ls /usr/lib/fdholder"), "fdholder\ns6-names\n");

    // The next version, then neither its files nor its rules.
    system.run("echo changed > /etc/fdholder/rules/uid/default; dpkg --install /srv/fdholder.deb");
    system.run(
        "dpkg --remove fdholder && test -e /etc/fdholder/rules && ! test -e /usr/bin/fdholder",
    );
    system.run("dpkg --purge fdholder && ! test -e /etc/fdholder && ! test -e /usr/lib/fdholder");
    assert!(system.run(&format!("{query} s6")).ends_with(" installed"));
}

/// By the PATH, and not otherwise.
pub fn names_of_s6() {
    let system = installed();
    let names = "/usr/lib/fdholder/s6-names";
    let listed = system.run(&format!("ls {names}"));
    // All that s6's own package has.
    assert_eq!(listed, system.run("cd /usr/bin; ls -d s6-fdholder*"));
    for name in listed.lines() {
        system.run(&format!("test ! {names}/{name} -ef /usr/bin/{name}"));
        system.run(&format!("test {names}/{name} -ef /usr/bin/fdholder"));
        let usage = system.try_run(&format!("PATH={names}:$PATH; {name} --no-such-option"));
        assert_eq!(usage.status.code(), Some(100), "{name}: {usage:?}");
    }
}

/// By shellcheck, every script of the repository.
pub fn scripts_have_no_mistake() {
    let system = System::start();
    let scripts = scripts();
    assert!(scripts.len() > 10, "{scripts:?}");
    let folder = system.share().join("scripts");
    fs::create_dir(&folder).unwrap();
    for (number, script) in scripts.iter().enumerate() {
        let text = fs::read_to_string(script).unwrap();
        let shell = if text.starts_with("#!/sbin/openrc-run") {
            // These are for OpenRC to read, and come from it.
            "# shellcheck shell=sh disable=SC2034,SC2154\n"
        } else {
            assert!(text.starts_with("#!/bin/sh\n"), "{}", script.display());
            ""
        };
        let name = script.file_name().unwrap().to_str().unwrap();
        let text = text.replacen('\n', &format!("\n{shell}"), 1);
        fs::write(folder.join(format!("{number}-{name}")), text).unwrap();
    }
    system.run("cd /srv/scripts; for it in *; do sh -n \"$it\"; done; shellcheck *");
}

fn scripts() -> Vec<PathBuf> {
    let mut scripts = files(&file("../scripts"));
    for script in files(&file("")) {
        if fs::read(&script).unwrap().starts_with(b"#!") {
            scripts.push(script);
        }
    }
    scripts
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.append(&mut self::files(&entry));
        } else {
            files.push(entry);
        }
    }
    files
}
