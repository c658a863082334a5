//! `man` and `completions`: manual pages and completions, from the table that options are
//! read by.

use crate::commands::ALL;
use crate::failure::{exit, Failure};
use crate::program::{everything, Invocation, Program};
use crate::show::output::print;
use clap::builder::EnumValueParser;
use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

pub const MAN: Program =
    Program { subcommand: "man", s6_name: "", s6_usage: "", define: define_man, run: run_man };

pub const COMPLETIONS: Program = Program {
    subcommand: "completions",
    s6_name: "",
    s6_usage: "",
    define: define_completions,
    run: run_completions,
};

fn define_man(command: Command) -> Command {
    command
        .about("Write the manual pages")
        .after_help(
            "Example:\n  \
             fdholder man ~/.local/share/man/man1 && man fdholder-exec\n\n\
             Exit codes: 0 done, 100 wrong usage, 111 a page cannot be written.",
        )
        .arg(
            Arg::new("folder")
                .value_name("FOLDER")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Where to; it is made if it is not there"),
        )
}

fn run_man(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let folder: PathBuf = invocation.required("folder")?;
    fs::create_dir_all(&folder)
        .map_err(|error| Failure::system(format!("make {}", folder.display()), error))?;
    for (name, page) in pages()? {
        let file = folder.join(name);
        fs::write(&file, page)
            .map_err(|error| Failure::system(format!("write {}", file.display()), error))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The page of each command, and the name of its file.
fn pages() -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut whole = everything(ALL).disable_help_subcommand(true);
    whole.build();
    let mut pages = Vec::new();
    add_page(&whole, "fdholder", &mut pages)?;
    Ok(pages)
}

fn add_page(
    command: &Command,
    name: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), Failure> {
    // clap takes names that stay; this process does not.
    let named = command.clone().name(name.to_owned().leak() as &str);
    let mut page = Vec::new();
    let source = concat!("fdholder ", env!("CARGO_PKG_VERSION"));
    Man::new(named.version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true))
        .title(name.to_uppercase())
        // Pages that are made twice are the same.
        .date("")
        .source(source)
        .manual("fdholder")
        .render(&mut page)
        .map_err(|error| Failure::system("make a page", error))?;
    pages.push((format!("{name}.1"), finished(&page, name)));
    for nested in command.get_subcommands() {
        add_page(nested, &format!("{name}-{}", nested.get_name()), pages)?;
    }
    Ok(())
}

/// With the sections named as those of other pages are.
fn finished(page: &[u8], name: &str) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(page).replace(".SH EXTRA\n", ".SH NOTES\n");
    if name != "fdholder" {
        text.push_str(".SH \"SEE ALSO\"\n\\fBfdholder\\fR(1)\n");
    }
    text.into_bytes()
}

fn define_completions(command: Command) -> Command {
    command
        .about("Write completions for a shell to standard output")
        .after_help(
            "Examples:\n  \
             fdholder completions bash > /etc/bash_completion.d/fdholder\n  \
             fdholder completions zsh > /usr/share/zsh/vendor-completions/_fdholder\n  \
             fdholder completions fish > ~/.config/fish/completions/fdholder.fish",
        )
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(EnumValueParser::<Shell>::new())
                .help("Which"),
        )
}

fn run_completions(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let shell: Shell = invocation.required("shell")?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut everything(ALL), "fdholder", &mut script);
    let script = String::from_utf8(script)
        .map_err(|_| Failure::new(exit::SYSTEM, "the completions are no text"))?;
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}
